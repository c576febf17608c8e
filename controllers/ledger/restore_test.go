package ledger

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func record(owner Owner, pods ...string) Record {
	return Record{Pool: poolKey, Owner: owner, Pods: pods}
}

func unreadable(owner Owner) Record {
	return Record{Pool: poolKey, Owner: owner, Unreadable: true}
}

func TestRestoreOfOneRecordWhileTheOperatorRuns(t *testing.T) {
	x, y := box("x", 0), box("y", 1)

	t.Run("the holder in the ledger keeps a pod that the record also names", func(t *testing.T) {
		b := newBook(t)
		b.Restore([]Record{record(x), unreadable(y)})
		b.ForgetUnseen()
		b.Reserve(poolKey, []string{"p"})
		b.Observe(poolKey, ready("p"))
		require.Equal(t, []string{"p"}, b.claim(x, 1))
		conflicts := b.Restore([]Record{record(y, "p")})
		require.Equal(t, []Conflict{{Pool: poolKey, Pod: "p", Owners: []Owner{x, y}, Keeper: x.UID}}, conflicts)
		require.Equal(t, []string{"0 p"}, b.holds(x))
		require.Empty(t, b.holds(y))
		b.check()
	})
	t.Run("a pod that is to be deleted is not given to the record", func(t *testing.T) {
		b := newBook(t)
		b.Restore([]Record{unreadable(y)})
		b.ForgetUnseen()
		b.Reserve(poolKey, []string{"p"})
		b.Observe(poolKey, ready("p"))
		b.Retire(poolKey, []string{"p"})
		b.Restore([]Record{record(y, "p")})
		require.Equal(t, []string{"p Retiring"}, b.states())
		b.check()
	})
	t.Run("a pod that is gone by then is known to be gone", func(t *testing.T) {
		b := newBook(t, "p")
		b.Restore([]Record{unreadable(y)})
		b.ForgetUnseen()
		b.Forget(poolKey, "p", "uid-p")
		b.Restore([]Record{record(y, "p")})
		require.Equal(t, []string{"0 p gone"}, b.holds(y))
		b.check()
	})
	t.Run("pods that were created since then are not set aside while another record is unreadable", func(t *testing.T) {
		b := newBook(t, "p", "q")
		b.Restore([]Record{unreadable(x), unreadable(y)})
		b.ForgetUnseen()
		b.Reserve(poolKey, []string{"new"})
		b.Observe(poolKey, ready("new"))
		b.Restore([]Record{record(y, "p")})
		require.Equal(t, []string{"new Idle", "p Held", "q SetAside"}, b.states())
		b.Restore([]Record{record(x)})
		require.Equal(t, []string{"new Idle", "p Held", "q Idle"}, b.states())
		b.check()
	})
}

func TestForgetUnreadable(t *testing.T) {
	x, y := box("x", 0), box("y", 1)

	t.Run("retires the suspects that are left", func(t *testing.T) {
		b := newBook(t, "p")
		b.Restore([]Record{unreadable(x)})
		b.ForgetUnreadable(poolKey, x.UID)
		require.Equal(t, []string{"p Retiring"}, b.states())
		require.True(t, b.ForgetOwner(poolKey, x))
		b.check()
	})
	t.Run("leaves what may be another unreadable owner's, and does not lend the rest", func(t *testing.T) {
		b := newBook(t, "p", "q")
		b.Restore([]Record{unreadable(x), unreadable(y)})
		b.ForgetUnreadable(poolKey, x.UID)
		require.Equal(t, []string{"p SetAside", "q SetAside"}, b.states())
		b.Restore([]Record{record(y, "p")})
		require.Equal(t, []string{"p Held", "q Retiring"}, b.states(), "q may be dirty: it may have been x's")
		b.check()
	})
}
