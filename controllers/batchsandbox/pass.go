package batchsandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/opensandbox/operator/controllers/apiwrite"
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

// inPass calls fn for 0 to n-1 in growing batches until the budget is used up, or until
// passFailures calls have failed. Its error tells of the first failure and of how many
// there were. It begins anywhere: pods that cannot be deleted must not hold up the same
// others each time.
func inPass(ctx context.Context, c clock.PassiveClock, n int, fn func(int) error) error {
	begin, start := c.Now(), rand.N(max(1, n)) //nolint:gosec // no secret
	var mu sync.Mutex                          // guards first and failures
	var first error
	failures := 0
	_, stopped := apiwrite.SlowStart(ctx, n, passParallel, func(_ context.Context, i int) error {
		if c.Since(begin) >= passBudget {
			return errUnfinished
		}
		err := fn((start + i) % n)
		if err == nil {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		first = cmp.Or(first, err)
		if failures++; failures < passFailures {
			return nil
		}
		return err
	})
	switch {
	case failures > 1:
		return fmt.Errorf("%w (and %d more)", first, failures-1)
	case failures == 1:
		return first
	case errors.Is(stopped, errUnfinished):
		return errUnfinished
	}
	return stopped
}

// unlessUnfinished returns when to go on with a pass that is unfinished, or its error.
func unlessUnfinished(err error) (time.Duration, error) {
	if errors.Is(err, errUnfinished) {
		return afterPass, nil
	}
	return 0, err
}
