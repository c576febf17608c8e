package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

// scaleCommand is the first argument of the program where it measures how the operator scales.
const scaleCommand = "scale"

type scaleOptions struct {
	parts, pods, manager, json   string
	poolSize, pools, batch       int
	rounds, tasks, starts        int
	rest, churn                  time.Duration
	rate                         int
	takeoverPods, takeoverRate   int
	takeoverTasks, severalBursts int
	severalSandboxes             int
}

func (o *scaleOptions) bind(fs *flag.FlagSet) {
	fs.StringVar(&o.parts, "parts", strings.Join(scaleParts(), ","), "What is measured.")
	fs.StringVar(&o.manager, "manager", "bin/manager", "The operator's program, which takes the deployed operator's place.")
	fs.StringVar(&o.json, "json", "", "JSON file to add what was measured to; its tables of earlier runs stay, or are replaced by new ones.")
	fs.StringVar(&o.pods, "pods", "400,800", "Growth: pods of each step, ascending. A tenth as many BatchSandboxes hold one each.")
	fs.IntVar(&o.poolSize, "pool-size", 200, "Growth: pods of a pool, until there are as many pools as there may be.")
	fs.IntVar(&o.pools, "pools", 50, "Growth: the most pools.")
	fs.IntVar(&o.batch, "batch", 100, "Growth: sandboxes of the larger claim, and pods of the pool that claims are made from.")
	fs.IntVar(&o.rounds, "rounds", 10, "Growth: claims of each size.")
	fs.IntVar(&o.tasks, "tasks", 100, "Growth: tasks that run at a time at the last step, in pods that it counts; 0 leaves them out.")
	fs.DurationVar(&o.rest, "rest", 5*time.Second, "Growth: how long the operator is watched at rest.")
	fs.IntVar(&o.starts, "starts", 3, "Cold: how often the operator is started.")
	fs.DurationVar(&o.churn, "churn", 20*time.Second, "Churn: how long it lasts, in whole seconds.")
	fs.IntVar(&o.rate, "rate", 10, "Churn: sandboxes a second.")
	fs.IntVar(&o.takeoverPods, "takeover-pods", 500, "Takeover: pods that are there.")
	fs.IntVar(&o.takeoverRate, "takeover-rate", 10, "Takeover: sandboxes a second that are asked for meanwhile.")
	fs.IntVar(&o.takeoverTasks, "takeover-tasks", 20, "Takeover: tasks that run meanwhile.")
	fs.IntVar(&o.severalSandboxes, "several-sandboxes", 100, "Several: sandboxes that are asked for at once in each of two namespaces.")
	fs.IntVar(&o.severalBursts, "several-bursts", 3, "Several: how often.")
}

// scalePart measures a group of tables. With an error come those of what was measured until then.
type scalePart func(*scale, context.Context) ([]results.Table, error)

// scalePartOf are the parts by their names, in the order in which they are measured.
var scalePartOf = []struct {
	name string
	scalePart
}{
	{"several", (*scale).several},
	{"growth", (*scale).growth},
	{"cold", (*scale).cold},
	{"churn", (*scale).churn},
	{"takeover", (*scale).takeover},
}

func scaleParts() []string {
	names := make([]string, len(scalePartOf))
	for i := range scalePartOf {
		names[i] = scalePartOf[i].name
	}
	return names
}

// chosenParts are those that the flag names.
func (o *scaleOptions) chosenParts() ([]scalePart, error) {
	var parts []scalePart
	named := strings.Split(o.parts, ",")
	for _, p := range scalePartOf {
		if slices.Contains(named, p.name) {
			parts = append(parts, p.scalePart)
		}
	}
	for _, name := range named {
		if !slices.Contains(scaleParts(), name) {
			return nil, fmt.Errorf("flag -parts: %q is none of %s", name, strings.Join(scaleParts(), ", "))
		}
	}
	return parts, nil
}

