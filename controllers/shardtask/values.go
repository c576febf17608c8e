package shardtask

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"unicode/utf8"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// Values reads what a task names instead of saying it.
type Values interface {
	// Key returns the value of a key. It is not found where it is optional and not there;
	// where it must be there, the error is a ValueError.
	Key(kind ValueKind, ref *v1alpha1.KeyRef) (value []byte, found bool, err error)
	// Field returns a field of the sandbox's pod.
	Field(path string) (string, error)
}

// ValueKind is the kind of an object that holds values.
type ValueKind string

// The kinds.
const (
	KindSecret    ValueKind = "Secret"
	KindConfigMap ValueKind = "ConfigMap"
)

// ValueError says why a task waits for a value. It never holds the value.
type ValueError struct {
	// Reason of the condition TasksCompleted.
	Reason  string
	Message string
}

func (e *ValueError) Error() string { return e.Message }

// noValues stands for values that are not read: what names them is checked, and that
// something does is noted.
type noValues struct{ named bool }

// Key implements Values.
func (v *noValues) Key(ValueKind, *v1alpha1.KeyRef) ([]byte, bool, error) {
	v.named = true
	return nil, true, nil
}

// Field implements Values.
func (v *noValues) Field(string) (string, error) {
	v.named = true
	return "", nil
}

// environment returns the variables with their values.
func environment(env []v1alpha1.EnvVar, values Values) ([]executorapi.EnvVar, error) {
	var result []executorapi.EnvVar
	for i := range env {
		e := &env[i]
		value, found, err := valueOf(e, values)
		var waits *ValueError
		switch {
		case errors.As(err, &waits):
			return nil, err
		case err != nil:
			return nil, fmt.Errorf("spec.process.env[%d]: %w", i, err)
		case found:
			result = append(result, executorapi.EnvVar{Name: e.Name, Value: value})
		}
	}
	return result, nil
}

func valueOf(e *v1alpha1.EnvVar, values Values) (string, bool, error) {
	from := e.ValueFrom
	if from == nil {
		return e.Value, true, nil
	}
	if err := checkSource(e); err != nil {
		return "", false, err
	}
	if from.FieldRef != nil {
		value, err := values.Field(from.FieldRef.FieldPath)
		return value, err == nil, err
	}
	kind, ref := keyOf(from.SecretKeyRef, from.ConfigMapKeyRef)
	value, found, err := values.Key(kind, ref)
	if err == nil && (!utf8.Valid(value) || bytes.IndexByte(value, 0) >= 0) {
		err = &ValueError{v1alpha1.ReasonValuesNotReadable, fmt.Sprintf("key %q of %s %s holds bytes that the variable %s cannot hold", ref.Key, kind, ref.Name, e.Name)}
	}
	return string(value), found, err
}

// keyOf returns the one of the two that is set.
func keyOf(secret, configMap *v1alpha1.KeyRef) (ValueKind, *v1alpha1.KeyRef) {
	if secret != nil {
		return KindSecret, secret
	}
	return KindConfigMap, configMap
}

// defaultMode of a file.
const defaultMode = 0o644

// filesOf returns the files with their contents.
func filesOf(files []v1alpha1.File, values Values) ([]executorapi.File, error) {
	var result []executorapi.File
	for i := range files {
		f := &files[i]
		if err := checkContent(f); err != nil {
			return nil, fmt.Errorf("spec.files[%d]: %w", i, err)
		}
		file := executorapi.File{Path: f.Path, Mode: defaultMode, Content: f.ContentBase64}
		if f.Mode != nil {
			file.Mode = uint32(*f.Mode) //nolint:gosec // G115: it was checked
		}
		if f.Content != nil {
			file.Content = []byte(*f.Content)
		}
		if from := f.ContentFrom; from != nil {
			content, found, err := values.Key(keyOf(from.SecretKeyRef, from.ConfigMapKeyRef))
			if err != nil {
				return nil, err
			}
			if !found {
				continue
			}
			file.Content = content
		}
		result = append(result, file)
	}
	return result, nil
}

func checkContent(f *v1alpha1.File) error {
	set := 0
	for _, there := range []bool{f.Content != nil, f.ContentBase64 != nil, f.ContentFrom != nil} {
		if there {
			set++
		}
	}
	switch from := f.ContentFrom; {
	case set != 1:
		return errors.New("exactly one of content, contentBase64 and contentFrom must be set")
	case f.Mode != nil && (*f.Mode < 0 || *f.Mode > 0o777):
		return fmt.Errorf("mode: %d is not between 0 and 511 (0777)", *f.Mode)
	case from == nil:
		return nil
	case (from.SecretKeyRef != nil) == (from.ConfigMapKeyRef != nil):
		return errors.New("contentFrom: exactly one of secretKeyRef and configMapKeyRef must be set")
	case from.SecretKeyRef != nil:
		return checkKey("contentFrom.secretKeyRef", from.SecretKeyRef)
	default:
		return checkKey("contentFrom.configMapKeyRef", from.ConfigMapKeyRef)
	}
}

// fieldPath is what the CRD's pattern says, for patches, which the API server does not look into.
var fieldPath = regexp.MustCompile(`^(metadata\.(name|namespace|uid|(labels|annotations)\['[^']+'\])|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?))$`)

func checkSource(e *v1alpha1.EnvVar) error {
	from := e.ValueFrom
	set := 0
	for _, there := range []bool{from.SecretKeyRef != nil, from.ConfigMapKeyRef != nil, from.FieldRef != nil} {
		if there {
			set++
		}
	}
	switch {
	case e.Value != "":
		return errors.New("value and valueFrom must not both be set")
	case set != 1:
		return errors.New("valueFrom: exactly one of secretKeyRef, configMapKeyRef and fieldRef must be set")
	case from.FieldRef != nil && !fieldPath.MatchString(from.FieldRef.FieldPath):
		return fmt.Errorf("valueFrom.fieldRef.fieldPath: %q is no field of a pod that a task may name", from.FieldRef.FieldPath)
	case from.SecretKeyRef != nil:
		return checkKey("valueFrom.secretKeyRef", from.SecretKeyRef)
	case from.ConfigMapKeyRef != nil:
		return checkKey("valueFrom.configMapKeyRef", from.ConfigMapKeyRef)
	}
	return nil
}

func checkKey(field string, ref *v1alpha1.KeyRef) error {
	if ref.Name == "" || ref.Key == "" {
		return fmt.Errorf("%s: name and key must not be empty", field)
	}
	return nil
}
