package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/tests/bench/results"
)

// growth is a race: several ways to have so many pods from nothing and to be rid of them again, in
// turns. The first way is the operator's; each of the others is a floor.
type growth struct {
	// name is what the operator has done in the end.
	name string
	ways []way
	pods int
}

// warmUpPods is of how many pods the first round is at most, which does not count.
const warmUpPods = 10

// way is one way to have pods.
type way struct {
	name string
	// label and value are on the pods.
	label, value string
	// prepare makes what must be there before, and settle takes it away at the end. Either may be nil.
	prepare, settle func(ctx context.Context, pods int) error
	// create asks for the pods, and returns when whoever makes them says that all are ready, if
	// somebody does (says).
	create func(ctx context.Context, pods int) error
	says   bool
	// remove asks that they go.
	remove func(ctx context.Context, pods int) error
}

// grown is how long one way has taken.
type grown struct {
	// said, ready: until the maker said that all pods are ready, and until a watch of the pods
	// showed it; gone: from the deletion until it showed none.
	said, ready, gone time.Duration
}

// fromZero is the part that has pods made from nothing: by a pool that has to hold them, and for a
// BatchSandbox that takes all that an empty pool may have. Beside each, a ReplicaSet of as many.
func (o *options) fromZero() ([]part, error) {
	table := results.Table{
		ID: "zero", Title: "Pools from nothing", Note: growthNote + "\nFloor: a ReplicaSet of as many pods with the same spec.",
	}
	return o.grows("zero", o.zero, table, func(b *bench, n int) []growth {
		return []growth{
			{name: fmt.Sprintf("a pool of %d", n), pods: n, ways: []way{b.wayOfPool(), b.wayOfReplicaSet()}},
			{name: fmt.Sprintf("%d demanded of an empty pool", n), pods: n, ways: []way{b.wayOfDemand(), b.wayOfReplicaSet()}},
		}
	})
}

// fromTemplates is the part of BatchSandboxes that have their pods made from a template.
func (o *options) fromTemplates() ([]part, error) {
	table := results.Table{
		ID: "templates", Title: "Sandboxes from a template", Note: growthNote + fmt.Sprintf(
			"\nFloor: as many pods with the same spec, created and deleted by hand, %d at a time; or by a Job that runs all at a time.", byHandParallel),
	}
	return o.grows("templates", o.templates, table, func(b *bench, n int) []growth {
		return []growth{{
			name: batches{1, int32(n)}.of(""), pods: n, ways: []way{b.wayOfTemplate(), b.wayByHand(), b.wayOfJob()},
		}}
	})
}

const growthNote = "Milliseconds from the create until a watch shows the BatchSandbox delivered, or as many pods ready; and from its " +
	"deletion until no pod is left.\nRatio: median of the rounds; half of them lie between its 25 % and its 75 %."

// grows is a part with one table of what is grown to each size.
func (o *options) grows(name, list string, table results.Table, of func(*bench, int) []growth) ([]part, error) {
	sizes, err := parseSizes(name, list)
	if err != nil || len(sizes) == 0 {
		return nil, err
	}
	table.Keys, table.Columns = []string{"grown", "until", "floor"}, comparedColumns
	return []part{func(ctx context.Context, b *bench) ([]results.Table, error) {
		for _, n := range sizes {
			for _, g := range of(b, int(n)) {
				if err := b.measureGrowth(ctx, &table, g, o.longRounds); err != nil {
					table.Incomplete = err.Error()
					return []results.Table{table}, err
				}
			}
		}
		return []results.Table{table}, nil
	}}, nil
}

// measureGrowth adds a row for each floor and each phase to the table.
func (b *bench) measureGrowth(ctx context.Context, table *results.Table, g growth, rounds int) error {
	took := make([][]grown, len(g.ways))
	for round := range rounds + 1 {
		pods := g.pods
		if round == 0 {
			pods = min(pods, warmUpPods)
		}
		for i := range g.ways {
			at := (i + round) % len(g.ways)
			result, err := b.grow(ctx, &g.ways[at], pods)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", g.name, g.ways[at].name, err)
			}
			if round > 0 {
				took[at] = append(took[at], result)
			}
		}
	}
	g.addRows(table, took)
	return nil
}

// addRows adds what was measured, way by way.
func (g *growth) addRows(table *results.Table, took [][]grown) {
	each := func(way int, of func(grown) time.Duration) []time.Duration {
		list := make([]time.Duration, len(took[way]))
		for i := range list {
			list[i] = of(took[way][i])
		}
		return list
	}
	said := func(t grown) time.Duration { return t.said }
	ready := func(t grown) time.Duration { return t.ready }
	gone := func(t grown) time.Duration { return t.gone }
	for i := 1; i < len(g.ways); i++ {
		if g.ways[0].says {
			table.Add([]string{g.name, "delivered", g.ways[i].name}, compared(each(0, said), each(i, ready))...)
		}
		table.Add([]string{g.name, "pods ready", g.ways[i].name}, compared(each(0, ready), each(i, ready))...)
		table.Add([]string{g.name, "pods gone", g.ways[i].name}, compared(each(0, gone), each(i, gone))...)
	}
}

// grow has one way make the pods and take them away.
func (b *bench) grow(ctx context.Context, w *way, pods int) (result grown, err error) {
	ctx, cancel := context.WithTimeout(ctx, fillPatience)
	defer cancel()
	if w.prepare != nil {
		if err := w.prepare(ctx, pods); err != nil {
			return result, fmt.Errorf("before: %w", err)
		}
	}
	view, err := b.viewPods(ctx, w.label, w.value)
	if err != nil {
		return result, err
	}
	defer view.close()
	start := time.Now()
	both, each := errgroup.WithContext(ctx)
	both.Go(func() error {
		defer func() { result.said = time.Since(start) }()
		return w.create(each, pods)
	})
	both.Go(func() error {
		defer func() { result.ready = time.Since(start) }()
		return view.untilStarted(each, pods)
	})
	if err := both.Wait(); err != nil {
		return result, fmt.Errorf("creating: %w", err)
	}
	start = time.Now()
	if err := errors.Join(w.remove(ctx, pods), view.untilGone(ctx)); err != nil {
		return result, fmt.Errorf("deleting: %w", err)
	}
	result.gone = time.Since(start)
	fmt.Fprintf(os.Stderr, "%d pods, %s: ready after %.0f ms, gone after %.0f ms\n", pods, w.name, ms(result.ready), ms(result.gone))
	if w.settle != nil {
		if err := w.settle(ctx, pods); err != nil {
			return result, fmt.Errorf("after: %w", err)
		}
	}
	return result, nil
}

// podSpec is that of all pods that are measured.
func (b *bench) podSpec() corev1.PodSpec { return b.pool(poolSize{}).Spec.Template.Spec }

// plainPod is one that nobody but the benchmark makes, with the label.
func (b *bench) plainPod(label, value, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: name, Labels: map[string]string{label: value}},
		Spec:       b.podSpec(),
	}
}

// inBackground deletes an object at once; the garbage collector deletes what it owns.
var inBackground = client.PropagationPolicy(metav1.DeletePropagationBackground)
