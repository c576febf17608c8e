package ledger

import (
	"k8s.io/apimachinery/pkg/types"
)

// BeginRelease marks held pods as given up and not clean. Call it when the release
// is persisted: the pods stand in alloc-release, or the owner is being deleted and
// its alloc-status stays.
func (l *Ledger) BeginRelease(key Key, owner types.UID, names []string) {
	l.with(key, func(p *pool) {
		h := p.holders[owner]
		if h == nil {
			return
		}
		for _, name := range names {
			e := p.pods[name]
			if s := h.holds(e); s != nil {
				h.releasing = append(h.releasing, e)
				p.set(e, &releasing{holding: s.holding})
			}
		}
		h.prune()
	})
}

// MarkClean notes that recycling has left a pod clean, so that EndRelease makes it
// idle. Without this mark a pod is retired.
func (l *Ledger) MarkClean(key Key, owner types.UID, name string) {
	l.with(key, func(p *pool) {
		h, e := p.holders[owner], p.pods[name]
		if h == nil {
			return
		}
		if s := h.releases(e); s != nil {
			s.clean = true
			p.refresh(e)
		}
	})
}

// EndRelease lets go of pods that were given up: those that are clean are idle again,
// the others are retired. Call it only when the write that takes them out of the
// owner's annotations, or its finalizer away, is confirmed.
func (l *Ledger) EndRelease(key Key, owner types.UID, names []string) {
	l.with(key, func(p *pool) {
		h := p.holders[owner]
		if h == nil {
			return
		}
		for _, name := range names {
			e := p.pods[name]
			switch s := h.releases(e); {
			case s == nil:
			case s.gone:
				p.removeGone(e, s.successor)
			case s.clean && !e.Dead() && !e.deleted:
				p.set(e, idle{})
			default:
				p.set(e, retiring{})
			}
		}
		h.prune()
	})
}

// Retire takes pods out of the idle set, for deletion, and returns those that were
// still idle: a pod that a claim was quicker to take is not among them.
func (l *Ledger) Retire(key Key, names []string) []Pod {
	var taken []Pod
	l.with(key, func(p *pool) {
		for _, name := range names {
			if e := p.pods[name]; e != nil && e.state == (idle{}) {
				p.set(e, retiring{})
				taken = append(taken, e.Pod)
			}
		}
	})
	return taken
}
