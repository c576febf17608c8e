package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

const templateField = "spec.template"

// strictTemplate finds misspelt fields: the CRD keeps unknown ones, and the pod would
// be made without what its owner asked for.
func strictTemplate(object []byte) error {
	var raw struct {
		Spec struct {
			Template json.RawMessage `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(object, &raw); err != nil {
		return fmt.Errorf("reading the object: %w", err)
	}
	if len(raw.Spec.Template) == 0 {
		return nil
	}
	unknown, err := kjson.UnmarshalStrict(raw.Spec.Template, &corev1.PodTemplateSpec{})
	if err == nil {
		err = errors.Join(unknown...)
	}
	if err != nil {
		return fmt.Errorf("not a pod template: %w", err)
	}
	return nil
}

// trial completes a pod as the reconcilers do and has the API server try it without
// creating it.
type trial struct {
	create   func(context.Context, *corev1.Pod) error
	executor *podtemplate.Executor
}

// run returns what is wrong with the pod, where it is the API server that finds it in
// its own words. Only an invalid pod counts; that it may not be created now (a full
// quota, a policy of the namespace) is a warning.
func (t *trial) run(ctx context.Context, pod *corev1.Pod, inject podtemplate.Injection, field string, warnings *warnings) []metav1.StatusCause {
	if err := t.executor.Complete(pod, inject); err != nil {
		found := causeOf(err, field)
		if found.Field != field {
			found.Field = field + "." + found.Field
		}
		return []metav1.StatusCause{found}
	}
	for _, text := range podtemplate.Warnings(&pod.Spec) {
		warnings.add(field + "." + text)
	}
	pod.OwnerReferences = nil // the owner does not exist yet
	err := t.create(ctx, pod)
	if err == nil || ctx.Err() != nil {
		return nil // without an answer in time the reconciler will tell
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusUnprocessableEntity {
		warnings.add(fmt.Sprintf("%s: a pod of it would not be created now: %v", field, err))
		return nil
	}
	details := status.Status().Details
	if details == nil || len(details.Causes) == 0 {
		return []metav1.StatusCause{cause(field, err)}
	}
	causes := slices.Clone(details.Causes)
	for i := range causes {
		causes[i].Field = field + "." + causes[i].Field
	}
	return causes
}

func cause(field string, err error) metav1.StatusCause {
	return metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: field, Message: err.Error()}
}

// causeOf an error that begins with the field that is wrong, or, where it does not, is
// about the one given.
func causeOf(err error, field string) metav1.StatusCause {
	text := err.Error()
	if named, rest, found := strings.Cut(text, ": "); found && strings.HasPrefix(named, "spec.") {
		field, text = named, rest
	}
	return metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: field, Message: text}
}

// invalid is the API server's own form of an answer: 422 with the fields.
func invalid(kind, name string, causes ...metav1.StatusCause) *apierrors.StatusError {
	lines := make([]string, len(causes))
	for i, c := range causes {
		lines[i] = strings.TrimPrefix(c.Field+": "+c.Message, ": ")
	}
	text := lines[0]
	if len(lines) > 1 {
		text = "[" + strings.Join(lines, ", ") + "]"
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: fmt.Sprintf("%s.%s %q is invalid: %s", kind, v1alpha1.GroupName, name, text),
		Details: &metav1.StatusDetails{Group: v1alpha1.GroupName, Kind: kind, Name: name, Causes: causes},
	}}
}

// warnings of one request, each once.
type warnings struct {
	mu    sync.Mutex // guards texts
	texts []string
}

func (w *warnings) add(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.texts, text) {
		w.texts = append(w.texts, text)
	}
}

func (w *warnings) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.texts)
}

type warningsKey struct{}

// collectWarnings gathers, beside our own, the warnings that the API server answers
// dry runs with (a deprecated field, a Pod Security level that warns): the user would
// see them on a pod, and sees them here instead.
func collectWarnings(ctx context.Context) (context.Context, *warnings) {
	w := &warnings{}
	return context.WithValue(ctx, warningsKey{}, w), w
}

type warningCollector struct{}

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (warningCollector) HandleWarningHeaderWithContext(ctx context.Context, _ int, _, text string) {
	if w, ok := ctx.Value(warningsKey{}).(*warnings); ok && text != "" {
		w.add(text)
	}
}
