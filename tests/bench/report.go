package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"
)

// row is one line of the table.
type row struct {
	name            string
	pairs           int
	operator, floor time.Duration
	// ratio is the median of the pairs' ratios; half of them lie from low to high.
	ratio, low, high float64
	// The least of each: what other programs on the machine disturb least.
	bestOperator, bestFloor time.Duration
	// cost as a sample has it.
	operatorCost, floorCost float64
}

// rowsOf sums a scenario up. One with many objects has two rows: until the last one
// is complete, and until half of them are.
func rowsOf(s scenario, operator, floor []sample) []row {
	if len(operator) == 0 {
		return nil
	}
	if s.objects == 1 {
		return []row{rowOf(s.name, operator, floor, 1)}
	}
	return []row{
		rowOf(s.name+", the last", operator, floor, 1),
		rowOf(s.name+", the median", operator, floor, 0.5),
	}
}

// rowOf compares the objects at that quantile of each measurement.
func rowOf(name string, operator, floor []sample, at float64) row {
	var ours, least []time.Duration
	var ratios, ourCosts, leastCosts []float64
	for i := range operator {
		a, b := quantile(operator[i].took, at), quantile(floor[i].took, at)
		ours, least = append(ours, a), append(least, b)
		ratios = append(ratios, float64(a)/float64(b))
		ourCosts, leastCosts = append(ourCosts, operator[i].cost), append(leastCosts, floor[i].cost)
	}
	return row{
		name: name, pairs: len(operator), operator: quantile(ours, 0.5), floor: quantile(least, 0.5),
		ratio: quantile(ratios, 0.5), low: quantile(ratios, 0.25), high: quantile(ratios, 0.75),
		bestOperator: slices.Min(ours), bestFloor: slices.Min(least),
		operatorCost: quantile(ourCosts, 0.5), floorCost: quantile(leastCosts, 0.5),
	}
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

// legend says what a table shows.
type legend struct {
	// until is what the time is measured to, floor what is done by hand, cost what the
	// last two columns count.
	until, floor, cost string
}

var (
	ofSandboxes = legend{"a watch shows all ready with their endpoints", "the same writes by hand", "writes"}
	ofChoices   = legend{"a watch shows all ready with their endpoints, the pools being chosen", "the same from the pools that were chosen, by their names, delivered by the operator too", "writes"}
	ofTasks     = legend{
		"a watch shows all tasks succeeded",
		"the same HTTP calls to the same executors in a plain parallel loop, and no write", "calls",
	}
	ofValues = legend{"a watch shows all tasks succeeded", "as many plain tasks, by the operator too", "calls"}
)

func printTable(out io.Writer, l legend, rows []row) {
	fmt.Fprintf(out, "\nMilliseconds from create until %s: medians.\n", l.until)
	fmt.Fprintf(out, "Floor: %s. Ratio: median of the pairs, and where the middle half of them lies.\n", l.floor)
	fmt.Fprintf(out, "Best: the least of each, which other programs on the machine disturb least. The last two: %s each.\n\n", l.cost)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "created at once\tpairs\toperator\tfloor\tratio\tmiddle half\tbest operator\tbest floor\tratio\t%s\tfloor's\t\n", l.cost)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.1f\t%.2f\t%.2f-%.2f\t%.1f\t%.1f\t%.2f\t%.1f\t%.1f\t\n",
			r.name, r.pairs, ms(r.operator), ms(r.floor), r.ratio, r.low, r.high,
			ms(r.bestOperator), ms(r.bestFloor), float64(r.bestOperator)/float64(r.bestFloor), r.operatorCost, r.floorCost)
	}
	_ = w.Flush()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// printLoads prints how open loads were served, and what each sandbox has cost.
func printLoads(out io.Writer, rows []loadRow) {
	fmt.Fprintf(out, "\nAn open load of single sandboxes, each deleted %v after its delivery. Milliseconds from when it was due until a watch shows it delivered.\n", useTime)
	fmt.Fprintf(out, "Floor: the same writes by hand; with Delete also as many pods deleted and created. In time: until %v after the load's end.\n\n", lateAfter)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "recycling\ta second\tp50\tp90\tp99\tin time\tfloor p50\tp90\tp99\tin time\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t", r.Recycle, r.Rate)
		for _, s := range []loadResult{r.Operator, r.Floor} {
			fmt.Fprintf(w, "%.0f\t%.0f\t%.0f\t%.1f %%\t", s.P50, s.P90, s.P99, s.Delivered*100)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	fmt.Fprint(out, "\nWhat one sandbox has cost, from its creation until it is gone and the pool is full again.\n\n")
	w = tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	printCosts(w, rows, "requests to the API server", func(l loadResult) map[string]float64 { return l.Requests })
	printCosts(w, rows, "milliseconds of CPU", func(l loadResult) map[string]float64 { return l.CPU })
	_ = w.Flush()
}

// printCosts prints one line for each kind of cost, with both sides of each load.
func printCosts(w io.Writer, rows []loadRow, of string, costs func(loadResult) map[string]float64) {
	fmt.Fprint(w, of)
	names := map[string]bool{}
	for _, r := range rows {
		fmt.Fprintf(w, "\t%s %d\tfloor", r.Recycle, r.Rate)
		for _, side := range []loadResult{r.Operator, r.Floor} {
			for name := range costs(side) {
				names[name] = true
			}
		}
	}
	fmt.Fprintln(w)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		fmt.Fprint(w, name)
		for _, r := range rows {
			fmt.Fprintf(w, "\t%.2f\t%.2f", costs(r.Operator)[name], costs(r.Floor)[name])
		}
		fmt.Fprintln(w)
	}
}
