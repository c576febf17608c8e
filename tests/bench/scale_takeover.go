package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

const (
	takeoverPool = "takeover"
	// calm is how long the load goes on before the leader ends.
	calm = 3 * time.Second
)

// ending is how a leader ends.
type ending struct {
	name   string
	signal syscall.Signal
	// lasts is how long there is a load: until the next one leads, with time to spare.
	lasts time.Duration
}

var endings = []ending{
	{"stopped", syscall.SIGTERM, 30 * time.Second},
	{"killed", syscall.SIGKILL, 45 * time.Second},
}

func takeoverTable(o *scaleOptions) results.Table {
	return results.Table{
		ID: "scale-takeover", Title: "Another replica takes over",
		Note: fmt.Sprintf("Under a load of %d single sandboxes a second. Going on: from the signal until the leader has given its lease back; it serves until then (--shutdown-delay).\n"+
			"Handover: from then, or from when it was killed, until the first sandbox is delivered that was asked for after it. Gap: the longest time between two deliveries.\n"+
			"Tasks run meanwhile; each has ended once, and all that was held is held still, or the run fails.", o.takeoverRate),
		Keys: []string{"the leader is"},
		Columns: []results.Column{
			{Name: "pods"}, {Name: "held"}, {Name: "tasks"}, {Name: "going on", Unit: "s", Digits: 2},
			{Name: "handover", Unit: "s", Digits: 2}, {Name: "gap", Unit: "s", Digits: 2},
		},
	}
}

// takeover measures how long nothing is handed out when the leader ends.
func (s *scale) takeover(ctx context.Context) ([]results.Table, error) {
	table := takeoverTable(s.o)
	if err := s.populateAtLeast(ctx, s.o.takeoverPods, s.o.takeoverTasks); err != nil {
		return []results.Table{table}, err
	}
	l := load{pool: takeoverPool, recycle: v1alpha1.RecycleNoop, rate: s.o.takeoverRate}
	// All that may wait for the next leader, and be deleted only by it, is there at a time.
	most := l.rate * int(endings[1].lasts/time.Second)
	if err := s.fill(ctx, []poolSize{{l.pool, int32(most), l.recycle}}); err != nil {
		return []results.Table{table}, err
	}
	for _, e := range endings {
		l.lasts = e.lasts
		values, err := s.takeOver(ctx, e, l)
		if err != nil {
			return []results.Table{table}, fmt.Errorf("the leader is %s: %w", e.name, err)
		}
		table.Add([]string{e.name}, values...)
		fmt.Fprintf(os.Stderr, "measured a leader that is %s\n", e.name)
	}
	return []results.Table{table}, nil
}

