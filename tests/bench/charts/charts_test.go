package charts

import (
	"encoding/xml"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAChartIsSVGWithItsWords(t *testing.T) {
	c := Chart{Title: "Latency", X: "sandboxes a second", Y: "ms", LogY: true, Curves: []Curve{
		{"operator", [][2]float64{{10, 20}, {50, 400}}}, {"floor", [][2]float64{{10, 10}, {50, 30}}},
	}}
	svg, err := c.SVG()
	require.NoError(t, err)
	require.NoError(t, xml.Unmarshal(svg, new(any)))
	for _, words := range []string{"<svg", c.Title, c.X, "operator", "floor"} {
		require.Contains(t, string(svg), words)
	}
	again, err := c.SVG()
	require.NoError(t, err)
	require.Equal(t, svg, again, "the same numbers are the same file")

	for _, tick := range []string{">10<", ">50<", ">20<", ">200<"} {
		require.Contains(t, string(svg), tick, "measured at 10 and 50; 1, 2 and 5 on a logarithmic axis")
	}

	c.Curves[1].Points[0][1] = 0
	_, err = c.SVG()
	require.ErrorContains(t, err, `chart "Latency": curve "floor": 0 is not above 0`)
}
