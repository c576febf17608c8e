package batchsandbox

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// A template-mode pod that the cluster has ended, by an eviction for example, is replaced
// at once the first time, and then with a delay that doubles: where pods are evicted again
// and again, the operator does not create them in a loop. A shard of which none was for
// forgiveAfter starts anew.
const (
	firstReplaceDelay = 10 * time.Second
	lastReplaceDelay  = 5 * time.Minute
	forgiveAfter      = 15 * time.Minute
)

// shardPod is a template-mode pod as the plan sees it.
type shardPod struct {
	name    string
	uid     types.UID
	shard   int32
	created time.Time
	// terminating: it is being deleted.
	terminating bool
	// disrupted: the cluster has ended it. ended: its containers finished by themselves.
	disrupted, ended bool
	// expected: it was created and the cache does not show it yet.
	expected bool
}

// templatePlan says which pods to create and delete.
type templatePlan struct {
	// create are the shards that want a pod, lowest first.
	create []int32
	// remove are pods that are not wanted.
	remove []shardPod
	// retryAfter is when the next shard may be replaced; 0 when none waits.
	retryAfter time.Duration
}

// planTemplate decides what to create and delete so that shards 0 to replicas-1,
// except those that are released, each have one live pod. It brings failures up to date
// with the pods that the cluster has ended.
func planTemplate(pods []shardPod, replicas int32, released map[int32]bool, failures map[int32]*failure, now time.Time) templatePlan {
	var plan templatePlan
	byShard := map[int32][]shardPod{}
	for _, p := range pods {
		byShard[p.shard] = append(byShard[p.shard], p)
	}
	for shard, list := range byShard {
		if shard < 0 || shard >= replicas || released[shard] {
			for _, p := range list {
				if !p.terminating {
					plan.remove = append(plan.remove, p)
				}
			}
			delete(byShard, shard)
			delete(failures, shard)
		}
	}
	for shard := range replicas {
		if released[shard] {
			continue
		}
		create, remove, wait := planShard(shard, byShard[shard], failures, now)
		if create {
			plan.create = append(plan.create, shard)
		}
		plan.remove = append(plan.remove, remove...)
		plan.retryAfter = soonest(plan.retryAfter, wait)
	}
	return plan
}

// planShard decides for the pods of one shard. A pod that has ended keeps the shard: in
// another one all would run again.
func planShard(shard int32, pods []shardPod, failures map[int32]*failure, now time.Time) (create bool, remove []shardPod, wait time.Duration) {
	var kept, disrupted []shardPod
	for _, p := range pods {
		switch {
		case p.terminating:
		case p.disrupted:
			disrupted = append(disrupted, p)
		default:
			kept = append(kept, p)
		}
	}
	if len(kept) > 0 {
		// Of several, as a change of leaders may leave behind, the oldest that runs stays.
		slices.SortFunc(kept, func(a, b shardPod) int {
			switch {
			case a.ended == b.ended:
				return a.created.Compare(b.created)
			case a.ended:
				return 1
			}
			return -1
		})
		return false, append(disrupted, kept[1:]...), 0
	}
	for _, p := range disrupted {
		noteFailure(failures, shard, p.uid, now)
	}
	if f := failures[shard]; f != nil && len(disrupted) > 0 {
		if left := f.at.Add(replaceDelay(f.count)).Sub(now); left > 0 {
			return false, nil, left
		}
	}
	return true, disrupted, 0
}

// failure is how often, and when last, the cluster has ended the pod of a shard.
type failure struct {
	pod   types.UID
	count int
	at    time.Time
}

func noteFailure(failures map[int32]*failure, shard int32, pod types.UID, now time.Time) {
	f := failures[shard]
	switch {
	case f == nil:
		failures[shard] = &failure{pod: pod, count: 1, at: now}
	case f.pod == pod:
	case now.Sub(f.at) > forgiveAfter:
		f.pod, f.count, f.at = pod, 1, now
	default:
		f.pod, f.count, f.at = pod, f.count+1, now
	}
}

// replaceDelay is how long to wait after the cluster has ended the count-th pod of a shard.
func replaceDelay(count int) time.Duration {
	if count <= 1 {
		return 0
	}
	delay := firstReplaceDelay
	for range count - 2 {
		if delay *= 2; delay >= lastReplaceDelay {
			return lastReplaceDelay
		}
	}
	return delay
}
