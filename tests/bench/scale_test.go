package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/wait"

	executorapi "github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/tests/bench/results"
)

func TestPodsAreSpreadOverPoolsWithoutARest(t *testing.T) {
	tests := map[string]struct {
		pods, poolSize, pools int
		want                  map[string]int32
	}{
		"fewer than a pool has":                   {90, 100, 50, map[string]int32{"crowd-0": 90}},
		"one of each is left over":                {201, 100, 50, map[string]int32{"crowd-0": 101, "crowd-1": 100}},
		"the pools get larger when there are all": {303, 100, 2, map[string]int32{"crowd-0": 152, "crowd-1": 151}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, spread(test.pods, test.poolSize, test.pools))
		})
	}
}

func TestStepsGrowAndLeaveRoomForWhatIsClaimedAndForTasks(t *testing.T) {
	tests := map[string]struct {
		pods string
		want []int
		err  string
	}{
		"ascending":                   {"400, 800", []int{400, 800}, ""},
		"as many as before":           {"400,400", nil, `flag -pods: "400"`},
		"no more than a batch":        {"100", nil, `flag -pods: "100"`},
		"no number":                   {"", nil, `flag -pods: ""`},
		"no room for tasks and batch": {"150", nil, "flag -tasks"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := scaleOptions{pods: test.pods, batch: 100, tasks: 50, rounds: 1, poolSize: 1, pools: 1}
			steps, err := o.checkedSteps()
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, steps)
		})
	}
}

func TestPartsAreNamed(t *testing.T) {
	parts, err := (&scaleOptions{parts: "cold,growth"}).chosenParts()
	require.NoError(t, err)
	require.Len(t, parts, 2)
	_, err = (&scaleOptions{parts: "growth,shrinking"}).chosenParts()
	require.ErrorContains(t, err, `"shrinking" is none of several, growth`)
}

func TestATakeoverIsMeasuredByWhatWasAskedForAfterIt(t *testing.T) {
	start := time.Now()
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	// In the order in which they were asked for; the last leader still delivers the second one late.
	list := deliveries{{at(0), at(0.1)}, {at(1), at(2.6)}, {at(3), at(7)}, {at(4), at(6)}, {at(8), at(8.1)}}
	require.InDelta(t, 3.5, list.firstAfter(at(2.5)), 1e-9, "until the one that was there first")
	require.Equal(t, 3400*time.Millisecond, list.longestGap())
	require.False(t, results.Measured(list.firstAfter(at(8))), "nothing was asked for later")
}

func TestAWindowOfALoadHasWhatWasDueInIt(t *testing.T) {
	l := load{rate: 2, lasts: 2 * time.Second}
	took := []time.Duration{1, 2, 3, 4}
	require.Equal(t, []time.Duration{1, 2}, l.dueIn(took, 0, time.Second))
	require.Equal(t, []time.Duration{3, 4}, l.dueIn(took, time.Second, 2*time.Second))
}

func TestALogTellsWhenAMessageWasFirstInIt(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	l := &logLines{file: file}
	const text = "panic: no JSON\n{\"msg\":\"took over\"}\n{\"msg\":\"half"
	for _, part := range []string{text[:20], text[20:]} {
		_, err := l.Write([]byte(part))
		require.NoError(t, err)
	}
	first, said := l.said(tookOver)
	require.True(t, said)
	_, said = l.said("half")
	require.False(t, said, "a line that has not ended")
	_, err = l.Write([]byte("\"}\n{\"msg\":\"took over\"}\n"))
	require.NoError(t, err)
	again, _ := l.said(tookOver)
	require.Equal(t, first, again)
	_, said = l.said("half")
	require.True(t, said)
	written, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(written), text), "all of it is in the file")
}

func TestTasksOfAFleetRunUntilItEndsThem(t *testing.T) {
	until := make(chan struct{})
	tasks := newStandInTasks(&fleet{until: until})
	started, isNew, err := tasks.Start(t.Context(), "", "a", executorapi.TaskRequest{})
	require.NoError(t, err)
	require.True(t, isNew)
	require.False(t, started.State.Ended())
	list, _ := tasks.list()
	require.False(t, list.Tasks[0].State.Ended())
	close(until)
	require.NoError(t, wait.PollUntilContextTimeout(t.Context(), time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		list, _ := tasks.list()
		return list.Tasks[0].State.Ended(), nil
	}))
	require.Equal(t, int64(1), tasks.fleet.started.Load())
}
