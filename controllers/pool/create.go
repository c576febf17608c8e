package pool

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

const (
	// firstCreateDelay is how long after a failed create the next is tried; it
	// doubles with every failure up to maxCreateDelay. A changed spec is tried at once.
	firstCreateDelay = time.Second
	maxCreateDelay   = time.Minute
	// nameAttempts is how many names are tried for one pod.
	nameAttempts = 4
)

// errNameTaken: a pod that is not this Pool's has the name.
var errNameTaken = errors.New("the name is taken by a pod of another owner")

// errTemplate marks a template that no pod can be made from.
var errTemplate = errors.New("template cannot be used")

// failure is why pods could not be created.
type failure struct {
	reason  string // of the condition Ready
	message string
}

// createPods repeats the creates whose outcome is not known and creates n new pods.
func (p *pass) createPods(ctx context.Context, repeat []string, n int) {
	var mu sync.Mutex // guards first and done
	var first error
	done := 0
	_ = p.spread(ctx, len(repeat)+n, func(ctx context.Context, i int) error {
		var err error
		if i < len(repeat) {
			err = p.create(ctx, repeat[i])
		} else {
			err = p.createNew(ctx)
		}
		mu.Lock()
		defer mu.Unlock()
		done++
		if first == nil {
			first = err
		}
		return err
	})
	if done > 0 {
		p.noteCreate(ctx, first)
	}
}

// createNew creates one pod under a name that nobody has.
func (p *pass) createNew(ctx context.Context) error {
	err := errNameTaken
	for range nameAttempts {
		name := podtemplate.PoolPodName(p.pool.Name)
		if len(p.Ledger.BeginCreate(p.key, []string{name})) == 0 {
			continue
		}
		if err = p.create(ctx, name); !errors.Is(err, errNameTaken) {
			return err
		}
	}
	return err
}

// create sends one reserved pod. The reservation is kept while it is not known
// whether the pod exists.
func (p *pass) create(ctx context.Context, name string) error {
	pod, err := p.newPod(name)
	if err != nil {
		p.Ledger.AbortCreate(p.key, name)
		return err
	}
	err = p.Refill.Create(ctx, pod)
	countCreate(err)
	switch {
	case err == nil:
		p.confirm(name, pod)
		return nil
	case apierrors.IsAlreadyExists(err):
		return p.adopt(ctx, name)
	case apiwrite.Refused(err):
		p.Ledger.AbortCreate(p.key, name)
	}
	return fmt.Errorf("creating pod %s: %w", name, err)
}

// newPod returns the pod that the pool's template makes, with its executor.
func (p *pass) newPod(name string) (*corev1.Pod, error) {
	pod, err := podtemplate.ForPool(p.pool, name, p.state.revision)
	if err == nil {
		err = p.executor.Complete(pod, p.executor.InjectsInto(p.pool))
	}
	if err != nil {
		return nil, errors.Join(errTemplate, err)
	}
	return pod, nil
}

// adopt finds out whether the pod that has the name is what an earlier sending of
// the same create made.
func (p *pass) adopt(ctx context.Context, name string) error {
	pod, err := p.lookUp(ctx, name)
	if err != nil {
		return err
	}
	if pod == nil {
		p.Ledger.AbortCreate(p.key, name)
		return fmt.Errorf("creating pod %s: %w", name, errNameTaken)
	}
	p.confirm(name, pod)
	return nil
}

// confirm notes that the pod exists.
func (p *pass) confirm(name string, pod *corev1.Pod) {
	p.Ledger.ConfirmCreate(p.key, name, pod.UID)
	p.state.noteCreated(name, p.now)
}

// probe finds out whether the API server takes a pod of the current revision,
// without making one. A full quota is no refusal: the pod that is to be replaced
// makes room.
func (p *pass) probe(ctx context.Context) {
	name := podtemplate.PoolPodName(p.pool.Name)
	pod, err := p.newPod(name)
	if err == nil {
		err = p.Refill.Create(ctx, pod, client.DryRunAll)
	}
	if apierrors.IsAlreadyExists(err) || overQuota(err) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("trying out pod %s: %w", name, err)
	} else {
		p.due(time.Millisecond) // to go on with the update
	}
	p.noteCreate(ctx, err)
}

func overQuota(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota")
}

// noteCreate remembers how the pass's creates ended.
func (p *pass) noteCreate(ctx context.Context, err error) {
	memory := &p.state.memory
	if err == nil {
		memory.CreateFailures, memory.RetryAt, memory.Accepted = 0, time.Time{}, p.state.revision
		p.state.failure = nil
		return
	}
	memory.CreateFailures++
	delay := createDelay(memory.CreateFailures)
	ending := apiwrite.NamespaceEnding(err)
	if ending {
		delay = maxCreateDelay
	}
	memory.RetryAt = p.Clock.Now().Add(delay)
	p.due(delay)
	if ending {
		return // its end takes the Pool along; there is nobody to tell
	}
	log.FromContext(ctx).Error(err, "creating pods failed", "failuresInARow", memory.CreateFailures, "retryAt", memory.RetryAt)
	if apiwrite.Refused(err) || errors.Is(err, errTemplate) || memory.CreateFailures > 1 {
		p.state.failure = newFailure(p.pool, err)
	}
}

func createDelay(failures int) time.Duration {
	delay := firstCreateDelay
	for range failures - 1 {
		if delay *= 2; delay >= maxCreateDelay {
			return maxCreateDelay
		}
	}
	return delay
}

// newFailure tells what to show of a failed create: the API server's own message,
// in which the name of the pod, another at each try, gives way to a pattern.
func newFailure(pool *v1alpha1.Pool, err error) *failure {
	f := &failure{reason: v1alpha1.ReasonCreateFailed, message: err.Error()}
	if errors.Is(err, errTemplate) {
		f.reason = v1alpha1.ReasonTemplateInvalid
		return f
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return f
	}
	s := status.Status()
	f.message = s.Message
	if s.Details != nil && strings.HasPrefix(s.Details.Name, pool.Name+"-") {
		f.message = strings.ReplaceAll(f.message, s.Details.Name, pool.Name+"-*")
	}
	if s.Code == http.StatusUnprocessableEntity || s.Code == http.StatusBadRequest {
		f.reason = v1alpha1.ReasonTemplateInvalid
	}
	return f
}

// settleFailure stops showing a failure when its time to be tried again has come
// and nothing is to be created any more.
func (p *pass) settleFailure(plan *Plan) {
	if p.state.memory.CreateFailures == 0 {
		return
	}
	if plan.Create == 0 && len(plan.Repeat) == 0 && !plan.Probe && !p.state.memory.RetryAt.After(p.now) {
		p.state.failure = nil
		return
	}
	p.dueAt(p.state.memory.RetryAt)
}
