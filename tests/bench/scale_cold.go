package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

func coldTable() results.Table {
	return results.Table{
		ID: "scale-cold", Title: "A cold start",
		Note: "Both replicas have ended and are started at once; a claim waits for them. Caches: from the start of the process that will lead until its caches are filled.\n" +
			"Takeover: until it has rebuilt its ledger. Delivery: until the claim is delivered. Serving: from filled caches until then.",
		Columns: []results.Column{
			{Name: "pods"}, {Name: "held"}, {Name: "caches", Unit: "s", Digits: 2}, {Name: "takeover", Unit: "s", Digits: 2},
			{Name: "delivery", Unit: "s", Digits: 2}, {Name: "serving", Unit: "s", Digits: 2}, {Name: "all", Unit: "s", Digits: 2},
			{Name: "leader's most", Unit: "MiB"},
		},
	}
}

// cold measures how long it takes from no operator at all until one serves.
func (s *scale) cold(ctx context.Context) ([]results.Table, error) {
	table := coldTable()
	if err := s.populateAtLeast(ctx, s.steps[len(s.steps)-1], 0); err != nil {
		return []results.Table{table}, err
	}
	for i := range s.o.starts {
		values, err := s.coldStart(ctx, fmt.Sprint("cold-", i))
		if err != nil {
			return []results.Table{table}, err
		}
		table.Add(nil, values...)
		fmt.Fprintln(os.Stderr, "measured a cold start")
	}
	return []results.Table{table}, nil
}

// populateAtLeast has the cluster hold so many pods or more, a part of them held.
func (s *scale) populateAtLeast(ctx context.Context, pods, reserved int) error {
	if there := s.crowd.pods() + s.o.batch; there >= pods && int(s.crowd.sizes[tasksPool]) >= reserved {
		return nil
	}
	if _, _, err := s.populate(ctx, pods, reserved); err != nil {
		return fmt.Errorf("%d pods: %w", pods, err)
	}
	if err := s.crowd.hold(ctx, pods/heldShare); err != nil {
		return fmt.Errorf("%d pods: holding a part of them: %w", pods, err)
	}
	return nil
}

// coldStart returns a row of the table.
func (s *scale) coldStart(ctx context.Context, name string) ([]float64, error) {
	if err := s.operator.stop(); err != nil {
		return nil, err
	}
	waiting := &v1alpha1.BatchSandbox{}
	waiting.Namespace, waiting.Name, waiting.Spec.PoolRef = s.namespace, name, claimsPool
	if err := s.api.Create(ctx, waiting); err != nil {
		return nil, err
	}
	for range 2 {
		if _, err := s.start(ctx, deployedIdentity); err != nil {
			return nil, err
		}
	}
	if err := s.untilComplete(ctx, waiting); err != nil {
		return nil, err
	}
	delivered := time.Now()
	leader, _, err := s.pair(ctx)
	if err != nil {
		return nil, err
	}
	synced, err := leader.untilSaid(ctx, cachesSynced, 0)
	if err != nil {
		return nil, err
	}
	took, err := leader.untilSaid(ctx, tookOver, 0)
	if err != nil {
		return nil, err
	}
	most, err := peak(leader.command.Process.Pid)
	if err != nil {
		return nil, err
	}
	if err := s.api.Delete(ctx, waiting); client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	seconds := func(from, to time.Time) float64 { return to.Sub(from).Seconds() }
	return []float64{
		float64(s.crowd.pods() + s.o.batch), float64(s.crowd.held),
		seconds(leader.started, synced), seconds(synced, took), seconds(took, delivered), seconds(synced, delivered), seconds(leader.started, delivered),
		most,
	}, s.untilIdle(ctx, claimsPool, fillPatience)
}
