package batchsandbox

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/controllers/ledger"
)

// held is a live pod of an allocation, changed by the options.
func held(shard int32, name string, options ...func(*ledger.HeldPod)) ledger.HeldPod {
	h := ledger.HeldPod{Pod: ledger.Pod{Name: name, Ready: true}, Shard: shard, Seen: true}
	for _, option := range options {
		option(&h)
	}
	return h
}

func gone(h *ledger.HeldPod)        { h.Gone = true }
func terminating(h *ledger.HeldPod) { h.Terminating = true }
func disrupted(h *ledger.HeldPod)   { h.Finished, h.Disrupted = true, true }
func finished(h *ledger.HeldPod)    { h.Finished, h.Ready = true, false }
func notReady(h *ledger.HeldPod)    { h.Ready = false }
func unseen(h *ledger.HeldPod)      { h.Seen, h.Ready = false, false }

func TestPlanPooled(t *testing.T) {
	tests := map[string]struct {
		held                []ledger.HeldPod
		replicas            int32
		keep, lost, surplus []string
		empty               []int32
	}{
		"a new batch claims every shard, lowest first": {replicas: 3, empty: []int32{0, 1, 2}},
		"a batch of none claims none":                  {replicas: 0},
		"a complete batch changes nothing": {
			held: []ledger.HeldPod{held(0, "a"), held(1, "b")}, replicas: 2,
			keep: []string{"a", "b"},
		},
		"a pod that is gone is replaced at its own shard": {
			held: []ledger.HeldPod{held(0, "a"), held(1, "b", gone), held(2, "c")}, replicas: 3,
			keep: []string{"a", "c"}, lost: []string{"b"}, empty: []int32{1},
		},
		"a pod that is being deleted is lost": {
			held: []ledger.HeldPod{held(0, "a", terminating)}, replicas: 1,
			lost: []string{"a"}, empty: []int32{0},
		},
		"a pod that the cluster has evicted is lost": {
			held: []ledger.HeldPod{held(0, "a", disrupted)}, replicas: 1,
			lost: []string{"a"}, empty: []int32{0},
		},
		"a pod whose containers have finished by themselves stays": {
			held: []ledger.HeldPod{held(0, "a", finished)}, replicas: 1,
			keep: []string{"a"},
		},
		"a pod that is only not ready stays: its node may come back": {
			held: []ledger.HeldPod{held(0, "a", notReady)}, replicas: 1,
			keep: []string{"a"},
		},
		"a pod of which nothing is known yet stays": {
			held: []ledger.HeldPod{held(0, "a", unseen)}, replicas: 1,
			keep: []string{"a"},
		},
		"scaled down, the highest shards are given up": {
			held: []ledger.HeldPod{held(0, "a"), held(1, "b"), held(2, "c")}, replicas: 1,
			keep: []string{"a"}, surplus: []string{"b", "c"},
		},
		"scaled down to none, all are given up": {
			held: []ledger.HeldPod{held(0, "a")}, replicas: 0,
			surplus: []string{"a"},
		},
		"scaled down, a lost pod of a shard that is not asked for is dropped and not released": {
			held: []ledger.HeldPod{held(0, "a"), held(1, "b", gone)}, replicas: 1,
			keep: []string{"a"}, lost: []string{"b"},
		},
		"scaled up, only the new shards are claimed": {
			held: []ledger.HeldPod{held(0, "a")}, replicas: 3,
			keep: []string{"a"}, empty: []int32{1, 2},
		},
		"a hole below a filled shard is claimed": {
			held: []ledger.HeldPod{held(1, "b")}, replicas: 2,
			keep: []string{"b"}, empty: []int32{0},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			plan := planPooled(test.held, test.replicas, nil)
			require.ElementsMatch(t, test.lost, names(plan.lost), "lost")
			require.ElementsMatch(t, test.surplus, names(plan.surplus), "surplus")
			require.Equal(t, test.empty, plan.empty, "shards that want a pod")
			require.Len(t, plan.keep, len(test.keep))
			if len(test.keep) > 0 {
				require.Equal(t, test.keep, names(plan.keep), "kept")
			}
		})
	}
}
