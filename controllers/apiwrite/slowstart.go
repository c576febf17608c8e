package apiwrite

import (
	"context"
	"errors"
	"sync"
)

// SlowStart calls fn for 0 to n-1 in growing batches (1, 2, 4, ...), so that a call that
// cannot succeed is tried once and not a thousand times. A batch runs in parallel; the
// next one, twice as large, starts when the last had no error. maxBatch bounds a batch; 0 is no bound.
// It returns how many calls succeeded and the joined errors of the batch that
// failed. A context that ends stops it between batches.
func SlowStart(ctx context.Context, n, maxBatch int, fn func(context.Context, int) error) (int, error) {
	succeeded := 0
	for start, size := 0, 1; start < n; start, size = start+size, size*2 {
		if maxBatch > 0 {
			size = min(size, maxBatch)
		}
		size = min(size, n-start)
		if err := ctx.Err(); err != nil {
			return succeeded, err
		}
		errs := batch(ctx, start, size, fn)
		for _, err := range errs {
			if err == nil {
				succeeded++
			}
		}
		if err := errors.Join(errs...); err != nil {
			return succeeded, err
		}
	}
	return succeeded, nil
}

func batch(ctx context.Context, start, size int, fn func(context.Context, int) error) []error {
	errs := make([]error, size)
	var wg sync.WaitGroup
	for i := range size {
		wg.Go(func() { errs[i] = fn(ctx, start+i) })
	}
	wg.Wait()
	return errs
}
