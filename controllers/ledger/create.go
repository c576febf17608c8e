package ledger

import "k8s.io/apimachinery/pkg/types"

// Reserve notes pods that are about to be created under names of the caller's
// choice, so that they count from now on. A name that is in use is skipped; the
// names taken are returned.
func (l *Ledger) Reserve(key Key, names []string) []string {
	var taken []string
	l.with(key, func(p *pool) {
		for _, name := range names {
			if p.pods[name] != nil {
				continue
			}
			p.pods[name] = &entry{Pod: Pod{Name: name, PoolUID: p.uid, Revision: p.revision}, state: Creating}
			taken = append(taken, name)
		}
	})
	return taken
}

// Created notes that the API server has taken the pod. The cache may have shown it
// before, or may show it later.
func (l *Ledger) Created(key Key, name string, uid types.UID) {
	l.with(key, func(p *pool) {
		if e := p.pods[name]; e != nil && e.state == Creating {
			e.confirmed, e.UID = true, uid
		}
	})
}

// Unreserve takes back a reservation whose creation was refused for good.
func (l *Ledger) Unreserve(key Key, name string) {
	l.with(key, func(p *pool) {
		if e := p.pods[name]; e != nil && e.state == Creating {
			p.remove(e)
		}
	})
}
