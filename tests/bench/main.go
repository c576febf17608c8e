// Command bench measures how long pooled sandboxes take to be delivered, beside the
// least that they can cost: the same three writes, of the same sizes, done by hand
// and seen back by the same kind of watch. Both are measured in turns in one run, so
// that the ratio says something on a busy machine too. Other parts measure in the same way what
// else takes time: tasks, open loads, pools that refill or start from nothing, pods from a
// template, the webhook. KUBECONFIG names a cluster with kwok nodes and the operator deployed:
// 'make bench' starts one. Nothing here fails because it is slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/tests/bench/results"
)

type options struct {
	sizes, burst, burstReady string
	refill                   string
	zero, templates          string
	tasks, manager           string
	rates, recycle, json     string
	lasts                    time.Duration
	rounds, longRounds       int
	choices, creates         int
	keep, short              bool
	namespace                string
}

// short is what -short sets, where the command line says nothing else: all parts, of sizes that only
// show that they work.
var short = map[string]string{
	"sizes": "1,10,2x5", "burst": "5", "burst-ready": "1,2", "choices": "2",
	"rates": "5", "lasts": "1s", "tasks": "5,2x2", "rounds": "1",
	"refill": "5", "zero": "10", "templates": "10", "long-rounds": "1", "creates": "2",
}

func (o *options) register(flags *flag.FlagSet) {
	flags.StringVar(&o.sizes, "sizes", "1,10,100,1000", "Sandboxes of a batch, one table row for each; 5000 is the most, 2x5000 are two batches at once, empty leaves them out.")
	flags.StringVar(&o.tasks, "tasks", "100,1000,100x10", "Tasks of a batch, one row of a table for each; 100x10 are 100 batches of 10 at once, with two rows, empty leaves them out.")
	flags.StringVar(&o.manager, "manager", "bin/manager", "The operator's program, which takes the deployed operator's place while tasks and restarts are measured.")
	flags.IntVar(&o.rounds, "rounds", 15, "Pairs of measurements for each row.")
	flags.StringVar(&o.burst, "burst", "100", "BatchSandboxes with one sandbox each that are created at once, a few table rows for each; empty leaves them out.")
	flags.StringVar(&o.burstReady, "burst-ready", "1,3", "Ready pods of the pools that the bursts take from, for each sandbox.")
	flags.StringVar(&o.refill, "refill", "100", "Sandboxes of a batch from a pool that refills meanwhile, one table row for each; empty leaves it out.")
	flags.StringVar(&o.zero, "zero", "200", "Pods that a pool makes from nothing, beside a ReplicaSet; empty leaves it out.")
	flags.StringVar(&o.templates, "templates", "100", "Sandboxes of a batch from a template, beside as many plain pods and a Job; empty leaves it out.")
	flags.IntVar(&o.longRounds, "long-rounds", 3, "Rounds of what -zero and -templates measure.")
	flags.IntVar(&o.creates, "creates", 50, "BatchSandboxes that are created with, and without, the validating webhook being asked; 0 leaves it out.")
	flags.IntVar(&o.choices, "choices", 50, "Pools to choose among, at least two, beside the same by a pool's name; 0 leaves this out.")
	flags.StringVar(&o.rates, "rates", "10,25", "Sandboxes a second of an open load, one row of a table for each; empty leaves it out.")
	flags.StringVar(&o.recycle, "recycle", "Noop,Delete,Restart", "Recycle strategies of the pools under an open load; with Restart, a stand-in restarts the pods in place of a kubelet.")
	flags.DurationVar(&o.lasts, "lasts", 10*time.Second, "How long each open load lasts, in whole seconds.")
	flags.StringVar(&o.json, "json", "", "JSON file to add what was measured to; its tables of earlier runs stay, or are replaced by new ones.")
	flags.BoolVar(&o.keep, "keep", false, "Leave the pools in place at the end.")
	flags.StringVar(&o.namespace, "namespace", "", "Namespace with the pools of an earlier run that kept them.")
	flags.BoolVar(&o.short, "short", false, "Measure next to nothing, to see that everything works: all sizes are tiny where no flag sets them.")
}

// shorten sets what no flag has set.
func shorten(flags *flag.FlagSet) error {
	set := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
	for name, value := range short {
		if set[name] {
			continue
		}
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("flag -%s: %w", name, err)
		}
	}
	return nil
}

func main() {
	ctrllog.SetLogger(klog.Background())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	var err error
	if len(os.Args) > 1 && os.Args[1] == scaleCommand {
		err = runScale(ctx, os.Args[2:])
	} else {
		err = runBench(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// runBench measures what the command line asks for.
func runBench(ctx context.Context) error {
	var o options
	o.register(flag.CommandLine)
	flag.Parse()
	if o.short {
		if err := shorten(flag.CommandLine); err != nil {
			return err
		}
	}
	return run(ctx, &o)
}

// part measures a group of tables. With an error come those of what was measured until then.
type part func(context.Context, *bench) ([]results.Table, error)

// parts are what the flags ask for, in the order in which it is measured.
func (o *options) parts() (all []part, err error) {
	if o.rounds < 1 || o.longRounds < 1 {
		return nil, errors.New("flags -rounds and -long-rounds: must be at least 1")
	}
	for _, of := range []func() ([]part, error){o.sandboxes, o.chosenPools, o.besideRefill, o.fromZero, o.fromTemplates, o.admission, o.openLoads, o.withTasks} {
		parts, err := of()
		if err != nil {
			return nil, err
		}
		all = append(all, parts...)
	}
	return all, nil
}

func run(ctx context.Context, o *options) (err error) {
	parts, err := o.parts()
	if err != nil {
		return err
	}
	b, err := connect()
	if err != nil {
		return err
	}
	record, err := b.record(ctx, o.json)
	if err != nil {
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
	for _, measure := range parts {
		tables, err := measure(ctx, b)
		for _, table := range tables {
			err = errors.Join(err, record.Add(table))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// record returns where tables go, and prints what they are measured on.
func (b *bench) record(ctx context.Context, file string) (r results.Run, err error) {
	r = results.Run{Command: command(), Out: os.Stdout, File: file}
	if r.Environment, err = results.Describe(ctx, b.discovery, b.api, deployment); err != nil {
		return r, err
	}
	return r, r.Environment.WriteText(os.Stdout)
}

// command is the one that repeats this run. The variables are those of 'make bench' and 'make scale'.
func command() string {
	if os.Getenv("BENCH_NODES") == "" {
		return strings.Join(append([]string{"go run ./tests/bench"}, os.Args[1:]...), " ")
	}
	words := []string{"make", "bench"}
	if len(os.Args) > 1 && os.Args[1] == scaleCommand {
		words[1] = scaleCommand
	}
	for _, name := range []string{"BENCH_NODES", "BENCH_FSYNC", "BENCH_FLAGS"} {
		if value := os.Getenv(name); value != "" {
			words = append(words, fmt.Sprintf("%s='%s'", name, value))
		}
	}
	return strings.Join(words, " ")
}
