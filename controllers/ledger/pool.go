package ledger

import (
	"cmp"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// ticket is a place in a queue of available pods.
type ticket struct {
	entry *entry
	no    int
}

func (t ticket) stale() bool { return !t.entry.queued || t.entry.ticket != t.no }

// pool is one Pool: mu guards all of it.
type pool struct {
	mu sync.Mutex

	key      Key
	uid      types.UID
	revision string
	handsOut bool
	removed  bool // from the ledger: nobody may use this value any more

	pods    map[string]*entry
	holders map[types.UID]*holder
	waiting queue
	// choosing are the owners that name no pool and may take from this one.
	choosing choosing
	// unreadable counts the holders whose annotations could not be read.
	unreadable int

	// current and outdated hold the available pods in hand-out order, with stale
	// elements among them, bounded by enqueue; available counts the true ones.
	current, outdated []ticket
	available         int
	// live counts the pods that count towards the size of the pool; of these, coming those that
	// are available or on their way to be, and failing those with a problem.
	live, coming, failing int

	// shown are the pods as a snapshot shows them, kept up to date by refresh: to go
	// through the pods themselves takes several times as long.
	shown []PodState
	// snapshot is what Snapshot returned last; nil when something has changed since.
	snapshot *Snapshot

	// changed and woken are what the hooks are to be told when the lock is released.
	changed bool
	woken   map[types.NamespacedName]struct{}
}

func newPool(key Key) *pool {
	return &pool{
		key: key, pods: map[string]*entry{}, holders: map[types.UID]*holder{}, waiting: newQueue(),
		choosing: newChoosing(),
	}
}

func (p *pool) open() bool { return p.uid != "" && p.handsOut }

// unused says that nothing would be lost if the pool were made anew.
func (p *pool) unused() bool {
	return p.uid == "" && len(p.pods) == 0 && len(p.holders) == 0 && p.waiting.total() == 0 &&
		p.choosing.empty()
}

// takeWakes returns what the hooks are to be told.
func (p *pool) takeWakes() (bool, map[types.NamespacedName]struct{}) {
	changed, woken := p.changed, p.woken
	p.changed, p.woken = false, nil
	return changed, woken
}

func (p *pool) wake(owner Owner) {
	if p.woken == nil {
		p.woken = map[types.NamespacedName]struct{}{}
	}
	p.woken[owner.NamespacedName] = struct{}{}
}

// spare is how many pods are available beyond what all owners wait for; it is
// negative where there are too few.
func (p *pool) spare() int { return p.available - p.waiting.total() }

// wakeServed wakes the owners that can be served now and could not be before the
// spare pods became so many more. Those before them were woken when it was their turn.
func (p *pool) wakeServed(more int) {
	if more > 0 && p.open() {
		p.waiting.between(p.available-more, p.available, p.wake)
	}
}

func (p *pool) wakeAllWaiting() { p.waiting.between(0, p.waiting.total(), p.wake) }

// add takes in a pod that was not known.
func (p *pool) add(e *entry) *entry {
	e.index = len(p.shown)
	p.shown = append(p.shown, PodState{})
	p.pods[e.Name] = e
	p.refresh(e)
	return e
}

// remove takes a pod out of the ledger.
func (p *pool) remove(e *entry) {
	if e.queued {
		e.queued = false
		p.available--
	}
	p.count(&p.shown[e.index], -1)
	last := len(p.shown) - 1
	if e.index != last {
		p.shown[e.index] = p.shown[last]
		p.pods[p.shown[e.index].Name].index = e.index
	}
	p.shown[last] = PodState{} // or the array would keep its strings
	p.shown = p.shown[:last]
	delete(p.pods, e.Name)
	p.changed = true
}

// set brings a pod into another state.
func (p *pool) set(e *entry, s state) {
	e.state = s
	p.refresh(e)
	p.changed = true
}

// refresh brings up to date what is derived from a pod: the queues of available pods,
// the snapshot and its holder's allocation. Every change of an entry ends with it.
func (p *pool) refresh(e *entry) {
	p.count(&p.shown[e.index], -1)
	p.shown[e.index] = e.podState()
	p.count(&p.shown[e.index], 1)
	p.snapshot = nil
	if l := e.holding(); l != nil {
		l.holder.shown = nil
	}
	want := p.claimable(e)
	if want == e.queued {
		return
	}
	e.queued = want
	if !want {
		p.available--
		return
	}
	p.available++
	p.enqueue(e)
}

// count adds a pod to the counts, or takes it away.
func (p *pool) count(s *PodState, one int) {
	if s.Name == "" || !s.Live() {
		return
	}
	p.live += one
	if s.coming() {
		p.coming += one
	}
	if s.failing() {
		p.failing += one
	}
}

// claimable says that a claim may take the pod.
func (p *pool) claimable(e *entry) bool {
	return e.state == idle{} && e.seen && e.Ready && !e.Dead() && !e.Evict && !e.deleted && e.PoolUID == p.uid
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
		e.queued = p.claimable(e)
		if e.queued {
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

// setDemand notes how many pods the owner waits for, and how many of them it takes at least
// at once.
func (p *pool) setDemand(owner Owner, count, least int) {
	if p.waiting.set(owner, count, least) {
		p.changed = true
	}
}

// share is how many of the available pods the owner may take: what older demands
// leave, at most want, and none where that is less than the least that it takes. What a
// gang waits for is kept from those after it as any other demand is: they would take each
// pod as it becomes ready, and so many at once would never be there.
func (p *pool) share(owner Owner, want int) int {
	n := min(want, p.available-p.waiting.before(owner.UID))
	if !p.open() || n < p.waiting.least(owner.UID) {
		return 0
	}
	return max(0, n)
}

func (p *pool) holderOf(owner Owner) *holder {
	h := p.holders[owner.UID]
	if h == nil {
		h = &holder{owner: owner}
		p.holders[owner.UID] = h
	}
	return h
}
