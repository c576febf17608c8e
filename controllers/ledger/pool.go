package ledger

import (
	"cmp"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// entry is a pod in its pool.
type entry struct {
	Pod
	state  State
	holder types.UID // of Held and Releasing
	shard  int32     // of Held
	// base is the restart count at hand-over.
	base int32
	// seen: the cache has shown the pod at least once.
	seen bool
	// gone: the pod no longer exists; its holder has not dropped it yet.
	gone bool
	// successor is another pod that has appeared under the name of one that is gone.
	successor *Pod
	// clean: recycling has left it clean. Only of Releasing.
	clean bool
	// deleted: the API server has taken its deletion.
	deleted bool
	// confirmed: the API server has answered that it was created. Only of Creating.
	confirmed bool

	// ready says that it stands in one of the pool's queues, with this ticket; an
	// element of a queue with another ticket is stale.
	ready  bool
	ticket int
}

// holder is what one owner holds of a pool.
type holder struct {
	owner     Owner
	held      map[string]*entry
	releasing map[string]*entry
	unread    bool // its annotations cannot be read
}

func (h *holder) empty() bool { return len(h.held) == 0 && len(h.releasing) == 0 && !h.unread }

// demand is what one owner still waits for.
type demand struct {
	owner Owner
	count int
}

type ticket struct {
	entry *entry
	no    int
}

func (t ticket) stale() bool { return !t.entry.ready || t.entry.ticket != t.no }

// pool is one Pool: mu guards all of it.
type pool struct {
	mu sync.Mutex

	key      Key
	uid      types.UID
	revision string
	lending  bool
	removed  bool // from the ledger: nobody may use this value any more

	pods    map[string]*entry
	holders map[types.UID]*holder
	demands []demand // oldest owner first
	unread  int      // holders whose annotations cannot be read

	// current and outdated hold the available pods in hand-out order, with stale
	// elements among them, bounded by enqueue; available counts the true ones.
	current, outdated []ticket
	available         int

	poolChanged bool
	woken       map[types.NamespacedName]struct{}
}

func newPool(key Key) *pool {
	return &pool{key: key, pods: map[string]*entry{}, holders: map[types.UID]*holder{}}
}

func (p *pool) open() bool { return p.uid != "" && p.lending }

// unused says that nothing would be lost if the pool were made anew.
func (p *pool) unused() bool {
	return p.uid == "" && len(p.pods) == 0 && len(p.holders) == 0 && len(p.demands) == 0
}

func (p *pool) takeWakes() (bool, map[types.NamespacedName]struct{}) {
	changed, woken := p.poolChanged, p.woken
	p.poolChanged, p.woken = false, nil
	return changed, woken
}

func (p *pool) wake(owner types.NamespacedName) {
	if p.woken == nil {
		p.woken = map[types.NamespacedName]struct{}{}
	}
	p.woken[owner] = struct{}{}
}

func (p *pool) wakeHolder(e *entry) {
	if h := p.holders[e.holder]; h != nil {
		p.wake(h.owner.NamespacedName)
	}
}

// wakeWaiting wakes, oldest first, the owners that the available pods would serve.
func (p *pool) wakeWaiting() {
	if !p.open() {
		return
	}
	left := p.available
	for _, d := range p.demands {
		if left <= 0 {
			return
		}
		p.wake(d.owner.NamespacedName)
		left -= d.count
	}
}

// lendable says that a claim may take the pod.
func (p *pool) lendable(e *entry) bool {
	return e.seen && e.state == Idle && e.Ready && !e.Dead() && !e.Evict && !e.gone && !e.deleted && e.PoolUID == p.uid
}

// refresh brings the queues in line with what the entry is now.
func (p *pool) refresh(e *entry) {
	want := p.lendable(e)
	if want == e.ready {
		return
	}
	e.ready = want
	if !want {
		p.available--
		return
	}
	p.available++
	p.enqueue(e)
	p.wakeWaiting()
}

func (p *pool) enqueue(e *entry) {
	e.ticket++
	if e.Revision == p.revision {
		p.current = append(p.current, ticket{e, e.ticket})
	} else {
		p.outdated = append(p.outdated, ticket{e, e.ticket})
	}
	if len(p.current)+len(p.outdated) > 2*p.available+64 {
		p.current = slices.DeleteFunc(p.current, ticket.stale)
		p.outdated = slices.DeleteFunc(p.outdated, ticket.stale)
	}
}

// requeueAll sorts the available pods into the queues anew, oldest first, after
// the pool's identity or revision has changed.
func (p *pool) requeueAll() {
	p.current, p.outdated, p.available = nil, nil, 0
	entries := make([]*entry, 0, len(p.pods))
	for _, e := range p.pods {
		e.ready = p.lendable(e)
		if e.ready {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *entry) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	for _, e := range entries {
		p.available++
		p.enqueue(e)
	}
}

// next takes the next available pod out of the queues, or returns nil.
func (p *pool) next() *entry {
	for _, queue := range []*[]ticket{&p.current, &p.outdated} {
		for len(*queue) > 0 {
			t := (*queue)[0]
			(*queue)[0] = ticket{} // or the array would keep the entry
			*queue = (*queue)[1:]
			if !t.stale() {
				return t.entry
			}
		}
	}
	return nil
}

// setDemand notes how many pods the owner still waits for.
func (p *pool) setDemand(owner Owner, count int) {
	i := slices.IndexFunc(p.demands, func(d demand) bool { return d.owner.UID == owner.UID })
	switch {
	case i < 0 && count == 0:
		return
	case i < 0:
		// After those of the same second: arrival decides.
		at := len(p.demands)
		for at > 0 && p.demands[at-1].owner.Created.After(owner.Created) {
			at--
		}
		p.demands = slices.Insert(p.demands, at, demand{owner, count})
	case p.demands[i].count == count:
		return
	case count == 0:
		p.demands = slices.Delete(p.demands, i, i+1)
		p.wakeWaiting()
	default:
		fell := count < p.demands[i].count
		p.demands[i].count = count
		if fell {
			p.wakeWaiting()
		}
	}
	p.poolChanged = true
}

// share is how many of the available pods the owner may take: what older demands
// leave, at most want.
func (p *pool) share(owner Owner, want int) int {
	if !p.open() {
		return 0
	}
	left := p.available
	for _, d := range p.demands {
		if d.owner.UID == owner.UID {
			break
		}
		left -= d.count
	}
	return max(0, min(want, left))
}

func (p *pool) holderOf(owner Owner) *holder {
	h := p.holders[owner.UID]
	if h == nil {
		h = &holder{owner: owner, held: map[string]*entry{}, releasing: map[string]*entry{}}
		p.holders[owner.UID] = h
	}
	return h
}

func (p *pool) remove(e *entry) {
	e.gone = true
	p.refresh(e)
	delete(p.pods, e.Name)
	p.poolChanged = true
}

// bury forgets a pod that is gone and lets the one in that stands behind it.
func (p *pool) bury(e *entry) {
	delete(p.pods, e.Name)
	if e.successor != nil {
		p.observe(*e.successor)
	}
}

func (p *pool) observe(facts Pod) {
	e := p.pods[facts.Name]
	switch {
	case e == nil:
		p.admit(facts)
		return
	case e.seen && e.Pod == facts && !e.gone:
		return
	case e.state == Held || e.state == Releasing:
		if !p.observeLent(e, facts) {
			return
		}
	case e.state == Creating:
		e.state = Idle
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
	p.poolChanged = true
}

// admit takes in a pod that was not known.
func (p *pool) admit(facts Pod) {
	state := Idle
	if p.unread > 0 {
		// It was not created by this leader, so the unreadable allocation may name it.
		state = SetAside
	}
	e := &entry{Pod: facts, state: state, seen: true}
	p.pods[facts.Name] = e
	p.refresh(e)
	p.poolChanged = true
}

// observeLent says whether facts are of the very pod that is lent: who counts on a
// pod has lost it when another one goes by its name.
func (p *pool) observeLent(e *entry, facts Pod) bool {
	if known := e.UID != "" || e.gone; known && e.UID != facts.UID {
		e.gone, e.successor = true, &facts
		p.poolChanged = true
	} else if e.gone {
		return false // a late event
	}
	p.wakeHolder(e)
	return !e.gone
}
