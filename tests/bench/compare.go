package main

import (
	"time"

	"github.com/opensandbox/operator/tests/bench/results"
)

// comparedColumns are those of the values that compared returns.
var comparedColumns = []results.Column{
	{Name: "pairs"}, {Name: "operator", Unit: "ms", Digits: 1}, {Name: "floor", Unit: "ms", Digits: 1},
	{Name: "ratio", Digits: 2}, {Name: "25 %", Digits: 2}, {Name: "75 %", Digits: 2},
}

// compared returns how many pairs there are, the median of each side, the median of the ratios of
// the pairs, and between what their middle half lies.
func compared(operator, floor []time.Duration) []float64 {
	ratios := make([]float64, len(operator))
	for i := range operator {
		ratios[i] = float64(operator[i]) / float64(floor[i])
	}
	return []float64{
		float64(len(operator)), ms(quantile(operator, 0.5)), ms(quantile(floor, 0.5)),
		quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75),
	}
}
