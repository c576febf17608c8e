package ledger

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWakes(t *testing.T) {
	x, y, z := box("x", 0), box("y", 1), box("z", 2)
	tests := map[string]struct {
		pods   []string
		before func(*book)
		do     func(*book)
		want   []string
	}{
		"a pod that becomes ready wakes the oldest that waits": {
			before: func(b *book) { b.SetDemand(poolKey, y, 1); b.SetDemand(poolKey, x, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("p")) },
			want:   []string{"x"},
		},
		"a pod that is not ready wakes nobody": {
			before: func(b *book) { b.SetDemand(poolKey, x, 1) },
			do:     func(b *book) { b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Ready = false })) },
		},
		"a second pod wakes the second that waits, and not once more the first": {
			pods:   []string{"p"},
			before: func(b *book) { b.SetDemand(poolKey, x, 1); b.SetDemand(poolKey, y, 1); b.SetDemand(poolKey, z, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("q")) },
			want:   []string{"y"},
		},
		"a head that withdraws wakes the next": {
			pods:   []string{"p"},
			before: func(b *book) { b.SetDemand(poolKey, x, 3); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.SetDemand(poolKey, x, 0) },
			want:   []string{"y"},
		},
		"a head that is forgotten wakes the next": {
			pods:   []string{"p"},
			before: func(b *book) { b.SetDemand(poolKey, x, 3); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.ForgetOwner(poolKey, x) },
			want:   []string{"y"},
		},
		"a head that asks for less wakes the next": {
			pods:   []string{"p", "q"},
			before: func(b *book) { b.SetDemand(poolKey, x, 3); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.SetDemand(poolKey, x, 1) },
			want:   []string{"x", "y"},
		},
		"a pod that does not complete a gang wakes nobody": {
			pods:   []string{"p"},
			before: func(b *book) { b.SetGangDemand(poolKey, x, 4, 3); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("q")) },
		},
		"a pod that completes a gang wakes it": {
			pods:   []string{"p", "q"},
			before: func(b *book) { b.SetGangDemand(poolKey, x, 4, 3); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("r")) },
			want:   []string{"x"},
		},
		"a gang that withdraws wakes the next": {
			pods:   []string{"p"},
			before: func(b *book) { b.SetGangDemand(poolKey, x, 4, 3); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.SetDemand(poolKey, x, 0) },
			want:   []string{"y"},
		},
		"a claim that is given back wakes who waits": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.Unclaim(poolKey, x, []string{"p"}) },
			want:   []string{"y"},
		},
		"a clean pod that is freed wakes who waits": {
			pods: []string{"p"},
			before: func(b *book) {
				b.claim(x, 1)
				b.SetDemand(poolKey, y, 1)
				b.BeginRelease(poolKey, x.UID, []string{"p"})
				b.MarkClean(poolKey, x.UID, "p")
			},
			do:   func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) },
			want: []string{"y"},
		},
		"a pod that is freed without being clean wakes nobody": {
			pods: []string{"p"},
			before: func(b *book) {
				b.claim(x, 1)
				b.SetDemand(poolKey, y, 1)
				b.BeginRelease(poolKey, x.UID, []string{"p"})
			},
			do: func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) },
		},
		"a change of a held pod wakes its holder": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1) },
			do:     func(b *book) { b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Restarts = 1 })) },
			want:   []string{"x"},
		},
		"a change of a pod that is being released wakes its holder": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1); b.BeginRelease(poolKey, x.UID, []string{"p"}) },
			do:     func(b *book) { b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Ready = false })) },
			want:   []string{"x"},
		},
		"the end of a held pod wakes its holder": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1) },
			do:     func(b *book) { b.ObserveGone(poolKey, "p", "uid-p") },
			want:   []string{"x"},
		},
		"the same facts again wake nobody": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("p")) },
		},
		"a late event of a held pod that is gone wakes nobody": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1); b.ObserveGone(poolKey, "p", "uid-p") },
			do:     func(b *book) { b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Restarts = 1 })) },
		},
		"a pool that appears wakes all that wait, also without pods": {
			before: func(b *book) {
				b.SetPool(poolKey, "", "", false)
				b.SetDemand(poolKey, x, 1)
				b.SetDemand(poolKey, y, 1)
			},
			do:   func(b *book) { b.SetPool(poolKey, "pool-uid", "r1", true) },
			want: []string{"x", "y"},
		},
		"a pool that hands out no more wakes all that wait": {
			before: func(b *book) { b.SetDemand(poolKey, x, 1); b.SetDemand(poolKey, y, 1) },
			do:     func(b *book) { b.SetPool(poolKey, "pool-uid", "r1", false) },
			want:   []string{"x", "y"},
		},
		"a pod that becomes ready while the pool hands nothing out wakes nobody": {
			before: func(b *book) { b.SetPool(poolKey, "pool-uid", "r1", false); b.SetDemand(poolKey, x, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("p")) },
		},
		"an allocation that becomes readable wakes nobody: what it does not name is retired": {
			pods: []string{"p"},
			before: func(b *book) {
				b.Rebuild([]Record{unreadable(x)})
				b.SetDemand(poolKey, y, 1)
			},
			do: func(b *book) { b.Settle(record(x)) },
		},
		"a claim that is given back does not wake its owner, which would claim it for ever": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 3) },
			do:     func(b *book) { b.Unclaim(poolKey, x, []string{"p"}) },
		},
		"a pod that turns out not to exist wakes its holder": {
			before: func(b *book) { b.Rebuild([]Record{record(x, "p")}) },
			do:     func(b *book) { b.CompleteRebuild() },
			want:   []string{"x"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, test.pods...)
			test.before(b)
			b.wakes()
			test.do(b)
			require.Equal(t, test.want, b.wakes())
			b.check()
		})
	}
}

func TestThePoolIsToldOfWhatItDecidesBy(t *testing.T) {
	x := box("x", 0)
	b := newBook(t, "p", "q")
	steps := []struct {
		name string
		do   func()
		want bool
	}{
		{"demand", func() { b.SetDemand(poolKey, x, 3) }, true},
		{"the same demand", func() { b.SetDemand(poolKey, x, 3) }, false},
		{"a claim", func() { b.claim(x, 3) }, true},
		{"a claim that gets nothing and asks for the same", func() { b.claim(x, 1) }, false},
		{"a loss", func() { b.ObserveGone(poolKey, "p", "uid-p") }, true},
		{"a drop", func() { b.Discard(poolKey, x.UID, []string{"p"}) }, true},
		{"a release", func() { b.BeginRelease(poolKey, x.UID, []string{"q"}) }, true},
		{"the end of a release", func() { b.EndRelease(poolKey, x.UID, []string{"q"}) }, true},
		{"the same pool", func() { b.SetPool(poolKey, "pool-uid", "r1", true) }, false},
		{"a new revision", func() { b.SetPool(poolKey, "pool-uid", "r2", true) }, true},
		{"reading", func() { b.Snapshot(poolKey); b.Allocation(poolKey, x.UID) }, false},
	}
	for _, step := range steps {
		b.wakes()
		step.do()
		require.Equal(t, step.want, b.pools > 0, step.name)
	}
}
