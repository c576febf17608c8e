package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// audit compares the sums and the order of the queue with what its waiters say.
func (q *queue) audit() error {
	sum, owners := 0, 0
	var last *waiter
	var check func(*waiter) error
	check = func(w *waiter) error {
		if w == nil {
			return nil
		}
		if err := check(w.earlier); err != nil {
			return err
		}
		if last != nil && !last.servedBefore(w) {
			return fmt.Errorf("%s stands behind %s", w.owner, last.owner)
		}
		last, owners, sum = w, owners+1, sum+w.count
		if want := w.earlier.total() + w.count + w.later.total(); w.sum != want || w.count <= 0 || q.byOwner[w.owner.UID] != w {
			return fmt.Errorf("waiter %s: count %d, sum %d, want %d", w.owner, w.count, w.sum, want)
		}
		return check(w.later)
	}
	if err := check(q.root); err != nil {
		return err
	}
	if owners != len(q.byOwner) || sum != q.total() {
		return fmt.Errorf("%d owners that wait for %d, want %d and %d", owners, sum, len(q.byOwner), q.total())
	}
	return nil
}

// The queue does what a plain sorted list does.
func TestTheQueueServesTheOldestFirst(t *testing.T) {
	for seed := range uint64(20) {
		dice := rand.New(rand.NewPCG(seed, 0))
		q := newQueue()
		type demand struct {
			owner                 Owner
			count, least, arrival int
		}
		var list []demand
		for step := range 500 {
			who, count, least := dice.IntN(40), dice.IntN(4), dice.IntN(5)
			owner := box(fmt.Sprint("x", who), who%5) // some are of the same second
			i := slices.IndexFunc(list, func(d demand) bool { return d.owner.UID == owner.UID })
			news := true
			switch {
			case i < 0 && count == 0, i >= 0 && list[i].count == count && list[i].least == min(least, count):
				news = false
			case i < 0:
				list = append(list, demand{owner, count, min(least, count), step})
			case count == 0:
				list = slices.Delete(list, i, i+1)
			default:
				list[i].count, list[i].least = count, min(least, count)
			}
			slices.SortFunc(list, func(a, b demand) int {
				if c := a.owner.Created.Compare(b.owner.Created); c != 0 {
					return c
				}
				return a.arrival - b.arrival
			})
			require.Equal(t, news, q.set(owner, count, least))
			require.NoError(t, q.audit())

			from := dice.IntN(60)
			to := from + 1 + dice.IntN(20)
			var served, want []Owner
			q.between(from, to, func(o Owner) { served = append(served, o) })
			before := 0
			for _, d := range list {
				require.Equal(t, before, q.before(d.owner.UID), "seed %d: what %s finds before it", seed, d.owner)
				require.Equal(t, d.least, q.least(d.owner.UID))
				if before < to && before+d.count > from && min(d.count, to-before) >= d.least {
					want = append(want, d.owner)
				}
				before += d.count
			}
			require.Equal(t, want, served, "seed %d: who gets pods %d to %d", seed, from, to)
			require.Equal(t, before, q.total())
			require.Equal(t, before, q.before("stranger"), "who does not wait comes last")
		}
	}
}
