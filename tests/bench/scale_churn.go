package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

const (
	churnPool = "churn"
	// churnWindow is what each row of the table is of.
	churnWindow = 10 * time.Second
)

func churnTable(l load) results.Table {
	return results.Table{
		ID: "scale-churn", Title: fmt.Sprintf("%v of churn: %d sandboxes a second, with recycling %s", l.lasts, l.rate, l.recycle),
		Note: fmt.Sprintf("Each is deleted %v after its delivery. A row is of the sandboxes that were due in %v, and of what was there at the end of these.", useTime, churnWindow),
		Columns: []results.Column{
			{Name: "until", Unit: "s"}, {Name: "p50", Unit: "ms", Digits: 1}, {Name: "p99", Unit: "ms", Digits: 1},
			{Name: "leader", Unit: "MiB"}, {Name: "leader's live heap", Unit: "MiB"}, {Name: "goroutines"}, {Name: "queued"},
			{Name: "pods"}, {Name: "etcd", Unit: "MiB", Digits: 1}, {Name: "etcd in use", Unit: "MiB", Digits: 1},
		},
	}
}

// moment is what was there at a moment of the churn.
type moment struct {
	vitals
	pods              int64
	etcdSize, etcdUse float64
}

// churn measures an open load that goes on for long, and what is left of it.
func (s *scale) churn(ctx context.Context) ([]results.Table, error) {
	l := load{pool: churnPool, recycle: v1alpha1.RecycleDelete, rate: s.o.rate, lasts: s.o.churn}
	table := churnTable(l)
	tables := []results.Table{table}
	leader, _, err := s.pair(ctx)
	if err != nil {
		return tables, err
	}
	if err := s.fill(ctx, []poolSize{{l.pool, int32(l.poolSize()), l.recycle}}); err != nil {
		return tables, err
	}
	if err := leader.untilQuiet(ctx); err != nil {
		return tables, err
	}
	first, err := s.moment(ctx, leader)
	if err != nil {
		return tables, err
	}
	before, err := s.spent(ctx)
	if err != nil {
		return tables, err
	}
	moments, took, err := s.driveAndLook(ctx, l, leader)
	for i, m := range moments {
		from, to := time.Duration(i)*churnWindow, time.Duration(i+1)*churnWindow
		due := l.dueIn(took, from, to)
		if err != nil || len(due) == 0 {
			break
		}
		table.Add(nil, to.Seconds(), ms(quantile(due, 0.5)), ms(quantile(due, 0.99)), m.resident, m.heap, m.goroutines, m.queued,
			float64(m.pods), m.etcdSize, m.etcdUse)
	}
	tables[0] = table
	if err != nil {
		return tables, err
	}
	side := &operatorSide{s.bench}
	if err := errors.Join(s.untilGone(ctx, s.api), side.prepare(ctx, l)); err != nil {
		return tables, fmt.Errorf("after the churn: %w", err)
	}
	after, err := s.spent(ctx)
	if err != nil {
		return tables, err
	}
	stored, err := s.storedOfOne(ctx, l)
	if err != nil {
		return tables, err
	}
	return append(tables, costOfOne(l, before, after, stored)), s.checkLeaks(ctx, l, leader, first)
}

// dueIn returns how long the sandboxes took that were due in that time.
func (l *load) dueIn(took []time.Duration, from, to time.Duration) (list []time.Duration) {
	for i, d := range took {
		if due := l.dueAfter(i); from <= due && due < to {
			list = append(list, d)
		}
	}
	return list
}

// driveAndLook drives the load and looks at the operator at the end of each window.
func (s *scale) driveAndLook(ctx context.Context, l load, leader *replica) (moments []moment, took []time.Duration, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	looked := make(chan struct{})
	start := time.Now()
	go func() {
		defer close(looked)
		for at := churnWindow; at <= l.lasts; at += churnWindow {
			if sleep(ctx, time.Until(start.Add(at))) != nil {
				return
			}
			m, err := s.moment(ctx, leader)
			if err != nil {
				stop(err)
				return
			}
			moments = append(moments, m)
			fmt.Fprintf(os.Stderr, "%v of churn\n", at)
		}
	}()
	took, err = s.drive(ctx, l, &operatorSide{s.bench})
	<-looked
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return moments, took, err
}

func (s *scale) moment(ctx context.Context, leader *replica) (m moment, err error) {
	if m.vitals, err = leader.vitals(ctx); err != nil {
		return m, err
	}
	if m.pods, err = s.countPods(ctx); err != nil {
		return m, err
	}
	etcd, err := s.cluster.etcd(ctx)
	if err != nil {
		return m, err
	}
	var errs [2]error
	m.etcdSize, errs[0] = etcd.sum("etcd_mvcc_db_total_size_in_bytes")
	m.etcdUse, errs[1] = etcd.sum("etcd_mvcc_db_total_size_in_use_in_bytes")
	m.etcdSize, m.etcdUse = m.etcdSize/mebi, m.etcdUse/mebi
	return m, errors.Join(errs[:]...)
}

