package batchsandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/taskreport"
)

// recycleParallel bounds the pods of one BatchSandbox that are recycled at a time.
const recycleParallel = 32

// finishReleases recycles the pods that were given up and, when the write that
// takes them out of alloc-release is done, frees them. It returns when to come back.
func (r *Reconciler) finishReleases(ctx context.Context, s *scope) (time.Duration, error) {
	held := r.Ledger.Allocation(s.key, s.owner.UID)
	if len(held.Releasing) == 0 {
		return 0, nil
	}
	done, stopping, recycleErr := r.recycle(ctx, s.key, s.owner.UID, held.Releasing, s.bs)
	if wait := r.tooSoon(s); stopping > 0 && wait > 0 {
		return wait, recycleErr // not one write for each task that stops
	}
	var left []string
	for _, h := range held.Releasing {
		if !slices.Contains(done, h.Name) {
			left = append(left, h.Name)
		}
	}
	want, err := allocation.Format(held.Held, left)
	if err != nil {
		return 0, err
	}
	w, err := newWrite(s.bs, want, len(held.Held)+len(left) > 0)
	if err != nil || w == nil {
		return 0, errors.Join(recycleErr, err)
	}
	w.frees = done
	return 0, errors.Join(recycleErr, r.send(ctx, s, w))
}

// reconcileDelete gives back all that a BatchSandbox holds and then lets it go. It
// returns when to come back.
func (r *Reconciler) reconcileDelete(ctx context.Context, s *scope) (time.Duration, error) {
	if s.bs.Spec.PoolRef == "" {
		return r.deleteTemplate(ctx, s)
	}
	if err := r.resolve(ctx, s); err != nil {
		return 0, fmt.Errorf("BatchSandbox %s: %w", s.owner, err)
	}
	r.Ledger.SetDemand(s.key, s.owner, 0) // it waits for nothing any more, however long this takes
	freed, stopping, err := r.releaseAll(ctx, s.key, s.owner, s.bs)
	if err != nil || stopping > 0 {
		v := r.viewPooled(ctx, s, nil)
		v.deleting = waitsFor(stopping, err)
		again, statusErr := r.writeStatus(ctx, s, v)
		if err := errors.Join(err, statusErr); err != nil {
			return 0, fmt.Errorf("giving back the sandboxes of BatchSandbox %s: %w", s.owner, err)
		}
		return again, nil // woken when the tasks are stopped
	}
	if !slices.Equal(finalizersWith(s.bs, false), s.bs.Finalizers) {
		// alloc-status stays as it is until the object goes.
		w, err := newWrite(s.bs, allocation.Of(s.bs), false)
		if err != nil {
			return 0, err
		}
		w.frees = freed
		if err := r.send(ctx, s, w); err != nil {
			return 0, fmt.Errorf("BatchSandbox %s: %w", s.owner, err)
		}
	}
	r.Ledger.EndRelease(s.key, s.owner.UID, freed)
	r.Ledger.ForgetOwner(s.key, s.owner)
	return 0, nil
}

// waitsFor says what a deletion waits for.
func waitsFor(stopping int, err error) *blocked {
	if err != nil {
		return &blocked{v1alpha1.ReasonRecycling, "waiting until the sandboxes are recycled: " + err.Error()}
	}
	return &blocked{v1alpha1.ReasonStoppingTasks, fmt.Sprintf("waiting until %d sandboxes have stopped their tasks or are restarted", stopping)}
}

// reconcileGone gives back what BatchSandboxes of that name still hold although
// their objects are gone, except the one with UID alive: somebody took their
// finalizer away.
func (r *Reconciler) reconcileGone(ctx context.Context, name types.NamespacedName, alive types.UID) error {
	if alive == "" {
		r.memory.forget(name)
		if err := r.deletePodsOf(ctx, name); err != nil {
			return err
		}
	}
	for _, ref := range r.Ledger.Lookup(name) {
		if ref.UID == alive {
			continue
		}
		owner := ledger.Owner{NamespacedName: name, UID: ref.UID}
		r.Ledger.SetDemand(ref.Pool, owner, 0)
		freed, _, err := r.releaseAll(ctx, ref.Pool, owner, nil)
		if err != nil {
			return fmt.Errorf("giving back the sandboxes of BatchSandbox %s, which is gone: %w", name, err)
		}
		r.Ledger.EndRelease(ref.Pool, ref.UID, freed)
		r.Ledger.ForgetOwner(ref.Pool, owner)
	}
	return nil
}

