package ledger

import (
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// PodState is a pod and what it is to its pool.
type PodState struct {
	Pod
	State State
	// Confirmed: of a pod in state Creating, that the API server has taken it.
	Confirmed bool
	// Gone: of a pod that is held or being released, that it no longer exists.
	Gone bool
	// Deleted: the API server has taken its deletion.
	Deleted bool
}

// Live says that the pod counts towards the size of its pool. A held pod counts
// until its holder has lost it, also when it has ended; any other while it can run.
func (s *PodState) Live() bool {
	switch {
	case s.Gone || s.Deleted || s.State == Retiring:
		return false
	case s.State == Held:
		return !s.Lost()
	}
	return !s.Dead()
}

// coming says of a live pod that it is available or on its way to be.
func (s *PodState) coming() bool {
	return s.State == Creating || s.State == Idle && !s.Evict && s.Problem == ""
}

// failing says of a live pod that it has a problem which keeps it from being ready.
func (s *PodState) failing() bool { return s.State == Idle && s.Problem != "" }

// Snapshot is a pool at one moment. Its slices are shared by all who ask until
// something changes: read them, and change nothing in them.
type Snapshot struct {
	Pods []PodState
	// Demand is the number of sandboxes asked for and not yet served.
	Demand int
	// Holders is the number of BatchSandboxes that hold pods or have not returned them yet.
	Holders int
	// Unreadable are the BatchSandboxes that are set aside.
	Unreadable []types.NamespacedName
}

// Snapshot returns the pool at this moment. Asked again before anything has changed,
// it costs nothing.
func (l *Ledger) Snapshot(key Key) Snapshot {
	var s Snapshot
	l.with(key, func(p *pool) {
		if p.snapshot == nil {
			p.snapshot = p.takeSnapshot()
		}
		s = *p.snapshot
	})
	return s
}

func (p *pool) takeSnapshot() *Snapshot {
	s := &Snapshot{Pods: slices.Clone(p.shown), Demand: p.waiting.total()}
	for _, h := range p.holders {
		if !h.empty() {
			s.Holders++
		}
		if h.unreadable {
			s.Unreadable = append(s.Unreadable, h.owner.NamespacedName)
		}
	}
	return s
}

// Usable says that a holder of the pod has not lost it, as far as the cache has shown.
func (l *Ledger) Usable(key Key, name string) bool {
	var usable bool
	l.with(key, func(p *pool) {
		e := p.pods[name]
		usable = e != nil && e.seen && !e.Lost() && !e.gone() && !e.deleted
	})
	return usable
}

// Room is what a pool has for one owner, beyond what those wait for who are served before it.
// Where there is too little for those, its numbers are negative.
type Room struct {
	// Spare is how many pods are available.
	Spare int
	// Coming is how many are available or on their way to be.
	Coming int
	// Pods is how many pods the pool has, and Failing how many of them have a problem that
	// keeps them from being ready.
	Pods, Failing int
}

// Later is how many pods there will be once the pool has grown to most, which a pool whose pods
// fail is not counted on to do.
func (r *Room) Later(most int) int { return later(r.Coming, r.Pods, r.Failing, most) }

func later(coming, pods, failing, most int) int {
	if failing > 0 {
		return coming
	}
	return coming + max(0, most-pods)
}

// Room returns what the pool has for the owner, in logarithmic time.
func (l *Ledger) Room(key Key, owner Owner) Room {
	var room Room
	l.with(key, func(p *pool) {
		before := p.waiting.before(owner.UID)
		room = Room{Spare: p.available - before, Coming: p.coming - before, Pods: p.live, Failing: p.failing}
	})
	return room
}
