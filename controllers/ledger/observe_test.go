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

// A pod that is being deleted, or has finished, never comes back to life, so an event
// that shows it alive is a late one: taken at its word, it would hand the pod out.
func TestALateEventDoesNotBringAPodBackToLife(t *testing.T) {
	x := box("x", 0)
	ends := map[string]func(*Pod){
		"terminating": func(p *Pod) { p.Terminating = true },
		"ended":       func(p *Pod) { p.Finished = true },
		"evicted":     func(p *Pod) { p.Finished, p.Disrupted = true, true },
	}
	for name, end := range ends {
		t.Run(name+", idle", func(t *testing.T) {
			b := newBook(t, "p")
			b.Observe(poolKey, with(ready("p"), end))
			b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Restarts = 1 }))
			require.Empty(t, b.claim(x, 1))
			b.check()
		})
		t.Run(name+", held", func(t *testing.T) {
			b := newBook(t, "p")
			b.claim(x, 1)
			b.Observe(poolKey, with(ready("p"), end))
			before := b.Allocation(poolKey, x.UID).Held[0]
			b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Restarts = 1 }))
			after := b.Allocation(poolKey, x.UID).Held[0]
			require.Equal(t, []bool{before.Lost(), before.Ended()}, []bool{after.Lost(), after.Ended()})
			require.True(t, after.Lost() || after.Ended())
			b.check()
		})
		t.Run(name+", and another pod of its name", func(t *testing.T) {
			b := newBook(t, "p")
			b.Observe(poolKey, with(ready("p"), end))
			b.Observe(poolKey, seen("p", "other"))
			require.Equal(t, []string{"p"}, b.claim(x, 1))
			b.check()
		})
	}
}

// The API server has taken the deletion of a pod, or the pod has left its pool, and the
// cache does not show it yet.
func TestAPodThatIsKnownToBeDeleted(t *testing.T) {
	x := box("x", 0)
	t.Run("is not handed out", func(t *testing.T) {
		b := newBook(t, "p")
		b.MarkDeleted(poolKey, "p", "uid-p")
		require.Empty(t, b.claim(x, 1))
		require.False(t, b.Usable(poolKey, "p"))
		require.False(t, b.Snapshot(poolKey).Pods[0].Live())
		b.check()
	})
	t.Run("is retired at the end of its release, however clean", func(t *testing.T) {
		b := newBook(t, "p")
		b.claim(x, 1)
		b.BeginRelease(poolKey, x.UID, []string{"p"})
		b.MarkDeleted(poolKey, "p", "uid-p")
		b.MarkClean(poolKey, x.UID, "p")
		b.EndRelease(poolKey, x.UID, []string{"p"})
		require.Equal(t, []string{"p Retiring"}, b.states())
		b.check()
	})
	t.Run("is not another one of its name", func(t *testing.T) {
		b := newBook(t, "p")
		b.MarkDeleted(poolKey, "p", "another")
		require.Equal(t, []string{"p"}, b.claim(x, 1))
		b.check()
	})
	t.Run("makes room for another one of its name", func(t *testing.T) {
		b := newBook(t, "p")
		b.MarkDeleted(poolKey, "p", "uid-p")
		b.Observe(poolKey, seen("p", "other"))
		require.Equal(t, []string{"p"}, b.claim(x, 1))
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
	b.SetDemand(poolKey, x, 0)
	require.Len(t, b.Ledger.pools, 1, "pools in memory")
	require.Empty(t, b.Ledger.owners)
}
