package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

// How many pods a pool has that refills without end, and how many of them are left idle, for each
// sandbox of the batch that is measured. All others are being deleted and created anew: so many
// that the pool has some to create at any time.
const (
	refillPods = 8
	refillIdle = 3
)

// refill is a pool that never comes to rest. Whenever a batch more than is to be left idle has
// become ready, they are taken by a BatchSandbox that is deleted once it was delivered, and the
// pool, which recycles by deletion, has to make as many new ones.
//
// It goes on for as long as a scenario is measured, on both sides alike: the floor's three writes,
// which take no pod, meet the same API server, as busy with the same refill. Each measurement
// begins right after such a BatchSandbox is gone, so that no side gets an easier moment. What the
// operator does to have refill make way for its hand-outs counts for it: it knows nothing of the
// floor's writes, beside which refill goes on.
type refill struct {
	b     *bench
	batch int
	view  *podView
	// turns gets one value for each BatchSandbox that is gone, and holds at most one.
	turns chan struct{}
	// taken counts the pods that were handed out and recycled.
	taken int
}

func (s *scenario) refillPool() poolSize {
	return poolSize{name: s.pool, size: refillPods * s.replicas, recycle: v1alpha1.RecycleDelete}
}

// besideRefill is the part that measures batches beside the refill of their own pool.
func (o *options) besideRefill() ([]part, error) {
	sizes, err := parseSizes("refill", o.refill)
	if err != nil || len(sizes) == 0 {
		return nil, err
	}
	return []part{func(ctx context.Context, b *bench) ([]results.Table, error) {
		table := results.Table{
			ID: "refill", Title: "Sandboxes of a pool that recycles and refills meanwhile",
			Note: "Milliseconds from create until a watch shows all ready with their endpoints.\n" +
				"Floor: the same writes by hand, beside the same refill. Refilled: pods that the pool made each second, all the time.",
			Keys: []string{"created at once"},
			Columns: []results.Column{
				{Name: "pairs"}, {Name: "operator p50", Unit: "ms", Digits: 1}, {Name: "floor p50", Unit: "ms", Digits: 1}, {Name: "ratio", Digits: 2},
				{Name: "operator p99", Unit: "ms", Digits: 1}, {Name: "floor p99", Unit: "ms", Digits: 1}, {Name: "p99 ratio", Digits: 2},
				{Name: "refilled"},
			},
		}
		for _, n := range sizes {
			s := scenario{name: batches{1, n}.of(""), pool: fmt.Sprintf("refill-%d", n), objects: 1, replicas: n}
			operator, floor, rate, err := b.measureBesideRefill(ctx, s, o.rounds)
			if err != nil {
				err = fmt.Errorf("measuring %s beside refill: %w", s.name, err)
				table.Incomplete = err.Error()
				return []results.Table{table}, err
			}
			table.Add([]string{s.name}, append(quantilesOf(operator, floor), rate)...)
		}
		return []results.Table{table}, nil
	}}, nil
}

// quantilesOf returns how many pairs there are and, for the median and the 99th percentile, both
// sides and the ratio of the two. The ratio of a percentile is not one of pairs: which round is the
// slowest is another on each side.
func quantilesOf(operator, floor []time.Duration) []float64 {
	values := []float64{float64(len(operator))}
	for _, at := range []float64{0.5, 0.99} {
		ours, least := quantile(operator, at), quantile(floor, at)
		values = append(values, ms(ours), ms(least), float64(ours)/float64(least))
	}
	return values
}

