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

// Conflict is a pod that two owners claim.
type Conflict struct {
	Pool   Key
	Pod    string
	Owners []Owner
	// Keeper is the owner that had it in the ledger and keeps it. Empty: nobody
	// had; the pod is retired.
	Keeper types.UID
}

// Restore fills an empty ledger, or takes in one record that has become readable.
// Call it with all records at once at start, after the pods were observed and
// before anything is lent.
//
// A pod that two records claim is given to neither: it is retired, both lose it,
// and the conflict is returned. Where the operator already runs, the ledger is the
// truth: who holds the pod there keeps it, and only the record loses it.
func (l *Ledger) Restore(records []Record) []Conflict {
	byPool := map[Key][]Record{}
	for _, r := range records {
		l.know(r.Pool, r.Owner)
		byPool[r.Pool] = append(byPool[r.Pool], r)
	}
	l.mapsMu.Lock()
	complete := l.complete
	l.mapsMu.Unlock()
	var conflicts []Conflict
	for key, rs := range byPool {
		l.with(key, func(p *pool) { conflicts = append(conflicts, p.restore(rs, complete)...) })
	}
	return conflicts
}

// restore takes in records. Complete says that every pod that exists is known.
func (p *pool) restore(records []Record, complete bool) []Conflict {
	conflicts := p.conflicts(records)
	disputed := map[string]bool{}
	for _, c := range conflicts {
		disputed[c.Pod] = true
		if c.Keeper == "" {
			p.retireDisputed(c.Pod)
		}
	}
	before, suspicion := p.unread, false
	for _, r := range records {
		suspicion = p.setUnread(r.Owner, r.Unreadable) || suspicion
		p.restoreOne(r, disputed, complete)
	}
	switch {
	case suspicion:
		p.suspectIdle()
	case p.unread < before:
		p.clearSuspects()
	}
	p.poolChanged = true
	return conflicts
}

// conflicts returns the pods that more than one of the records and holders claim.
func (p *pool) conflicts(records []Record) []Conflict {
	claims := map[string][]Owner{}
	claim := func(name string, owner Owner) {
		same := func(o Owner) bool { return o.UID == owner.UID }
		if name != "" && !slices.ContainsFunc(claims[name], same) {
			claims[name] = append(claims[name], owner)
		}
	}
	keepers := map[string]types.UID{}
	for _, h := range p.holders {
		for _, pods := range []map[string]*entry{h.held, h.releasing} {
			for name := range pods {
				claim(name, h.owner)
				keepers[name] = h.owner.UID
			}
		}
	}
	for _, r := range records {
		for _, name := range slices.Concat(r.Pods, r.Releasing) {
			claim(name, r.Owner)
		}
	}
	var conflicts []Conflict
	for name, owners := range claims {
		if len(owners) > 1 {
			conflicts = append(conflicts, Conflict{Pool: p.key, Pod: name, Owners: owners, Keeper: keepers[name]})
		}
	}
	return conflicts
}

// retireDisputed takes a pod out of use that two records claim.
func (p *pool) retireDisputed(name string) {
	e := p.pods[name]
	if e == nil {
		e = &entry{Pod: Pod{Name: name}}
		p.pods[name] = e
	}
	e.state = Retiring
	p.refresh(e)
}

// setUnread notes whether the owner's annotations can be read, and says whether
// they could be until now and cannot any more.
func (p *pool) setUnread(owner Owner, unread bool) bool {
	h := p.holderOf(owner)
	switch {
	case unread && !h.unread:
		h.unread = true
		p.unread++
		return true
	case !unread && h.unread:
		h.unread = false
		p.unread--
	}
	return false
}

func (p *pool) restoreOne(r Record, disputed map[string]bool, complete bool) {
	h := p.holderOf(r.Owner)
	take := func(name string, state State) *entry {
		if name == "" || disputed[name] || h.held[name] != nil || h.releasing[name] != nil {
			return nil
		}
		e := p.pods[name]
		switch {
		case e == nil:
			e = &entry{Pod: Pod{Name: name}, gone: complete}
			p.pods[name] = e
		case e.state == Creating || e.state == Retiring:
			return nil // this leader's doing, so later than the record
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
			e.shard = int32(shard)
			if shard < len(r.Restarts) {
				e.base = r.Restarts[shard]
			}
			h.held[name] = e
		}
	}
}

// suspectIdle sets the idle pods aside: an allocation that cannot be read may name them.
func (p *pool) suspectIdle() {
	for _, e := range p.pods {
		if e.state == Idle {
			e.state = SetAside
			p.refresh(e)
		}
	}
}

// clearSuspects ends the setting aside once no allocation is unreadable. What is left
// by then may be dirty: nobody knows what the annotations said before they were mended.
func (p *pool) clearSuspects() {
	if p.unread > 0 {
		return
	}
	for _, e := range p.pods {
		if e.state != SetAside {
			continue
		}
		e.state = Retiring
		p.refresh(e)
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
// when every suspect was deleted: those that are left are never lent again. While
// another allocation of the pool cannot be read they are kept, since they may be its.
func (l *Ledger) ForgetUnreadable(key Key, owner types.UID) {
	l.with(key, func(p *pool) {
		if h := p.holders[owner]; h != nil && h.unread {
			p.setUnread(h.owner, false)
			p.clearSuspects()
			p.poolChanged = true
		}
	})
}

// ForgetUnseen marks as gone every pod that an allocation names and that was not
// observed. Call it once at start, when every pod that the API server had after
// the allocations were read has been observed.
func (l *Ledger) ForgetUnseen() {
	l.mapsMu.Lock()
	l.complete = true
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
				p.poolChanged = true
				p.wakeHolder(e)
			}
		})
	}
}
