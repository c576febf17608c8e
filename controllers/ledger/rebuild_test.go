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

func TestRebuild(t *testing.T) {
	x, y := box("x", 0), box("y", 1)
	tests := map[string]struct {
		pods      []string
		records   []Record
		want      []string
		conflicts []Conflict
	}{
		"pods that are named are held, the others idle": {
			pods: []string{"a", "b", "c"}, records: []Record{record(x, "a"), record(y, "b")},
			want: []string{"a Held", "b Held", "c Idle"},
		},
		"pods in alloc-release are not idle": {
			pods: []string{"a", "b"}, records: []Record{{Pool: poolKey, Owner: x, Pods: []string{"a"}, Releasing: []string{"b"}}},
			want: []string{"a Held", "b Releasing"},
		},
		"a pod in both lists is given up": {
			pods: []string{"a"}, records: []Record{{Pool: poolKey, Owner: x, Pods: []string{"a"}, Releasing: []string{"a"}}},
			want: []string{"a Releasing"},
		},
		"a pod that is named and was not seen is held, and gone when all have been seen": {
			pods: []string{"a"}, records: []Record{record(x, "a", "unseen")},
			want: []string{"a Held", "unseen Held gone"},
		},
		"a pod that two records name is retired": {
			pods: []string{"a", "b"}, records: []Record{record(x, "a", "b"), record(y, "b")},
			want:      []string{"a Held", "b Retiring"},
			conflicts: []Conflict{{Pool: poolKey, Pod: "b", Owners: []Owner{x, y}}},
		},
		"a pod that one holds and another releases is retired": {
			pods: []string{"a"}, records: []Record{record(x, "a"), {Pool: poolKey, Owner: y, Releasing: []string{"a"}}},
			want:      []string{"a Retiring"},
			conflicts: []Conflict{{Pool: poolKey, Pod: "a", Owners: []Owner{x, y}}},
		},
		"a disputed pod that does not exist is forgotten": {
			records:   []Record{record(x, "a"), record(y, "a")},
			conflicts: []Conflict{{Pool: poolKey, Pod: "a", Owners: []Owner{x, y}}},
		},
		"an unreadable record sets aside what no other record names": {
			pods: []string{"a", "b"}, records: []Record{unreadable(x), record(y, "a")},
			want: []string{"a Held", "b SetAside"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, test.pods...)
			conflicts := b.Rebuild(test.records)
			b.check()
			b.CompleteRebuild()
			require.Equal(t, test.want, b.states())
			require.Equal(t, test.conflicts, conflicts)
			b.check()
		})
	}
}

func TestRebuildKeepsTheShardsAndTheirRestarts(t *testing.T) {
	x := box("x", 0)
	b := newBook(t)
	b.Observe(poolKey, with(ready("c"), func(p *Pod) { p.Restarts = 3 }))
	b.Rebuild([]Record{{Pool: poolKey, Owner: x, Pods: []string{"a", "", "c"}, Restarts: []int32{2}}})
	b.Observe(poolKey, ready("a"))
	b.CompleteRebuild()
	require.Equal(t, []string{"0 a", "2 c"}, b.holds(x))
	for _, h := range b.Allocation(poolKey, x.UID).Held {
		require.Equal(t, map[string]int32{"a": 2, "c": 0}[h.Name], h.Base, "base of %s", h.Name)
	}
	require.Equal(t, []OwnerRef{{Pool: poolKey, UID: x.UID}}, b.Lookup(x.NamespacedName))
}

