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
// It is a treap: a binary search tree by that order, which stays balanced because every
// node has a random rank and none has a higher one than its parent. Each node has the sum
// of the counts below it, so the sum before an owner is found on the way down to it.
type queue struct {
	root    *waiter
	byOwner map[types.UID]*waiter
	arrived int
}

// waiter is one owner that waits.
type waiter struct {
	owner Owner
	count int
	// least is how many it takes at once: fewer than so many it leaves. Not more than count.
	least   int
	arrival int

	rank           uint32
	earlier, later *waiter // the subtrees of those who are served before it and after it
	sum            int     // of the counts in this subtree
}

func newQueue() queue { return queue{byOwner: map[types.UID]*waiter{}} }

// total is the number of pods that all owners together wait for.
func (q *queue) total() int { return q.root.total() }

// set notes how many pods the owner waits for, and how many of them it takes at least at
// once, and says whether that is news. An owner that asks for another number keeps its place.
func (q *queue) set(owner Owner, count, least int) bool {
	least = min(least, count)
	w := q.byOwner[owner.UID]
	switch {
	case w == nil && count == 0, w != nil && w.count == count && w.least == least:
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
	w.count, w.least, w.earlier, w.later = count, least, nil, nil
	earlier, later := q.root.split(w)
	q.root = join(join(earlier, w.summed()), later)
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
			n = n.earlier
			continue
		}
		sum += n.earlier.total() + n.count
		n = n.later
	}
	return sum + w.earlier.total()
}

// count is how many pods the owner waits for.
func (q *queue) count(owner types.UID) int {
	if w := q.byOwner[owner]; w != nil {
		return w.count
	}
	return 0
}

// least is how many pods the owner takes at least at once.
func (q *queue) least(owner types.UID) int {
	if w := q.byOwner[owner]; w != nil {
		return w.least
	}
	return 0
}

// after returns the one who is served next after an owner that waits, or nil.
func (q *queue) after(owner types.UID) *waiter {
	w := q.byOwner[owner]
	if w == nil {
		return nil
	}
	var next *waiter
	for n := q.root; n != nil; {
		if w.servedBefore(n) {
			next, n = n, n.earlier
		} else {
			n = n.later
		}
	}
	return next
}

// between calls fn, in their order, with the owners that would get any of the pods numbered
// from up to, and without, to, if pods were handed out from number 0 on. It leaves out an owner
// that would get fewer than its least: each pod that a gang still waits for would wake it.
func (q *queue) between(from, to int, fn func(Owner)) { q.root.between(from, to, fn) }

func (w *waiter) between(from, to int, fn func(Owner)) {
	if w == nil || to <= 0 || from >= w.sum {
		return
	}
	w.earlier.between(from, to, fn)
	first := w.earlier.total()
	next := first + w.count
	if from < next && to > first && min(w.count, to-first) >= w.least {
		fn(w.owner)
	}
	w.later.between(from-next, to-next, fn)
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
	w.sum = w.earlier.total() + w.count + w.later.total()
	return w
}

// split returns those of the subtree that are served before at, and the others.
func (w *waiter) split(at *waiter) (earlier, later *waiter) {
	if w == nil {
		return nil, nil
	}
	if w.servedBefore(at) {
		w.later, later = w.later.split(at)
		return w.summed(), later
	}
	earlier, w.earlier = w.earlier.split(at)
	return earlier, w.summed()
}

// join makes one subtree of two, of which all of the first are served before the second.
func join(a, b *waiter) *waiter {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		a.later = join(a.later, b)
		return a.summed()
	}
	b.earlier = join(a, b.earlier)
	return b.summed()
}

// without returns the subtree without one of its waiters.
func (w *waiter) without(gone *waiter) *waiter {
	switch {
	case w == gone:
		return join(w.earlier, w.later)
	case gone.servedBefore(w):
		w.earlier = w.earlier.without(gone)
	default:
		w.later = w.later.without(gone)
	}
	return w.summed()
}
