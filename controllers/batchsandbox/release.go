package batchsandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/taskreport"
)

// recycleParallel bounds the pods of one BatchSandbox that are recycled at a time.
const recycleParallel = 32

// releases makes pool pods clean that were given up, and lets go of them when the object
// says so.
type releases struct {
	ledger *ledger.Ledger
	client client.Reader
	claims *claims
	pods   pods
	tasks  Tasks
	clock  clock.PassiveClock
}

// finish recycles the pods that were given up and, when the write that takes them out of
// alloc-release is done, frees them. It returns when to come back.
func (r *releases) finish(ctx context.Context, o *object, held *ledger.Allocation) (time.Duration, error) {
	if len(held.Releasing) == 0 {
		return 0, nil
	}
	done, stopping, recycleErr := r.recycle(ctx, o.pool, o.owner.UID, held.Releasing, o.bs)
	if wait := o.tooSoon(r.clock.Now()); stopping > 0 && wait > 0 {
		return wait, recycleErr // not one write for each task that stops
	}
	var left []string
	for _, h := range held.Releasing {
		if !slices.Contains(done, h.Name) {
			left = append(left, h.Name)
		}
	}
	return 0, errors.Join(recycleErr, r.claims.write(ctx, o, change{
		annotations: allocation.Format(held.Held, left), holds: len(held.Held)+len(left) > 0, freed: done,
	}))
}

// all recycles everything that the owner holds, and every pod that it might hold when its
// annotations cannot be read. It returns the pods that are to be
// freed once that is recorded, and the number of those whose tasks are still being
// stopped. Without an object that names its tasks every pod is deleted.
func (r *releases) all(ctx context.Context, key ledger.Key, owner ledger.Owner, held ledger.Allocation, bs *v1alpha1.BatchSandbox) (freed []string, stopping int, err error) {
	if held.Unreadable {
		if err := r.othersUnreadable(ctx, key, owner); err != nil {
			return nil, 0, err
		}
		suspects := r.ledger.PodsSetAside(key)
		pods := make([]ledger.HeldPod, len(suspects))
		for i, pod := range suspects {
			pods[i] = ledger.HeldPod{Pod: pod, Seen: true}
		}
		if _, _, err := r.recycle(ctx, key, owner.UID, pods, nil); err != nil {
			return nil, 0, err
		}
	}
	r.ledger.BeginRelease(key, owner.UID, names(held.Held))
	return r.recycle(ctx, key, owner.UID, slices.Concat(held.Held, held.Releasing), bs)
}

// othersUnreadable returns an error while the pods that the owner might hold might
// as well be those of another BatchSandbox that cannot be read and that stays.
func (r *releases) othersUnreadable(ctx context.Context, key ledger.Key, owner ledger.Owner) error {
	for _, name := range r.ledger.Snapshot(key).Unreadable {
		if name == owner.NamespacedName {
			continue
		}
		other := &v1alpha1.BatchSandbox{}
		err := r.client.Get(ctx, name, other)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("reading BatchSandbox %s: %w", name, err)
		}
		if err == nil && other.DeletionTimestamp == nil {
			return fmt.Errorf("the allocation of BatchSandbox %s cannot be read either, so its sandboxes cannot be told from those of this one: mend or delete it", name)
		}
	}
	return nil
}

// recycle ends the tasks in the pods and then cleans or deletes these, in parallel.
// It returns the names of those for which that is done, and the number of those whose
// tasks are still being stopped. Without a BatchSandbox every pod is deleted at once.
func (r *releases) recycle(ctx context.Context, key ledger.Key, owner types.UID, pods []ledger.HeldPod, bs *v1alpha1.BatchSandbox) (done []string, stopping int, err error) {
	strategy := v1alpha1.RecycleDelete
	if bs != nil {
		if strategy, err = r.recycleStrategy(ctx, key); err != nil {
			return nil, 0, err
		}
	}
	var mu sync.Mutex // guards done, stopping and errs
	var errs []error
	workqueue.ParallelizeUntil(ctx, recycleParallel, len(pods), func(i int) {
		err := r.recycleOne(ctx, key, owner, pods[i], strategy, bs)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, errStopping):
			stopping++
		case err != nil:
			errs = append(errs, err)
		default:
			done = append(done, pods[i].Name)
		}
	})
	if ctx.Err() != nil {
		errs = append(errs, ctx.Err())
	}
	return done, stopping, errors.Join(errs...)
}

// recycleStrategy is that of the pool; a pool that is going or gone takes nothing back.
func (r *releases) recycleStrategy(ctx context.Context, key ledger.Key) (v1alpha1.RecycleType, error) {
	pool := &v1alpha1.Pool{}
	err := r.client.Get(ctx, key, pool)
	switch {
	case apierrors.IsNotFound(err):
		return v1alpha1.RecycleDelete, nil
	case err != nil:
		return "", fmt.Errorf("reading Pool %s: %w", key, err)
	case pool.DeletionTimestamp != nil:
		return v1alpha1.RecycleDelete, nil
	}
	return pool.Spec.RecycleStrategy.Type, nil
}

// errStopping says that tasks of a pod are still being stopped.
var errStopping = errors.New("tasks are being stopped")

// recycleOne cleans or deletes one pod. One that cannot be restarted in place, or
// whose tasks cannot be stopped, is deleted.
func (r *releases) recycleOne(ctx context.Context, key ledger.Key, owner types.UID, h ledger.HeldPod, strategy v1alpha1.RecycleType, bs *v1alpha1.BatchSandbox) error {
	if h.Deleted && !h.Gone {
		return nil // in an earlier pass
	}
	restart := strategy == v1alpha1.RecycleRestart
	if bs != nil && (bs.Spec.TaskTemplate != nil || restart) && !h.Lost() && !h.Finished {
		switch r.tasks.Stop(bs, h.Name, h.UID, restart) {
		case taskreport.StillStopping:
			return errStopping
		case taskreport.Restarted:
			r.ledger.MarkClean(key, owner, h.Name)
			return nil
		case taskreport.Unstoppable:
			strategy = v1alpha1.RecycleDelete
		case taskreport.Stopped:
		}
	}
	if strategy == v1alpha1.RecycleNoop && !h.Lost() && !h.Finished && h.Seen {
		r.ledger.MarkClean(key, owner, h.Name)
		return nil
	}
	return r.delete(ctx, key, h)
}

// deleteLost deletes lost pods that nothing else deletes: those that have ended,
// and those that the cache no longer shows although nobody saw them terminate.
func (r *releases) deleteLost(ctx context.Context, pool ledger.Key, lost []ledger.HeldPod) error {
	for _, h := range lost {
		if err := r.delete(ctx, pool, h); err != nil {
			return err
		}
	}
	return nil
}

func (r *releases) delete(ctx context.Context, key ledger.Key, h ledger.HeldPod) error {
	if h.Terminating || h.UID == "" {
		return nil
	}
	err := r.pods.delete(ctx, key.Namespace, h.Name, h.UID)
	if err == nil {
		r.ledger.MarkDeleted(key, h.Name, h.UID)
	}
	return err
}
