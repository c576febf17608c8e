// Package charts draws what the benchmarks have measured, as SVG.
package charts

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Chart is a diagram of curves over one axis.
type Chart struct {
	// Title says what is shown, X and Y what the axes are and their units.
	Title, X, Y string
	Curves      []Curve
	// LogX and LogY draw an axis by powers of ten: for what grows without bound.
	LogX, LogY bool
}

// Curve is one line of a Chart, by its points.
type Curve struct {
	Name   string
	Points [][2]float64
}

const (
	width  = 7 * vg.Inch
	height = 4 * vg.Inch
)

// mostTicks find room below the chart.
const mostTicks = 10

// ticks are where something was measured.
func (c *Chart) ticks() plot.ConstantTicks {
	at := map[float64]plot.Tick{}
	for _, curve := range c.Curves {
		for _, point := range curve.Points {
			at[point[0]] = plot.Tick{Value: point[0], Label: strconv.FormatFloat(point[0], 'f', -1, 64)}
		}
	}
	return slices.SortedFunc(maps.Values(at), func(a, b plot.Tick) int { return cmp.Compare(a.Value, b.Value) })
}

// logTicks labels 1, 2 and 5 of every power of ten.
func logTicks(least, most float64) []plot.Tick {
	ticks := plot.LogTicks{Prec: -1}.Ticks(least, most)
	for i := range ticks {
		text := strconv.FormatFloat(ticks[i].Value, 'f', -1, 32) // 0.2, not 0.20000000000000001
		if first := strings.TrimLeft(text, "0."); first[0] == '2' || first[0] == '5' {
			ticks[i].Label = text
		}
	}
	return ticks
}

// SVG draws the chart. On a logarithmic axis every value must be above 0. The same chart is always
// the same file.
func (c *Chart) SVG() ([]byte, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.Title, c.X, c.Y
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for axis, log := range map[*plot.Axis]bool{&p.X: c.LogX, &p.Y: c.LogY} {
		if log {
			axis.Scale, axis.Tick.Marker = plot.LogScale{}, plot.TickerFunc(logTicks)
		}
	}
	if ticks := c.ticks(); len(ticks) <= mostTicks {
		p.X.Tick.Marker = ticks
	}
	for i, curve := range c.Curves {
		points := make(plotter.XYs, len(curve.Points))
		for j, point := range curve.Points {
			for axis, log := range []bool{c.LogX, c.LogY} {
				if log && point[axis] <= 0 {
					return nil, fmt.Errorf("chart %q: curve %q: %v is not above 0", c.Title, curve.Name, point[axis])
				}
			}
			points[j].X, points[j].Y = point[0], point[1]
		}
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, fmt.Errorf("chart %q: curve %q: %w", c.Title, curve.Name, err)
		}
		line.Color, line.Dashes = plotutil.Color(i), plotutil.Dashes(i/2)
		marks.Color, marks.Shape = plotutil.Color(i), plotutil.Shape(i)
		p.Add(line, marks)
		p.Legend.Add(curve.Name, line, marks)
	}
	canvas := vgsvg.New(width, height)
	p.Draw(draw.New(canvas))
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, fmt.Errorf("chart %q: %w", c.Title, err)
	}
	return out.Bytes(), nil
}
