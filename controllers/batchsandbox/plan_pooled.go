package batchsandbox

import (
	"slices"

	"github.com/opensandbox/operator/controllers/ledger"
)

// pooledPlan says what is to change in what a pooled BatchSandbox holds.
type pooledPlan struct {
	// keep are the held pods that stay.
	keep []ledger.HeldPod
	// lost are held pods that can serve no more; they are dropped.
	lost []ledger.HeldPod
	// surplus are held pods of shards that are no longer asked for; they are released.
	surplus []ledger.HeldPod
	// empty are the shards that want a pod, lowest first.
	empty []int32
}

// planPooled decides what to keep, drop and give up so that shards 0 to replicas-1
// each have one live pod.
func planPooled(held []ledger.HeldPod, replicas int32) pooledPlan {
	var plan pooledPlan
	filled := make([]bool, replicas)
	slices.SortFunc(held, func(a, b ledger.HeldPod) int { return int(a.Shard - b.Shard) })
	for _, h := range held {
		switch {
		case h.Lost():
			plan.lost = append(plan.lost, h)
		case h.Shard >= replicas:
			plan.surplus = append(plan.surplus, h)
		default:
			filled[h.Shard] = true
			plan.keep = append(plan.keep, h)
		}
	}
	for shard := range replicas {
		if !filled[shard] {
			plan.empty = append(plan.empty, shard)
		}
	}
	return plan
}

func names(pods []ledger.HeldPod) []string {
	list := make([]string, len(pods))
	for i := range pods {
		list[i] = pods[i].Name
	}
	return list
}
