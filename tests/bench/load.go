package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

const (
	// useTime is how long a sandbox is held once it was delivered.
	useTime = time.Second
	// lateAfter is how long after the end of a load a sandbox may be delivered and still count.
	lateAfter = useTime
)

// load is an open load: so many BatchSandboxes of one sandbox are created each second,
// whether or not earlier ones were delivered. Each is deleted useTime after its delivery.
type load struct {
	pool    string
	recycle v1alpha1.RecycleType
	rate    int
	lasts   time.Duration
}

func (l *load) count() int { return l.rate * int(l.lasts/time.Second) }

// dueAfter is how long after the start the sandbox of that number is to be created. Its latency
// counts from then, so that a client that falls behind does not hide it.
func (l *load) dueAfter(i int) time.Duration {
	return time.Duration(i) * time.Second / time.Duration(l.rate)
}

// patience is how long all of it may take: an operator that serves ten sandboxes a second is
// slow, and one that does not serve them at all does not work.
func (l *load) patience() time.Duration {
	return roundPatience + l.lasts + time.Duration(l.count())*time.Second/10
}

// poolSize is how many pods the pool has: enough for what is held at a time, at a latency of a
// second, and for as much again that is replaced.
func (l *load) poolSize() int { return 4 * l.rate }

// restartPool has pods enough for every rate, so that executors are started once.
func restartPool(rates []int32) poolSize {
	l := load{rate: int(slices.Max(rates))}
	return poolSize{name: "load-restart", size: int32(l.poolSize()), recycle: v1alpha1.RecycleRestart}
}

// loadResult is what a load has shown on one side.
type loadResult struct {
	// Latencies from due to delivered, in milliseconds.
	p50, p90, p99 float64
	// inTime is the share, in percent, that was delivered until lateAfter the end of the load.
	inTime float64
	// requests and cpu, in milliseconds, are those of all the cluster for each sandbox, from
	// its creation until it is gone and the pool full again.
	requests, cpu map[string]float64
}

// openLoads are a part for each strategy, with a load at every rate.
func (o *options) openLoads() (parts []part, err error) {
	rates, err := parseSizes("rates", o.rates)
	if err != nil || len(rates) == 0 {
		return nil, err
	}
	if o.lasts < time.Second || o.lasts%time.Second != 0 {
		return nil, fmt.Errorf("flag -lasts: %v is not a whole number of seconds", o.lasts)
	}
	for name := range strings.SplitSeq(o.recycle, ",") {
		recycle := v1alpha1.RecycleType(strings.TrimSpace(name))
		if known := []v1alpha1.RecycleType{v1alpha1.RecycleNoop, v1alpha1.RecycleDelete, v1alpha1.RecycleRestart}; !slices.Contains(known, recycle) {
			return nil, fmt.Errorf("flag -recycle: %q is none of %v", recycle, known)
		}
		measure := func(ctx context.Context, b *bench) ([]results.Table, error) {
			rows, err := b.measureLoads(ctx, recycle, rates, o.lasts)
			return loadTables(recycle, o.lasts, rows, err), err
		}
		if recycle == v1alpha1.RecycleRestart {
			measure = withRestarts(o.manager, restartPool(rates), measure)
		}
		parts = append(parts, measure)
	}
	return parts, nil
}

// withRestarts has the pods of the pool restarted while a part is measured.
func withRestarts(program string, pool poolSize, measure part) part {
	return func(ctx context.Context, b *bench) (tables []results.Table, err error) {
		restore, err := b.startFleet(ctx, program, pool)
		defer func() { err = errors.Join(err, restore()) }()
		if err == nil {
			err = b.fleet.boot()
		}
		if err == nil { // an operator that has only just taken over does not serve yet
			_, err = b.deliver(ctx, &v1alpha1.BatchSandbox{
				ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "first"},
				Spec:       v1alpha1.BatchSandboxSpec{Replicas: ptr.To[int32](1), PoolRef: pool.name},
			})
		}
		if err == nil {
			err = b.empty(ctx, b.api, b.namespace)
		}
		if err != nil {
			return nil, err
		}
		return measure(ctx, b)
	}
}

// loadRow is what a load has shown on both sides.
type loadRow struct {
	rate            int
	operator, floor loadResult
}

