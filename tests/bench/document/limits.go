package main

import (
	"cmp"
	"slices"

	"github.com/opensandbox/operator/tests/bench/results"
)

// limit is what a cluster bears of something each second, and the column of the table of costs that
// says how much of it one sandbox takes.
type limit struct {
	name, column string
	bound        float64
}

const (
	// etcdMiB is the largest database that etcd's own documentation suggests.
	etcdMiB = 8 << 10
	// history is how many seconds of versions etcd keeps: the API server compacts every five
	// minutes what was there five minutes before.
	history = 600
	// testedPods of a cluster is what Kubernetes is tested with.
	testedPods = 150_000
	// operatorMiB and operatorCPUs are the limits of the operator's container, config/manager.
	operatorMiB, operatorCPUs = 1 << 10, 2
	// serverCPUs are what a dedicated machine for the API server or for etcd has here.
	serverCPUs = 8
)

var limits = []limit{
	{"operator: the 2 CPUs of its container (ms)", "operator", operatorCPUs * 1000},
	{"API server: 8 CPUs (ms)", "API server", serverCPUs * 1000},
	{"etcd: 8 CPUs (ms)", "etcd", serverCPUs * 1000},
	{"scheduler: one pod after another (ms)", "scheduler", 1000},
	{"etcd: 8 GiB hold ten minutes of history (KiB)", "etcd log", etcdMiB * 1024. / history},
}

// first returns how many sandboxes each of the limits bears, that which is reached first at the top.
func (w *writer) first(id string) (string, error) {
	cost := w.document.Table(id)
	if cost == nil || len(cost.Rows) == 0 {
		return notMeasured, nil
	}
	table := results.Table{Keys: []string{"limit"}, Columns: []results.Column{
		{Name: "there is each second"}, {Name: "one sandbox takes", Digits: 2}, {Name: "sandboxes a second"}, {Name: "sandboxes a day"},
	}}
	for _, l := range limits {
		each, err := cost.Column(l.column)
		if err != nil {
			return "", err
		}
		takes := each[len(each)-1]
		table.Add([]string{l.name}, l.bound, takes, l.bound/takes, l.bound/takes*secondsOfDay)
	}
	slices.SortStableFunc(table.Rows, func(a, b results.Row) int { return cmp.Compare(a.Values[2], b.Values[2]) })
	return markdown(table)
}

// held returns how many sandboxes can be held at a time, by what each limit bears: of a table of
// costs and one of memory over pods.
func (w *writer) held(costs, memory string) (string, error) {
	cost, measured := w.document.Table(costs), w.document.Table(memory)
	if cost == nil || len(cost.Rows) == 0 || measured == nil || len(measured.Rows) < 2 {
		return notMeasured, nil
	}
	stored, err := cost.Column("stored")
	if err != nil {
		return "", err
	}
	leader, err := lineOf(measured, "pods", "leader")
	if err != nil {
		return "", err
	}
	each := stored[len(stored)-1]
	table := results.Table{Keys: []string{"limit"}, Columns: []results.Column{{Name: "there is"}, {Name: "one sandbox takes", Digits: 2}, {Name: "sandboxes at a time"}}}
	table.Add([]string{"pods that Kubernetes is tested with"}, testedPods, 1, testedPods)
	// The other half is for history.
	table.Add([]string{"half of etcd's 8 GiB (KiB)"}, etcdMiB*1024/2, each, etcdMiB*1024/2/each)
	table.Add([]string{"the operator's 1 GiB (KiB)"}, operatorMiB*1024, leader.slope*1024, leader.where(operatorMiB))
	slices.SortStableFunc(table.Rows, func(a, b results.Row) int { return cmp.Compare(a.Values[2], b.Values[2]) })
	return markdown(table)
}
