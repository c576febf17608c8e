package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheP99OfASideIsComparedWithTheP99OfTheOther(t *testing.T) {
	const ms = time.Millisecond
	require.InDeltaSlice(t, []float64{3, 20, 10, 2, 39.6, 19.8, 2},
		quantilesOf([]time.Duration{40 * ms, 20 * ms, 10 * ms}, []time.Duration{5 * ms, 20 * ms, 10 * ms}), 1e-9)
}
