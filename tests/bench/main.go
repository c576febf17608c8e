// Command bench measures how long pooled sandboxes take to be delivered, beside the
// least that they can cost: the same three writes, of the same sizes, done by hand
// and seen back by the same kind of watch. Both are measured in turns in one run, so
// that the ratio says something on a busy machine too. KUBECONFIG names a cluster
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
)

type options struct {
	sizes                     string
	rounds, burst, burstReady int
	keep                      bool
	namespace                 string
}

func main() {
	var o options
	flag.StringVar(&o.sizes, "sizes", "1,10,100,1000", "Sandboxes of a batch, one table row for each; 5000 is the most.")
	flag.IntVar(&o.rounds, "rounds", 15, "Pairs of measurements for each row.")
	flag.IntVar(&o.burst, "burst", 100, "BatchSandboxes with one sandbox each that are created at once; 0 leaves this out.")
	flag.IntVar(&o.burstReady, "burst-ready", 300, "Ready pods of the pool that the burst takes from.")
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
}

// poolSize is a pool to have and how many ready pods it holds.
type poolSize struct {
	name string
	size int32
}

// scenarios returns what is measured and the pools that this needs.
func (o *options) scenarios() ([]scenario, []poolSize, error) {
	var list []scenario
	var sizes []int32
	for text := range strings.SplitSeq(o.sizes, ",") {
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32)
		if err != nil || n < 1 || n > 5000 {
			return nil, nil, fmt.Errorf("flag -sizes: %q is not a number from 1 to 5000", text)
		}
		sizes = append(sizes, int32(n))
		list = append(list, scenario{name: fmt.Sprintf("1 batch of %d", n), pool: "batch", objects: 1, replicas: int32(n)})
	}
	pools := []poolSize{{"batch", slices.Max(sizes)}}
	if o.burst > 0 {
		if o.burstReady < o.burst {
			return nil, nil, errors.New("flag -burst-ready: must be at least -burst")
		}
		list = append(list, scenario{name: fmt.Sprintf("%d batches of 1", o.burst), pool: "burst", objects: o.burst, replicas: 1})
		pools = append(pools, poolSize{"burst", int32(o.burstReady)})
	}
	if o.rounds < 1 {
		return nil, nil, errors.New("flag -rounds: must be at least 1")
	}
	return list, pools, nil
}

func run(ctx context.Context, o *options) (err error) {
	list, pools, err := o.scenarios()
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
	if err := b.setUp(ctx, pools, o.namespace); err != nil {
		return err
	}
	rows := make([]row, 0, len(list))
	defer func() { printTable(os.Stdout, rows) }()
	for _, s := range list {
		result, err := b.measure(ctx, s, o.rounds)
		rows = append(rows, result...)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", s.name, err)
		}
		for _, r := range result {
			fmt.Fprintf(os.Stderr, "measured %s: %.1f ms, ratio %.2f\n", r.name, ms(r.operator), r.ratio)
		}
	}
	return nil
}