// countPods counts those of the namespace that claims are made in.
func (s *scale) countPods(ctx context.Context) (int64, error) {
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	if err := s.api.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return 0, fmt.Errorf("counting pods: %w", err)
	}
	return int64(len(list.Items)), nil
}

// goroutineSlack is how many more goroutines than before are no leak: connections that are kept.
const goroutineSlack = 50

// checkLeaks returns an error unless the load has left behind what it found.
func (s *scale) checkLeaks(ctx context.Context, l load, leader *replica, first moment) error {
	var last moment
	err := wait.PollUntilContextTimeout(ctx, time.Second, roundPatience, true, func(ctx context.Context) (done bool, err error) {
		last, err = s.moment(ctx, leader)
		return err == nil && last.pods == first.pods && last.queued == 0 && last.goroutines <= first.goroutines+goroutineSlack, err
	})
	if err != nil {
		return fmt.Errorf("after %d sandboxes there are %d pods, %.0f goroutines and %.0f queued keys, and before there were %d, %.0f and %.0f: %w",
			l.count(), last.pods, last.goroutines, last.queued, first.pods, first.goroutines, first.queued, err)
	}
	return nil
}

// spending is what a cost is of, with what etcd has been asked.
type spending struct {
	cost
	// puts are the writes to etcd, bytes those of its log.
	puts, bytes float64
}

func (s *scale) spent(ctx context.Context) (spent spending, err error) {
	if spent.cost, err = s.cluster.read(ctx); err != nil {
		return spent, err
	}
	etcd, err := s.cluster.etcd(ctx)
	if err != nil {
		return spent, err
	}
	var errs [3]error
	spent.puts, errs[0] = etcd.sum("etcd_mvcc_put_total")
	deletes, err := etcd.sum("etcd_mvcc_delete_total")
	errs[1] = err
	spent.puts += deletes
	spent.bytes, errs[2] = etcd.sum("etcd_disk_wal_write_bytes_total")
	return spent, errors.Join(errs[:]...)
}

// storedOfOne returns how many bytes etcd keeps of a sandbox that is held, with its BatchSandbox.
func (s *scale) storedOfOne(ctx context.Context, l load) (int, error) {
	held := s.payloads[l.pool][0]
	object, err := json.Marshal(held)
	if err != nil {
		return 0, err
	}
	var pods corev1.PodList
	if err := s.api.List(ctx, &pods, client.InNamespace(s.namespace), client.MatchingLabels{v1alpha1.LabelPoolName: l.pool}, client.Limit(1)); err != nil || len(pods.Items) == 0 {
		return 0, fmt.Errorf("reading a pod of pool %s: %w", l.pool, err)
	}
	// A pod is kept as protocol buffers and a BatchSandbox as JSON.
	return len(object) + pods.Items[0].Size(), nil
}

// costOfOne is what one sandbox of the load has cost.
func costOfOne(l load, before, after spending, stored int) results.Table {
	table := results.Table{
		ID: "scale-cost", Title: fmt.Sprintf("What one sandbox costs, with recycling %s", l.recycle),
		Note: fmt.Sprintf("The mean of %d sandboxes at %d a second, from creation until it is gone and its pod is replaced, in all of the cluster.\n"+
			"Requests are those that write. CPU of the operator is that of both replicas. Stored: what etcd keeps of a sandbox while it is held, its pod and its BatchSandbox.", l.count(), l.rate),
		Columns: []results.Column{
			{Name: "a second"}, {Name: "requests", Digits: 2}, {Name: "etcd writes", Digits: 2}, {Name: "etcd log", Unit: "KiB", Digits: 1},
			{Name: "API server", Unit: "ms", Digits: 2}, {Name: "etcd", Unit: "ms", Digits: 2}, {Name: "operator", Unit: "ms", Digits: 2},
			{Name: "scheduler", Unit: "ms", Digits: 2}, {Name: "stored", Unit: "KiB", Digits: 1},
		},
	}
	each := after.since(before.cost, l.count())
	n := float64(l.count())
	requests := 0.0
	for _, name := range slices.Sorted(maps.Keys(each.requests)) {
		if verb, _, _ := strings.Cut(name, " "); slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE", "APPLY"}, verb) {
			requests += each.requests[name]
		}
	}
	table.Add(nil, float64(l.rate), requests, (after.puts-before.puts)/n, (after.bytes-before.bytes)/n/1024,
		each.cpu["kube-apiserver"]*1000, each.cpu["etcd"]*1000, (each.cpu[ofLeader]+each.cpu[ofStandby])*1000, each.cpu["kube-scheduler"]*1000, float64(stored)/1024)
	return table
}