func TestSettle(t *testing.T) {
	x, y := box("x", 0), box("y", 1)

	t.Run("gives the record what it names and retires all else that was set aside", func(t *testing.T) {
		b := newBook(t, "p", "q")
		b.Rebuild([]Record{unreadable(x)})
		b.CompleteRebuild()
		require.Empty(t, b.Settle(record(x, "p")))
		require.Equal(t, []string{"p Held", "q Retiring"}, b.states(), "q may have been x's, and be dirty")
		require.Equal(t, []string{"0 p"}, b.holds(x))
		b.check()
	})
	t.Run("makes no pod idle when the annotation was deleted", func(t *testing.T) {
		b := newBook(t, "p", "q")
		b.Rebuild([]Record{unreadable(x)})
		b.CompleteRebuild()
		require.Empty(t, b.Settle(record(x)))
		require.Equal(t, []string{"p Retiring", "q Retiring"}, b.states())
		require.Empty(t, b.claim(x, 2), "nor are they given back to x")
		require.Empty(t, b.claim(y, 2))
		b.check()
	})
	t.Run("a pod that was given up and is named so is not retired before it is clean", func(t *testing.T) {
		b := newBook(t, "p", "q")
		b.Rebuild([]Record{unreadable(x)})
		b.CompleteRebuild()
		b.Settle(Record{Pool: poolKey, Owner: x, Releasing: []string{"q"}})
		require.Equal(t, []string{"p Retiring", "q Releasing"}, b.states())
		b.check()
	})
	t.Run("a pod that another BatchSandbox holds stays with it", func(t *testing.T) {
		b := newBook(t, "p")
		b.Rebuild([]Record{record(x, "p"), unreadable(y)})
		b.CompleteRebuild()
		require.Equal(t, []string{"p"}, b.Settle(record(y, "p")))
		require.Equal(t, []string{"0 p"}, b.holds(x))
		require.Empty(t, b.holds(y))
		b.check()
	})
	t.Run("a pod that this leader has created was never the record's", func(t *testing.T) {
		b := newBook(t)
		b.Rebuild([]Record{unreadable(y)})
		b.CompleteRebuild()
		b.BeginCreate(poolKey, []string{"idle", "retired"})
		b.Observe(poolKey, ready("idle"))
		b.Observe(poolKey, ready("retired"))
		b.Retire(poolKey, []string{"retired"})
		require.Empty(t, b.Settle(record(y, "idle", "retired")))
		require.Equal(t, []string{"idle Idle", "retired Retiring"}, b.states())
		b.check()
	})
	t.Run("a pod that is gone by then is known to be gone", func(t *testing.T) {
		b := newBook(t, "p")
		b.Rebuild([]Record{unreadable(y)})
		b.CompleteRebuild()
		b.ObserveGone(poolKey, "p", "uid-p")
		b.Settle(record(y, "p"))
		require.Equal(t, []string{"0 p gone"}, b.holds(y))
		b.check()
	})
	t.Run("while another record is unreadable, what is set aside stays so", func(t *testing.T) {
		b := newBook(t, "p", "q")
		b.Rebuild([]Record{unreadable(x), unreadable(y)})
		b.CompleteRebuild()
		b.BeginCreate(poolKey, []string{"new"})
		b.Observe(poolKey, ready("new"))
		b.Settle(record(y, "p"))
		require.Equal(t, []string{"new Idle", "p Held", "q SetAside"}, b.states(), "q may be x's")
		b.Settle(record(x))
		require.Equal(t, []string{"new Idle", "p Held", "q Retiring"}, b.states())
		b.check()
	})
	t.Run("does nothing for a record that is still unreadable, or was never set aside", func(t *testing.T) {
		b := newBook(t, "p")
		b.Rebuild([]Record{unreadable(x), record(y)})
		b.CompleteRebuild()
		b.Settle(unreadable(x))
		b.Settle(record(y, "p"))
		require.Equal(t, []string{"p SetAside"}, b.states())
		b.check()
	})
}

func TestTheEndOfAnOwnerThatCannotBeRead(t *testing.T) {
	x, y := box("x", 0), box("y", 1)

	t.Run("retires what was set aside", func(t *testing.T) {
		b := newBook(t, "p")
		b.Rebuild([]Record{unreadable(x)})
		require.True(t, b.ForgetOwner(poolKey, x))
		require.Equal(t, []string{"p Retiring"}, b.states())
		require.Empty(t, b.Lookup(x.NamespacedName))
		b.check()
	})
	t.Run("leaves what may be another unreadable owner's, and hands none of it out", func(t *testing.T) {
		b := newBook(t, "p", "q")
		b.Rebuild([]Record{unreadable(x), unreadable(y)})
		require.True(t, b.ForgetOwner(poolKey, x))
		require.Equal(t, []string{"p SetAside", "q SetAside"}, b.states())
		b.Settle(record(y, "p"))
		require.Equal(t, []string{"p Held", "q Retiring"}, b.states(), "q may be dirty: it may have been x's")
		b.check()
	})
}

func TestWhileAnAllocationCannotBeRead(t *testing.T) {
	x, y := box("x", 0), box("y", 1)
	b := newBook(t, "old")
	b.Rebuild([]Record{unreadable(x)})
	b.CompleteRebuild()
	b.BeginCreate(poolKey, []string{"new"})
	b.Observe(poolKey, ready("new"))
	b.Observe(poolKey, ready("late"))
	require.Equal(t, []string{"late SetAside", "new Idle", "old SetAside"}, b.states(), "late was not made by this leader")
	require.Equal(t, []string{"new"}, b.claim(y, 3))
	require.Len(t, b.PodsSetAside(poolKey), 2)
	require.Empty(t, b.Retire(poolKey, []string{"old"}), "what may be held is not retired")
	allocation := b.Allocation(poolKey, x.UID)
	require.True(t, allocation.Unreadable && !allocation.Empty())
	require.Equal(t, 2, b.Snapshot(poolKey).Holders, "x may hold something")

	b.Settle(record(x, "old"))
	require.Equal(t, []string{"late Retiring", "new Held", "old Held"}, b.states())
	b.Settle(record(x, "old"))
	require.Equal(t, []string{"0 old"}, b.holds(x), "a second time changes nothing")
	b.check()
}