// takeOver returns a row of the table.
func (s *scale) takeOver(ctx context.Context, e ending, l load) ([]float64, error) {
	leader, _, err := s.pair(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := s.crowd.startedPods(ctx, poolSize{name: tasksPool, size: s.crowd.sizes[tasksPool]})
	if err == nil {
		err = s.startExecutors(ctx, pods)
	}
	if err == nil {
		err = s.crowd.runTasks(ctx, len(pods))
	}
	if err == nil {
		err = s.crowd.untilTasks(ctx, func(status *v1alpha1.BatchSandboxStatus) int32 { return status.TaskRunning })
	}
	if err != nil {
		return nil, fmt.Errorf("starting tasks: %w", err)
	}
	before, err := s.crowd.holdings(ctx)
	if err != nil {
		return nil, err
	}
	told, given, deliveries, err := s.endUnderLoad(ctx, leader, e, l)
	if err != nil {
		return nil, err
	}
	after, err := s.crowd.holdings(ctx)
	if err != nil {
		return nil, err
	}
	if !maps.Equal(before, after) {
		return nil, errors.New("what was held before is not what is held after")
	}
	close(s.fleet.until)
	if err := s.crowd.untilTasks(ctx, func(status *v1alpha1.BatchSandboxStatus) int32 { return status.TaskSucceed }); err != nil {
		return nil, fmt.Errorf("ending tasks: %w", err)
	}
	if started := s.fleet.started.Load(); started != int64(len(pods)) {
		return nil, fmt.Errorf("%d tasks were started instead of %d", started, len(pods))
	}
	if err := s.endTasks(ctx); err != nil {
		return nil, err
	}
	goingOn := results.NotMeasured
	if e.signal == syscall.SIGTERM {
		goingOn = given.Sub(told).Seconds()
	}
	return []float64{
		float64(s.crowd.pods() + s.o.batch), float64(s.crowd.held), float64(len(pods)),
		goingOn, deliveries.firstAfter(given), deliveries.longestGap().Seconds(),
	}, nil
}

// endUnderLoad ends the leader while the load goes on. It returns when the leader was told to end,
// from when on it has led no more, and what was delivered when.
func (s *scale) endUnderLoad(ctx context.Context, leader *replica, e ending, l load) (told, given time.Time, d deliveries, err error) {
	side := &notingSide{operatorSide: operatorSide{s.bench}}
	var took []time.Duration
	driven := make(chan error, 1)
	go func() {
		var err error
		took, err = s.drive(ctx, l, side)
		driven <- err
	}()
	err = sleep(ctx, calm)
	if err == nil {
		told, given, err = s.endLeader(ctx, leader, e)
	}
	if err := errors.Join(err, <-driven); err != nil {
		return told, given, nil, err
	}
	for i := range took {
		due := side.began.Add(l.dueAfter(i))
		d = append(d, delivery{due, due.Add(took[i])})
	}
	return told, given, d, s.untilGone(ctx, s.api)
}

// endLeader sends the signal and returns when, and when the process has led no more.
func (s *scale) endLeader(ctx context.Context, leader *replica, e ending) (told, given time.Time, err error) {
	var held coordinationv1.Lease
	if err := s.api.Get(ctx, lease, &held); err != nil {
		return told, given, fmt.Errorf("reading the leader's lease: %w", err)
	}
	w, err := s.api.Watch(ctx, &coordinationv1.LeaseList{}, client.InNamespace(lease.Namespace), client.MatchingFields{"metadata.name": lease.Name})
	if err != nil {
		return told, given, fmt.Errorf("watching the leader's lease: %w", err)
	}
	defer w.Stop()
	told = time.Now()
	if err := leader.signal(e.signal); err != nil {
		return told, given, err
	}
	if e.signal == syscall.SIGKILL {
		return told, told, nil
	}
	for event := range w.ResultChan() {
		if seen, ok := event.Object.(*coordinationv1.Lease); ok && ptr.Deref(seen.Spec.HolderIdentity, "") != *held.Spec.HolderIdentity {
			return told, time.Now(), nil
		}
	}
	return told, given, errors.New("the watch of the lease has ended before the leader gave it back")
}

// notingSide notes when the first sandbox was asked for.
type notingSide struct {
	operatorSide
	once  sync.Once
	began time.Time
}

func (s *notingSide) create(ctx context.Context, bs *v1alpha1.BatchSandbox) error {
	s.once.Do(func() { s.began = time.Now() })
	return s.operatorSide.create(ctx, bs)
}

// delivery is when a sandbox was asked for and when it was there.
type delivery struct{ due, at time.Time }

type deliveries []delivery

// longestGap is the longest time without a delivery while sandboxes were asked for.
func (d deliveries) longestGap() (gap time.Duration) {
	times := make([]time.Time, len(d))
	for i := range d {
		times[i] = d[i].at
	}
	slices.SortFunc(times, time.Time.Compare)
	for i := 1; i < len(times); i++ {
		gap = max(gap, times[i].Sub(times[i-1]))
	}
	return gap
}

// firstAfter returns how many seconds after that time the first sandbox was delivered of those that
// were asked for later: one of before may have been delivered by the last leader.
func (d deliveries) firstAfter(t time.Time) float64 {
	var first time.Time
	for i := range d {
		if d[i].due.After(t) && (first.IsZero() || d[i].at.Before(first)) {
			first = d[i].at
		}
	}
	if first.IsZero() {
		return results.NotMeasured // the leader was so slow to end that the load ended before
	}
	return first.Sub(t).Seconds()
}
