package ledger

import (
	"k8s.io/apimachinery/pkg/types"
)

// Grant is one pod that a claim got, for one shard.
type Grant struct {
	Shard int32
	Pod   Pod
}

// Offer notes that the owner wants so many pods and returns how many a Claim
// would give it now.
func (l *Ledger) Offer(key Key, owner Owner, want int) int {
	l.know(key, owner)
	var share int
	l.with(key, func(p *pool) {
		p.setDemand(owner, want)
		share = p.share(owner, want)
	})
	return share
}

// Claim takes up to one pod for each of the shards, in their order, and marks them
// as held by the owner. What it does not get stays the owner's demand. The caller
// must either persist the claim or give it back with Unclaim.
func (l *Ledger) Claim(key Key, owner Owner, shards []int32) []Grant {
	l.know(key, owner)
	var grants []Grant
	l.with(key, func(p *pool) {
		p.setDemand(owner, len(shards))
		n := p.share(owner, len(shards))
		if n == 0 {
			return
		}
		h := p.holderOf(owner)
		grants = make([]Grant, 0, n)
		for _, shard := range shards[:n] {
			e := p.next()
			e.state, e.holder, e.shard, e.base, e.clean = Held, owner.UID, shard, e.Restarts, false
			p.refresh(e)
			h.held[e.Name] = e
			grants = append(grants, Grant{Shard: shard, Pod: e.Pod})
		}
		p.setDemand(owner, len(shards)-n)
		p.poolChanged = true
	})
	return grants
}

// Unclaim gives pods of a claim back that is known never to be written: they were
// never the owner's.
func (l *Ledger) Unclaim(key Key, owner types.UID, names []string) {
	l.with(key, func(p *pool) {
		h := p.holders[owner]
		if h == nil {
			return
		}
		for _, name := range names {
			e := h.held[name]
			if e == nil {
				continue
			}
			delete(h.held, name)
			if e.gone {
				p.bury(e)
				continue
			}
			e.state, e.holder = Idle, ""
			p.refresh(e)
		}
		p.poolChanged = true
	})
}

// Withdraw takes back the owner's demand.
func (l *Ledger) Withdraw(key Key, owner Owner) {
	l.with(key, func(p *pool) { p.setDemand(owner, 0) })
}

// HeldPod is one pod of an allocation.
type HeldPod struct {
	Pod
	Shard int32
	// Base is the restart count at hand-over.
	Base int32
	// Seen: the cache has shown the pod. While false and not Gone, the allocation
	// names a pod of which nothing is known yet.
	Seen bool
	// Gone: the pod no longer exists.
	Gone bool
	// Clean: of a pod that is being released, that recycling has cleaned it.
	Clean bool
	// Deleted: the API server has taken its deletion.
	Deleted bool
}

// Lost says that the pod was taken away from its holder, which gets another one.
func (h *HeldPod) Lost() bool { return h.Gone || h.Pod.Lost() }

// Allocation is what an owner holds.
type Allocation struct {
	// Held pods, in no order; each has its shard.
	Held []HeldPod
	// Releasing pods, in no order.
	Releasing []HeldPod
	// Unreadable: the owner's annotations could not be read and it is set aside.
	Unreadable bool
}

// Empty says that nothing is held or being released.
func (a *Allocation) Empty() bool {
	return len(a.Held) == 0 && len(a.Releasing) == 0 && !a.Unreadable
}

// Allocation returns what the owner holds of the pool.
func (l *Ledger) Allocation(key Key, owner types.UID) Allocation {
	var a Allocation
	l.with(key, func(p *pool) {
		h := p.holders[owner]
		if h == nil {
			return
		}
		a.Unreadable = h.unread
		for _, e := range h.held {
			a.Held = append(a.Held, e.heldPod())
		}
		for _, e := range h.releasing {
			a.Releasing = append(a.Releasing, e.heldPod())
		}
	})
	return a
}

func (e *entry) heldPod() HeldPod {
	return HeldPod{Pod: e.Pod, Shard: e.shard, Base: e.base, Seen: e.seen, Gone: e.gone, Clean: e.clean, Deleted: e.deleted}
}
