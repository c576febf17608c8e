package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opensandbox/operator/tests/bench/results"
)

const secondsOfDay = 24 * 60 * 60

// costColumns are what one sandbox costs, in a table with that, and what as many cost each second,
// by which factor.
var costColumns = []struct {
	each   string
	factor float64
	of     results.Column
}{
	{"requests", 1, results.Column{Name: "writing requests", Unit: "a second"}},
	{"etcd writes", 1, results.Column{Name: "writes of etcd", Unit: "a second"}},
	{"etcd log", 1. / 1024, results.Column{Name: "etcd's log", Unit: "MiB a second", Digits: 2}},
	{"API server", 1. / 1000, results.Column{Name: "API server", Unit: "CPUs", Digits: 2}},
	{"etcd", 1. / 1000, results.Column{Name: "etcd", Unit: "CPUs", Digits: 2}},
	{"operator", 1. / 1000, results.Column{Name: "operator", Unit: "CPUs", Digits: 2}},
	{"scheduler", 1. / 1000, results.Column{Name: "scheduler", Unit: "CPUs", Digits: 2}},
}

// days returns what so many sandboxes a day cost, evenly over the day, by the last row of a table of
// what one costs.
func (w *writer) days(id string, sandboxes ...int) (string, error) {
	cost := w.document.Table(id)
	if cost == nil || len(cost.Rows) == 0 {
		return notMeasured, nil
	}
	table := results.Table{Columns: []results.Column{{Name: "sandboxes a day"}, {Name: "a second", Digits: 1}}}
	for _, c := range costColumns {
		table.Columns = append(table.Columns, c.of)
	}
	for _, day := range sandboxes {
		rate := float64(day) / secondsOfDay
		values := []float64{float64(day), rate}
		for _, c := range costColumns {
			each, err := cost.Column(c.each)
			if err != nil {
				return "", err
			}
			values = append(values, rate*each[len(each)-1]*c.factor)
		}
		table.Add(nil, values...)
	}
	return markdown(table)
}

// at returns what the columns come to where x is so much, on the straight line through the first
// and the last row.
func (w *writer) at(id, x string, where int, names ...string) (string, error) {
	measured := w.document.Table(id)
	if measured == nil || len(measured.Rows) < 2 {
		return notMeasured, nil
	}
	table := results.Table{Columns: []results.Column{{Name: x}}}
	values := []float64{float64(where)}
	for _, name := range names {
		l, err := lineOf(measured, x, name)
		if err != nil {
			return "", err
		}
		at := slices.IndexFunc(measured.Columns, func(c results.Column) bool { return c.Name == name })
		table.Columns = append(table.Columns, measured.Columns[at])
		values = append(values, l.at(float64(where)))
	}
	table.Add(nil, values...)
	return markdown(table)
}

// line is a straight one through a point.
type line struct{ x, y, slope float64 }

// lineOf goes through the first and the last row of two columns.
func lineOf(table *results.Table, x, y string) (line, error) {
	xs, err := table.Column(x)
	if err != nil {
		return line{}, err
	}
	ys, err := table.Column(y)
	if err != nil {
		return line{}, err
	}
	last := len(xs) - 1
	return line{xs[last], ys[last], (ys[last] - ys[0]) / (xs[last] - xs[0])}, nil
}

// at is how high the line is there.
func (l line) at(x float64) float64 { return l.y + l.slope*(x-l.x) }

// where is where the line is as high as that.
func (l line) where(y float64) float64 { return l.x + (y-l.y)/l.slope }

func markdown(table results.Table) (string, error) {
	var out strings.Builder
	if err := table.WriteMarkdown(&out); err != nil {
		return "", fmt.Errorf("writing a table: %w", err)
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}
