package ledger

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThePathOfAPod(t *testing.T) {
	x := box("x", 0)
	claimed := func(b *book) { b.claim(x, 1) }
	releasing := func(b *book) { b.claim(x, 1); b.BeginRelease(poolKey, x.UID, []string{"p"}) }
	observe := func(change func(*Pod)) func(*book) {
		return func(b *book) { b.Observe(poolKey, with(ready("p"), change)) }
	}
	tests := map[string]struct {
		steps []func(*book)
		want  []string
	}{
		"given up, it is not idle before its release is confirmed": {
			[]func(*book){releasing, func(b *book) { b.MarkClean(poolKey, x.UID, "p") }}, []string{"p Releasing"}},
		"given up, clean and freed, it is idle": {
			[]func(*book){releasing, func(b *book) { b.MarkClean(poolKey, x.UID, "p") },
				func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }}, []string{"p Idle"}},
		"freed without being clean, it is retired": {
			[]func(*book){releasing, func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }}, []string{"p Retiring"}},
		"clean for one release, it is not clean for the next": {
			[]func(*book){releasing, func(b *book) { b.MarkClean(poolKey, x.UID, "p") },
				func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }, releasing,
				func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }}, []string{"p Retiring"}},
		"held, it cannot be marked clean": {
			[]func(*book){claimed, func(b *book) { b.MarkClean(poolKey, x.UID, "p") },
				func(b *book) { b.BeginRelease(poolKey, x.UID, []string{"p"}) },
				func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }}, []string{"p Retiring"}},
		"held, it cannot be freed": {
			[]func(*book){claimed, func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }}, []string{"p Held"}},
		"being released, it cannot be unclaimed": {
			[]func(*book){releasing, func(b *book) { b.Unclaim(poolKey, x, []string{"p"}) }}, []string{"p Releasing"}},
		"being released, it cannot be dropped": {
			[]func(*book){releasing, func(b *book) { b.Discard(poolKey, x.UID, []string{"p"}) }}, []string{"p Releasing"}},
		"being released, it cannot be retired": {
			[]func(*book){releasing, func(b *book) { b.Retire(poolKey, []string{"p"}) }}, []string{"p Releasing"}},
		"held by one, it is no business of another": {
			[]func(*book){claimed, func(b *book) {
				b.Unclaim(poolKey, box("y", 1), []string{"p"})
				b.Discard(poolKey, "uid-y", []string{"p"})
				b.BeginRelease(poolKey, "uid-y", []string{"p"})
				b.EndRelease(poolKey, "uid-y", []string{"p"})
			}}, []string{"p Held"}},
		"ended, it is still held": {
			[]func(*book){claimed, observe(func(p *Pod) { p.Finished = true })}, []string{"p Held"}},
		"ended, marked clean and freed, it is retired: nothing can run in it": {
			[]func(*book){releasing, observe(func(p *Pod) { p.Finished = true }),
				func(b *book) { b.MarkClean(poolKey, x.UID, "p") },
				func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }}, []string{"p Retiring"}},
		"lost and dropped, it is retired until it is gone": {
			[]func(*book){claimed, observe(func(p *Pod) { p.Finished, p.Disrupted = true, true }),
				func(b *book) { b.Discard(poolKey, x.UID, []string{"p"}) }}, []string{"p Retiring"}},
		"gone while held, it keeps its name for the holder": {
			[]func(*book){claimed, func(b *book) { b.ObserveGone(poolKey, "p", "uid-p") }}, []string{"p Held gone"}},
		"gone and dropped, it is forgotten": {
			[]func(*book){claimed, func(b *book) { b.ObserveGone(poolKey, "p", "uid-p") },
				func(b *book) { b.Discard(poolKey, x.UID, []string{"p"}) }}, nil},
		"gone while being released, marked clean and freed, it is forgotten": {
			[]func(*book){releasing, func(b *book) { b.ObserveGone(poolKey, "p", "uid-p") },
				func(b *book) { b.MarkClean(poolKey, x.UID, "p") },
				func(b *book) { b.EndRelease(poolKey, x.UID, []string{"p"}) }}, nil},
		"gone, it stays so when a late event shows it": {
			[]func(*book){claimed, func(b *book) { b.ObserveGone(poolKey, "p", "uid-p") },
				observe(func(p *Pod) { p.Restarts = 9 })}, []string{"p Held gone"}},
		"idle and gone, it is forgotten": {
			[]func(*book){func(b *book) { b.ObserveGone(poolKey, "p", "uid-p") }}, nil},
		"the end of an earlier pod of that name does not end it": {
			[]func(*book){func(b *book) { b.ObserveGone(poolKey, "p", "earlier") }}, []string{"p Idle"}},
		"retired, it is never idle again": {
			[]func(*book){func(b *book) { b.Retire(poolKey, []string{"p"}) },
				observe(func(p *Pod) { p.Restarts = 1 })}, []string{"p Retiring"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, "p")
			for _, step := range test.steps {
				step(b)
				b.check()
			}
			require.Equal(t, test.want, b.states())
		})
	}
}

