package ledger

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAPodThatReappearsUnderTheSameName(t *testing.T) {
	t.Run("is not the pod that the holder has", func(t *testing.T) {
		b := newBook(t, "p")
		x := box("x", 0)
		b.claim(x, 1)
		b.wakes()
		b.Observe(poolKey, seen("p", "other"))
		require.Equal(t, []string{"x"}, b.wakes())
		b.Observe(poolKey, with(seen("p", "other"), func(p *Pod) { p.Restarts = 1 }))
		require.Equal(t, []string{"0 p gone"}, b.holds(x))
		b.check()
	})
	t.Run("is idle once the holder has dropped the first", func(t *testing.T) {
		b := newBook(t, "p")
		x := box("x", 0)
		b.claim(x, 1)
		b.ObserveGone(poolKey, "p", "uid-p")
		b.Observe(poolKey, seen("p", "other"))
		b.Discard(poolKey, x.UID, []string{"p"})
		require.Equal(t, []string{"p Idle"}, b.states())
		b.check()
	})
	t.Run("is forgotten when it goes before the holder has dropped the first", func(t *testing.T) {
		b := newBook(t, "p")
		x := box("x", 0)
		b.claim(x, 1)
		b.Observe(poolKey, seen("p", "other"))
		b.ObserveGone(poolKey, "p", "other")
		require.Equal(t, []string{"0 p gone"}, b.holds(x))
		b.Discard(poolKey, x.UID, []string{"p"})
		require.Empty(t, b.states())
	})
	t.Run("is idle when the claim of the first is given back", func(t *testing.T) {
		b := newBook(t, "p")
		x := box("x", 0)
		b.claim(x, 1)
		b.Observe(poolKey, seen("p", "other"))
		b.Unclaim(poolKey, x, []string{"p"})
		require.Equal(t, []string{"p"}, b.claim(x, 1))
		b.check()
	})
	t.Run("takes the place of an idle one", func(t *testing.T) {
		b := newBook(t, "p")
		b.Observe(poolKey, seen("p", "other"))
		grants := b.Claim(poolKey, box("x", 0), shards(1))
		require.Len(t, grants, 1)
		require.Equal(t, "other", string(grants[0].Pod.UID))
		b.check()
	})
	t.Run("is retired when the first was to be deleted", func(t *testing.T) {
		b := newBook(t, "p")
		b.Retire(poolKey, []string{"p"})
		b.Observe(poolKey, seen("p", "other"))
		require.Equal(t, []string{"p Retiring"}, b.states())
		b.check()
	})
}

func TestAFlappingPodLeavesNoTicketsBehind(t *testing.T) {
	b := newBook(t, "p", "q")
	for i := range 10000 {
		b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Ready = i%2 == 0 }))
	}
	for i := range 10000 {
		name := fmt.Sprint("short-lived-", i)
		b.Observe(poolKey, ready(name))
		b.ObserveGone(poolKey, name, "")
	}
	p := b.Ledger.pools[poolKey]
	require.Less(t, len(p.current)+len(p.outdated), 200, "elements in the queues of a pool of two pods")
	b.check()
}

func TestPoolsThatAreGoneTakeNoMemory(t *testing.T) {
	b := newBook(t)
	x := box("x", 0)
	for i := range 100 {
		key := Key{Namespace: "ns", Name: fmt.Sprint(i)}
		b.Snapshot(key)
		b.SetPool(key, "uid", "r", true)
		b.SetDemand(key, x, 1)
		b.SetPool(key, "", "", false)
		require.Contains(t, b.Ledger.pools, key, "somebody waits for it")
		b.ForgetOwner(key, x)
	}
	require.Len(t, b.Ledger.pools, 1, "pools in memory")
	require.Empty(t, b.Ledger.owners)
}
