package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSizesAreNumbersWithinBounds(t *testing.T) {
	tests := map[string]struct {
		list string
		want []int32
		err  string
	}{
		"an empty list is none":          {"", nil, ""},
		"spaces are left out":            {"1, 5000", []int32{1, 5000}, ""},
		"more than a batch can have":     {"5001", nil, `flag -tasks: "5001"`},
		"a number is missing at the end": {"1,", nil, `flag -tasks: ""`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseSizes("tasks", test.list)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestBatchesAreCountsAndSizes(t *testing.T) {
	got, err := parseBatches("sizes", "1, 2x5000")
	require.NoError(t, err)
	require.Equal(t, []batches{{1, 1}, {2, 5000}}, got)
	require.Equal(t, "1 batch of 1", got[0].of(""))
	require.Equal(t, "2 batches of 5000 tasks", got[1].of(" tasks"))
	require.EqualValues(t, 10000, most(got))

	got, err = parseBatches("sizes", "")
	require.NoError(t, err)
	require.Empty(t, got)
	for _, bad := range []string{"0x5", "2x", "x2", "2x5001", "5001x1", "2x3x4"} {
		_, err := parseBatches("sizes", bad)
		require.ErrorContains(t, err, "flag -sizes: ", bad)
	}
}

// The defaults of the flags are not tested here: each is a list that one of these has read.
func TestPartsAreWhatTheFlagsAskFor(t *testing.T) {
	o := options{rounds: 1, longRounds: 1}
	parts, err := o.parts()
	require.NoError(t, err)
	require.Empty(t, parts)

	o = options{
		rounds: 1, longRounds: 1, burst: "10", burstReady: "1,3", refill: "10", zero: "10", templates: "10", creates: 1, tasks: "10x10",
	}
	parts, err = o.parts()
	require.NoError(t, err)
	require.Len(t, parts, 6)

	for message, bad := range map[string]options{
		"flag -burst: ":             {burst: "none"},
		"flag -burst-ready: ":       {burst: "1", burstReady: "0"},
		"flag -refill: ":            {refill: "2x5"},
		"flag -zero: ":              {zero: "-1"},
		"flag -templates: ":         {templates: "5001"},
		"flag -tasks: ":             {tasks: "0"},
		"flags -rounds and -long-r": {rounds: -1},
	} {
		bad.rounds, bad.longRounds = bad.rounds+1, 1
		_, err := bad.parts()
		require.ErrorContains(t, err, message)
	}
}
