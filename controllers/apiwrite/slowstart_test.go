package apiwrite

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSlowStartCallsEachIndexOnce(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 7, 100} {
		var mu sync.Mutex
		seen := map[int]int{}
		done, err := SlowStart(t.Context(), n, 16, func(_ context.Context, i int) error {
			mu.Lock()
			defer mu.Unlock()
			seen[i]++
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, n, done)
		require.Len(t, seen, n)
	}
}

func TestSlowStartStopsAfterTheFirstBatchWithAnError(t *testing.T) {
	refused := errors.New("refused")
	var mu sync.Mutex
	calls := 0
	done, err := SlowStart(t.Context(), 1000, 0, func(_ context.Context, i int) error {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if i == 2 {
			return refused
		}
		return nil
	})
	require.ErrorIs(t, err, refused)
	require.Equal(t, 3, calls, "1 and then 2 calls")
	require.Equal(t, 2, done)
}

func TestSlowStartStopsWhenTheContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done, err := SlowStart(ctx, 10, 0, func(context.Context, int) error { cancel(); return nil })
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, done)
}
