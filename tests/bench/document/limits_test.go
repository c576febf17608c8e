package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/tests/bench/results"
)

// costs is a table of what one sandbox costs.
func costs() results.Table {
	table := results.Table{ID: "cost"}
	for _, name := range []string{"operator", "API server", "etcd", "scheduler", "etcd log", "stored"} {
		table.Columns = append(table.Columns, results.Column{Name: name})
	}
	table.Add(nil, 4, 20, 8, 2, 16, 8)
	return table
}

func TestTheLimitThatIsReachedFirstIsAtTheTop(t *testing.T) {
	w := newWriter(&results.Document{Tables: []results.Table{costs()}})
	text, err := w.first("cost")
	require.NoError(t, err)
	lines := strings.Split(text, "\n")
	require.Len(t, lines, 2+len(limits))
	require.Equal(t, "| API server: 8 CPUs (ms) | 8000 | 20.00 | 400 | 34560000 |", lines[2])
	require.Equal(t, "| etcd: 8 CPUs (ms) | 8000 | 8.00 | 1000 | 86400000 |", lines[len(lines)-1])

	text, err = w.first("not there")
	require.NoError(t, err)
	require.Equal(t, notMeasured, text)
}

func TestHowManyCanBeHeld(t *testing.T) {
	memory := results.Table{ID: "memory", Columns: []results.Column{{Name: "pods"}, {Name: "leader"}}}
	memory.Add(nil, 1000, 74)
	w := newWriter(&results.Document{Tables: []results.Table{costs(), memory}})
	text, err := w.held("cost", "memory")
	require.NoError(t, err)
	require.Equal(t, notMeasured, text, "one point is no line")

	memory.Add(nil, 11000, 124)
	w = newWriter(&results.Document{Tables: []results.Table{costs(), memory}})
	text, err = w.held("cost", "memory")
	require.NoError(t, err)
	require.Equal(t, `| limit | there is | one sandbox takes | sandboxes at a time |
|---|--:|--:|--:|
| pods that Kubernetes is tested with | 150000 | 1.00 | 150000 |
| the operator's 1 GiB (KiB) | 1048576 | 5.12 | 191000 |
| half of etcd's 8 GiB (KiB) | 4194304 | 8.00 | 524288 |`, text)
}
