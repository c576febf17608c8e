package batchsandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
)

// recycleParallel bounds the pods of one BatchSandbox that are recycled at a time.
const recycleParallel = 32

// finishReleases recycles the pods that were given up and, when the write that
// takes them out of alloc-release is done, frees them.
func (r *Reconciler) finishReleases(ctx context.Context, s *scope) error {
	held := r.Ledger.Allocation(s.key, s.owner.UID)
	if len(held.Releasing) == 0 {
		return nil
	}
	done, recycleErr := r.recycle(ctx, s.key, s.owner.UID, held.Releasing, false)
	var left []string
	for _, h := range held.Releasing {
		if !slices.Contains(done, h.Name) {
			left = append(left, h.Name)
		}
	}
	want, err := allocation.Format(held.Held, left)
	if err != nil {
		return err
	}
	w, err := newWrite(s.bs, want, len(held.Held)+len(left) > 0)
	if err != nil || w == nil {
		return errors.Join(recycleErr, err)
	}
	w.frees = done
	return errors.Join(recycleErr, r.send(ctx, s, w))
}

// reconcileDelete gives back all that a BatchSandbox holds and then lets it go.
func (r *Reconciler) reconcileDelete(ctx context.Context, s *scope) error {
	if s.bs.Spec.PoolRef == "" {
		return r.deletePodsOf(ctx, s.owner.NamespacedName)
	}
	if err := r.resolve(ctx, s); err != nil {
		return fmt.Errorf("BatchSandbox %s: %w", s.owner, err)
	}
	freed, err := r.releaseAll(ctx, s.key, s.owner, false)
	if err != nil {
		_, statusErr := r.writeStatus(ctx, s, r.viewDeleting(ctx, s, err))
		return fmt.Errorf("giving back the sandboxes of BatchSandbox %s: %w", s.owner, errors.Join(err, statusErr))
	}
	if slices.Contains(s.bs.Finalizers, v1alpha1.FinalizerPoolAllocation) {
		// alloc-status stays as it is until the object goes.
		w, err := newWrite(s.bs, allocation.Of(s.bs), false)
		if err != nil {
			return err
		}
		w.frees = freed
		if err := r.send(ctx, s, w); err != nil {
			return fmt.Errorf("BatchSandbox %s: %w", s.owner, err)
		}
	}
	r.Ledger.Free(s.key, s.owner.UID, freed)
	r.Ledger.ForgetUnreadable(s.key, s.owner.UID)
	r.Ledger.ForgetOwner(s.key, s.owner)
	return nil
}

func (r *Reconciler) viewDeleting(ctx context.Context, s *scope, cause error) view {
	v := r.viewPooled(ctx, s, nil)
	v.deleting = cause.Error()
	return v
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
		freed, err := r.releaseAll(ctx, ref.Pool, owner, true)
		if err != nil {
			return fmt.Errorf("giving back the sandboxes of BatchSandbox %s, which is gone: %w", name, err)
		}
		r.Ledger.Free(ref.Pool, ref.UID, freed)
		r.Ledger.ForgetUnreadable(ref.Pool, ref.UID)
		r.Ledger.ForgetOwner(ref.Pool, owner)
	}
	return nil
}

// releaseAll recycles everything that the owner holds, and every pod that it might
// hold when its annotations cannot be read. It returns the pods that are to be
// freed once that is recorded.
func (r *Reconciler) releaseAll(ctx context.Context, key ledger.Key, owner ledger.Owner, forceDelete bool) ([]string, error) {
	held := r.Ledger.Allocation(key, owner.UID)
	if held.Unreadable {
		if err := r.othersUnreadable(ctx, key, owner); err != nil {
			return nil, err
		}
		suspects := r.Ledger.Suspects(key)
		pods := make([]ledger.HeldPod, len(suspects))
		for i, pod := range suspects {
			pods[i] = ledger.HeldPod{Pod: pod, Seen: true}
		}
		if _, err := r.recycle(ctx, key, owner.UID, pods, true); err != nil {
			return nil, err
		}
	}
	r.Ledger.BeginRelease(key, owner.UID, names(held.Held))
	return r.recycle(ctx, key, owner.UID, append(held.Held, held.Releasing...), forceDelete)
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

// recycle cleans or deletes the pods, in parallel, and returns the names of those
// for which that is done.
func (r *Reconciler) recycle(ctx context.Context, key ledger.Key, owner types.UID, pods []ledger.HeldPod, forceDelete bool) ([]string, error) {
	strategy := v1alpha1.RecycleDelete
	if !forceDelete {
		pool := &v1alpha1.Pool{}
		err := r.Client.Get(ctx, key, pool)
		if client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("reading Pool %s: %w", key, err)
		}
		if err == nil && pool.DeletionTimestamp == nil {
			strategy = pool.Spec.RecycleStrategy.Type
		}
	}
	var mu sync.Mutex
	var done []string
	var errs []error
	workqueue.ParallelizeUntil(ctx, recycleParallel, len(pods), func(i int) {
		err := r.recycleOne(ctx, key, owner, pods[i], strategy)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			errs = append(errs, err)
			return
		}
		done = append(done, pods[i].Name)
	})
	if ctx.Err() != nil {
		errs = append(errs, ctx.Err())
	}
	return done, errors.Join(errs...)
}

// recycleOne cleans or deletes one pod. Restart needs the task executor to clean
// up behind the last owner; without it the pod is deleted.
func (r *Reconciler) recycleOne(ctx context.Context, key ledger.Key, owner types.UID, h ledger.HeldPod, strategy v1alpha1.RecycleType) error {
	if strategy == v1alpha1.RecycleNoop && !h.Lost() && h.Seen {
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
