package ledger

import "k8s.io/apimachinery/pkg/types"

// BeginCreate notes pods that are about to be created, under names that the caller has
// chosen. They count from now on, so that a pool makes no pod twice because the cache is
// late. A name that is in use is skipped; the names taken are returned.
func (l *Ledger) BeginCreate(key Key, names []string) []string {
	var taken []string
	l.with(key, func(p *pool) {
		for _, name := range names {
			if p.pods[name] != nil {
				continue
			}
			p.add(&entry{Pod: Pod{Name: name, PoolUID: p.uid, Revision: p.revision}, state: &creating{}})
			taken = append(taken, name)
		}
	})
	return taken
}

// ConfirmCreate notes that the API server has taken the pod. The cache may have shown
// it before, or may show it later.
func (l *Ledger) ConfirmCreate(key Key, name string, uid types.UID) {
	l.with(key, func(p *pool) {
		e := p.pods[name]
		if e == nil {
			return
		}
		if s, ok := e.state.(*creating); ok {
			s.confirmed, e.UID = true, uid
			p.refresh(e)
		}
	})
}

// AbortCreate forgets a name under which no pod was created and none will be. A pod
// that the cache has shown under it stays.
func (l *Ledger) AbortCreate(key Key, name string) {
	l.with(key, func(p *pool) {
		e := p.pods[name]
		if e == nil {
			return
		}
		if _, ok := e.state.(*creating); ok {
			p.remove(e)
		}
	})
}
