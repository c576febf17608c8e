package ledger

import "k8s.io/apimachinery/pkg/types"

// Observe takes in what the cache shows of a pod.
func (l *Ledger) Observe(key Key, facts Pod) {
	l.with(key, func(p *pool) { p.observe(facts) })
}

func (p *pool) observe(facts Pod) {
	e := p.pods[facts.Name]
	if e == nil {
		p.admit(facts)
		return
	}
	if e.seen && e.Pod == facts && !e.gone() {
		return
	}
	if l := e.holding(); l != nil && !p.observeHeld(e, l, facts) {
		return
	}
	if _, ok := e.state.(*creating); ok {
		e.state = idle{}
	}
	if e.UID == facts.UID {
		// None of these is ever undone, so a late event must not seem to undo it.
		facts.Terminating = facts.Terminating || e.Terminating
		facts.Finished = facts.Finished || e.Finished
		facts.Disrupted = facts.Disrupted || e.Disrupted
	} else {
		e.deleted = false
	}
	e.Pod, e.seen = facts, true
	p.refresh(e)
	p.changed = true
}

// admit takes in a pod that was not known. This leader has not created it, so while
// an allocation cannot be read, that may name it.
func (p *pool) admit(facts Pod) {
	e := &entry{Pod: facts, state: idle{}, seen: true}
	if p.unreadable > 0 {
		e.state = setAside{}
	}
	p.add(e)
	p.changed = true
}

// observeHeld takes in what is shown under the name of a pod that is held or being
// released, and says whether it is that pod, and the pod still exists. When another pod
// is shown, the holder has lost its own: a name is given to one pod at a time.
func (p *pool) observeHeld(e *entry, l *holding, facts Pod) bool {
	if known := e.UID != "" || l.gone; known && e.UID != facts.UID {
		l.gone, l.successor = true, &facts
		p.refresh(e)
		p.changed = true
	} else if l.gone {
		return false // a late event
	}
	p.wake(l.holder.owner)
	return !l.gone
}

// ObserveGone takes in that a pod is gone for good. An empty uid stands for any pod of
// that name. Whoever holds the pod keeps its name, marked as gone, until it lets it go.
func (l *Ledger) ObserveGone(key Key, name string, uid types.UID) {
	l.with(key, func(p *pool) {
		e := p.pods[name]
		if e == nil {
			return
		}
		h := e.holding()
		if h != nil && h.successor != nil && (uid == "" || uid == h.successor.UID) {
			h.successor = nil
		}
		switch {
		case uid != "" && e.UID != "" && e.UID != uid:
		case h == nil:
			p.remove(e)
		default:
			p.markGone(e, h)
		}
	})
}

// markGone tells the holder of a pod that the pod no longer exists.
func (p *pool) markGone(e *entry, l *holding) {
	l.gone = true
	p.refresh(e)
	p.changed = true
	p.wake(l.holder.owner)
}

// MarkDeleted notes that the API server has taken the deletion of a pod, or that the
// pod has left its pool; the cache may show either later. The pod is handed out no more and
// does not count any more.
func (l *Ledger) MarkDeleted(key Key, name string, uid types.UID) {
	l.with(key, func(p *pool) {
		if e := p.pods[name]; e != nil && e.UID == uid {
			e.deleted = true
			p.refresh(e)
			p.changed = true
		}
	})
}
