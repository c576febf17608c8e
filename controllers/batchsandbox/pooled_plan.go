package batchsandbox

import (
	"fmt"
	"slices"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
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

// planPooled decides which of the held pods, given in the order of their shards, to keep,
// to drop and to release, so that each of the shards 0 to replicas-1 that is not released
// has one pod that is not lost.
func planPooled(held []ledger.HeldPod, replicas int32, released map[int32]bool) pooledPlan {
	if !slices.ContainsFunc(held, func(h ledger.HeldPod) bool { return h.Lost() || h.Shard >= replicas || released[h.Shard] }) {
		return pooledPlan{keep: held, empty: emptyShards(held, replicas, released)}
	}
	var plan pooledPlan
	for _, h := range held {
		switch {
		case h.Lost():
			plan.lost = append(plan.lost, h)
		case h.Shard >= replicas || released[h.Shard]:
			plan.surplus = append(plan.surplus, h)
		default:
			plan.keep = append(plan.keep, h)
		}
	}
	plan.empty = emptyShards(plan.keep, replicas, released)
	return plan
}

// emptyShards returns the shards, lowest first, that none of the pods has, which stand in
// the order of their shards.
func emptyShards(pods []ledger.HeldPod, replicas int32, released map[int32]bool) []int32 {
	var empty []int32
	next := 0
	for shard := range replicas {
		for next < len(pods) && pods[next].Shard < shard {
			next++
		}
		if filled := next < len(pods) && pods[next].Shard == shard; !filled && !released[shard] {
			empty = append(empty, shard)
		}
	}
	return empty
}

const (
	// poolPodSuffix is the length of what follows the pool's name in a pod's name.
	poolPodSuffix = 7
	// shortestIP and longestIP are what an address takes: 1.1.1.1, or IPv6 in full.
	shortestIP, longestIP = 7, 39
	// quotes are what a name or an address takes beside itself: "name",
	quotes = 3
)

// settled says that what is held stays as it is.
func (p *pooledPlan) settled() bool { return len(p.lost)+len(p.surplus) == 0 }

// change returns what to write for the pods of the Pool that are kept and the grants of a claim.
func (p *pooledPlan) change(pool string, grants []ledger.Grant, releasing []ledger.HeldPod) (change, []ledger.HeldPod) {
	to, next := change{dropped: names(p.lost), released: names(p.surplus)}, p.keep
	if len(grants) > 0 {
		next = slices.Clone(p.keep)
		for _, g := range grants {
			to.claimed = append(to.claimed, g.Pod.Name)
			next = append(next, ledger.HeldPod{Pod: g.Pod, Shard: g.Shard, Base: g.Pod.Restarts, Seen: true})
		}
	}
	to.holds = len(next)+len(releasing)+len(p.surplus) > 0
	to.annotations = allocation.Format(pool, next, append(names(releasing), to.released...))
	return to, next
}

// fit returns how many sandboxes to ask the pool for, so that it does not grow for a
// batch whose allocation can never be written: none when it would not even fit with
// the shortest addresses, and one, to learn how long they are, when that decides.
func fit(bs *v1alpha1.BatchSandbox, pool string, plan *pooledPlan, without allocation.Annotations) (int, *blocked) {
	missing := len(plan.empty)
	if missing == 0 {
		return 0, nil
	}
	known := longestIPOf(plan.keep)
	switch least := sizeWhenFull(bs, pool, plan.keep, without, missing, max(known, shortestIP)); {
	case least > allocation.MaxAnnotationBytes:
		return 0, allocationTooLarge(bs, pool, least)
	case known == 0 && least+missing*(longestIP-shortestIP) > allocation.MaxAnnotationBytes:
		return 1, nil
	}
	return missing, nil
}

// sizeWhenFull returns how many bytes the annotations will take with the pods that are
// held and as many more of the pool as are missing, whose addresses are of that length.
func sizeWhenFull(bs *v1alpha1.BatchSandbox, pool string, held []ledger.HeldPod, a allocation.Annotations, missing, ip int) int {
	positions := 0
	for i := range held {
		positions = max(positions, int(held[i].Shard)+1)
	}
	filled := min(missing, positions-len(held)) // empty positions have their quotes already
	return allocation.SizeWith(bs, a) + missing*shardSize(pool, ip) - filled*2*quotes
}

func longestIPOf(pods []ledger.HeldPod) int {
	longest := 0
	for i := range pods {
		longest = max(longest, len(pods[i].IP))
	}
	return longest
}

// shardSize is what a sandbox that is still to come will take in the annotations.
func shardSize(pool string, ip int) int {
	return len(pool) + poolPodSuffix + ip + 2*quotes
}

func allocationTooLarge(bs *v1alpha1.BatchSandbox, pool string, size int) *blocked {
	return &blocked{v1alpha1.ReasonAllocationTooLarge, fmt.Sprintf(
		"spec.replicas: %d sandboxes of pool %s would need %d bytes of annotations, more than the %d that an object may have; ask for fewer or shorten the pool's name",
		bs.DesiredReplicas(), pool, size, allocation.MaxAnnotationBytes)}
}

// objectTooLarge is what there is to say when the annotations would fit and the object
// does not, because of what else is in it.
func objectTooLarge(bs *v1alpha1.BatchSandbox, size int) *blocked {
	return &blocked{v1alpha1.ReasonAllocationTooLarge, fmt.Sprintf(
		"spec.replicas: with %d bytes of annotations for %d sandboxes the object would be larger than the API server can store; ask for fewer or make spec.shardTaskPatches smaller",
		size, bs.DesiredReplicas())}
}

func names(pods []ledger.HeldPod) []string {
	list := make([]string, len(pods))
	for i := range pods {
		list[i] = pods[i].Name
	}
	return list
}
