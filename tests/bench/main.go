// Command bench measures how long pooled sandboxes take to be delivered, beside the
// least that they can cost: the same three writes, of the same sizes, done by hand
// and seen back by the same kind of watch. Both are measured in turns in one run, so
// that the ratio says something on a busy machine too. It measures as well how long
// tasks take, beside a plain loop that calls the same task executors. KUBECONFIG names a cluster
// with kwok nodes and the operator deployed: 'make bench' starts one. Nothing here
// fails because it is slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
)

type options struct {
	sizes, tasks, manager     string
	rates, recycle, json      string
	lasts                     time.Duration
	rounds, burst, burstReady int
	choices                   int
	keep                      bool
	namespace                 string
}

func main() {
	var o options
	flag.StringVar(&o.sizes, "sizes", "1,10,100,1000", "Sandboxes of a batch, one table row for each; 5000 is the most, empty leaves them out.")
	flag.StringVar(&o.tasks, "tasks", "100,1000", "Tasks of a batch, one row of a second table for each; empty leaves it out.")
	flag.StringVar(&o.manager, "manager", "bin/manager", "The operator's program, which takes the deployed operator's place while tasks are measured.")
	flag.IntVar(&o.rounds, "rounds", 15, "Pairs of measurements for each row.")
	flag.IntVar(&o.burst, "burst", 100, "BatchSandboxes with one sandbox each that are created at once; 0 leaves this out.")
	flag.IntVar(&o.burstReady, "burst-ready", 300, "Ready pods of the pool that the burst takes from.")
	flag.IntVar(&o.choices, "choices", 50, "Pools to choose among, at least two, beside the same by a pool's name; 0 leaves this out.")
	flag.StringVar(&o.rates, "rates", "10,25", "Sandboxes a second of an open load, one row of a table for each; empty leaves it out.")
	flag.StringVar(&o.recycle, "recycle", "Noop,Delete", "Recycle strategies of the pools under an open load.")
	flag.DurationVar(&o.lasts, "lasts", 10*time.Second, "How long each open load lasts, in whole seconds.")
	flag.StringVar(&o.json, "json", "", "File to write what was measured to.")
	flag.BoolVar(&o.keep, "keep", false, "Leave the pools in place at the end.")
	flag.StringVar(&o.namespace, "namespace", "", "Namespace with the pools of an earlier run that kept them.")
	flag.Parse()
	ctrllog.SetLogger(klog.Background())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, &o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

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

// plan is what is measured and the pools that this needs.
type plan struct {
	sandboxes, choices, tasks, values []scenario
	loads                             []load
	pools                             []poolSize
	tasksPool                         poolSize
}

func (o *options) plan() (p plan, err error) {
	sizes, err := parseSizes("sizes", o.sizes)
	if err != nil {
		return p, err
	}
	for _, n := range sizes {
		p.sandboxes = append(p.sandboxes, scenario{name: fmt.Sprintf("1 batch of %d", n), pool: "batch", objects: 1, replicas: n, floor: (*bench).runFloor})
	}
	if len(sizes) > 0 {
		p.pools = append(p.pools, poolSize{name: "batch", size: slices.Max(sizes)})
	}
	if o.burst > 0 {
		if o.burstReady < o.burst {
			return p, errors.New("flag -burst-ready: must be at least -burst")
		}
		p.sandboxes = append(p.sandboxes, scenario{name: fmt.Sprintf("%d batches of 1", o.burst), pool: "burst", objects: o.burst, replicas: 1, floor: (*bench).runFloor})
		p.pools = append(p.pools, poolSize{name: "burst", size: int32(o.burstReady)})
	}
	pools, choices, err := planChoices(o.choices, o.burst)
	if err != nil {
		return p, err
	}
	p.pools, p.choices = append(p.pools, pools...), choices
	tasks, err := parseSizes("tasks", o.tasks)
	if err != nil {
		return p, err
	}
	for _, n := range tasks {
		p.tasks = append(p.tasks, scenario{name: fmt.Sprintf("%d tasks", n), pool: tasksPool, objects: 1, replicas: n, tasks: true, floor: (*bench).runTaskFloor})
	}
	if len(tasks) > 0 {
		most := slices.Max(tasks)
		p.tasksPool = poolSize{name: tasksPool, size: most}
		p.values = []scenario{{name: fmt.Sprintf("%d tasks with a value and a file", most), pool: tasksPool, objects: 1, replicas: most, tasks: true, values: true, floor: (*bench).runPlain}}
	}
	if p.loads, err = o.loads(); err != nil {
		return p, err
	}
	if o.rounds < 1 {
		return p, errors.New("flag -rounds: must be at least 1")
	}
	return p, nil
}

// loads are those of every strategy at every rate.
func (o *options) loads() (list []load, err error) {
	rates, err := parseSizes("rates", o.rates)
	if err != nil {
		return nil, err
	}
	if o.lasts < time.Second || o.lasts%time.Second != 0 {
		return nil, fmt.Errorf("flag -lasts: %v is not a whole number of seconds", o.lasts)
	}
	for name := range strings.SplitSeq(o.recycle, ",") {
		recycle := v1alpha1.RecycleType(strings.TrimSpace(name))
		// A simulated node restarts no container in place.
		if recycle != v1alpha1.RecycleNoop && recycle != v1alpha1.RecycleDelete {
			return nil, fmt.Errorf("flag -recycle: %q is neither %s nor %s", recycle, v1alpha1.RecycleNoop, v1alpha1.RecycleDelete)
		}
		for _, rate := range rates {
			l := load{recycle: recycle, rate: int(rate), lasts: o.lasts}
			l.pool = strings.ToLower(fmt.Sprintf("load-%s-%d", l.recycle, rate))
			list = append(list, l)
		}
	}
	return list, nil
}

// parseSizes reads a list of numbers of sandboxes.
func parseSizes(name, list string) ([]int32, error) {
	if list == "" {
		return nil, nil
	}
	var sizes []int32
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32)
		if err != nil || n < 1 || n > 5000 {
			return nil, fmt.Errorf("flag -%s: %q is not a number from 1 to 5000", name, text)
		}
		sizes = append(sizes, int32(n))
	}
	return sizes, nil
}

