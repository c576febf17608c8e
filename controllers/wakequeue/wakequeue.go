// Package wakequeue is a source of a controller that other goroutines feed.
package wakequeue

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Settle is the delay by which many wakes of one object share one reconcile.
const Settle = 20 * time.Millisecond

// Queue passes names on to the controller's queue and keeps those that come before
// there is one. The zero value is ready to use.
type Queue struct {
	mu    sync.Mutex // guards both
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
	early map[types.NamespacedName]struct{}
}

var _ source.Source = &Queue{}

// Start implements source.Source.
func (q *Queue) Start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = queue
	for name := range q.early {
		queue.Add(reconcile.Request{NamespacedName: name})
	}
	q.early = nil
	return nil
}

// Wake has the object of that name reconciled. It does not block.
func (q *Queue) Wake(name types.NamespacedName) { q.WakeAfter(name, 0) }

// WakeSoon has it reconciled after Settle.
func (q *Queue) WakeSoon(name types.NamespacedName) { q.WakeAfter(name, Settle) }

// WakeAfter has it reconciled after a delay, so that many wakes share one reconcile.
func (q *Queue) WakeAfter(name types.NamespacedName, delay time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queue == nil {
		if q.early == nil {
			q.early = map[types.NamespacedName]struct{}{}
		}
		q.early[name] = struct{}{}
		return
	}
	q.queue.AddAfter(reconcile.Request{NamespacedName: name}, delay)
}
