package batchsandbox

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/wakequeue"
)

const firstRetry, lastRetry = 5 * time.Millisecond, 30 * time.Second

// SetupWithManager registers the reconciler. workers is how many BatchSandboxes are
// reconciled at a time. The pod cache must have the indexes of podfeed.
//
// BatchSandboxes have no index, which would have them watched from the start. So a standby does
// not watch them: each sandbox changes its BatchSandbox six times, and to read that would cost a
// standby a third of what it costs the leader.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("batchsandbox").
		For(&v1alpha1.BatchSandbox{}).
		Watches(&corev1.Pod{}, wakequeue.OnPods(controlledBy)).
		Watches(&v1alpha1.Pool{}, handler.EnqueueRequestsFromMapFunc(r.waitingOn), builder.WithPredicates(poolMatters())).
		Watches(&v1alpha1.Pool{}, handler.EnqueueRequestsFromMapFunc(r.choosing), builder.WithPredicates(fitMatters())).
		WatchesRawSource(r.config.Wakes).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: workers,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
		}).
		Complete(r)
}

// controlledBy names the BatchSandbox that controls a template-mode pod. Pool pods reach
// their holder through the ledger.
func controlledBy(pod client.Object) (types.NamespacedName, bool) {
	name, _, ok := podfeed.BatchSandboxOf(pod)
	return name, ok
}

// waitingOn returns the BatchSandboxes of a Pool, so that they show that it has
// come or is going.
func (r *Reconciler) waitingOn(ctx context.Context, pool client.Object) []reconcile.Request {
	return r.naming(ctx, pool, pool.GetName())
}

// choosing returns the BatchSandboxes for which the Pool may be chosen.
func (r *Reconciler) choosing(ctx context.Context, pool client.Object) []reconcile.Request {
	return r.naming(ctx, pool, v1alpha1.AnyPool)
}

// naming returns the BatchSandboxes of the Pool's namespace with that spec.poolRef.
func (r *Reconciler) naming(ctx context.Context, pool client.Object, poolRef string) []reconcile.Request {
	var list v1alpha1.BatchSandboxList
	if err := r.config.Client.List(ctx, &list, client.InNamespace(pool.GetNamespace()), client.UnsafeDisableDeepCopy); err != nil {
		log.FromContext(ctx).Error(err, "listing the BatchSandboxes of a pool", "pool", client.ObjectKeyFromObject(pool))
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if list.Items[i].Spec.PoolRef == poolRef {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return requests
}

// poolMatters leaves out what changes nothing for those who wait for the pool: it matters that
// it comes or goes, and how many pods it may have.
func poolMatters() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			return poolMaxOf(e.ObjectOld) != poolMaxOf(e.ObjectNew) || e.ObjectOld.GetUID() != e.ObjectNew.GetUID() ||
				(e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
		},
	}
}

// fitMatters leaves out what changes nothing for those for whom a pool is chosen: it matters
// what the pool is, and whether it can make pods.
func fitMatters() predicate.Predicate {
	return predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, _ := e.ObjectOld.(*v1alpha1.Pool)
			after, _ := e.ObjectNew.(*v1alpha1.Pool)
			return before != nil && after != nil && stuck(before) != stuck(after)
		},
	})
}

func poolMaxOf(obj client.Object) int32 {
	if pool, ok := obj.(*v1alpha1.Pool); ok {
		return pool.Spec.CapacitySpec.PoolMax
	}
	return 0
}
