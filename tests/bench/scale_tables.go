package main

import (
	"fmt"
	"time"

	"github.com/opensandbox/operator/tests/bench/results"
)

// operatorColumns are what vitals of a pair have.
var operatorColumns = []results.Column{
	{Name: "leader", Unit: "MiB", Digits: 0}, {Name: "leader's most", Unit: "MiB"}, {Name: "leader's live heap", Unit: "MiB"},
	{Name: "leader's goroutines"}, {Name: "standby", Unit: "MiB"},
}

func memoryTable() results.Table {
	return results.Table{
		ID: "scale-memory", Title: "Memory over pods",
		Note: "Resident memory of each process at rest, and the most that the leader has had. The live heap is what Go has kept in its last garbage collection.\n" +
			"Filling: from the pools' new sizes until all of their pods are ready.",
		Columns: append(append([]results.Column{
			{Name: "pods"}, {Name: "pools"}, {Name: "held"}, {Name: "filling", Unit: "s", Digits: 1}, {Name: "pods a second", Digits: 1},
		}, operatorColumns...), results.Column{Name: "API server", Unit: "MiB"}, results.Column{Name: "etcd", Unit: "MiB"}),
	}
}

func restTable(lasts time.Duration) results.Table {
	return results.Table{
		ID: "scale-rest", Title: "CPU at rest over pods",
		Note: fmt.Sprintf("Thousandths of a CPU, over %v in which nobody wants anything.", lasts),
		Columns: []results.Column{
			{Name: "pods"}, {Name: "leader", Digits: 1}, {Name: "standby", Digits: 1}, {Name: "API server", Digits: 1}, {Name: "etcd", Digits: 1},
		},
	}
}

// claimsTables are one for each size of a claim.
func claimsTables(o *scaleOptions) []results.Table {
	const columns = "Milliseconds from create until a watch shows all ready with their endpoints, of %d claims. Floor: the same three writes by hand. Ratio: the median of the pairs."
	tables := []results.Table{
		{ID: "scale-claims-one", Title: "Claims of one sandbox over pods"},
		{ID: "scale-claims-batch", Title: fmt.Sprintf("Claims of %d sandboxes over pods", o.batch)},
	}
	for i := range tables {
		tables[i].Note = fmt.Sprintf(columns, o.rounds)
		tables[i].Columns = []results.Column{
			{Name: "pods"}, {Name: "median", Unit: "ms", Digits: 1}, {Name: "worst", Unit: "ms", Digits: 1},
			{Name: "floor's median", Unit: "ms", Digits: 1}, {Name: "floor's worst", Unit: "ms", Digits: 1}, {Name: "ratio", Digits: 2},
		}
	}
	return tables
}

func tasksTable() results.Table {
	return results.Table{
		ID: "scale-tasks", Title: "Running tasks",
		Note: "Each has an executor that the operator keeps a request open to. Started: from the creation of the first BatchSandbox until the status says that all tasks run.\n" +
			"Ended: from when all tasks end at once until the status says that all have succeeded. Memory and CPU, in thousandths of one, while all run.",
		Columns: append(append([]results.Column{
			{Name: "tasks"}, {Name: "pods"}, {Name: "started", Unit: "s", Digits: 1}, {Name: "ended", Unit: "s", Digits: 1},
		}, operatorColumns...), results.Column{Name: "leader's CPU", Digits: 1}, results.Column{Name: "standby's CPU", Digits: 1}, results.Column{Name: "API server's CPU", Digits: 1}),
	}
}