// measureLoads measures a load of each rate.
func (b *bench) measureLoads(ctx context.Context, recycle v1alpha1.RecycleType, rates []int32, lasts time.Duration) (rows []loadRow, err error) {
	m := b.meter()
	for _, rate := range rates {
		l := load{recycle: recycle, rate: int(rate), lasts: lasts}
		pool := poolSize{strings.ToLower(fmt.Sprintf("load-%s-%d", recycle, rate)), int32(l.poolSize()), recycle}
		if recycle == v1alpha1.RecycleRestart {
			pool = restartPool(rates)
		}
		l.pool = pool.name
		if err := b.fill(ctx, []poolSize{pool}); err != nil {
			return rows, err
		}
		operator, err := b.runLoad(ctx, m, l, &operatorSide{b})
		if err != nil {
			return rows, fmt.Errorf("load of %d a second with recycling %s: operator: %w", rate, recycle, err)
		}
		floor, err := b.runLoad(ctx, m, l, &floorSide{b: b, load: l})
		if err != nil {
			return rows, fmt.Errorf("load of %d a second with recycling %s: floor: %w", rate, recycle, err)
		}
		rows = append(rows, loadRow{l.rate, operator, floor})
		fmt.Fprintf(os.Stderr, "measured %s at %d a second: p99 %.0f ms, floor %.0f ms\n", recycle, rate, operator.p99, floor.p99)
	}
	return rows, nil
}

// side does what the clients do, and the floor also what the operator does.
type side interface {
	// api is where the objects of this side are.
	api() client.WithWatch
	// prepare makes what the load starts from, and waits until it is there again at its end.
	prepare(context.Context, load) error
	create(context.Context, *v1alpha1.BatchSandbox) error
	remove(context.Context, *v1alpha1.BatchSandbox) error
}

// runLoad runs one load on one side.
func (b *bench) runLoad(ctx context.Context, m *meter, l load, s side) (result loadResult, err error) {
	if err := s.prepare(ctx, l); err != nil {
		return result, fmt.Errorf("before the load: %w", err)
	}
	before, err := m.read(ctx)
	if err != nil {
		return result, err
	}
	took, err := b.drive(ctx, l, s)
	if err != nil {
		return result, err
	}
	if err := errors.Join(b.untilGone(ctx, s.api()), s.prepare(ctx, l)); err != nil {
		return result, fmt.Errorf("after the load: %w", err)
	}
	after, err := m.read(ctx)
	if err != nil {
		return result, err
	}
	spent := after.since(before, l.count())
	for name := range spent.cpu {
		spent.cpu[name] *= 1000
	}
	return loadResult{
		p50: ms(quantile(took, 0.5)), p90: ms(quantile(took, 0.9)), p99: ms(quantile(took, 0.99)),
		inTime: 100 * float64(l.inTime(took)) / float64(l.count()), requests: spent.requests, cpu: spent.cpu,
	}, nil
}

// inTime counts the sandboxes that were delivered before lateAfter the end of the load.
func (l *load) inTime(took []time.Duration) int {
	n := 0
	for i, d := range took {
		if l.dueAfter(i)+d <= l.lasts+lateAfter {
			n++
		}
	}
	return n
}

// drive creates the BatchSandboxes as they are due, deletes each after its time of use and
// returns how long each took, in the order in which they were due.
func (b *bench) drive(ctx context.Context, l load, s side) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, l.patience())
	defer cancel()
	took, names, number := make([]time.Duration, l.count()), make([]string, l.count()), map[string]int{}
	run := time.Now().UnixMilli()
	for i := range names {
		names[i] = fmt.Sprintf("l%d-%d", run, i)
		number[names[i]] = i
	}
	c, w, err := b.collect(ctx, s.api(), names...)
	if err != nil {
		return nil, err
	}
	work, ctx := errgroup.WithContext(ctx)
	c.start = time.Now()
	c.delivered = func(bs *v1alpha1.BatchSandbox, at time.Duration) {
		i := number[bs.Name]
		took[i] = at - l.dueAfter(i)
		work.Go(func() error {
			if err := sleep(ctx, useTime); err != nil {
				return err
			}
			return client.IgnoreNotFound(s.remove(ctx, bs))
		})
	}
	work.Go(func() error { return c.follow(ctx, w, s.api(), b.namespace) })
	work.Go(func() error {
		for i := range took {
			if err := sleep(ctx, time.Until(c.start.Add(l.dueAfter(i)))); err != nil {
				return err
			}
			work.Go(func() error {
				return s.create(ctx, &v1alpha1.BatchSandbox{
					ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: names[i]},
					Spec:       v1alpha1.BatchSandboxSpec{Replicas: ptr.To[int32](1), PoolRef: l.pool},
				})
			})
		}
		return nil
	})
	err = work.Wait()
	b.payloads[l.pool] = c.seen
	return took, err
}

