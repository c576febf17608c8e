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
			{"operator", "sandboxes", "sandboxes", "operator", "1 batch"},
			{"floor", "sandboxes", "sandboxes", "floor", "1 batch"},
		},
	},
}

// ofLoad is the figure of open loads with that recycle strategy.
func ofLoad(recycle string) figure {
	f := figure{
		name:  "loads-" + strings.ToLower(recycle),
		chart: charts.Chart{Title: "Single sandboxes, recycled by " + recycle, X: "sandboxes a second", Y: "ms from due to delivered", LogY: true},
	}
	for _, quantile := range []string{"p50", "p90", "p99"} {
		for _, side := range []string{"operator", "floor"} {
			f.curves = append(f.curves, curve{name: side + " " + quantile, table: f.name, x: "a second", y: side + " " + quantile})
		}
	}
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
