package ledger

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestClaim(t *testing.T) {
	x, y, z := box("x", 0), box("y", 1), box("z", 2)
	tests := map[string]struct {
		pods   []string
		before func(*book)
		owner  Owner
		n      int
		want   []string
	}{
		"takes pods in the order in which they became ready": {pods: []string{"b", "a", "c"}, owner: x, n: 2, want: []string{"b", "a"}},
		"takes what there is when there is less":             {pods: []string{"a"}, owner: x, n: 3, want: []string{"a"}},
		"takes nothing for no shards":                        {pods: []string{"a"}, owner: x, n: 0},
		"takes the current revision first, then the oldest": {
			pods: []string{"old"},
			before: func(b *book) {
				for i, name := range []string{"young", "middle", "aged"} {
					b.Observe(poolKey, with(ready(name), func(p *Pod) {
						p.Revision, p.Created = "r2", epoch.Add(-time.Duration(i)*time.Minute)
					}))
				}
				b.SetPool(poolKey, "pool-uid", "r2", true)
			},
			owner: x, n: 4, want: []string{"aged", "middle", "young", "old"},
		},
		"passes over pods that cannot be used": {
			pods: []string{"notready", "terminating", "finished", "evicted", "good"},
			before: func(b *book) {
				b.Observe(poolKey, with(ready("notready"), func(p *Pod) { p.Ready = false }))
				b.Observe(poolKey, with(ready("terminating"), func(p *Pod) { p.Terminating = true }))
				b.Observe(poolKey, with(ready("finished"), func(p *Pod) { p.Finished = true }))
				b.Observe(poolKey, with(ready("evicted"), func(p *Pod) { p.Evict = true }))
				b.Observe(poolKey, with(ready("foreign"), func(p *Pod) { p.PoolUID = "another pool" }))
				b.ObserveGone(poolKey, "gone", "")
			},
			owner: x, n: 5, want: []string{"good"},
		},
		"takes a pod that became ready again once": {
			pods: []string{"a", "b"},
			before: func(b *book) {
				for range 3 {
					b.Observe(poolKey, with(ready("a"), func(p *Pod) { p.Ready = false }))
					b.Observe(poolKey, ready("a"))
				}
			},
			owner: x, n: 3, want: []string{"b", "a"},
		},
		"leaves what an older owner waits for": {
			pods:   []string{"a", "b", "c"},
			before: func(b *book) { b.SetDemand(poolKey, x, 2) },
			owner:  y, n: 2, want: []string{"a"},
		},
		"does not let a small late owner overtake a large early one": {
			pods:   []string{"a", "b"},
			before: func(b *book) { b.SetDemand(poolKey, x, 10) },
			owner:  y, n: 1,
		},
		"does not mind a younger owner that came first": {
			pods:   []string{"a"},
			before: func(b *book) { b.SetDemand(poolKey, y, 1) },
			owner:  x, n: 1, want: []string{"a"},
		},
		"serves owners of the same second in the order in which they came": {
			pods:   []string{"a"},
			before: func(b *book) { b.SetDemand(poolKey, box("first", 5), 1) },
			owner:  box("second", 5), n: 1,
		},
		"takes what a head that has withdrawn left": {
			pods:   []string{"a"},
			before: func(b *book) { b.SetDemand(poolKey, x, 10); b.SetDemand(poolKey, x, 0) },
			owner:  y, n: 1, want: []string{"a"},
		},
		"takes what a head that is forgotten left": {
			pods:   []string{"a"},
			before: func(b *book) { b.SetDemand(poolKey, x, 10); b.ForgetOwner(poolKey, x) },
			owner:  y, n: 1, want: []string{"a"},
		},
		"leaves to the head only what it still waits for": {
			pods: []string{"a", "b"},
			before: func(b *book) {
				b.claim(x, 3)
				b.SetDemand(poolKey, y, 1)
				b.Observe(poolKey, ready("c"))
				b.Observe(poolKey, ready("d"))
				b.Observe(poolKey, ready("e"))
			},
			owner: z, n: 2, want: []string{"c"},
		},
		"gives a claim that was taken back to the next": {
			pods:   []string{"a"},
			before: func(b *book) { b.claim(x, 1); b.Unclaim(poolKey, x, []string{"a", "unknown"}) },
			owner:  y, n: 1, want: []string{"a"},
		},
		"does not get a pod of a claim that was taken back after the pod ended": {
			pods: []string{"a", "b"},
			before: func(b *book) {
				b.claim(x, 2)
				b.ObserveGone(poolKey, "a", "uid-a")
				b.Observe(poolKey, with(ready("b"), func(p *Pod) { p.Terminating = true }))
				b.Unclaim(poolKey, x, []string{"a", "b"})
			},
			owner: y, n: 2,
		},
		"gets nothing from a pool that hands nothing out": {
			pods:   []string{"a"},
			before: func(b *book) { b.SetPool(poolKey, "pool-uid", "r1", false) },
			owner:  x, n: 1,
		},
		"gets nothing from a pool that does not exist": {
			pods:   []string{"a"},
			before: func(b *book) { b.SetPool(poolKey, "", "", true) },
			owner:  x, n: 1,
		},
		"gets no pod of a pool of the same name that was there before": {
			pods:   []string{"a"},
			before: func(b *book) { b.SetPool(poolKey, "new-uid", "r1", true) },
			owner:  x, n: 1,
		},
		"gets nothing of what was retired": {
			pods:   []string{"a", "b"},
			before: func(b *book) { b.Retire(poolKey, []string{"a"}) },
			owner:  x, n: 2, want: []string{"b"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, test.pods...)
			if test.before != nil {
				test.before(b)
			}
			offered := b.SetDemand(poolKey, test.owner, test.n)
			require.Equal(t, test.want, b.claim(test.owner, test.n))
			require.Equal(t, len(test.want), offered, "what Offer had said")
			b.check()
		})
	}
}