// releaseAll recycles everything that the owner holds, and every pod that it might
// hold when its annotations cannot be read. It returns the pods that are to be
// freed once that is recorded, and the number of those whose tasks are still being
// stopped. Without an object that names its tasks every pod is deleted.
func (r *Reconciler) releaseAll(ctx context.Context, key ledger.Key, owner ledger.Owner, bs *v1alpha1.BatchSandbox) (freed []string, stopping int, err error) {
	held := r.Ledger.Allocation(key, owner.UID)
	if held.Unreadable {
		if err := r.othersUnreadable(ctx, key, owner); err != nil {
			return nil, 0, err
		}
		suspects := r.Ledger.PodsSetAside(key)
		pods := make([]ledger.HeldPod, len(suspects))
		for i, pod := range suspects {
			pods[i] = ledger.HeldPod{Pod: pod, Seen: true}
		}
		if _, _, err := r.recycle(ctx, key, owner.UID, pods, nil); err != nil {
			return nil, 0, err
		}
	}
	r.Ledger.BeginRelease(key, owner.UID, names(held.Held))
	return r.recycle(ctx, key, owner.UID, append(held.Held, held.Releasing...), bs)
}

// othersUnreadable returns an error while the pods that the owner might hold might
// as well be those of another BatchSandbox that cannot be read and that stays.
func (r *Reconciler) othersUnreadable(ctx context.Context, key ledger.Key, owner ledger.Owner) error {
	for _, name := range r.Ledger.Snapshot(key).Unreadable {
		if name == owner.NamespacedName {
			continue
		}
		other := &v1alpha1.BatchSandbox{}
		err := r.Client.Get(ctx, name, other)
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
func (r *Reconciler) recycle(ctx context.Context, key ledger.Key, owner types.UID, pods []ledger.HeldPod, bs *v1alpha1.BatchSandbox) (done []string, stopping int, err error) {
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
func (r *Reconciler) recycleStrategy(ctx context.Context, key ledger.Key) (v1alpha1.RecycleType, error) {
	pool := &v1alpha1.Pool{}
	err := r.Client.Get(ctx, key, pool)
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
func (r *Reconciler) recycleOne(ctx context.Context, key ledger.Key, owner types.UID, h ledger.HeldPod, strategy v1alpha1.RecycleType, bs *v1alpha1.BatchSandbox) error {
	if h.Deleted && !h.Gone {
		return nil // in an earlier pass
	}
	restart := strategy == v1alpha1.RecycleRestart
	if r.Tasks != nil && bs != nil && (bs.Spec.TaskTemplate != nil || restart) && !h.Lost() && !h.Finished {
		switch r.Tasks.Stop(bs, h.Name, h.UID, restart) {
		case taskreport.StillStopping:
			return errStopping
		case taskreport.Restarted:
			r.Ledger.MarkClean(key, owner, h.Name)
			return nil
		case taskreport.Unstoppable:
			strategy = v1alpha1.RecycleDelete
		case taskreport.Stopped:
		}
	}
	if strategy == v1alpha1.RecycleNoop && !h.Lost() && !h.Finished && h.Seen {
		r.Ledger.MarkClean(key, owner, h.Name)
		return nil
	}
	return r.deletePoolPod(ctx, key, h)
}

// deleteLost deletes lost pods that nothing else deletes: those that have ended,
// and those that the cache no longer shows although nobody saw them terminate.
func (r *Reconciler) deleteLost(ctx context.Context, s *scope, lost []ledger.HeldPod) error {
	for _, h := range lost {
		if err := r.deletePoolPod(ctx, s.key, h); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reconciler) deletePoolPod(ctx context.Context, key ledger.Key, h ledger.HeldPod) error {
	if h.Terminating || h.UID == "" {
		return nil
	}
	if err := r.Fresh(); err != nil {
		// Another leader may have lent the pod on.
		return fmt.Errorf("not deleting pod %s/%s: %w", key.Namespace, h.Name, err)
	}
	err := r.deletePod(ctx, key.Namespace, h.Name, h.UID)
	if err == nil {
		r.Ledger.MarkDeleted(key, h.Name, h.UID)
	}
	return err
}

// deletePod deletes that very pod; one that is gone, or another of its name, is no error.
func (r *Reconciler) deletePod(ctx context.Context, namespace, name string, uid types.UID) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	err := r.Client.Delete(ctx, pod, client.Preconditions{UID: &uid})
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("deleting pod %s/%s: %w", namespace, name, err)
}
