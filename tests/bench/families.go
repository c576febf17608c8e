package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// families are the metrics of a process by their names.
type families map[string]*dto.MetricFamily

func parseFamilies(text io.Reader) (families, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(text)
}

// readFamilies reads the metrics that are served at that address.
func readFamilies(ctx context.Context, url string) (f families, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, response.Status)
	}
	return parseFamilies(response.Body)
}

// each calls what is given with the labels and the value of each metric of the family.
func (f families) each(name string, visit func(labels map[string]string, value float64)) {
	for _, metric := range f[name].GetMetric() {
		labels := map[string]string{}
		for _, pair := range metric.GetLabel() {
			labels[pair.GetName()] = pair.GetValue()
		}
		// All but one are 0.
		visit(labels, metric.GetGauge().GetValue()+metric.GetCounter().GetValue()+metric.GetUntyped().GetValue())
	}
}

// sum returns the sum of the metrics of the family, and an error where there is none.
func (f families) sum(name string) (sum float64, err error) {
	if f[name] == nil {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	f.each(name, func(_ map[string]string, value float64) { sum += value })
	return sum, nil
}