// measureBesideRefill measures one scenario. It returns what each side took, and the pods that the pool
// was given a second.
func (b *bench) measureBesideRefill(ctx context.Context, s scenario, rounds int) (operator, floor []time.Duration, rate float64, err error) {
	if err := b.fill(ctx, []poolSize{s.refillPool()}); err != nil {
		return nil, nil, 0, err
	}
	view, err := b.viewPods(ctx, v1alpha1.LabelPoolName, s.pool)
	if err != nil {
		return nil, nil, 0, err
	}
	defer view.close()
	r := &refill{b: b, batch: int(s.replicas), view: view, turns: make(chan struct{}, 1)}
	work, both := errgroup.WithContext(ctx)
	ending, end := context.WithCancel(both)
	work.Go(func() error { return r.run(ending, both) })
	work.Go(func() error {
		defer end()
		first, start := view.count(), time.Now()
		for round := range rounds + 1 {
			pair, err := r.pair(both, s, round)
			if err != nil {
				return err
			}
			if round > 0 { // the first tells the floor what to write
				operator, floor = append(operator, pair[0]), append(floor, pair[1])
			}
		}
		rate = float64(view.count()-first) / time.Since(start).Seconds()
		return nil
	})
	if err := work.Wait(); err != nil {
		return operator, floor, rate, err
	}
	fmt.Fprintf(os.Stderr, "measured %s beside refill: %d pods were handed out and recycled meanwhile\n", s.name, r.taken)
	return operator, floor, rate, r.end(ctx)
}

// end takes the pool away: it would go on to refill beside what is measured next.
func (r *refill) end(ctx context.Context) error {
	pool := r.b.pool(poolSize{name: r.view.value})
	return errors.Join(r.b.api.Delete(ctx, pool), r.b.untilNoMore(ctx, pool), r.view.untilGone(ctx))
}

// pair measures both sides once, the operator first in every other round.
func (r *refill) pair(ctx context.Context, s scenario, round int) (pair [2]time.Duration, err error) {
	order := []int{0, 1}
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for _, side := range order {
		if err := r.awaitTurn(ctx); err != nil {
			return pair, err
		}
		if side == 1 {
			result, err := r.b.runFloor(ctx, s, round)
			if err != nil {
				return pair, err
			}
			pair[1] = result.took[len(result.took)-1]
			continue
		}
		result, err := r.b.time(ctx, r.b.api, s, round, r.b.createOperator)
		if err != nil {
			return pair, fmt.Errorf("operator: %w", err)
		}
		r.b.payloads[s.name] = result.seen
		pair[0] = result.took[len(result.took)-1]
		for i := range result.seen {
			if err := r.giveBack(ctx, &result.seen[i]); err != nil {
				return pair, err
			}
		}
	}
	return pair, nil
}

// awaitTurn waits for the next BatchSandbox of the background to be gone, and for as many idle
// pods as are to be taken.
func (r *refill) awaitTurn(ctx context.Context) error {
	select {
	case <-r.turns: // of the past
	default:
	}
	select {
	case <-r.turns:
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.view.until(ctx, func() bool { return r.view.idle >= r.batch })
}

// run takes what becomes idle until the first context ends.
func (r *refill) run(until, ctx context.Context) error {
	for turn := 0; ; turn++ {
		n := r.surplus(until)
		if n == 0 {
			return nil
		}
		bs, err := r.b.deliver(ctx, &v1alpha1.BatchSandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: r.b.namespace, Name: fmt.Sprintf("refill-%d", turn)},
			Spec:       v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(n)), PoolRef: r.view.value},
		})
		if err == nil {
			err = r.giveBack(ctx, bs)
		}
		if err != nil {
			return fmt.Errorf("background: %w", err)
		}
		r.taken += n
		select {
		case r.turns <- struct{}{}:
		default:
		}
	}
}

// surplus waits until a batch more is idle than is to be left so, and returns how many are; none
// when the context has ended.
func (r *refill) surplus(ctx context.Context) (n int) {
	err := r.view.until(ctx, func() bool {
		n = min(r.view.idle-refillIdle*r.batch, mostReplicas)
		return n >= r.batch
	})
	if err != nil || ctx.Err() != nil {
		return 0
	}
	return n
}

// giveBack deletes a BatchSandbox and waits until it and the pods that it held are gone.
func (r *refill) giveBack(ctx context.Context, bs *v1alpha1.BatchSandbox) error {
	var held struct {
		Pods []string `json:"pods"`
	}
	if err := json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationAllocStatus]), &held); err != nil {
		return fmt.Errorf("reading which pods BatchSandbox %s holds: %w", bs.Name, err)
	}
	return errors.Join(
		r.b.remove(ctx, r.b.api, bs),
		r.b.untilNoMore(ctx, bs.DeepCopy()),
		r.view.until(ctx, func() bool {
			return !slices.ContainsFunc(held.Pods, func(name string) bool { return r.view.pods[name].idle })
		}),
	)
}
