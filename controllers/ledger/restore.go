package ledger

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// Record is what the annotations of one BatchSandbox say.
type Record struct {
	Pool  Key
	Owner Owner
	// Pods held, by shard; an empty string is a shard without a sandbox.
	Pods []string
	// Restarts at hand-over, by shard; shorter lists are filled up with zeros.
	Restarts []int32
	// Releasing are the pods in alloc-release.
	Releasing []string
	// Unreadable: the annotations cannot be parsed; the lists are empty.
	Unreadable bool
}

// Conflict is a pod that two records name.
type Conflict struct {
	Pool   Key
	Pod    string
	Owners []Owner
}

// Restore fills an empty ledger, or takes in one record that has become readable.
// Call it with all records at once at start, after the pods were observed and
// before anything is lent.
//
// A pod that two owners claim is given to neither: it is retired, both lose it,
// and the conflict is returned.
func (l *Ledger) Restore(records []Record) []Conflict {
	byPool := map[Key][]Record{}
	for _, r := range records {
		l.know(r.Pool, r.Owner)
		byPool[r.Pool] = append(byPool[r.Pool], r)
	}
	var conflicts []Conflict
	for key, rs := range byPool {
		l.with(key, func(p *pool) { conflicts = append(conflicts, p.restore(rs)...) })
	}
	return conflicts
}

func (p *pool) restore(records []Record) []Conflict {
	claims := map[string][]Owner{}
	for _, r := range records {
		for _, name := range slices.Concat(r.Pods, r.Releasing) {
			if name == "" {
				continue
			}
			if !slices.ContainsFunc(claims[name], func(o Owner) bool { return o.UID == r.Owner.UID }) {
				claims[name] = append(claims[name], r.Owner)
			}
		}
	}
	for name, e := range p.pods {
		if e.state == Held || e.state == Releasing {
			owners, h := claims[name], p.holders[e.holder]
			if owners != nil && h != nil && e.holder != owners[0].UID {
				claims[name] = append(owners, h.owner)
			}
		}
	}
	var conflicts []Conflict
	for name, owners := range claims {
		if len(owners) > 1 {
			conflicts = append(conflicts, Conflict{Pool: p.key, Pod: name, Owners: owners})
			p.retireDisputed(name)
		}
	}
	for _, r := range records {
		p.restoreOne(r, func(name string) bool { return len(claims[name]) > 1 })
	}
	p.suspectIdle()
	p.poolChanged = true
	return conflicts
}

// retireDisputed takes a pod that two owners claim from whoever holds it.
func (p *pool) retireDisputed(name string) {
	e := p.pods[name]
	if e == nil {
		e = &entry{Pod: Pod{Name: name}}
		p.pods[name] = e
	}
	if h := p.holders[e.holder]; h != nil {
		delete(h.held, name)
		delete(h.releasing, name)
	}
	e.state, e.holder = Retiring, ""
	p.refresh(e)
}

func (p *pool) restoreOne(r Record, disputed func(string) bool) {
	h := p.holderOf(r.Owner)
	if h.unread != r.Unreadable {
		h.unread = r.Unreadable
		if h.unread {
			p.unread++
		} else {
			p.unread--
		}
	}
	take := func(name string, state State) *entry {
		if name == "" || disputed(name) || h.held[name] != nil || h.releasing[name] != nil {
			return nil
		}
		e := p.pods[name]
		if e == nil {
			e = &entry{Pod: Pod{Name: name}}
			p.pods[name] = e
		}
		e.state, e.holder = state, r.Owner.UID
		p.refresh(e)
		return e
	}
	// Release first: a pod that stands in both lists is given up.
	for _, name := range r.Releasing {
		if e := take(name, Releasing); e != nil {
			h.releasing[name] = e
		}
	}
	for shard, name := range r.Pods {
		if e := take(name, Held); e != nil {
			e.shard = int32(shard) //nolint:gosec // bounded by spec.replicas
			if shard < len(r.Restarts) {
				e.base = r.Restarts[shard]
			}
			h.held[name] = e
		}
	}
}

// suspectIdle sets aside the idle pods while an allocation of the pool cannot be
// read, and takes them back when all can.
func (p *pool) suspectIdle() {
	from, to := SetAside, Idle
	if p.unread > 0 {
		from, to = Idle, SetAside
	}
	for _, e := range p.pods {
		if e.state == from {
			e.state = to
			p.refresh(e)
		}
	}
}

// Suspects returns the pods that an unreadable allocation of the pool may name.
func (l *Ledger) Suspects(key Key) []Pod {
	var pods []Pod
	l.with(key, func(p *pool) {
		for _, e := range p.pods {
			if e.state == SetAside {
				pods = append(pods, e.Pod)
			}
		}
	})
	return pods
}

// ForgetUnreadable ends the setting aside for an owner that is gone. Call it only
// when every suspect was deleted: those that are left are retired.
func (l *Ledger) ForgetUnreadable(key Key, owner types.UID) {
	l.with(key, func(p *pool) {
		h := p.holders[owner]
		if h == nil || !h.unread {
			return
		}
		h.unread = false
		p.unread--
		for _, e := range p.pods {
			if e.state == SetAside {
				e.state = Retiring
			}
		}
		p.poolChanged = true
	})
}

// ForgetUnseen marks as gone every pod that an allocation names and that was not
// observed. Call it once at start, when every pod that the API server had after
// the allocations were read has been observed.
func (l *Ledger) ForgetUnseen() {
	l.mapsMu.Lock()
	keys := slices.Collect(maps.Keys(l.pools))
	l.mapsMu.Unlock()
	for _, key := range keys {
		l.with(key, func(p *pool) {
			for _, e := range p.pods {
				if e.seen || e.state == Creating {
					continue
				}
				if e.state == Retiring {
					p.remove(e)
					continue
				}
				e.gone = true
				p.wakeHolder(e)
			}
		})
	}
}
