package pool

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/opensandbox/operator/controllers/ledger"
)

// wakeDelay lets the many changes of a burst share one pass: a snapshot of a pool
// takes its lock, which claims need too.
const wakeDelay = 20 * time.Millisecond

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// wakes passes keys on to the controller's queue and keeps those that come before
// there is one.
type wakes struct {
	mu    sync.Mutex // guards queue and early
	queue queue
	early map[ledger.Key]struct{}
}

// start is the controller's source.
func (w *wakes) start(_ context.Context, q queue) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = q
	for key := range w.early {
		q.Add(reconcile.Request{NamespacedName: key})
	}
	w.early = nil
	return nil
}

func (w *wakes) wake(key ledger.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queue != nil {
		w.queue.AddAfter(reconcile.Request{NamespacedName: key}, wakeDelay)
		return
	}
	if w.early == nil {
		w.early = map[ledger.Key]struct{}{}
	}
	w.early[key] = struct{}{}
}
