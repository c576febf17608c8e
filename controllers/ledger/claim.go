package ledger

import "k8s.io/apimachinery/pkg/types"

// Grant is one pod that a claim got, for one shard.
type Grant struct {
	Shard int32
	Pod   Pod
}

// SetDemand notes how many pods the owner wants beyond what it holds, and returns how
// many of them a Claim would give it now. Zero takes its demand back.
func (l *Ledger) SetDemand(key Key, owner Owner, want int) int {
	return l.SetGangDemand(key, owner, want, 0)
}

// Waits says that somebody waits for pods of the pool.
func (l *Ledger) Waits(key Key) (waits bool) {
	l.with(key, func(p *pool) { waits = p.waiting.total() > 0 })
	return waits
}

// SetGangDemand is SetDemand for an owner that takes at least so many pods at once: until so
// many can be had, a Claim gives it none.
func (l *Ledger) SetGangDemand(key Key, owner Owner, want, least int) int {
	if want > 0 {
		l.know(key, owner)
	}
	var share int
	l.with(key, func(p *pool) {
		p.setDemand(owner, want, least)
		share = p.share(owner, want)
	})
	return share
}

// Claim takes up to one pod for each of the shards, in their order, and marks them
// as held by the owner. What it does not get stays the owner's demand. An owner that has set
// the demand of a gang gets its least or none; after that it takes what comes. The caller
// must either persist the claim or give it back with Unclaim.
func (l *Ledger) Claim(key Key, owner Owner, shards []int32) []Grant {
	l.know(key, owner)
	var grants []Grant
	l.with(key, func(p *pool) {
		p.setDemand(owner, len(shards), p.waiting.least(owner.UID))
		n := p.share(owner, len(shards))
		if n == 0 {
			return
		}
		h := p.holderOf(owner)
		grants = make([]Grant, 0, n)
		for _, shard := range shards[:n] {
			e := p.next()
			h.held = append(h.held, e)
			p.set(e, &held{holding: holding{holder: h}, shard: shard, base: e.Restarts})
			grants = append(grants, Grant{Shard: shard, Pod: e.Pod})
		}
		p.setDemand(owner, len(shards)-n, 0)
	})
	return grants
}

// Unclaim gives back the pods of a claim that is known never to be written: they were
// never the owner's. It takes back the owner's demand as well, and first: with it, the
// pods that come back would wake the owner at once, to claim and give back for ever.
// The owner asks again when it is reconciled.
func (l *Ledger) Unclaim(key Key, owner Owner, names []string) {
	l.with(key, func(p *pool) {
		p.setDemand(owner, 0, 0)
		p.endHolding(owner.UID, names, func(e *entry) { p.set(e, idle{}) })
	})
}

// UnclaimAndWait is Unclaim for an owner that claims anew at once, at least so many pods: it
// keeps its place in the queue, and younger ones do not get what it has given back. Nobody is
// woken: as many pods as come back are waited for again.
func (l *Ledger) UnclaimAndWait(key Key, owner Owner, names []string, least int) {
	l.with(key, func(p *pool) {
		p.setDemand(owner, p.waiting.count(owner.UID)+len(names), least)
		p.endHolding(owner.UID, names, func(e *entry) { p.set(e, idle{}) })
	})
}

// Discard ends the holding of pods that were lost, when the write that takes them out
// of alloc-status is confirmed, or of a claim whose write may have been visible for a
// while. They are never handed out again.
func (l *Ledger) Discard(key Key, owner types.UID, names []string) {
	l.with(key, func(p *pool) {
		p.endHolding(owner, names, func(e *entry) { p.set(e, retiring{}) })
	})
}

// endHolding takes held pods from their owner: next brings those that still exist
// into their next state.
func (p *pool) endHolding(owner types.UID, names []string, next func(*entry)) {
	h := p.holders[owner]
	if h == nil {
		return
	}
	for _, name := range names {
		e := p.pods[name]
		switch s := h.holds(e); {
		case s == nil:
		case s.gone:
			p.removeGone(e, s.successor)
		default:
			next(e)
		}
	}
	h.prune()
}

// removeGone removes a pod that is gone and admits its successor of the same name.
func (p *pool) removeGone(e *entry, successor *Pod) {
	p.remove(e)
	e.state = retiring{} // so that its holder's lists lose it
	if successor != nil {
		p.admit(*successor)
	}
}

// HeldPod is one pod of an allocation.
type HeldPod struct {
	Pod
	// Shard is the position of the sandbox in its batch; of a held pod only.
	Shard int32
	// Base is the restart count at hand-over; of a held pod only.
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

// Allocation is what an owner holds. Its slices are shared by all who ask until
// something changes: read them, and change nothing in them.
type Allocation struct {
	// Held pods, by shard.
	Held []HeldPod
	// Releasing pods, by name.
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
		if h := p.holders[owner]; h != nil {
			a = h.allocation()
		}
	})
	return a
}