// A pool that is being deleted takes back what it has handed out, and hands it to nobody.
func TestADeletingPoolTakesPodsBack(t *testing.T) {
	x, y := box("x", 0), box("y", 1)
	b := newBook(t, "clean", "dirty", "unclaimed")
	b.claim(x, 3)
	b.SetDemand(poolKey, y, 3)
	b.SetPool(poolKey, "pool-uid", "r1", false)
	b.BeginRelease(poolKey, x.UID, []string{"clean", "dirty"})
	b.MarkClean(poolKey, x.UID, "clean")
	b.wakes()
	b.EndRelease(poolKey, x.UID, []string{"clean", "dirty"})
	b.Unclaim(poolKey, x, []string{"unclaimed"})
	require.Empty(t, b.wakes(), "there is nothing to come for")
	require.Empty(t, b.claim(y, 3))
	require.True(t, b.ForgetOwner(poolKey, x))
	require.Zero(t, b.Snapshot(poolKey).Holders, "nobody is waited for any more")
	require.Equal(t, []string{"clean Idle", "dirty Retiring", "unclaimed Idle"}, b.states())
	require.Len(t, b.Retire(poolKey, []string{"clean", "dirty", "unclaimed"}), 2, "the pool can delete them")
	b.check()
}

func TestAPodIsEitherRetiredOrClaimed(t *testing.T) {
	for range 200 {
		b := newBook(t, "p")
		var claimed []Grant
		var retired []Pod
		var both sync.WaitGroup
		both.Go(func() { claimed = b.Claim(poolKey, box("x", 0), shards(1)) })
		both.Go(func() { retired = b.Retire(poolKey, []string{"p"}) })
		both.Wait()
		require.Equal(t, 1, len(claimed)+len(retired), "claimed %v, retired %v", claimed, retired)
		b.check()
	}
}

func TestAnOwnerIsForgottenOnlyWhenItHoldsNothing(t *testing.T) {
	x := box("x", 0)
	b := newBook(t, "p")
	b.claim(x, 1)
	require.False(t, b.ForgetOwner(poolKey, x), "while it holds a pod")
	b.BeginRelease(poolKey, x.UID, []string{"p"})
	require.False(t, b.ForgetOwner(poolKey, x), "while it releases a pod")
	require.Equal(t, []OwnerRef{{Pool: poolKey, UID: x.UID}}, b.Lookup(x.NamespacedName))
	b.EndRelease(poolKey, x.UID, []string{"p"})
	require.True(t, b.ForgetOwner(poolKey, x))
	require.Empty(t, b.Lookup(x.NamespacedName))
	require.Empty(t, b.Ledger.owners)
	require.Empty(t, b.Ledger.pools[poolKey].holders)
}

func TestCreation(t *testing.T) {
	reserve := func(b *book) { b.BeginCreate(poolKey, []string{"p"}) }
	created := func(b *book) { b.ConfirmCreate(poolKey, "p", "uid-p") }
	shown := func(b *book) { b.Observe(poolKey, with(ready("p"), func(p *Pod) { p.Ready = false })) }
	gone := func(b *book) { b.ObserveGone(poolKey, "p", "uid-p") }
	refused := func(b *book) { b.AbortCreate(poolKey, "p") }
	tests := map[string]struct {
		steps []func(*book)
		want  []string
	}{
		"reserved, it counts":                                    {[]func(*book){reserve}, []string{"p Creating"}},
		"created, it counts while the cache is late":             {[]func(*book){reserve, created}, []string{"p Creating"}},
		"created and shown, it is idle":                          {[]func(*book){reserve, created, shown}, []string{"p Idle"}},
		"shown before the answer, it is idle":                    {[]func(*book){reserve, shown, created}, []string{"p Idle"}},
		"refused, it is forgotten":                               {[]func(*book){reserve, refused}, nil},
		"refused by a late answer, it stays when it was shown":   {[]func(*book){reserve, shown, refused}, []string{"p Idle"}},
		"shown and gone before the answer, it stays gone":        {[]func(*book){reserve, shown, gone, created}, nil},
		"gone before it was ever shown, it is forgotten":         {[]func(*book){reserve, created, gone}, nil},
		"the end of another of its name leaves it":               {[]func(*book){reserve, created, func(b *book) { b.ObserveGone(poolKey, "p", "other") }}, []string{"p Creating"}},
		"a name in use is not reserved again":                    {[]func(*book){reserve, created, reserve, shown}, []string{"p Idle"}},
		"shown without being reserved, it is idle":               {[]func(*book){shown}, []string{"p Idle"}},
		"refused for good but created even so, it is idle later": {[]func(*book){reserve, refused, shown}, []string{"p Idle"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBook(t)
			for _, step := range test.steps {
				step(b)
				b.check()
			}
			require.Equal(t, test.want, b.states())
		})
	}
	b := newBook(t, "p")
	require.Equal(t, []string{"q"}, b.BeginCreate(poolKey, []string{"p", "q"}), "the names that were free")
	require.Empty(t, b.claim(box("x", 0), 2)[1:], "a reserved pod is not handed out")
}
