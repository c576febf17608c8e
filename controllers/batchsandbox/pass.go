package batchsandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
)

const (
	// passParallel bounds the pods of one BatchSandbox that are deleted or recycled at a time.
	passParallel = 32
	// passFailures is after how many failures a pass stops.
	passFailures = 3
	// passBudget is how long one reconcile begins to delete or recycle pods: an API server
	// that answers slowly must not keep a worker for as long as thousands of pods take.
	passBudget = 5 * time.Second
	// afterPass is when the next one may begin: others have had their turn by then.
	afterPass = time.Millisecond
)

// errUnfinished says that the budget of a pass is used up, and that nothing went wrong.
var errUnfinished = errors.New("more is left to be done")

// inPass calls fn for 0 to n-1, passParallel at a time, until the budget is used up or
// passFailures calls have failed. Its error tells of the first failure and of how many
// there were. It begins anywhere: pods that cannot be deleted must not hold up the same
// others each time.
func inPass(ctx context.Context, c clock.PassiveClock, n int, fn func(int) error) error {
	begin, start := c.Now(), rand.N(max(1, n)) //nolint:gosec // no secret
	pass, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex // guards the others
	var first error
	failures, calls := 0, 0
	workqueue.ParallelizeUntil(pass, passParallel, n, func(i int) {
		if c.Since(begin) >= passBudget {
			stop()
			return
		}
		err := fn((start + i) % n)
		mu.Lock()
		defer mu.Unlock()
		if errors.Is(err, errUnfinished) {
			return // it counts as not begun
		}
		if calls++; err == nil {
			return
		}
		first = cmp.Or(first, err)
		if failures++; failures >= passFailures {
			stop()
		}
	})
	switch {
	case failures > 1:
		return fmt.Errorf("%w (and %d more)", first, failures-1)
	case failures == 1:
		return first
	case ctx.Err() != nil:
		return ctx.Err()
	case calls < n:
		return errUnfinished
	}
	return nil
}

// unlessUnfinished returns when to go on with a pass that is unfinished, or its error.
func unlessUnfinished(err error) (time.Duration, error) {
	if errors.Is(err, errUnfinished) {
		return afterPass, nil
	}
	return 0, err
}
