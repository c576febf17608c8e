package main

import (
	"fmt"
	"strings"

	"github.com/opensandbox/operator/tests/bench/charts"
	"github.com/opensandbox/operator/tests/bench/results"
)

// figure is a chart that a template can name, and where its curves come from.
type figure struct {
	name   string
	chart  charts.Chart
	curves []curve
}

// curve is a column of a table over another one.
type curve struct {
	name, table, x, y string
	// rows says how the first key of its rows begins, where it has not all of them.
	rows string
}

var figures = []figure{
	ofLoad("Noop"), ofLoad("Delete"), ofLoad("Restart"),
	{
		name: "batches", chart: charts.Chart{Title: "One batch of a pool at rest", X: "sandboxes in the batch", Y: "ms, median", LogX: true, LogY: true},
		curves: []curve{
			{"operator", "sandboxes", "sandboxes", "operator", "1 batch of"},
			{"floor", "sandboxes", "sandboxes", "floor", "1 batch of"},
		},
	},
	over("scale-memory", charts.Chart{Title: "Memory", X: "pods", Y: "MiB, resident"},
		"pods", "leader", "leader's most", "leader's live heap", "standby", "API server", "etcd"),
	over("scale-rest", charts.Chart{Title: "CPU while nobody wants anything", X: "pods", Y: "thousandths of a CPU"},
		"pods", "leader", "standby", "API server", "etcd"),
	over("scale-claims-one", charts.Chart{Title: "A claim of one sandbox", X: "pods", Y: "ms", LogY: true},
		"pods", "median", "floor's median", "worst", "floor's worst"),
	over("scale-claims-batch", charts.Chart{Title: "A claim of a batch", X: "pods", Y: "ms", LogY: true},
		"pods", "median", "floor's median", "worst", "floor's worst"),
	over("scale-churn", charts.Chart{Title: "Latency under churn", X: "seconds", Y: "ms", LogY: true}, "until", "p50", "p99"),
	{
		name: "scale-churn-memory", chart: charts.Chart{Title: "Memory under churn", X: "seconds", Y: "MiB"},
		curves: columns("scale-churn", "until", "leader", "leader's live heap", "etcd", "etcd in use"),
	},
	{
		name: "scale-churn-counts", chart: charts.Chart{Title: "What is there under churn", X: "seconds", Y: "number"},
		curves: columns("scale-churn", "until", "goroutines", "queued", "pods"),
	},
}

// over is the figure of columns of the table that has its name, over another column.
func over(table string, chart charts.Chart, x string, names ...string) figure {
	return figure{name: table, chart: chart, curves: columns(table, x, names...)}
}

// columns are a curve for each name.
func columns(table, x string, names ...string) (list []curve) {
	for _, name := range names {
		list = append(list, curve{name: name, table: table, x: x, y: name})
	}
	return list
}

// ofLoad is the figure of open loads with that recycle strategy.
func ofLoad(recycle string) figure {
	f := figure{
		name:  "loads-" + strings.ToLower(recycle),
		chart: charts.Chart{Title: "Single sandboxes, recycled by " + recycle, X: "sandboxes a second", Y: "ms from due to delivered", LogY: true},
	}
	f.curves = columns(f.name, "a second", "operator p50", "floor p50", "operator p90", "floor p90", "operator p99", "floor p99")
	return f
}

// draw returns the chart as SVG, nil where nothing of it was measured.
func (f *figure) draw(document *results.Document) ([]byte, error) {
	chart := f.chart
	for _, c := range f.curves {
		points, err := c.points(document)
		if err != nil {
			return nil, fmt.Errorf("chart %s: %w", f.name, err)
		}
		if len(points) > 0 {
			chart.Curves = append(chart.Curves, charts.Curve{Name: c.name, Points: points})
		}
	}
	if len(chart.Curves) == 0 {
		return nil, nil
	}
	return chart.SVG()
}

// points returns what was measured of the curve.
func (c *curve) points(document *results.Document) (points [][2]float64, err error) {
	table := document.Table(c.table)
	if table == nil {
		return nil, nil
	}
	x, err := table.Column(c.x)
	if err != nil {
		return nil, err
	}
	y, err := table.Column(c.y)
	if err != nil {
		return nil, err
	}
	for i, row := range table.Rows {
		if results.Measured(x[i]) && results.Measured(y[i]) && (c.rows == "" || strings.HasPrefix(row.Keys[0], c.rows)) {
			points = append(points, [2]float64{x[i], y[i]})
		}
	}
	return points, nil
}
