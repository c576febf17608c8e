package task

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDecide(t *testing.T) {
	ready := sandbox{shard: 0, pod: "a", uid: "a", ready: true}
	notReady, bare := ready, ready
	notReady.ready, bare.missing = false, "has none"
	over := notReady
	over.ended = true
	tests := map[string]struct {
		record   *record
		sandbox  *sandbox
		replicas int32
		release  bool
		want     plan
	}{
		"a sandbox that is ready is followed":                  {sandbox: &ready, replicas: 1, want: plan{follow: []sandbox{ready}}},
		"one that is not ready yet waits":                      {sandbox: &notReady, replicas: 1},
		"a sandbox that is followed goes on":                   {record: &record{pod: "a", state: running}, sandbox: &ready, replicas: 1},
		"also while it is not ready":                           {record: &record{pod: "a", state: running}, sandbox: &notReady, replicas: 1},
		"also when its task has ended":                         {record: &record{pod: "a", state: failed}, sandbox: &ready, replicas: 1},
		"a lost sandbox' task waits and runs again":            {record: &record{pod: "b", state: running}, replicas: 1, want: plan{reset: []int32{0}, again: []int32{0}}},
		"and at once where there is another sandbox":           {record: &record{pod: "b", state: succeeded}, sandbox: &ready, replicas: 1, want: plan{follow: []sandbox{ready}, again: []int32{0}}},
		"a task that had not begun does not run again":         {record: &record{pod: "b"}, sandbox: &ready, replicas: 1, want: plan{follow: []sandbox{ready}}},
		"a released result outlives its sandbox":               {record: &record{pod: "b", state: succeeded}, replicas: 1, release: true},
		"also one from the status":                             {record: &record{state: failed}, sandbox: &ready, replicas: 1, release: true},
		"a task that runs is not released":                     {record: &record{pod: "b", state: running}, sandbox: &ready, replicas: 1, release: true, want: plan{follow: []sandbox{ready}, again: []int32{0}}},
		"a result from the status is asked for in the sandbox": {record: &record{state: succeeded}, sandbox: &ready, replicas: 1, want: plan{follow: []sandbox{ready}}},
		"and shown until that is ready":                        {record: &record{state: succeeded}, sandbox: &notReady, replicas: 1},
		"without a sandbox it counts no more":                  {record: &record{state: succeeded}, replicas: 1, want: plan{reset: []int32{0}}},
		"a sandbox without an executor is missing it":          {sandbox: &bare, replicas: 1, want: plan{missing: []sandbox{bare}, reset: []int32{0}}},
		"a sandbox with one in its place is followed":          {record: &record{missing: "has none"}, sandbox: &ready, replicas: 1, want: plan{follow: []sandbox{ready}}},
		"the task of a sandbox that has ended is over":         {record: &record{pod: "a", state: running}, sandbox: &over, replicas: 1, want: plan{ended: []sandbox{over}}},
		"also when it had not begun":                           {sandbox: &over, replicas: 1, want: plan{ended: []sandbox{over}}},
		"also when the last sandbox' task had run":             {record: &record{pod: "b", state: running}, sandbox: &over, replicas: 1, want: plan{ended: []sandbox{over}}},
		"also when its result was not confirmed":               {record: &record{pod: "a", state: failed, stale: true}, sandbox: &over, replicas: 1, want: plan{ended: []sandbox{over}}},
		"its result stands":                                    {record: &record{pod: "a", state: succeeded}, sandbox: &over, replicas: 1},
		"also one that only the status says":                   {record: &record{state: succeeded}, sandbox: &over, replicas: 1},
		"a shard that is not asked for any more is dropped":    {record: &record{pod: "a", state: running}, sandbox: &ready, replicas: 0, want: plan{drop: []int32{0}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			records, sandboxes := map[int32]*record{}, map[int32]sandbox{}
			if test.record != nil {
				records[0] = test.record
			}
			if test.sandbox != nil {
				sandboxes[0] = *test.sandbox
			}
			require.Equal(t, test.want, decide(records, sandboxes, test.replicas, test.release))
		})
	}
}
