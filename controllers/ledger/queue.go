package ledger

import (
	"math/rand/v2"

	"k8s.io/apimachinery/pkg/types"
)

// queue holds the owners that wait for pods of a pool, in the order in which they are
// to be served: the oldest owner first, and of two of the same second the one that
// asked first. Every step takes logarithmic time, also the sum of what all owners
// before one wait for: thousands wait for a pool that is too small, and each asks
// again whenever it is reconciled.
//
// It is a treap: a search tree by that order, whose shape is that of a heap by random
// ranks and so is balanced, with the sum of the counts below in each node.
type queue struct {
	root    *waiter
	byOwner map[types.UID]*waiter
	arrived int
}

// waiter is one owner that waits.
type waiter struct {
	owner   Owner
	count   int
	arrival int

	rank        uint32
	older, rest *waiter // the subtrees of those served before it and after it
	sum         int     // of the counts in this subtree
}

func newQueue() queue { return queue{byOwner: map[types.UID]*waiter{}} }

// total is the number of pods that all owners together wait for.
func (q *queue) total() int { return q.root.total() }

// set notes how many pods the owner waits for and says whether that is news. An owner
// that asks for another number keeps its place.
func (q *queue) set(owner Owner, count int) bool {
	w := q.byOwner[owner.UID]
	switch {
	case w == nil && count == 0, w != nil && w.count == count:
		return false
	case w == nil:
		q.arrived++
		w = &waiter{owner: owner, arrival: q.arrived, rank: rand.Uint32()} //nolint:gosec // it only balances a tree
		q.byOwner[owner.UID] = w
	default:
		q.root = q.root.without(w)
	}
	if count == 0 {
		delete(q.byOwner, owner.UID)
		return true
	}
	w.count, w.older, w.rest = count, nil, nil
	older, rest := q.root.split(w)
	q.root = join(join(older, w.summed()), rest)
	return true
}

// before is the number of pods that those wait for who are served before the owner.
func (q *queue) before(owner types.UID) int {
	w := q.byOwner[owner]
	if w == nil {
		return q.total()
	}
	sum, n := 0, q.root
	for n != w {
		if w.servedBefore(n) {
			n = n.older
			continue
		}
		sum += n.older.total() + n.count
		n = n.rest
	}
	return sum + w.older.total()
}

// between calls fn, in order, with the owners that would get at least one of the pods
// number from to below to, were so many pods given out.
func (q *queue) between(from, to int, fn func(Owner)) { q.root.between(from, to, fn) }

func (w *waiter) between(from, to int, fn func(Owner)) {
	if w == nil || to <= 0 || from >= w.sum {
		return
	}
	w.older.between(from, to, fn)
	first := w.older.total()
	next := first + w.count
	if from < next && to > first {
		fn(w.owner)
	}
	w.rest.between(from-next, to-next, fn)
}

func (w *waiter) total() int {
	if w == nil {
		return 0
	}
	return w.sum
}

func (w *waiter) servedBefore(other *waiter) bool {
	if c := w.owner.Created.Compare(other.owner.Created); c != 0 {
		return c < 0
	}
	return w.arrival < other.arrival
}

// summed returns the subtree with its sum brought up to date.
func (w *waiter) summed() *waiter {
	w.sum = w.older.total() + w.count + w.rest.total()
	return w
}

// split returns those of the subtree that are served before at, and the others.
func (w *waiter) split(at *waiter) (older, rest *waiter) {
	if w == nil {
		return nil, nil
	}
	if w.servedBefore(at) {
		w.rest, rest = w.rest.split(at)
		return w.summed(), rest
	}
	older, w.older = w.older.split(at)
	return older, w.summed()
}

// join makes one subtree of two, of which all of the first are served before the second.
func join(a, b *waiter) *waiter {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		a.rest = join(a.rest, b)
		return a.summed()
	}
	b.older = join(a, b.older)
	return b.summed()
}

// without returns the subtree without one of its waiters.
func (w *waiter) without(gone *waiter) *waiter {
	switch {
	case w == gone:
		return join(w.older, w.rest)
	case gone.servedBefore(w):
		w.older = w.older.without(gone)
	default:
		w.rest = w.rest.without(gone)
	}
	return w.summed()
}
