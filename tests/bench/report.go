package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

// legend says what a table of scenarios shows.
type legend struct {
	id, title string
	// until is what the time is measured to, floor what is done by hand, cost what the
	// last two columns count.
	until, floor, cost string
}

var (
	ofSandboxes = legend{
		"sandboxes", "Sandboxes of a pool at rest",
		"a watch shows all ready with their endpoints", "the same writes by hand", "writes",
	}
	ofChoices = legend{
		"choices", "Sandboxes whose pool is chosen",
		"a watch shows all ready with their endpoints, the pools being chosen",
		"the same from the pools that were chosen, by their names, delivered by the operator too", "writes",
	}
	ofTasks = legend{
		"tasks", "Tasks", "a watch shows all tasks succeeded",
		"the same HTTP calls to the same executors in a plain parallel loop, and no write", "calls",
	}
	ofValues = legend{
		"task-values", "Tasks with values of a Secret", "a watch shows all tasks succeeded",
		"as many plain tasks, by the operator too", "calls",
	}
)

// table returns the table without rows.
func (l *legend) table() results.Table {
	return results.Table{
		ID: l.id, Title: l.title,
		Note: fmt.Sprintf("Milliseconds from create until %s: medians.\n"+
			"Floor: %s. Ratio: median of the pairs; half of them lie between its 25 %% and its 75 %%.\n"+
			"Best: the least of each, which other programs on the machine disturb least. The last two: %s each.", l.until, l.floor, l.cost),
		Keys: []string{"created at once"},
		Columns: []results.Column{
			{Name: "sandboxes"}, {Name: "pairs"},
			{Name: "operator", Unit: "ms", Digits: 1}, {Name: "floor", Unit: "ms", Digits: 1},
			{Name: "ratio", Digits: 2}, {Name: "25 %", Digits: 2}, {Name: "75 %", Digits: 2},
			{Name: "best operator", Unit: "ms", Digits: 1}, {Name: "best floor", Unit: "ms", Digits: 1}, {Name: "best ratio", Digits: 2},
			{Name: l.cost, Digits: 1}, {Name: "floor's " + l.cost, Digits: 1},
		},
	}
}

// rowsOf sums a scenario up. One with many objects has two rows: until the last one
// is complete, and until half of them are.
func rowsOf(s scenario, operator, floor []sample) []results.Row {
	if len(operator) == 0 {
		return nil
	}
	if s.objects == 1 {
		return []results.Row{rowOf(s, "", operator, floor, 1)}
	}
	return []results.Row{
		rowOf(s, ", the last", operator, floor, 1),
		rowOf(s, ", the median", operator, floor, 0.5),
	}
}

// rowOf compares the objects at that quantile of each measurement.
func rowOf(s scenario, which string, operator, floor []sample, at float64) results.Row {
	var ours, least []time.Duration
	var ratios, ourCosts, leastCosts []float64
	for i := range operator {
		a, b := quantile(operator[i].took, at), quantile(floor[i].took, at)
		ours, least = append(ours, a), append(least, b)
		ratios = append(ratios, float64(a)/float64(b))
		ourCosts, leastCosts = append(ourCosts, operator[i].cost), append(leastCosts, floor[i].cost)
	}
	best, bestFloor := slices.Min(ours), slices.Min(least)
	return results.Row{Keys: []string{s.name + which}, Values: results.Values{
		float64(s.objects) * float64(s.replicas), float64(len(operator)),
		ms(quantile(ours, 0.5)), ms(quantile(least, 0.5)),
		quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75),
		ms(best), ms(bestFloor), float64(best) / float64(bestFloor),
		quantile(ourCosts, 0.5), quantile(leastCosts, 0.5),
	}}
}

// quantile returns the value below which that share of the list lies, interpolated.
func quantile[T time.Duration | float64](list []T, at float64) T {
	sorted := slices.Sorted(slices.Values(list))
	place := at * float64(len(sorted)-1)
	i := int(place)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + T((place-float64(i))*float64(sorted[i+1]-sorted[i]))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// loadTables are how open loads were served, and what each sandbox has cost.
func loadTables(recycle v1alpha1.RecycleType, lasts time.Duration, rows []loadRow, incomplete error) []results.Table {
	name := strings.ToLower(string(recycle))
	table := results.Table{
		ID: "loads-" + name, Title: fmt.Sprintf("An open load of single sandboxes for %v, with recycling %s", lasts, recycle),
		Note: fmt.Sprintf("Each is deleted %v after its delivery. Milliseconds from when it was due until a watch shows it delivered.\n"+
			"Floor: the same writes by hand; with Delete also as many pods deleted and created, with Restart as many restarted. In time: until %v after the load's end.", useTime, lateAfter),
		Columns: []results.Column{{Name: "a second"}},
	}
	for _, side := range []string{"operator", "floor"} {
		for _, of := range []string{" p50", " p90", " p99"} {
			table.Columns = append(table.Columns, results.Column{Name: side + of, Unit: "ms", Digits: 1})
		}
		table.Columns = append(table.Columns, results.Column{Name: side + " in time", Unit: "%", Digits: 1})
	}
	table.Columns = append(table.Columns, results.Column{Name: "ratio of p50", Digits: 2}, results.Column{Name: "ratio of p99", Digits: 2})
	for _, r := range rows {
		table.Add(nil, float64(r.rate), r.operator.p50, r.operator.p90, r.operator.p99, r.operator.inTime,
			r.floor.p50, r.floor.p90, r.floor.p99, r.floor.inTime, r.operator.p50/r.floor.p50, r.operator.p99/r.floor.p99)
	}
	const until = "From its creation until it is gone and the pool is full again."
	requests := costTable(rows, "request", func(l loadResult) map[string]float64 { return l.requests })
	requests.ID, requests.Title, requests.Note = "requests-"+name, fmt.Sprintf("Requests to the API server for each sandbox, with recycling %s", recycle), until
	cpu := costTable(rows, "process", func(l loadResult) map[string]float64 { return l.cpu })
	cpu.ID, cpu.Title, cpu.Note = "cpu-"+name, fmt.Sprintf("Milliseconds of CPU for each sandbox, with recycling %s", recycle), until
	tables := []results.Table{table, requests, cpu}
	for i := range tables {
		if incomplete != nil {
			tables[i].Incomplete = incomplete.Error()
		}
	}
	return tables
}

// costTable has a row for each kind of cost, and both sides of each load.
func costTable(rows []loadRow, of string, costs func(loadResult) map[string]float64) results.Table {
	table := results.Table{Keys: []string{of}}
	names := map[string]bool{}
	for _, r := range rows {
		table.Columns = append(table.Columns,
			results.Column{Name: fmt.Sprintf("%d a second", r.rate), Digits: 2},
			results.Column{Name: fmt.Sprintf("floor %d", r.rate), Digits: 2})
		for _, side := range []loadResult{r.operator, r.floor} {
			for name := range costs(side) {
				names[name] = true
			}
		}
	}
	sums := make([]float64, len(table.Columns))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		var values []float64
		for _, r := range rows {
			values = append(values, costs(r.operator)[name], costs(r.floor)[name])
		}
		for i := range values {
			sums[i] += values[i]
		}
		table.Add([]string{name}, values...)
	}
	table.Add([]string{"all"}, sums...)
	return table
}