func TestWhatAClaimDoesNotGetStaysDemand(t *testing.T) {
	x, y := box("x", 0), box("y", 1)
	b := newBook(t, "a", "b")
	b.claim(x, 5)
	b.claim(y, 1)
	require.Equal(t, 4, b.Snapshot(poolKey).Demand)
	b.Observe(poolKey, ready("c"))
	b.claim(x, 1)
	require.Equal(t, 1, b.Snapshot(poolKey).Demand, "x asked for one and got it")
	b.SetDemand(poolKey, y, 0)
	require.Zero(t, b.Snapshot(poolKey).Demand)
}

func TestAClaimRemembersTheRestartsBeforeIt(t *testing.T) {
	b := newBook(t)
	b.Observe(poolKey, with(ready("a"), func(p *Pod) { p.Restarts = 3 }))
	b.Claim(poolKey, box("x", 0), []int32{7})
	b.Observe(poolKey, with(ready("a"), func(p *Pod) { p.Restarts = 5 }))
	held := b.Allocation(poolKey, "uid-x").Held
	require.Len(t, held, 1)
	require.Equal(t, []int32{7, 3, 5}, []int32{held[0].Shard, held[0].Base, held[0].Restarts})
}

// A claim looks at the pods it takes and at no others.
func TestAClaimLeavesTheRestOfTheQueueAlone(t *testing.T) {
	b := newBook(t)
	for i := range 1000 {
		b.Observe(poolKey, ready(fmt.Sprint("p", i)))
	}
	require.Len(t, b.claim(box("x", 0), 10), 10)
	require.Len(t, b.Ledger.pools[poolKey].current, 990)
}

func TestSnapshot(t *testing.T) {
	x, y := box("x", 0), box("y", 1)
	b := newBook(t, "held", "lost", "releasing", "retiring", "idle")
	b.Claim(poolKey, x, shards(3))
	b.ObserveGone(poolKey, "lost", "")
	b.BeginRelease(poolKey, x.UID, []string{"releasing"})
	b.Retire(poolKey, []string{"retiring"})
	b.Observe(poolKey, with(ready("ending"), func(p *Pod) { p.Terminating = true }))
	b.BeginCreate(poolKey, []string{"creating", "created"})
	b.ConfirmCreate(poolKey, "created", "uid-created")
	b.Rebuild([]Record{unreadable(y)})
	b.SetDemand(poolKey, y, 7)

	s := b.Snapshot(poolKey)
	var live, confirmed int
	for _, p := range s.Pods {
		if p.Live() {
			live++
		}
		if p.Confirmed {
			confirmed++
		}
	}
	require.Equal(t, []string{"created Creating", "creating Creating", "ending SetAside", "held Held",
		"idle SetAside", "lost Held gone", "releasing Releasing", "retiring Retiring"}, b.states())
	require.Equal(t, 5, live, "live pods: creating, created, held, releasing, idle")
	require.Equal(t, 1, confirmed, "confirmed creations")
	require.Equal(t, 7, s.Demand, "demand")
	require.Equal(t, 2, s.Holders, "holders: y too, while its allocation cannot be read")
	require.Equal(t, "y", s.Unreadable[0].Name)
	b.check()
}

// BenchmarkClaim reports the time per claimed pod, which does not grow with the pool.
func BenchmarkClaim(b *testing.B) {
	for _, size := range []int{1000, 10000} {
		for _, n := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%d of %d", n, size), func(b *testing.B) { benchmarkClaim(b, size, n) })
		}
	}
}

func benchmarkClaim(b *testing.B, size, n int) {
	l := New(Hooks{})
	l.SetPool(poolKey, "pool-uid", "r1", true)
	for i := range size {
		l.Observe(poolKey, ready(fmt.Sprint("p", i)))
	}
	owner, wanted := box("x", 0), shards(n)
	b.ReportAllocs()
	for b.Loop() {
		grants := l.Claim(poolKey, owner, wanted)
		if len(grants) != n {
			b.Fatalf("claimed %d pods, want %d", len(grants), n)
		}
		b.StopTimer()
		names := make([]string, n)
		for i, g := range grants {
			names[i] = g.Pod.Name
		}
		l.Unclaim(poolKey, owner, names)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/pod")
}
