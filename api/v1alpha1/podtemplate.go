package v1alpha1

import (
	"bytes"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/json"
)

// PodTemplate is a pod template. Its schema would make the CRD too big for kubectl
// apply, so the API server stores any object here. The webhook refuses one that is no
// pod template; where no webhook runs, the condition Ready says so.
//
// +kubebuilder:validation:Type=object
type PodTemplate struct {
	corev1.PodTemplateSpec `json:",inline"`

	// Malformed is the JSON that is no pod template; nil where it is one. The decoder
	// keeps it and Check reports it, because an informer that cannot decode one object
	// delivers none of its kind.
	Malformed []byte `json:"-"`
}

// UnmarshalJSON implements json.Unmarshaler. It has no error of its own.
func (t *PodTemplate) UnmarshalJSON(data []byte) error {
	*t = PodTemplate{}
	if err := json.Unmarshal(data, &t.PodTemplateSpec); err != nil {
		*t = PodTemplate{Malformed: bytes.Clone(data)}
	}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (t PodTemplate) MarshalJSON() ([]byte, error) {
	if t.Malformed != nil {
		return t.Malformed, nil
	}
	return json.Marshal(t.PodTemplateSpec)
}

// Check returns an error that names the field of the template that has a wrong type.
func (t *PodTemplate) Check() error {
	if t == nil || t.Malformed == nil {
		return nil
	}
	err := json.Unmarshal(t.Malformed, &corev1.PodTemplateSpec{})
	return fmt.Errorf("spec.template: not a pod template: %w", err)
}
