package pool

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// passBudget is how long a pass goes on starting new requests; what is left is done
// by the next one, which sees what has changed and shows how far it got.
const passBudget = time.Second

// pass is one pass over one pool.
type pass struct {
	*Reconciler
	key   ledger.Key
	pool  *v1alpha1.Pool
	state *state
	now   time.Time
	// executor is what pods with a task executor get; nil is nothing.
	executor *podtemplate.Executor
	// wait is after how long the next pass is due; 0 is never.
	wait time.Duration
}

func (p *pass) run(ctx context.Context) (time.Duration, error) {
	p.executor = p.Executor()
	p.state.follow(p.pool, p.executor)
	deleting := p.deleting()
	p.Ledger.SetPool(p.key, p.pool.UID, p.state.revision, !deleting)
	if !deleting {
		if err := p.addFinalizer(ctx); err != nil {
			return 0, err
		}
	}
	snapshot := p.Ledger.Snapshot(p.key)
	p.state.keepUp(snapshot.Pods, p.now)
	plan := Decide(&Input{
		Pods: snapshot.Pods, Demand: snapshot.Demand,
		Spec: &p.pool.Spec, UID: p.pool.UID, Revision: p.state.revision, Deleting: deleting,
		Now: p.now, Memory: p.state.memory,
	})
	p.due(plan.Wait)
	applyErr := p.apply(ctx, &plan)
	snapshot = p.Ledger.Snapshot(p.key) // costs nothing where nothing was done
	if deleting && p.isDone(snapshot) {
		if applyErr != nil {
			return 0, applyErr
		}
		return 0, p.removeFinalizer(ctx)
	}
	p.judge(ctx, &snapshot)
	statusErr := p.writeStatus(ctx, &snapshot, plan.Overdue)
	if applyErr != nil {
		return 0, applyErr
	}
	return p.wait, statusErr
}

func (p *pass) deleting() bool { return !p.pool.DeletionTimestamp.IsZero() }

// due asks for another pass after the given time; 0 asks for none.
func (p *pass) due(after time.Duration) {
	if after > 0 && (p.wait == 0 || after < p.wait) {
		p.wait = after
	}
}

// dueAt asks for another pass at the given time.
func (p *pass) dueAt(at time.Time) { p.due(max(at.Sub(p.now), time.Millisecond)) }

func hasFinalizer(pool *v1alpha1.Pool) bool {
	return controllerutil.ContainsFinalizer(pool, v1alpha1.FinalizerPoolAllocation)
}

// addFinalizer comes before the first pod: a Pool must outlive what it hands out.
func (p *pass) addFinalizer(ctx context.Context) error {
	if hasFinalizer(p.pool) {
		return nil
	}
	changed := p.pool.DeepCopy()
	controllerutil.AddFinalizer(changed, v1alpha1.FinalizerPoolAllocation)
	if err := p.patch(ctx, changed); err != nil {
		return fmt.Errorf("adding the finalizer: %w", err)
	}
	return nil
}

// removeFinalizer lets the Pool go.
func (p *pass) removeFinalizer(ctx context.Context) error {
	if !hasFinalizer(p.pool) {
		return nil
	}
	changed := p.pool.DeepCopy()
	controllerutil.RemoveFinalizer(changed, v1alpha1.FinalizerPoolAllocation)
	if err := client.IgnoreNotFound(p.patch(ctx, changed)); err != nil {
		return fmt.Errorf("removing the finalizer: %w", err)
	}
	return nil
}

// patch writes the object's metadata and goes on with what the API server answers.
func (p *pass) patch(ctx context.Context, changed *v1alpha1.Pool) error {
	lock := client.MergeFromWithOptions(p.pool, client.MergeFromWithOptimisticLock{})
	if err := p.Client.Patch(ctx, changed, lock); err != nil {
		return err
	}
	p.pool = changed
	p.state.newest.Note(changed)
	return nil
}

// isDone says that nothing of a pool that is being deleted has to be waited for:
// nobody holds pods, and every pod that is left is known to be on its way out.
func (p *pass) isDone(snapshot ledger.Snapshot) bool {
	if snapshot.Holders > 0 {
		return false
	}
	return !slices.ContainsFunc(snapshot.Pods, func(pod ledger.PodState) bool {
		if pod.Terminating || pod.Gone || pod.Deleted {
			return false
		}
		_, sent := p.state.memory.Deleted[pod.Name]
		return pod.State != ledger.Retiring || !sent
	})
}
