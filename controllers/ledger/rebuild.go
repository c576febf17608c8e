package ledger

import (
	"maps"
	"slices"
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

// Rebuild fills the ledger of a leader that starts. Call it once with all records,
// after the pods were observed and before anything is handed out, and CompleteRebuild
// after it.
//
// A pod that two records name is given to neither: it is retired, and the conflict
// is returned. While a record cannot be read, the pods that no other record names are
// set aside: that record may name them.
func (l *Ledger) Rebuild(records []Record) []Conflict {
	byPool := map[Key][]Record{}
	for _, r := range records {
		l.know(r.Pool, r.Owner)
		byPool[r.Pool] = append(byPool[r.Pool], r)
	}
	var conflicts []Conflict
	for key, rs := range byPool {
		l.with(key, func(p *pool) { conflicts = append(conflicts, p.rebuild(rs)...) })
	}
	return conflicts
}

func (p *pool) rebuild(records []Record) []Conflict {
	conflicts := p.conflicts(records)
	for _, c := range conflicts {
		if e := p.pods[c.Pod]; e != nil {
			p.set(e, retiring{})
		} else {
			p.add(&entry{Pod: Pod{Name: c.Pod}, state: retiring{}})
		}
	}
	for _, r := range records {
		h := p.holderOf(r.Owner)
		if r.Unreadable && !h.unreadable {
			h.unreadable = true
			p.unreadable++
		}
		p.takeIn(h, &r, Idle, false)
	}
	if p.unreadable > 0 {
		p.setAll(Idle, setAside{})
	}
	p.changed = true
	return conflicts
}

// conflicts returns the pods that more than one of the records name.
func (p *pool) conflicts(records []Record) []Conflict {
	owners := map[string][]Owner{}
	for _, r := range records {
		same := func(o Owner) bool { return o.UID == r.Owner.UID }
		for _, name := range slices.Concat(r.Pods, r.Releasing) {
			if name != "" && !slices.ContainsFunc(owners[name], same) {
				owners[name] = append(owners[name], r.Owner)
			}
		}
	}
	var conflicts []Conflict
	for _, name := range slices.Sorted(maps.Keys(owners)) {
		if len(owners[name]) > 1 {
			conflicts = append(conflicts, Conflict{Pool: p.key, Pod: name, Owners: owners[name]})
		}
	}
	return conflicts
}

// takeIn gives the holder the pods that its record names, as far as they are in the
// state from or were never seen; the latter exist no more where unseenAreGone. It returns
// the names of the pods that another holder has.
func (p *pool) takeIn(h *holder, r *Record, from State, unseenAreGone bool) (others []string) {
	free := func(name string) (*entry, holding) {
		e := p.pods[name]
		switch {
		case name == "":
		case e == nil:
			return p.add(&entry{Pod: Pod{Name: name}, state: setAside{}}), holding{holder: h, gone: unseenAreGone}
		case e.state.kind() == from:
			return e, holding{holder: h}
		case e.holding() != nil && e.holding().holder != h:
			others = append(others, name)
		}
		return nil, holding{}
	}
	// Releases first: a pod that stands in both lists is given up.
	for _, name := range r.Releasing {
		if e, by := free(name); e != nil {
			h.releasing = append(h.releasing, e)
			p.set(e, &releasing{holding: by})
		}
	}
	for shard, name := range r.Pods {
		e, by := free(name)
		if e == nil {
			continue
		}
		s := &held{holding: by, shard: int32(shard)}
		if shard < len(r.Restarts) {
			s.base = r.Restarts[shard]
		}
		h.held = append(h.held, e)
		p.set(e, s)
	}
	return others
}

// setAll brings all pods of one state into another.
func (p *pool) setAll(from State, to state) {
	for _, e := range p.pods {
		if e.state.kind() == from {
			p.set(e, to)
		}
	}
}

// CompleteRebuild marks as gone every pod that a record names and that was not
// observed. Call it once at start, when every pod that the API server had after the
// records were read has been observed.
func (l *Ledger) CompleteRebuild() {
	l.mapsMu.Lock()
	keys := slices.Collect(maps.Keys(l.pools))
	l.mapsMu.Unlock()
	for _, key := range keys {
		l.with(key, func(p *pool) {
			for _, e := range p.pods {
				if e.seen {
					continue
				}
				if h := e.holding(); h != nil {
					p.markGone(e, h)
				} else if e.state == (retiring{}) {
					p.remove(e)
				}
			}
		})
	}
}

// Settle takes in the record of a BatchSandbox whose annotations could not be read
// when this leader started and can be read now. It gets the pods that the record names
// and that were set aside, and those that were never seen, as gone. It returns the
// names of those that another BatchSandbox has by now: that one keeps them.
//
// Any other pod that was set aside may be dirty: nobody knows what the annotation said
// before. So all of them are retired, once no other record of the pool is unreadable.
func (l *Ledger) Settle(r Record) []string {
	var taken []string
	l.with(r.Pool, func(p *pool) {
		if h := p.holders[r.Owner.UID]; h != nil && h.unreadable && !r.Unreadable {
			taken = p.takeIn(h, &r, SetAside, true)
			p.setReadable(h)
		}
	})
	return taken
}

// setReadable notes that nothing is set aside any more on account of a holder. Once
// that is so of all holders, what is left is retired: it may be dirty.
func (p *pool) setReadable(h *holder) {
	if !h.unreadable {
		return
	}
	h.unreadable, h.shown = false, nil
	p.unreadable--
	if p.unreadable == 0 {
		p.setAll(SetAside, retiring{})
	}
	p.changed = true
}

// PodsSetAside returns the pods that an unreadable allocation of the pool may name.
func (l *Ledger) PodsSetAside(key Key) []Pod {
	var pods []Pod
	l.with(key, func(p *pool) {
		for _, e := range p.pods {
			if e.state == (setAside{}) {
				pods = append(pods, e.Pod)
			}
		}
	})
	return pods
}