func run(ctx context.Context, o *options) (err error) {
	p, err := o.plan()
	if err != nil {
		return err
	}
	b, err := connect()
	if err != nil {
		return err
	}
	if err := b.describe(ctx, os.Stdout); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, b.cleanUp(ctx, o.keep))
	}()
	if err := b.setUp(ctx, o.namespace); err != nil {
		return err
	}
	if err := b.fill(ctx, p.pools); err != nil {
		return err
	}
	for _, table := range []struct {
		legend
		scenarios []scenario
	}{{ofSandboxes, p.sandboxes}, {ofChoices, p.choices}} {
		if len(table.scenarios) == 0 {
			continue
		}
		rows, err := b.measureAll(ctx, table.scenarios, o.rounds)
		printTable(os.Stdout, table.legend, rows)
		if err != nil {
			return err
		}
	}
	if len(p.loads) > 0 {
		rows, err := b.measureLoads(ctx, p.loads)
		printLoads(os.Stdout, rows)
		if err := errors.Join(err, writeJSON(o.json, rows)); err != nil {
			return err
		}
	}
	if len(p.tasks) > 0 {
		return b.measureTasks(ctx, &p, o)
	}
	return nil
}

// measureAll returns the rows of the scenarios, with an error those until then.
func (b *bench) measureAll(ctx context.Context, list []scenario, rounds int) ([]row, error) {
	rows := make([]row, 0, len(list))
	for _, s := range list {
		result, err := b.measure(ctx, s, rounds)
		rows = append(rows, result...)
		if err != nil {
			return rows, fmt.Errorf("measuring %s: %w", s.name, err)
		}
		for _, r := range result {
			fmt.Fprintf(os.Stderr, "measured %s: %.1f ms, ratio %.2f\n", r.name, ms(r.operator), r.ratio)
		}
	}
	return rows, nil
}
