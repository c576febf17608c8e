// Package wakequeue is a source of a controller that other goroutines feed.
package wakequeue

import (
	"context"
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

const (
	// Settle is the delay by which many wakes of one object share one reconcile.
	Settle = 20 * time.Millisecond
	// Share is how long the reconciles that WakeShared asks for are apart.
	Share = 50 * time.Millisecond
	// manyNames is how many names are remembered before those that rest are forgotten.
	manyNames = 1024
)

// Queue passes names on to the controller's queue and keeps those that come before
// there is one. The zero value is ready to use.
type Queue struct {
	mu    sync.Mutex // guards the others
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
	early map[types.NamespacedName]struct{}
	// shared is when WakeShared had, or will have, an object reconciled.
	shared map[types.NamespacedName]time.Time
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

// WakeShared has it reconciled at once when it has rested, and otherwise together with
// what else happens until Share has passed: what changes once is not kept waiting, and
// what changes thousands of times, as the pods of a batch that fills, is looked at often
// enough.
func (q *Queue) WakeShared(name types.NamespacedName) {
	now := time.Now()
	q.mu.Lock()
	at := q.shared[name]
	if !at.After(now) {
		if at = at.Add(Share); at.Before(now) {
			at = now
		}
		q.remember(name, at, now)
	}
	q.mu.Unlock()
	// Also where it waits for that time already: something else may have had it reconciled
	// since, and that took it out of the queue.
	q.WakeAfter(name, at.Sub(now))
}

func (q *Queue) remember(name types.NamespacedName, at, now time.Time) {
	if q.shared == nil {
		q.shared = map[types.NamespacedName]time.Time{}
	}
	if len(q.shared) >= manyNames {
		maps.DeleteFunc(q.shared, func(_ types.NamespacedName, at time.Time) bool { return now.Sub(at) > Share })
	}
	q.shared[name] = at
}

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
