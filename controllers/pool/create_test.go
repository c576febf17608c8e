package pool

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func updatedTemplate() *v1alpha1.PodTemplate {
	return &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Hostname: "changed"}}}
}

func answer(code int32, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Code: code, Message: message, Details: &metav1.StatusDetails{Name: "warm-x1y2z3", Kind: "pods"},
	}}
}

func TestNewFailure(t *testing.T) {
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "warm"}}
	cases := []struct {
		name string
		err  error
		want failure
	}{
		{
			"an invalid pod is the template's fault; its random name does not change the message",
			answer(http.StatusUnprocessableEntity, `Pod "warm-x1y2z3" is invalid: spec.containers: Required value`),
			failure{v1alpha1.ReasonTemplateInvalid, `Pod "warm-*" is invalid: spec.containers: Required value`},
		},
		{
			"a quota is not",
			answer(http.StatusForbidden, `pods "warm-x1y2z3" is forbidden: exceeded quota: q`),
			failure{v1alpha1.ReasonCreateFailed, `pods "warm-*" is forbidden: exceeded quota: q`},
		},
		{
			"an error of the connection",
			errors.New("connection refused"),
			failure{v1alpha1.ReasonCreateFailed, "creating pod warm-x1y2z3: connection refused"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, &c.want, newFailure(pool, fmt.Errorf("creating pod warm-x1y2z3: %w", c.err)))
		})
	}
}

func newPass() *pass {
	return &pass{
		Reconciler: &Reconciler{Config: Config{Clock: clocktesting.NewFakeClock(now)}},
		state:      &state{revision: currentRev}, pool: &v1alpha1.Pool{}, now: now,
	}
}

func TestNoteCreate(t *testing.T) {
	p := newPass()
	timeout := errors.New("timeout")
	refused := answer(http.StatusUnprocessableEntity, "invalid")
	steps := []struct {
		name     string
		err      error
		failures int
		delay    time.Duration
		shown    bool
	}{
		{"a single error that may pass is not shown", timeout, 1, time.Second, false},
		{"a second one is", timeout, 2, 2 * time.Second, true},
		{"a success ends it", nil, 0, 0, false},
		{"a refusal is shown at once", refused, 1, time.Second, true},
		{"the delay doubles", refused, 2, 2 * time.Second, true},
		{"the delay doubles again", refused, 3, 4 * time.Second, true},
	}
	for _, s := range steps {
		p.noteCreate(t.Context(), s.err)
		assert.Equal(t, s.failures, p.state.memory.CreateFailures, s.name)
		assert.Equal(t, s.shown, p.state.failure != nil, s.name)
		if s.delay > 0 {
			assert.Equal(t, now.Add(s.delay), p.state.memory.RetryAt, s.name)
		} else {
			assert.True(t, p.state.memory.RetryAt.IsZero(), s.name)
		}
	}
	assert.Equal(t, currentRev, p.state.memory.Accepted)
	for range 20 {
		p.noteCreate(t.Context(), refused)
	}
	assert.Equal(t, now.Add(maxCreateDelay), p.state.memory.RetryAt, "the delay is bounded")
}

func TestAnEndingNamespaceIsNoFailureToShow(t *testing.T) {
	p := newPass()
	ending := &apierrors.StatusError{ErrStatus: metav1.Status{Code: http.StatusForbidden, Details: &metav1.StatusDetails{
		Causes: []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}},
	}}}
	p.noteCreate(t.Context(), ending)
	assert.Nil(t, p.state.failure)
	assert.Equal(t, now.Add(maxCreateDelay), p.state.memory.RetryAt)
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	_, err := New(Config{Clock: clocktesting.NewFakeClock(now)})
	assert.ErrorContains(t, err, "Client, APIReader, Refill, Ledger, Wakes, Recorder, WaitOpen, Executor, Ending missing")
}
