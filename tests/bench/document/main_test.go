package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/tests/bench/results"
)

const page = `# Benchmarks
{{chart "loads-noop"}}
{{table "loads-noop"}}
{{table "cpu-noop"}}
{{runs}}
`

// loads is a table of open loads, with the columns that the benchmark gives it.
func loads(t *testing.T) results.Table {
	t.Helper()
	table := results.Table{
		ID: "loads-noop", Title: "An open load", Command: "make bench BENCH_FLAGS='-rates=10,25'",
		Environment: results.Environment{Date: "2026-11-26", Commit: "52d55d5", CPUs: 2, Operator: "2 replicas of x"},
		Columns:     []results.Column{{Name: "a second"}},
	}
	for _, c := range ofLoad("Noop").curves {
		table.Columns = append(table.Columns, results.Column{Name: c.y, Unit: "ms", Digits: 1})
	}
	table.Add(nil, 10, 1, 2, 3, 4, 5, 6)
	table.Add(nil, 25, 2, 3, results.NotMeasured, 5, 6, 7)
	return table
}

func writeInto(t *testing.T, folder string, tables ...results.Table) error {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "benchmarks.md.tmpl"), []byte(page), 0o600))
	document := &results.Document{}
	document.Merge(tables...)
	require.NoError(t, document.Write(filepath.Join(folder, "bench.json")))
	return write(folder, folder, folder)
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts...))
	require.NoError(t, err)
	return string(text)
}

func TestADocumentHasWhatWasMeasuredAndSaysWhatWasNot(t *testing.T) {
	folder := t.TempDir()
	require.NoError(t, writeInto(t, folder, loads(t)))
	require.Equal(t, `<!-- Made by 'make benchmark-docs' of docs/benchmarks/benchmarks.md.tmpl and the measurements beside it. -->
# Benchmarks
![Single sandboxes, recycled by Noop](benchmarks/loads-noop.svg)
| a second | operator p50 (ms) | floor p50 (ms) | operator p90 (ms) | floor p90 (ms) | operator p99 (ms) | floor p99 (ms) |
|--:|--:|--:|--:|--:|--:|--:|
| 10 | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 | 6.0 |
| 25 | 2.0 | 3.0 | - | 5.0 | 6.0 | 7.0 |

Run 1: `+"`make bench BENCH_FLAGS='-rates=10,25'`"+`.
This was not measured yet.
| run | date, commit | Kubernetes, etcd's fsync | machine | operator |
|--:|---|---|---|---|
| 1 | 2026-11-26, 52d55d5 | ,  | 2 CPUs (), 0 GiB, load before  | `+"`2 replicas of x`"+` |
`, read(t, folder, "benchmarks.md"))
	chart := read(t, folder, chartFolder, "loads-noop.svg")
	require.Contains(t, chart, "floor p99")

	require.NoError(t, writeInto(t, folder, loads(t)))
	require.Equal(t, chart, read(t, folder, chartFolder, "loads-noop.svg"), "the same measurements are the same files")
}

func TestAChartGoesWithItsTable(t *testing.T) {
	folder := t.TempDir()
	require.NoError(t, writeInto(t, folder, loads(t)))
	require.NoError(t, writeInto(t, folder))
	require.NoFileExists(t, filepath.Join(folder, chartFolder, "loads-noop.svg"))
	require.NotContains(t, read(t, folder, "benchmarks.md"), ".svg")
}

func TestNothingMeasuredIsLeftOut(t *testing.T) {
	require.ErrorContains(t, writeInto(t, t.TempDir(), results.Table{ID: "new", Title: "A new one"}), `no template shows the table "new" (A new one)`)
}

func TestAColumnThatAChartWantsMustBeThere(t *testing.T) {
	table := loads(t)
	table.Columns[0].Name = "rate"
	require.ErrorContains(t, writeInto(t, t.TempDir(), table), `chart loads-noop: table loads-noop has no column "a second"`)
}

func TestTheTemplatesOfTheRepositoryNeedNoMeasurement(t *testing.T) {
	to := t.TempDir()
	require.NoError(t, write("../../../docs/benchmarks", t.TempDir(), to))
	for _, name := range []string{"benchmarks.md", "scale.md"} {
		require.Contains(t, read(t, to, name), notMeasured)
	}
}

func TestWhatSandboxesOfADayCost(t *testing.T) {
	cost := results.Table{ID: "cost"}
	for _, c := range costColumns {
		cost.Columns = append(cost.Columns, results.Column{Name: c.each})
	}
	cost.Add(nil, 7, 9, 2048, 20, 4, 3, 5)
	w := newWriter(&results.Document{Tables: []results.Table{cost}})
	text, err := w.days("cost", 864_000)
	require.NoError(t, err)
	require.Contains(t, text, "| 864000 | 10.0 | 70 | 90 | 20.00 | 0.20 | 0.04 | 0.03 | 0.05 |")
	text, err = w.days("not there", 1)
	require.NoError(t, err)
	require.Equal(t, notMeasured, text)
}

func TestALineGoesOnThroughTheFirstAndTheLastRow(t *testing.T) {
	memory := results.Table{ID: "memory", Columns: []results.Column{{Name: "pods"}, {Name: "leader", Unit: "MiB"}}}
	memory.Add(nil, 1000, 50)
	memory.Add(nil, 5000, 1000)
	memory.Add(nil, 11000, 150)
	w := newWriter(&results.Document{Tables: []results.Table{memory}})
	text, err := w.at("memory", "pods", 21000, "leader")
	require.NoError(t, err)
	require.Contains(t, text, "| 21000 | 250 |")
	_, err = w.at("memory", "pods", 21000, "standby")
	require.ErrorContains(t, err, `no column "standby"`)
}
