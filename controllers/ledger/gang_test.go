package ledger

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

func TestAGangIsServedWholeAndKeepsItsPlace(t *testing.T) {
	gang, small := box("gang", 0), box("small", 1)
	b := newBook(t, "a", "b")
	require.Zero(t, b.SetGangDemand(poolKey, gang, 4, 3), "two are not three")
	require.Empty(t, b.Claim(poolKey, gang, shards(4)))
	require.Zero(t, b.SetDemand(poolKey, small, 1), "a younger one would keep the gang from being complete")
	require.Equal(t, 5, b.Snapshot(poolKey).Demand, "the pool grows for both")

	b.Observe(poolKey, ready("c"))
	require.Len(t, b.Claim(poolKey, gang, shards(4)), 3)
	require.Zero(t, b.SetDemand(poolKey, small, 1), "the rest of an older demand goes first, too")
	b.Observe(poolKey, ready("d"))
	require.Len(t, b.Claim(poolKey, gang, []int32{3}), 1, "after that it takes what comes")
	b.Observe(poolKey, ready("e"))
	require.Len(t, b.Claim(poolKey, small, shards(1)), 1)
}

func TestAGangTakesOnlyWhatOlderDemandsLeave(t *testing.T) {
	old, gang := box("old", 0), box("gang", 1)
	b := newBook(t, "a", "b", "c")
	b.SetDemand(poolKey, old, 2)
	require.Zero(t, b.SetGangDemand(poolKey, gang, 2, 2), "one is left")
	require.Len(t, b.Claim(poolKey, old, shards(2)), 2)
	b.Observe(poolKey, ready("d"))
	require.Len(t, b.Claim(poolKey, gang, shards(2)), 2)
}

func TestAGangWhoseClaimWasUndoneIsServedWholeAgain(t *testing.T) {
	gang := box("gang", 0)
	b := newBook(t, "a", "b")
	b.SetGangDemand(poolKey, gang, 3, 2)
	require.Len(t, b.Claim(poolKey, gang, shards(3)), 2)
	b.Unclaim(poolKey, gang, []string{"a", "b"})
	b.ObserveGone(poolKey, "b", "uid-b")
	require.Zero(t, b.SetGangDemand(poolKey, gang, 3, 2))
}

// waitingBox is one owner of the property test and what it still waits for.
type waitingBox struct {
	owner       Owner
	want, least int
	held        []string
}

// Gangs and others ask, in any order; pods become ready one by one, and whoever the ledger
// wakes, and nobody else, claims. Then no gang gets fewer than its least, nobody gets what
// somebody older waits for, and when there are as many pods as all ask for, all have theirs.
func TestNeitherGangsNorOthersStarve(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		woken := map[types.NamespacedName]bool{}
		l := New(Hooks{Owner: func(name types.NamespacedName) { woken[name] = true }})
		l.SetPool(poolKey, "pool-uid", "r1", true)
		var boxes []*waitingBox
		pods, total := 0, 0
		claim := func(b *waitingBox) {
			if b.want == 0 {
				return
			}
			older := 0
			for _, o := range boxes {
				if o.owner.Created.Before(b.owner.Created) {
					older += o.want
				}
			}
			available := l.pools[poolKey].available
			l.SetGangDemand(poolKey, b.owner, b.want, b.least)
			grants := l.Claim(poolKey, b.owner, shards(b.want))
			switch n := len(grants); {
			case n == 0 && available-older >= max(1, b.least):
				t.Fatalf("%s got none of %d, of which %d are for older ones; want %d or more", b.owner, available, older, b.least)
			case n == 0:
				return
			case n < b.least:
				t.Fatalf("%s got %d, want at least %d", b.owner, n, b.least)
			case n > available-older:
				t.Fatalf("%s got %d of %d, of which older ones wait for %d", b.owner, n, available, older)
			}
			b.want, b.least = b.want-len(grants), 0
			for _, g := range grants {
				b.held = append(b.held, g.Pod.Name)
			}
		}
		serve := func() {
			for len(woken) > 0 {
				now := woken
				woken = map[types.NamespacedName]bool{}
				for _, b := range boxes { // the order in which they come to claim must not matter
					if now[b.owner.NamespacedName] {
						claim(b)
					}
				}
			}
		}
		ages := rapid.Permutation([]int{0, 1, 2, 3, 4, 5}).Draw(t, "ages")
		for i, age := range ages {
			want := rapid.IntRange(1, 6).Draw(t, "want")
			b := &waitingBox{owner: box(fmt.Sprint("x", i), age), want: want, least: rapid.IntRange(0, want).Draw(t, "least")}
			boxes, total = append(boxes, b), total+want
			claim(b)
			for range rapid.IntRange(0, 4).Draw(t, "pods") {
				l.Observe(poolKey, ready(fmt.Sprint("p", pods)))
				pods++
				serve()
			}
		}
		for ; pods < total; pods++ {
			l.Observe(poolKey, ready(fmt.Sprint("p", pods)))
			serve()
		}
		for _, b := range boxes {
			if b.want > 0 {
				t.Fatalf("%s still waits for %d although there were %d pods for %d", b.owner, b.want, pods, total)
			}
		}
	})
}

func TestTheRoomOfAPoolCountsPodsThatStart(t *testing.T) {
	me := box("me", 5)
	b := newBook(t, "a")
	require.Equal(t, Room{Spare: 1, Coming: 1, Pods: 1}, b.Room(poolKey, me))
	b.BeginCreate(poolKey, []string{"b"})
	b.Observe(poolKey, with(ready("c"), func(p *Pod) { p.Ready = false }))
	require.Equal(t, Room{Spare: 1, Coming: 3, Pods: 3}, b.Room(poolKey, me))
	b.Observe(poolKey, with(ready("c"), func(p *Pod) { p.Ready, p.Problem = false, "ErrImagePull" }))
	require.Equal(t, Room{Spare: 1, Coming: 2, Pods: 3, Failing: 1}, b.Room(poolKey, me), "it may never be ready")
	b.SetDemand(poolKey, box("older", 1), 4)
	require.Equal(t, Room{Spare: -3, Coming: -2, Pods: 3, Failing: 1}, b.Room(poolKey, me))
	b.Retire(poolKey, []string{"a", "c"})
	require.Equal(t, Room{Spare: -4, Coming: -3, Pods: 1}, b.Room(poolKey, me))
}