// scale measures how the operator does with many pods, for long, and when it is restarted. The
// pods of the crowd are there beside the pools that sandboxes are claimed from.
type scale struct {
	*bench
	o        *scaleOptions
	steps    []int
	crowd    *crowd
	cluster  *meter
	operator *standIn
	// starts counts the replicas that were started.
	starts int
}

// runScale measures what the arguments ask for.
func runScale(ctx context.Context, args []string) (err error) {
	var o scaleOptions
	fs := flag.NewFlagSet(scaleCommand, flag.ExitOnError)
	o.bind(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	parts, err := o.chosenParts()
	if err != nil {
		return err
	}
	s := &scale{o: &o}
	if s.steps, err = o.checkedSteps(); err != nil {
		return err
	}
	if s.bench, err = connect(); err != nil {
		return err
	}
	record, err := s.record(ctx, o.json)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), crowdPatience)
		defer cancel()
		err = errors.Join(err, s.end(ctx))
	}()
	if err := s.begin(ctx); err != nil {
		return err
	}
	for _, measure := range parts {
		tables, err := measure(s, ctx)
		for _, table := range tables {
			if err != nil {
				table.Incomplete = err.Error()
			}
			err = errors.Join(err, record.Add(table))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begin makes the namespaces and stops the deployed operator.
func (s *scale) begin(ctx context.Context) (err error) {
	if err := s.setUp(ctx, ""); err != nil {
		return err
	}
	if s.crowd, err = newCrowd(ctx, s.bench); err != nil {
		return err
	}
	if s.operator, err = s.replaceOperator(ctx, s.o.manager); err != nil {
		return fmt.Errorf("running the operator here: %w", err)
	}
	s.here = s.operator
	s.cluster = s.meter()
	fmt.Printf("The operator runs on this machine: %s, as the deployed service account and with the deployed flags.\n", s.o.manager)
	return nil
}

// end brings the deployed operator back, which then gives everything back.
func (s *scale) end(ctx context.Context) error {
	var errs []error
	if s.fleet != nil {
		s.fleet.close()
	}
	if s.operator != nil {
		errs = append(errs, s.operator.restore(ctx))
	}
	if s.crowd != nil {
		errs = append(errs, s.crowd.giveBack(ctx), s.crowd.cleanUp(ctx, false))
	}
	return errors.Join(append(errs, s.cleanUp(ctx, false))...)
}

// pair returns the replica that leads and the one that stands by. It starts what is missing.
func (s *scale) pair(ctx context.Context) (leader, standby *replica, err error) {
	s.operator.running = slices.DeleteFunc(s.operator.running, func(r *replica) bool { return !r.alive() })
	for len(s.operator.running) < 2 {
		if _, err := s.start(ctx, deployedIdentity); err != nil {
			return nil, nil, err
		}
	}
	replicas := s.operator.running
	for _, r := range replicas {
		if _, err := r.untilSaid(ctx, cachesSynced, fillPatience); err != nil {
			return nil, nil, err
		}
	}
	err = wait.PollUntilContextTimeout(ctx, 5*time.Millisecond, fillPatience, true, func(context.Context) (bool, error) {
		for i, r := range replicas {
			if !r.alive() {
				return false, r.failure()
			}
			if _, leads := r.log.said(tookOver); leads {
				leader, standby = r, replicas[1-i]
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("waiting for a leader: %w", err)
	}
	return leader, standby, nil
}

// start starts one more replica, whose log has a number.
func (s *scale) start(ctx context.Context, as identity, flags ...string) (*replica, error) {
	s.starts++
	return s.operator.start(ctx, fmt.Sprint("scale-", s.starts), as, flags...)
}

// untilComplete waits until an object is delivered.
func (b *bench) untilComplete(ctx context.Context, bs *v1alpha1.BatchSandbox) error {
	return wait.PollUntilContextTimeout(ctx, 5*time.Millisecond, fillPatience, true, func(ctx context.Context) (bool, error) {
		err := b.api.Get(ctx, client.ObjectKeyFromObject(bs), bs)
		return err == nil && isComplete(bs), err
	})
}