// sleep returns an error where the context ends before.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// untilGone waits until no object of the side is left.
func (b *bench) untilGone(ctx context.Context, api client.WithWatch) error {
	return wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		var list v1alpha1.BatchSandboxList
		err := api.List(ctx, &list, client.InNamespace(b.namespace), client.Limit(1))
		return err == nil && len(list.Items) == 0, err
	})
}

// operatorSide leaves all but the creation and the deletion to the operator.
type operatorSide struct{ b *bench }

func (s *operatorSide) api() client.WithWatch { return s.b.api }

func (s *operatorSide) prepare(ctx context.Context, l load) error {
	return s.b.untilIdle(ctx, l.pool, roundPatience)
}

func (s *operatorSide) create(ctx context.Context, bs *v1alpha1.BatchSandbox) error {
	return s.b.api.Create(ctx, bs)
}

func (s *operatorSide) remove(ctx context.Context, bs *v1alpha1.BatchSandbox) error {
	return s.b.api.Delete(ctx, bs)
}

// floorSide writes by hand what the operator writes. Where pods are recycled by deletion it also
// deletes one pod and creates another for each sandbox, as a background of the same weight; where
// they are recycled by a restart, a kubelet restarts one for each.
type floorSide struct {
	b    *bench
	load load
	// made is how many pods were made before the load, removed how many it has taken away or
	// restarted.
	made    int
	removed atomic.Int64
	// pods are those to restart, restarts what is under way.
	pods     []corev1.Pod
	restarts errgroup.Group
}

func (s *floorSide) api() client.WithWatch { return s.b.floor }

// prepare fills the floor's own pods up, where there are any.
func (s *floorSide) prepare(ctx context.Context, l load) error {
	if l.recycle == v1alpha1.RecycleNoop {
		return nil
	}
	if err := s.restarts.Wait(); err != nil {
		return err
	}
	for s.made < l.poolSize() {
		if err := s.createPod(ctx, s.made); err != nil {
			return err
		}
		s.made++
	}
	var pods corev1.PodList
	if err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		err := s.b.api.List(ctx, &pods, client.InNamespace(s.b.namespace), client.MatchingLabels{floorLabel: s.label()})
		ready := func(p corev1.Pod) bool { return p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning }
		return err == nil && len(pods.Items) == l.poolSize() && !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return !ready(p) }), err
	}); err != nil || l.recycle != v1alpha1.RecycleRestart || s.pods != nil {
		return err
	}
	s.pods = pods.Items
	for i := range s.pods {
		if err := s.b.kubelet().start(ctx, &s.pods[i]); err != nil {
			return err
		}
	}
	return nil
}

// label is on the pods of this load: those of others stay where they are.
func (s *floorSide) label() string { return fmt.Sprintf("%s-at-%d", s.load.pool, s.load.rate) }

// floorLabel is on the floor's pods.
const floorLabel = "bench.opensandbox.io/pool"

func (s *floorSide) podName(n int) string { return fmt.Sprintf("floor-%s-%d", s.label(), n) }

func (s *floorSide) createPod(ctx context.Context, n int) error {
	return s.b.api.Create(ctx, s.b.plainPod(floorLabel, s.label(), s.podName(n)))
}

func (s *floorSide) create(ctx context.Context, bs *v1alpha1.BatchSandbox) error {
	return s.b.writeFloor(ctx, bs, &s.b.payloads[s.load.pool][0])
}

func (s *floorSide) remove(ctx context.Context, bs *v1alpha1.BatchSandbox) error {
	n := int(s.removed.Add(1)) - 1
	switch s.load.recycle {
	case v1alpha1.RecycleRestart:
		ctx := context.WithoutCancel(ctx) // it goes on when the load is over
		s.restarts.Go(func() error { return s.b.kubelet().restart(ctx, &s.pods[n%len(s.pods)]) })
	case v1alpha1.RecycleDelete:
		oldest := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.b.namespace, Name: s.podName(n)}}
		if err := errors.Join(client.IgnoreNotFound(s.b.api.Delete(ctx, oldest)), s.createPod(ctx, n+s.load.poolSize())); err != nil {
			return err
		}
	}
	return s.b.remove(ctx, s.b.floor, bs)
}
