package task

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	"github.com/opensandbox/operator/controllers/wakequeue"
)

const (
	// indexController finds pods by the UID of the BatchSandbox that controls them.
	indexController       = "task.controllerUID"
	firstRetry, lastRetry = 5 * time.Millisecond, 30 * time.Second
)

// SetupWithManager registers the reconciler. workers is how many BatchSandboxes are
// reconciled at a time.
func (r *Reconciler) SetupWithManager(ctx context.Context, mgr ctrl.Manager, workers int) error {
	if err := mgr.Add(&owner{cancel: r.stop, wait: r.work.Wait}); err != nil {
		return fmt.Errorf("adding the owner of the followers: %w", err)
	}
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, indexController, controllerUID); err != nil {
		return fmt.Errorf("indexing pods by controller: %w", err)
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("task").
		Watches(&v1alpha1.BatchSandbox{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(withTasks())).
		Watches(&corev1.Pod{}, r.podHandler()).
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

func controllerUID(obj client.Object) []string {
	ref := metav1.GetControllerOf(obj)
	if ref == nil || ref.Kind != v1alpha1.KindBatchSandbox {
		return nil
	}
	return []string{string(ref.UID)}
}

// podHandler enqueues the BatchSandbox that controls a template-mode pod with an
// executor. Pool pods reach their holder through the ledger. Those who wait for a pod
// are told of either.
func (r *Reconciler) podHandler() handler.EventHandler {
	type limiter = workqueue.TypedRateLimitingInterface[reconcile.Request]
	enqueue := func(obj client.Object, queue limiter) {
		r.changes.note(obj.GetUID())
		ref := metav1.GetControllerOf(obj)
		if ref != nil && ref.Kind == v1alpha1.KindBatchSandbox && obj.GetAnnotations()[v1alpha1.AnnotationExecutorKey] != "" {
			queue.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: obj.GetNamespace(), Name: ref.Name}}, wakequeue.Settle)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q limiter) { enqueue(e.Object, q) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q limiter) { enqueue(e.ObjectNew, q) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q limiter) { enqueue(e.Object, q) },
	}
}
