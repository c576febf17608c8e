package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQuantile(t *testing.T) {
	tests := map[string]struct {
		list []float64
		at   float64
		want float64
	}{
		"the median of an odd number is the one in the middle": {[]float64{3, 1, 2}, 0.5, 2},
		"the median of an even number lies between two":        {[]float64{4, 1, 2, 3}, 0.5, 2.5},
		"one value is every quantile":                          {[]float64{7}, 0.25, 7},
		"the last quantile is the greatest":                    {[]float64{1, 9, 5}, 1, 9},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			require.InDelta(t, test.want, quantile(test.list, test.at), 1e-9)
		})
	}
}

func TestTheRatioIsTheMedianOfThePairsNotTheRatioOfTheMedians(t *testing.T) {
	of := func(times ...time.Duration) []sample {
		list := make([]sample, len(times))
		for i, d := range times {
			list[i] = sample{took: []time.Duration{d}, cost: 3}
		}
		return list
	}
	const ms = time.Millisecond
	// The machine was ten times slower during the second pair.
	table := ofSandboxes.table()
	table.Rows = rowsOf(scenario{name: "x", objects: 1, replicas: 10}, of(20*ms, 100*ms, 12*ms), of(10*ms, 100*ms, 10*ms))
	for column, want := range map[string]float64{"sandboxes": 10, "pairs": 3, "operator": 20, "floor": 10, "ratio": 1.2, "best ratio": 1.2} {
		got, err := table.Column(column)
		require.NoError(t, err)
		require.InDelta(t, want, got[0], 1e-9, column)
	}
}
