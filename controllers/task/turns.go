package task

import (
	"context"
	"slices"
	"sync"
)

// group names whose dispatches are counted together: those of a namespace, of one
// BatchSandbox in it, and of that the first tries or the later ones. What is empty stands
// for all of them.
type group struct{ namespace, batchSandbox, try string }

const (
	firstTry = "first"
	// laterTry is one after another that failed, if only by a refusal that took its time.
	laterTry = "later"
)

// levels are the groups that a dispatch counts in, from the widest to its own.
func (g group) levels() [3]group {
	return [3]group{{namespace: g.namespace}, {namespace: g.namespace, batchSandbox: g.batchSandbox}, g}
}

// share is how much more than what it leaves to others a group may take. A namespace that
// is alone takes three quarters of the slots. With ten that want all that they can get, one
// in 31 is still free for the next one.
const share = 3

// turns decides who gets the next of a number of slots. It is pure: the slots belong to
// dispatches, which may take their time.
//
// Every group leaves room for others beside it, whether they are there or not: an executor
// that does not answer keeps its slot for as long as the call may take, and one that comes
// then must not wait for that. Hence no group takes more than share times what is left to
// those beside it: a namespace leaves slots free, a BatchSandbox leaves room in its
// namespace, and so do later tries in their BatchSandbox. What must wait is served by the
// namespace that has the least, then by the BatchSandbox that has, then by age.
type turns struct {
	free int
	used map[group]int
	// waiting are those that wait, by group, the oldest first.
	waiting map[group][]*ticket
	arrived int
}

// ticket is a dispatch that waits, or has its turn.
type ticket struct {
	group
	arrived int
	turn    chan struct{} // closed when it is there
}

func newTurns(slots int) *turns {
	return &turns{free: slots, used: map[group]int{}, waiting: map[group][]*ticket{}}
}

// wait puts one at the end of the queue of its group.
func (t *turns) wait(g group) *ticket {
	t.arrived++
	waits := &ticket{group: g, arrived: t.arrived, turn: make(chan struct{})}
	t.waiting[g] = append(t.waiting[g], waits)
	return waits
}

// leave takes one that still waits out of the queue.
func (t *turns) leave(w *ticket) {
	at := slices.Index(t.waiting[w.group], w)
	if t.waiting[w.group] = slices.Delete(t.waiting[w.group], at, at+1); len(t.waiting[w.group]) == 0 {
		delete(t.waiting, w.group)
	}
}

// next gives a slot to one that waits and returns it, or nil if none may have one now.
func (t *turns) next() *ticket {
	var best *ticket
	for g, queue := range t.waiting {
		if t.hasRoom(g) && (best == nil || t.before(queue[0], best)) {
			best = queue[0]
		}
	}
	if best == nil {
		return nil
	}
	t.leave(best)
	t.free--
	for _, level := range best.levels() {
		t.used[level]++
	}
	return best
}

// done takes a slot back.
func (t *turns) done(g group) {
	t.free++
	for _, level := range g.levels() {
		if t.used[level]--; t.used[level] == 0 {
			delete(t.used, level)
		}
	}
}

// hasRoom says that the group leaves enough to others when it takes one slot more.
func (t *turns) hasRoom(g group) bool {
	room := t.free
	for _, level := range g.levels() {
		room = share*room - t.used[level]
	}
	return t.free > 0 && room > 0
}

// before says that it is the first one's turn.
func (t *turns) before(a, b *ticket) bool {
	others := b.levels()
	for i, level := range a.levels() {
		if mine, theirs := t.used[level], t.used[others[i]]; mine != theirs {
			return mine < theirs
		}
	}
	return a.arrived < b.arrived
}

// slots bound the dispatches that are under way.
type slots struct {
	mu    sync.Mutex // guards turns
	turns *turns
}

func newSlots(n int) *slots { return &slots{turns: newTurns(n)} }

// take waits for a slot and says whether it got one before ctx has ended.
func (s *slots) take(ctx context.Context, g group) bool {
	s.mu.Lock()
	t := s.turns.wait(g)
	s.hand()
	s.mu.Unlock()
	select {
	case <-t.turn:
		return true
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-t.turn: // meanwhile
		s.turns.done(g)
		s.hand()
	default:
		s.turns.leave(t)
	}
	return false
}

// give gives a slot back.
func (s *slots) give(g group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turns.done(g)
	s.hand()
}

// hand gives slots to all that may have one. The lock is held.
func (s *slots) hand() {
	for t := s.turns.next(); t != nil; t = s.turns.next() {
		close(t.turn)
	}
}
