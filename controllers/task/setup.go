package task

import (
	"context"
	"fmt"
	"slices"
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
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/wakequeue"
)

const firstRetry, lastRetry = 5 * time.Millisecond, 30 * time.Second

// SetupWithManager registers the reconciler. workers is how many BatchSandboxes are
// reconciled at a time. The pod cache must have the indexes of podfeed.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	if err := mgr.Add(&owner{cancel: r.stop, wait: r.work.Wait}); err != nil {
		return fmt.Errorf("adding the owner of the followers: %w", err)
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("task").
		Watches(&v1alpha1.BatchSandbox{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(withTasks())).
		Watches(&corev1.Pod{}, wakequeue.OnPods(r.changed)).
		WatchesRawSource(r.Wakes).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: workers,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
		}).
		Complete(r)
}

// owner waits for the followers when the manager ends.
type owner struct {
	cancel context.CancelFunc
	wait   func()
}

// Start implements manager.Runnable.
func (o *owner) Start(ctx context.Context) error {
	<-ctx.Done()
	o.cancel()
	o.wait()
	return nil
}

// withTasks lets BatchSandboxes with tasks through, when something of them changed
// that is not the status.
func withTasks() predicate.Predicate {
	return predicate.And(
		predicate.NewPredicateFuncs(func(obj client.Object) bool {
			bs, ok := obj.(*v1alpha1.BatchSandbox)
			return ok && (bs.Spec.TaskTemplate != nil || bs.DeletionTimestamp != nil)
		}),
		predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}, finalizersChanged()),
	)
}

func finalizersChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !slices.Equal(e.ObjectOld.GetFinalizers(), e.ObjectNew.GetFinalizers())
	}}
}

// changed names the BatchSandbox that controls a template-mode pod with an executor. Pool
// pods reach their holder through the ledger. Those who wait for a pod are told of either.
func (r *Reconciler) changed(pod client.Object) (types.NamespacedName, bool) {
	r.changes.note(pod.GetUID())
	name, _, ok := podfeed.BatchSandboxOf(pod)
	return name, ok && pod.GetAnnotations()[v1alpha1.AnnotationExecutorKey] != ""
}
