package wakequeue

import (
	"context"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// OnPods enqueues, after Settle, the object that of names for a pod that comes, changes
// or goes.
func OnPods(of func(client.Object) (types.NamespacedName, bool)) handler.EventHandler {
	type limiter = workqueue.TypedRateLimitingInterface[reconcile.Request]
	enqueue := func(pod client.Object, queue limiter) {
		if name, ok := of(pod); ok {
			queue.AddAfter(reconcile.Request{NamespacedName: name}, Settle)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q limiter) { enqueue(e.Object, q) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q limiter) {
			enqueue(e.ObjectOld, q) // which has lost the pod where the names differ
			enqueue(e.ObjectNew, q)
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q limiter) { enqueue(e.Object, q) },
	}
}
