package ledger

import (
	"testing"

	"github.com/stretchr/testify/require"
)

var otherKey = Key{Namespace: "ns", Name: "other"}

// asks is the choice of an owner that waits for that pool, of two which may have so many pods.
func asks(want int, asked Key, most int) Choice {
	return Choice{Want: want, Asked: asked, Offers: []Offer{{poolKey, most}, {otherKey, most}}}
}

// newChoice has owners that name no pool, and want two each, wait for the first of two pools,
// which has no pods.
func newChoice(t *testing.T, most int, owners ...Owner) *book {
	t.Helper()
	b := newBook(t)
	b.SetPool(otherKey, "pool-uid", "r1", true)
	for _, o := range owners {
		b.SetDemand(poolKey, o, 2)
		require.True(t, b.Consider(o, asks(2, poolKey, most)), "what came before woke nobody")
		require.False(t, b.Consider(o, asks(2, poolKey, most)))
	}
	b.wakes()
	return b
}

func TestWhoNamesNoPoolIsOfferedThePodsOfAnother(t *testing.T) {
	old, young := box("old", 0), box("young", 1)
	b := newChoice(t, 0, young, old)
	b.Observe(otherKey, ready("a"))
	require.Equal(t, []string{"old"}, b.wakes(), "one pod is for the oldest")
	b.Consider(old, asks(2, poolKey, 0))
	require.Equal(t, []string{"young"}, b.wakes(), "what it leaves is for the next one")
	b.Consider(young, asks(2, poolKey, 0))
	require.Empty(t, b.wakes())
	b.Observe(otherKey, ready("b"))
	require.Equal(t, []string{"old"}, b.wakes())

	b.SetDemand(poolKey, old, 0)
	b.SetDemand(otherKey, old, 2)
	require.Len(t, b.Claim(otherKey, old, shards(2)), 2)
	b.Consider(old, Choice{})
	b.wakes()
	b.Observe(otherKey, ready("c"))
	require.Equal(t, []string{"young"}, b.wakes(), "the old one has its pool")
}

func TestWhoLeavesPassesOnWhatItWasOffered(t *testing.T) {
	old, young := box("old", 0), box("young", 1)
	b := newChoice(t, 0, old, young)
	b.Observe(otherKey, ready("a"))
	require.Equal(t, []string{"old"}, b.wakes())
	require.True(t, b.ForgetOwner(poolKey, old))
	require.Equal(t, []string{"young"}, b.wakes())
}

func TestWhoNamesNoPoolIsWokenWhereAnotherCanGrow(t *testing.T) {
	me, served, by := box("me", 1), box("served", 0), box("by", 0)
	b := newBook(t)
	b.SetPool(otherKey, "pool-uid", "r1", true)
	b.Observe(otherKey, ready("a"))
	b.Observe(otherKey, ready("b"))
	require.Len(t, b.Claim(otherKey, by, shards(2)), 2)
	for _, o := range []Owner{me, served} {
		b.SetDemand(poolKey, o, 2)
		choice := asks(2, poolKey, 2)
		choice.Served = o == served
		b.Consider(o, choice)
	}
	b.wakes()
	b.BeginRelease(otherKey, by.UID, []string{"a"})
	require.Empty(t, b.wakes())
	b.EndRelease(otherKey, by.UID, []string{"a"})
	require.Equal(t, []string{"me"}, b.wakes(), "the pool may make a pod instead")
	b.Consider(me, asks(2, poolKey, 2))
	b.BeginCreate(otherKey, []string{"c"})
	b.ConfirmCreate(otherKey, "c", "uid-c")
	b.Observe(otherKey, with(ready("c"), func(p *Pod) { p.Ready = false }))
	require.Empty(t, b.wakes(), "that it does is no news")
	b.Observe(otherKey, ready("c"))
	require.Equal(t, []string{"served"}, b.wakes(), "a pod that is there is for the oldest")
}

func TestWhoNamesNoPoolIsWokenWhereItsProspectsAreGone(t *testing.T) {
	me := box("me", 5)
	b := newChoice(t, 2, me)
	b.SetDemand(poolKey, box("younger", 9), 1)
	require.Empty(t, b.wakes(), "it comes after me")
	b.SetDemand(poolKey, box("older", 1), 1)
	require.Equal(t, []string{"me"}, b.wakes(), "one of the two that the pool may have is for the older one")
	b.BeginCreate(poolKey, []string{"a", "b"})
	require.Empty(t, b.wakes())
	b.ConfirmCreate(poolKey, "a", "uid-a")
	b.Observe(poolKey, with(ready("a"), func(p *Pod) { p.Ready, p.Problem = false, "ErrImagePull" }))
	require.Equal(t, []string{"me"}, b.wakes(), "it may never be ready")
}

func TestNothingIsKeptOfWhoNamesNoPoolAndIsGone(t *testing.T) {
	me := box("me", 0)
	b := newChoice(t, 5, me)
	require.True(t, b.ForgetOwner(poolKey, me))
	b.SetPool(poolKey, "", "", false)
	b.SetPool(otherKey, "", "", false)
	require.Empty(t, b.Ledger.pools)
	require.Empty(t, b.offers)
}
