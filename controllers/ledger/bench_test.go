package ledger

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// The sizes at which the costs of the ledger are measured.
const (
	manyPods    = 20_000
	manyShards  = 5_000
	manyWaiters = 2_000
)

// bigPool returns a ledger with a pool of so many ready pods.
func bigPool(pods int) *Ledger {
	l := New(Hooks{Pool: func(Key) {}, Owner: func(types.NamespacedName) {}})
	l.SetPool(poolKey, "pool-uid", "r1", true)
	for i := range pods {
		l.Observe(poolKey, ready(podName(i)))
	}
	return l
}

func podName(i int) string { return fmt.Sprintf("pool-%05d", i) }

func podNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = podName(i)
	}
	return names
}

// wait has so many owners wait for one pod each; none is left for them.
func wait(l *Ledger, waiters int) {
	for i := range waiters {
		l.SetDemand(poolKey, box(fmt.Sprintf("waiter-%04d", i), 10+i), 1)
	}
}

// BenchmarkFree frees the 5,000 clean pods of one batch at once.
func BenchmarkFree(b *testing.B) {
	for _, waiters := range []int{0, manyWaiters} {
		b.Run(fmt.Sprintf("%d waiters", waiters), func(b *testing.B) {
			l, owner := bigPool(manyShards), box("big", 0)
			wanted, names := shards(manyShards), podNames(manyShards)
			wait(l, waiters)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				if n := len(l.Claim(poolKey, owner, wanted)); n != manyShards {
					b.Fatalf("claimed %d pods", n)
				}
				l.BeginRelease(poolKey, owner.UID, names)
				for _, name := range names {
					l.MarkClean(poolKey, owner.UID, name)
				}
				b.StartTimer()
				l.EndRelease(poolKey, owner.UID, names)
			}
		})
	}
}

// BenchmarkPodsBecomeReady has 5,000 pods become ready one by one.
func BenchmarkPodsBecomeReady(b *testing.B) {
	for _, waiters := range []int{0, manyWaiters} {
		b.Run(fmt.Sprintf("%d waiters", waiters), func(b *testing.B) {
			l := bigPool(0)
			wait(l, waiters)
			b.ReportAllocs()
			for b.Loop() {
				for i := range manyShards {
					l.Observe(poolKey, ready(podName(i)))
				}
				b.StopTimer()
				for i := range manyShards {
					l.Observe(poolKey, with(ready(podName(i)), func(p *Pod) { p.Ready = false }))
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRetire takes 20,000 idle pods out of use.
func BenchmarkRetire(b *testing.B) {
	names := podNames(manyPods)
	for b.Loop() {
		b.StopTimer()
		l := bigPool(manyPods)
		b.StartTimer()
		l.Retire(poolKey, names)
	}
}

// BenchmarkSnapshot reads a pool of 20,000 pods.
func BenchmarkSnapshot(b *testing.B) {
	b.Run("unchanged", func(b *testing.B) {
		l := bigPool(manyPods)
		b.ReportAllocs()
		for b.Loop() {
			l.Snapshot(poolKey)
		}
	})
	b.Run("after a change", func(b *testing.B) {
		l := bigPool(manyPods)
		b.ReportAllocs()
		for i := int32(0); b.Loop(); i++ {
			l.Observe(poolKey, with(ready(podName(7)), func(p *Pod) { p.Restarts = i }))
			l.Snapshot(poolKey)
		}
	})
}

// BenchmarkDemand has the youngest of 2,000 waiters ask for another number of pods.
func BenchmarkDemand(b *testing.B) {
	l := bigPool(0)
	wait(l, manyWaiters)
	last := box("last", 100_000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l.SetDemand(poolKey, last, 1+i%2)
	}
}

// BenchmarkAllocation reads what a batch of 5,000 holds.
func BenchmarkAllocation(b *testing.B) {
	owner := box("big", 0)
	b.Run("unchanged", func(b *testing.B) {
		l := bigPool(manyShards)
		l.Claim(poolKey, owner, shards(manyShards))
		b.ReportAllocs()
		for b.Loop() {
			l.Allocation(poolKey, owner.UID)
		}
	})
	b.Run("after a change", func(b *testing.B) {
		l := bigPool(manyShards)
		l.Claim(poolKey, owner, shards(manyShards))
		b.ReportAllocs()
		for i := int32(0); b.Loop(); i++ {
			l.Observe(poolKey, with(ready(podName(7)), func(p *Pod) { p.Restarts = i }))
			l.Allocation(poolKey, owner.UID)
		}
	})
}
