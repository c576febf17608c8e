package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

// scenario is what one row of the table measures: so many BatchSandboxes created at
// once, with so many sandboxes each, from a pool.
type scenario struct {
	name     string
	pool     string
	objects  int
	replicas int32
	// others are pools beside it that may be chosen, where it chooses.
	others  []poolSize
	chooses bool
	// named are the pools of the objects, in their order, where they have not one pool.
	named []string
	// tasks: a task runs in every sandbox; values: it has a variable and a file from a Secret.
	tasks, values bool
	// floor does what the operator does, by hand; of tasks with values, it has the operator run
	// plain ones.
	floor func(*bench, context.Context, scenario, int) (sample, error)
}

// spec is that of the BatchSandbox of that number.
func (s *scenario) spec(i int) v1alpha1.BatchSandboxSpec {
	spec := v1alpha1.BatchSandboxSpec{Replicas: &s.replicas, PoolRef: s.pool}
	if len(s.named) > 0 {
		spec.PoolRef = s.named[i]
	}
	if s.chooses {
		chosen(&spec)
	}
	if s.tasks {
		spec.TaskTemplate = &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: taskCommand}}}
	}
	if s.values {
		addValues(&spec.TaskTemplate.Spec)
	}
	return spec
}

// poolSize is a pool to have and how many ready pods it holds.
type poolSize struct {
	name    string
	size    int32
	recycle v1alpha1.RecycleType
}

// sandboxes is the part that measures batches at rest.
func (o *options) sandboxes() ([]part, error) {
	sizes, err := parseBatches("sizes", o.sizes)
	if err != nil {
		return nil, err
	}
	var list []scenario
	var pools []poolSize
	for _, n := range sizes {
		list = append(list, scenario{name: n.of(""), pool: "batch", objects: n.objects, replicas: n.replicas, floor: (*bench).runFloor})
	}
	if len(sizes) > 0 {
		pools = append(pools, poolSize{name: "batch", size: most(sizes)})
	}
	bursts, err := parseSizes("burst", o.burst)
	if err != nil {
		return nil, err
	}
	ready, err := parseSizes("burst-ready", o.burstReady)
	if err != nil {
		return nil, err
	}
	for _, n := range bursts {
		for _, times := range ready {
			pool := poolSize{name: fmt.Sprintf("burst-%d-of-%d", n, n*times), size: n * times}
			list = append(list, scenario{
				name: fmt.Sprintf("%d batches of 1, of %d", n, pool.size), pool: pool.name, objects: int(n), replicas: 1, floor: (*bench).runFloor,
			})
			pools = append(pools, pool)
		}
	}
	return o.compared(ofSandboxes, pools, list), nil
}

// most returns how many pods the largest of them needs.
func most(list []batches) int32 {
	return slices.MaxFunc(list, func(a, b batches) int { return cmp.Compare(a.total(), b.total()) }).total()
}

// compared is a part that makes one table of the scenarios, or none where there are no scenarios.
func (o *options) compared(l legend, pools []poolSize, list []scenario) []part {
	if len(list) == 0 {
		return nil
	}
	return []part{func(ctx context.Context, b *bench) ([]results.Table, error) {
		if err := b.fill(ctx, pools); err != nil {
			return nil, err
		}
		table, err := b.compare(ctx, l, list, o.rounds)
		return []results.Table{table}, err
	}}
}

// compare returns the table of the scenarios, with an error that of what was measured until then.
func (b *bench) compare(ctx context.Context, l legend, list []scenario, rounds int) (results.Table, error) {
	table := l.table()
	for _, s := range list {
		operator, floor, err := b.measure(ctx, s, rounds)
		table.Rows = append(table.Rows, rowsOf(s, operator, floor)...)
		if err != nil {
			err = fmt.Errorf("measuring %s: %w", s.name, err)
			table.Incomplete = err.Error()
			return table, err
		}
		fmt.Fprintf(os.Stderr, "measured %s\n", s.name)
	}
	return table, nil
}
