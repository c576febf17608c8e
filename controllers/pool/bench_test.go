package pool

import (
	"context"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// benchPods is the number of pods of a large pool.
const benchPods = 20_000

// BenchmarkPass makes passes over a large pool, of which one pod has changed since the
// last pass and nothing is to be done.
func BenchmarkPass(b *testing.B) {
	bench := newBench(b, capacity(benchPods, benchPods, 0, 2*benchPods))
	bench.Executor = func() *podtemplate.Executor { return nil }
	bench.state.follow(bench.pool, nil)
	revision := bench.state.revision
	observe := func(i, restarts int) {
		name := fmt.Sprintf("pod-%d", i)
		bench.Ledger.Observe(key, ledger.Pod{Name: name, UID: types.UID(name), PoolUID: poolUID, Revision: revision,
			Created: now.Add(-time.Hour), Ready: true, Restarts: int32(restarts)})
	}
	for i := range benchPods {
		observe(i, 0)
	}
	if _, err := bench.run(context.Background()); err != nil { // the first one writes finalizer and status
		b.Fatal(err)
	}
	bench.pool = bench.state.newest.Of(bench.pool)
	restarts := 0
	b.ReportAllocs()
	for b.Loop() {
		restarts++
		observe(restarts%benchPods, restarts)
		if _, err := bench.run(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkShrink decides to retire all pods of a large pool.
func BenchmarkShrink(b *testing.B) {
	all := pods(benchPods)
	b.ReportAllocs()
	for b.Loop() {
		plan := Decide(&Input{Pods: all, Spec: capacity(0, 0, 0, 0), UID: poolUID, Revision: currentRev, Now: now})
		if len(plan.Retire) != benchPods {
			b.Fatalf("%d pods are retired", len(plan.Retire))
		}
	}
}
