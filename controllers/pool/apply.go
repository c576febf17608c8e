package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/refill"
)

// maxBatch bounds the requests of a pass that are under way at a time.
const maxBatch = 64

// apply does what the plan says. Failed creates are remembered and tried again
// later; any other error is returned.
func (p *pass) apply(ctx context.Context, plan *Plan) error {
	if plan.Urgent {
		ctx = refill.Urgent(ctx)
	}
	memory := &p.state.memory
	memory.Replaced, memory.ReplacedAt = plan.Replaced, plan.ReplacedAt

	retired := p.Ledger.Retire(p.key, plan.Retire)
	create := max(0, plan.Create-(len(plan.Retire)-len(retired)))

	err := errors.Join(
		p.deletePods(ctx, append(retired, plan.Delete...)),
		p.verify(ctx, plan.Verify),
	)
	if plan.Probe {
		p.probe(ctx)
	}
	p.createPods(ctx, plan.Repeat, create)
	p.settleFailure(plan)
	return err
}

// spread runs fn n times in growing batches for as long as the budget lasts. When
// some are left, another pass is due at once.
func (p *pass) spread(ctx context.Context, n int, fn func(context.Context, int) error) error {
	budget, cancel := context.WithTimeout(ctx, passBudget)
	defer cancel()
	var calls atomic.Int64
	var failed atomic.Bool
	// The budget ends between batches; a request that was sent is waited for.
	_, err := apiwrite.SlowStart(budget, n, maxBatch, func(_ context.Context, i int) error {
		calls.Add(1)
		err := fn(ctx, i)
		if err != nil {
			failed.Store(true)
		}
		return err
	})
	if failed.Load() || ctx.Err() != nil {
		return err
	}
	if int(calls.Load()) < n {
		p.due(time.Millisecond)
	}
	return nil
}

func (p *pass) deletePods(ctx context.Context, pods []ledger.Pod) error {
	deleted := make([]bool, len(pods))
	err := p.spread(ctx, len(pods), func(ctx context.Context, i int) error {
		var err error
		deleted[i], err = p.deletePod(ctx, &pods[i])
		return err
	})
	for i := range pods {
		if deleted[i] {
			p.state.memory.Deleted[pods[i].Name] = p.now
			p.dueAt(p.now.Add(unseenPatience))
		}
	}
	return err
}

// deletePod says whether the pod is on its way out, as far as the API server is
// concerned. The ledger is told by the cache when it is gone.
func (p *pass) deletePod(ctx context.Context, known *ledger.Pod) (bool, error) {
	uid := known.UID
	if uid == "" {
		// Only an annotation has named it so far, and anyone can write that.
		live, err := p.lookUp(ctx, known.Name)
		if err != nil {
			return false, err
		}
		if live == nil {
			p.Ledger.ObserveGone(p.key, known.Name, "")
			return false, nil
		}
		uid = live.UID
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: known.Name, Namespace: p.key.Namespace}}
	err := p.Refill.Delete(ctx, pod, client.Preconditions{UID: &uid})
	countDelete(err)
	switch {
	case err == nil:
		log.FromContext(ctx).V(1).Info("deleted pod", "pod", known.Name)
		return true, nil
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return true, p.forgetLost(ctx, known.Name, uid)
	}
	return false, fmt.Errorf("deleting pod %s: %w", known.Name, err)
}

// forgetLost deals with a pod that another has deleted, and whose name may be taken
// by a new one. The cache is given its time to say so first: forgotten at once, the
// pod would be taken for a new, clean one if a late event of it came in.
func (p *pass) forgetLost(ctx context.Context, name string, uid types.UID) error {
	if _, again := p.state.memory.Deleted[name]; !again {
		return nil
	}
	live, err := p.lookUp(ctx, name)
	if err != nil {
		return err
	}
	if live == nil || live.UID != uid {
		p.Ledger.ObserveGone(p.key, name, uid)
	}
	return nil
}

// lookUp reads a pod from the API server. It returns nil when there is none of this
// name that this Pool controls.
func (p *pass) lookUp(ctx context.Context, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	err := p.APIReader.Get(ctx, client.ObjectKey{Namespace: p.key.Namespace, Name: name}, pod)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading pod %s: %w", name, err)
	}
	if key, uid, ok := podfeed.PoolOf(pod); !ok || key != p.key || uid != p.pool.UID {
		return nil, nil
	}
	return pod, nil
}

// verify asks the API server for pods that the cache should have shown, or that may
// never have been created.
func (p *pass) verify(ctx context.Context, names []string) error {
	return p.spread(ctx, len(names), func(ctx context.Context, i int) error {
		pod, err := p.lookUp(ctx, names[i])
		switch {
		case err != nil:
			return err
		case pod == nil:
			p.Ledger.AbortCreate(p.key, names[i])
		default:
			// The cache will show it: taken in from here, it would stay for ever if the
			// cache never showed it nor its end.
			p.confirm(names[i], pod)
		}
		return nil
	})
}
