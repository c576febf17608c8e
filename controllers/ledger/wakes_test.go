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
			before: func(b *book) { b.Offer(poolKey, y, 1); b.Offer(poolKey, x, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("p")) },
			want:   []string{"x"},
		},
		"a pod that is not ready wakes nobody": {
			before: func(b *book) { b.Offer(poolKey, x, 1) },
			do:     func(b *book) { b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Ready = false })) },
		},
		"a second pod wakes the second that waits too": {
			pods:   []string{"p"},
			before: func(b *book) { b.Offer(poolKey, x, 1); b.Offer(poolKey, y, 1); b.Offer(poolKey, z, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("q")) },
			want:   []string{"x", "y"},
		},
		"a head that withdraws wakes the next": {
			pods:   []string{"p"},
			before: func(b *book) { b.Offer(poolKey, x, 3); b.Offer(poolKey, y, 1) },
			do:     func(b *book) { b.Withdraw(poolKey, x) },
			want:   []string{"y"},
		},
		"a head that is forgotten wakes the next": {
			pods:   []string{"p"},
			before: func(b *book) { b.Offer(poolKey, x, 3); b.Offer(poolKey, y, 1) },
			do:     func(b *book) { b.ForgetOwner(poolKey, x) },
			want:   []string{"y"},
		},
		"a head that asks for less wakes the next": {
			pods:   []string{"p", "q"},
			before: func(b *book) { b.Offer(poolKey, x, 3); b.Offer(poolKey, y, 1) },
			do:     func(b *book) { b.Offer(poolKey, x, 1) },
			want:   []string{"x", "y"},
		},
		"a claim that is given back wakes who waits": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1); b.Offer(poolKey, y, 1) },
			do:     func(b *book) { b.Unclaim(poolKey, x.UID, []string{"p"}) },
			want:   []string{"y"},
		},
		"a clean pod that is freed wakes who waits": {
			pods: []string{"p"},
			before: func(b *book) {
				b.claim(x, 1)
				b.Offer(poolKey, y, 1)
				b.BeginRelease(poolKey, x.UID, []string{"p"})
				b.MarkClean(poolKey, x.UID, "p")
			},
			do:   func(b *book) { b.Free(poolKey, x.UID, []string{"p"}) },
			want: []string{"y"},
		},
		"a pod that is freed without being clean wakes nobody": {
			pods: []string{"p"},
			before: func(b *book) {
				b.claim(x, 1)
				b.Offer(poolKey, y, 1)
				b.BeginRelease(poolKey, x.UID, []string{"p"})
			},
			do: func(b *book) { b.Free(poolKey, x.UID, []string{"p"}) },
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
			do:     func(b *book) { b.Forget(poolKey, "p", "uid-p") },
			want:   []string{"x"},
		},
		"the same facts again wake nobody": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("p")) },
		},
		"a late event of a held pod that is gone wakes nobody": {
			pods:   []string{"p"},
			before: func(b *book) { b.claim(x, 1); b.Forget(poolKey, "p", "uid-p") },
			do:     func(b *book) { b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Restarts = 1 })) },
		},
		"a pool that appears wakes all that wait, also without pods": {
			before: func(b *book) {
				b.SetPool(poolKey, "", "", false)
				b.Offer(poolKey, x, 1)
				b.Offer(poolKey, y, 1)
			},
			do:   func(b *book) { b.SetPool(poolKey, "pool-uid", "r1", true) },
			want: []string{"x", "y"},
		},
		"a pool that lends no more wakes all that wait": {
			before: func(b *book) { b.Offer(poolKey, x, 1); b.Offer(poolKey, y, 1) },
			do:     func(b *book) { b.SetPool(poolKey, "pool-uid", "r1", false) },
			want:   []string{"x", "y"},
		},
		"a pod that becomes ready while the pool does not lend wakes nobody": {
			before: func(b *book) { b.SetPool(poolKey, "pool-uid", "r1", false); b.Offer(poolKey, x, 1) },
			do:     func(b *book) { b.Observe(poolKey, ready("p")) },
		},
		"an allocation that becomes readable wakes nobody: what it does not name is retired": {
			pods: []string{"p"},
			before: func(b *book) {
				b.Restore([]Record{unreadable(x)})
				b.Offer(poolKey, y, 1)
			},
			do: func(b *book) { b.Restore([]Record{record(x)}) },
		},
		"a pod that turns out not to exist wakes its holder": {
			before: func(b *book) { b.Restore([]Record{record(x, "p")}) },
			do:     func(b *book) { b.ForgetUnseen() },
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
		{"demand", func() { b.Offer(poolKey, x, 3) }, true},
		{"the same demand", func() { b.Offer(poolKey, x, 3) }, false},
		{"a claim", func() { b.claim(x, 3) }, true},
		{"a claim that gets nothing and asks for the same", func() { b.claim(x, 1) }, false},
		{"a loss", func() { b.Forget(poolKey, "p", "uid-p") }, true},
		{"a drop", func() { b.Drop(poolKey, x.UID, []string{"p"}) }, true},
		{"a release", func() { b.BeginRelease(poolKey, x.UID, []string{"q"}) }, true},
		{"the end of a release", func() { b.Free(poolKey, x.UID, []string{"q"}) }, true},
		{"the same pool", func() { b.SetPool(poolKey, "pool-uid", "r1", true) }, false},
		{"a new revision", func() { b.SetPool(poolKey, "pool-uid", "r2", true) }, true},
		{"reading", func() { b.Snapshot(poolKey); b.Lends(poolKey); b.Allocation(poolKey, x.UID) }, false},
	}
	for _, step := range steps {
		b.wakes()
		step.do()
		require.Equal(t, step.want, b.pools > 0, step.name)
	}
}
