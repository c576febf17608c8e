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
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/refill"
	"github.com/opensandbox/operator/controllers/shardtask"
)

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

// holding is whose pods are recycled.
type holding struct {
	pool  ledger.Key
	owner ledger.Owner
	// bs names the tasks. It is nil where the object is gone: then every pod is deleted.
	bs      *v1alpha1.BatchSandbox
	deleted *deletions
	// since is when they were given up.
	since time.Time
}

func holdingOf(o *object) holding {
	return holding{pool: o.pool, owner: o.owner, bs: o.bs, deleted: &o.deleted, since: o.recyclingSince}
}

// finish recycles the pods that were given up and, when the write that takes them out of
// alloc-release is done, frees them. It returns when to come back.
func (r *releases) finish(ctx context.Context, o *object, held *ledger.Allocation) (time.Duration, error) {
	if len(held.Releasing) == 0 {
		o.recyclingSince = time.Time{}
		// Lost pods that could not be taken out of alloc-status yet are still held.
		o.deleted.keep(len(held.Held), func(i int) types.UID { return held.Held[i].UID })
		return 0, nil
	}
	if o.recyclingSince.IsZero() {
		o.recyclingSince = r.clock.Now()
	}
	freed, stopping, err := r.recycle(ctx, holdingOf(o), held.Releasing)
	again, err := unlessUnfinished(err)
	if wait := o.tooSoon(r.clock.Now()); stopping > 0 && wait > 0 {
		return soonest(again, wait), err // not one write for each task that stops
	}
	done := sets.New(freed...)
	left := slices.DeleteFunc(names(held.Releasing), done.Has)
	return again, errors.Join(err, r.claims.write(ctx, o, change{
		annotations: allocation.Format(o.pool.Name, held.Held, left), holds: len(held.Held)+len(left) > 0, freed: freed,
	}))
}

// all recycles everything that is held, and every pod that might be when the annotations
// cannot be read. It returns the pods that are to be freed once that is recorded, and the
// number of those whose tasks are still being stopped.
func (r *releases) all(ctx context.Context, from holding, held ledger.Allocation) (freed []string, stopping int, err error) {
	if held.Unreadable {
		if err := r.othersUnreadable(ctx, from); err != nil {
			return nil, 0, err
		}
		var pods []ledger.HeldPod
		for _, pod := range r.ledger.PodsSetAside(from.pool) {
			pods = append(pods, ledger.HeldPod{Pod: pod, Seen: true})
		}
		if _, _, err := r.recycle(ctx, holding{pool: from.pool, owner: from.owner, deleted: from.deleted}, pods); err != nil {
			return nil, 0, err
		}
	}
	r.ledger.BeginRelease(from.pool, from.owner.UID, names(held.Held))
	logDone(ctx, "released sandboxes", from.pool, len(held.Held), r.clock.Since(from.since))
	return r.recycle(ctx, from, slices.Concat(held.Held, held.Releasing))
}

// othersUnreadable returns an error while the pods that the owner might hold might
// as well be those of another BatchSandbox that cannot be read and that stays.
func (r *releases) othersUnreadable(ctx context.Context, from holding) error {
	for _, name := range r.ledger.Snapshot(from.pool).Unreadable {
		if name == from.owner.NamespacedName {
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

// recycle ends the tasks in the pods and then cleans or deletes these. It returns the
// names of those for which that is done, and the number of those whose tasks are still
// being stopped.
func (r *releases) recycle(ctx context.Context, from holding, pods []ledger.HeldPod) (done []string, stopping int, err error) {
	strategy := v1alpha1.RecycleDelete
	if from.bs != nil {
		if strategy, err = r.recycleStrategy(ctx, from.pool); err != nil {
			return nil, 0, err
		}
	}
	var mu sync.Mutex // guards done and stopping
	err = inPass(ctx, r.clock, len(pods), func(i int) error {
		err := r.recycleOne(ctx, from, &pods[i], strategy)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			done = append(done, pods[i].Name)
		case errors.Is(err, errStopping):
			stopping++
			return nil
		}
		return err
	})
	return done, stopping, err
}

// recycleStrategy is that of the pool; a pool that is going or gone takes nothing back.
func (r *releases) recycleStrategy(ctx context.Context, key ledger.Key) (v1alpha1.RecycleType, error) {
	pool := &v1alpha1.Pool{}
	err := r.client.Get(ctx, key, pool, client.UnsafeDisableDeepCopy)
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
func (r *releases) recycleOne(ctx context.Context, from holding, h *ledger.HeldPod, strategy v1alpha1.RecycleType) error {
	if h.Clean || h.Deleted && !h.Gone {
		return nil // in an earlier pass
	}
	runs := !h.Lost() && !h.Finished
	restart := strategy == v1alpha1.RecycleRestart
	if from.bs != nil && (from.bs.Spec.TaskTemplate != nil || restart) && runs {
		switch r.tasks.Stop(from.bs, h.Name, h.UID, restart) {
		case shardtask.StillStopping:
			return errStopping
		case shardtask.Restarted:
			r.ledger.MarkClean(from.pool, from.owner.UID, h.Name)
			return nil
		case shardtask.Unstoppable:
			strategy = v1alpha1.RecycleDelete
		case shardtask.Stopped:
		}
	}
	if strategy == v1alpha1.RecycleNoop && runs && h.Seen {
		r.ledger.MarkClean(from.pool, from.owner.UID, h.Name)
		return nil
	}
	return r.delete(ctx, from, h)
}

// deleteLost deletes lost pods that nothing else deletes: those that were evicted,
// and those that the cache no longer shows although nobody saw them terminate.
func (r *releases) deleteLost(ctx context.Context, o *object, lost []ledger.HeldPod) error {
	return inPass(ctx, r.clock, len(lost), func(i int) error { return r.delete(ctx, holdingOf(o), &lost[i]) })
}

func (r *releases) delete(ctx context.Context, from holding, h *ledger.HeldPod) error {
	if h.Terminating || h.UID == "" {
		return nil
	}
	if r.ledger.Waits(from.pool) {
		ctx = refill.Urgent(ctx) // the pool may have no room for another pod until this one goes
	}
	err := r.pods.delete(ctx, types.NamespacedName{Namespace: from.pool.Namespace, Name: h.Name}, h.UID, from.deleted)
	switch {
	case errors.Is(err, refill.ErrNoTurn):
		return errUnfinished // thousands may wait: that is no failure
	case err == nil:
		r.ledger.MarkDeleted(from.pool, h.Name, h.UID)
	}
	return err
}
