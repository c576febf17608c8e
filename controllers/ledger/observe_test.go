package ledger

import (
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
		b.Forget(poolKey, "p", "uid-p")
		b.Observe(poolKey, seen("p", "other"))
		b.Drop(poolKey, x.UID, []string{"p"})
		require.Equal(t, []string{"p Idle"}, b.states())
		b.check()
	})
	t.Run("is forgotten when it goes before the holder has dropped the first", func(t *testing.T) {
		b := newBook(t, "p")
		x := box("x", 0)
		b.claim(x, 1)
		b.Observe(poolKey, seen("p", "other"))
		b.Forget(poolKey, "p", "other")
		require.Equal(t, []string{"0 p gone"}, b.holds(x))
		b.Drop(poolKey, x.UID, []string{"p"})
		require.Empty(t, b.states())
	})
	t.Run("is idle when the claim of the first is given back", func(t *testing.T) {
		b := newBook(t, "p")
		x := box("x", 0)
		b.claim(x, 1)
		b.Observe(poolKey, seen("p", "other"))
		b.Unclaim(poolKey, x.UID, []string{"p"})
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
