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
			e := h.held[name]
			if e == nil {
				continue
			}
			delete(h.held, name)
			h.releasing[name] = e
			e.state, e.clean = Releasing, false
		}
		p.poolChanged = true
	})
}

// MarkClean notes that recycling has left a pod clean, so that Free makes it idle.
// A pod that is freed without this mark is retired.
func (l *Ledger) MarkClean(key Key, owner types.UID, name string) {
	l.with(key, func(p *pool) {
		if h := p.holders[owner]; h != nil && h.releasing[name] != nil {
			h.releasing[name].clean = true
		}
	})
}

// MarkDeleted notes that the API server has taken the deletion of a pod, which the
// cache may show later. It never becomes idle again and counts no more.
func (l *Ledger) MarkDeleted(key Key, name string, uid types.UID) {
	l.with(key, func(p *pool) {
		if e := p.pods[name]; e != nil && (uid == "" || e.UID == uid) {
			e.deleted, e.clean = true, false
			p.refresh(e)
			p.poolChanged = true
		}
	})
}

// Free ends the release of pods. Call it only when the write that takes them out
// of the owner's annotations, or its finalizer away, is confirmed: it is the one
// way by which a pod that was lent becomes idle again.
func (l *Ledger) Free(key Key, owner types.UID, names []string) {
	l.with(key, func(p *pool) {
		h := p.holders[owner]
		if h == nil {
			return
		}
		for _, name := range names {
			if e := h.releasing[name]; e != nil {
				delete(h.releasing, name)
				p.leave(e, e.clean)
			}
		}
		p.poolChanged = true
	})
}

// Drop ends the holding of pods that are lost. Call it when the write that takes
// them out of alloc-status is confirmed. They are never lent again.
func (l *Ledger) Drop(key Key, owner types.UID, names []string) {
	l.with(key, func(p *pool) {
		h := p.holders[owner]
		if h == nil {
			return
		}
		for _, name := range names {
			if e := h.held[name]; e != nil {
				delete(h.held, name)
				p.leave(e, false)
			}
		}
		p.poolChanged = true
	})
}

// leave takes a pod from its holder: to idle when it is clean and can run, else out of use.
func (p *pool) leave(e *entry, clean bool) {
	e.holder = ""
	switch {
	case e.gone:
		p.bury(e)
	case clean && !e.Dead():
		e.state, e.clean = Idle, false
		p.refresh(e)
	default:
		e.state = Retiring
	}
}

// Retire takes pods out of the idle set, for deletion, and returns those that were
// still idle: a pod that a claim was quicker to take is not among them.
func (l *Ledger) Retire(key Key, names []string) []Pod {
	var taken []Pod
	l.with(key, func(p *pool) {
		for _, name := range names {
			e := p.pods[name]
			if e == nil || e.state != Idle {
				continue
			}
			e.state = Retiring
			p.refresh(e)
			p.poolChanged = true
			taken = append(taken, e.Pod)
		}
	})
	return taken
}
