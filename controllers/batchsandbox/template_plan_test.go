package batchsandbox

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
)

var now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// made is a live pod of a shard, created so long after an hour ago.
func made(shard int32, name string, after time.Duration) shardPod {
	return shardPod{name: name, uid: types.UID("uid-" + name), shard: shard, created: now.Add(-time.Hour + after)}
}

func evicted(p shardPod) shardPod { p.disrupted = true; return p }
func ended(p shardPod) shardPod   { p.ended = true; return p }
func leaving(p shardPod) shardPod { p.terminating = true; return p }

func TestPlanTemplate(t *testing.T) {
	tests := map[string]struct {
		pods       []shardPod
		replicas   int32
		failures   map[int32]*failure
		create     []int32
		remove     []string
		retryAfter time.Duration
	}{
		"a new batch creates every shard, lowest first": {replicas: 3, create: []int32{0, 1, 2}},
		"a complete batch changes nothing": {
			pods: []shardPod{made(0, "a", 0), made(1, "b", 0)}, replicas: 2,
		},
		"a pod that the cache does not show yet is not created again": {
			pods: []shardPod{{name: "a", shard: 0, expected: true}}, replicas: 1,
		},
		"a pod that is being deleted is replaced at its shard": {
			pods: []shardPod{made(0, "a", 0), leaving(made(1, "b", 0))}, replicas: 2,
			create: []int32{1},
		},
		"scaled down, the highest shards are deleted": {
			pods: []shardPod{made(0, "a", 0), made(1, "b", 0), made(2, "c", 0)}, replicas: 1,
			remove: []string{"b", "c"},
		},
		"scaled down, what is being deleted already is not deleted again": {
			pods: []shardPod{made(0, "a", 0), leaving(made(1, "b", 0))}, replicas: 1,
		},
		"scaled up, only the new shards are created": {
			pods: []shardPod{made(0, "a", 0)}, replicas: 3,
			create: []int32{1, 2},
		},
		"a pod without a shard is deleted": {
			pods: []shardPod{made(0, "a", 0), made(-1, "stray", 0)}, replicas: 1,
			remove: []string{"stray"},
		},
		"of two pods of a shard the older stays": {
			pods: []shardPod{made(0, "young", time.Minute), made(0, "old", 0)}, replicas: 1,
			remove: []string{"young"},
		},
		"the first pod of a shard that is evicted is replaced at once": {
			pods: []shardPod{evicted(made(0, "a", 0))}, replicas: 1,
			create: []int32{0}, remove: []string{"a"},
		},
		"an evicted pod beside a live one is deleted": {
			pods: []shardPod{evicted(made(0, "a", 0)), made(0, "b", 0)}, replicas: 1,
			remove: []string{"a"},
		},
		"a pod whose containers finished by themselves keeps its shard": {
			pods: []shardPod{ended(made(0, "a", 0))}, replicas: 1,
		},
		"and is deleted when its shard is not asked for any more": {
			pods: []shardPod{ended(made(0, "a", 0))}, remove: []string{"a"},
		},
		"one that is being deleted is replaced": {
			pods: []shardPod{leaving(ended(made(0, "a", 0)))}, replicas: 1, create: []int32{0},
		},
		"beside one that runs it is deleted, although it is older": {
			pods: []shardPod{ended(made(0, "a", 0)), made(0, "b", time.Minute)}, replicas: 1, remove: []string{"a"},
		},
		"the second one that is evicted has to wait, and is left to be looked at": {
			pods: []shardPod{evicted(made(0, "b", 0))}, replicas: 1,
			failures:   map[int32]*failure{0: {pod: "uid-a", count: 1, at: now.Add(-time.Minute)}},
			retryAfter: firstReplaceDelay,
		},
		"when its time has come it is replaced": {
			pods: []shardPod{evicted(made(0, "b", 0))}, replicas: 1,
			failures: map[int32]*failure{0: {pod: "uid-b", count: 2, at: now.Add(-firstReplaceDelay)}},
			create:   []int32{0}, remove: []string{"b"},
		},
		"of several shards that wait the soonest counts": {
			pods: []shardPod{evicted(made(0, "a", 0)), evicted(made(1, "b", 0))}, replicas: 2,
			failures: map[int32]*failure{
				0: {pod: "uid-a", count: 4, at: now},
				1: {pod: "uid-b", count: 2, at: now.Add(-3 * time.Second)},
			},
			retryAfter: 7 * time.Second,
		},
		"a shard that was calm for long starts anew": {
			pods: []shardPod{evicted(made(0, "b", 0))}, replicas: 1,
			failures: map[int32]*failure{0: {pod: "uid-a", count: 9, at: now.Add(-forgiveAfter - time.Second)}},
			create:   []int32{0}, remove: []string{"b"},
		},
		"a pod that was deleted by a user does not have to wait": {
			replicas: 1,
			failures: map[int32]*failure{0: {pod: "uid-a", count: 9, at: now}},
			create:   []int32{0},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			failures := test.failures
			if failures == nil {
				failures = map[int32]*failure{}
			}
			plan := planTemplate(test.pods, test.replicas, nil, failures, now)
			var removed []string
			for _, p := range plan.remove {
				removed = append(removed, p.name)
			}
			slices.Sort(removed)
			require.Equal(t, test.create, plan.create, "shards to create")
			require.Equal(t, test.remove, removed, "pods to delete")
			require.Equal(t, test.retryAfter, plan.retryAfter, "when to come back")
		})
	}
}

func TestAShardWhosePodsAreAlwaysEvictedIsRecreatedEverMoreSlowly(t *testing.T) {
	failures := map[int32]*failure{}
	at, creates := now, 0
	for at.Before(now.Add(time.Hour)) {
		pod := shardPod{name: "a", uid: types.UID(fmt.Sprint(creates)), shard: 0, disrupted: true}
		plan := planTemplate([]shardPod{pod}, 1, nil, failures, at)
		if len(plan.create) > 0 {
			creates++
		} else {
			require.NotZero(t, plan.retryAfter, "it comes back by itself")
		}
		at = at.Add(max(plan.retryAfter, time.Millisecond))
	}
	// At once, after 10, 20, 40, 80 and 160 seconds, and then every five minutes.
	require.Equal(t, 16, creates, "pods created in an hour")
}

func TestAShardThatIsNoLongerAskedForIsForgiven(t *testing.T) {
	failures := map[int32]*failure{1: {pod: "uid-b", count: 9, at: now}}
	planTemplate([]shardPod{made(0, "a", 0), evicted(made(1, "b", 0))}, 1, nil, failures, now)
	require.Empty(t, failures)
}
