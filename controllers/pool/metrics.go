package pool

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/ledger"
)

// Results of a write, as they stand in the label result.
const (
	resultOK      = "ok"
	resultRefused = "refused"
	resultFailed  = "failed"
)

var (
	podsGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "opensandbox_pool_pods",
		Help: "Pods of a pool by state: allocated, available (idle and ready) or pending (idle and not ready).",
	}, []string{"namespace", "pool", "state"})
	demandGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "opensandbox_pool_demand",
		Help: "Sandboxes asked for from a pool and not yet served.",
	}, []string{"namespace", "pool"})
	creates = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "opensandbox_pool_pod_creates_total",
		Help: "Creates of pool pods by result: ok, refused (by the API server) or failed (otherwise).",
	}, []string{"result"})
	deletes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "opensandbox_pool_pod_deletes_total",
		Help: "Deletes of pool pods by the pool's own sizing, updates and replacements, by result: ok, refused (by the API server) or failed (otherwise). Those of recycling are not counted.",
	}, []string{"result"})
)

func init() { metrics.Registry.MustRegister(podsGauge, demandGauge, creates, deletes) }

func countCreate(err error) { creates.WithLabelValues(result(err)).Inc() }

func countDelete(err error) { deletes.WithLabelValues(result(err)).Inc() }

func result(err error) string {
	switch {
	case err == nil:
		return resultOK
	case apiwrite.Refused(err):
		return resultRefused
	}
	return resultFailed
}

func showMetrics(key ledger.Key, c *counts, demand int) {
	set := func(state string, n int) { podsGauge.WithLabelValues(key.Namespace, key.Name, state).Set(float64(n)) }
	set("allocated", c.allocated)
	set("available", c.available)
	set("pending", c.total-c.allocated-c.available)
	demandGauge.WithLabelValues(key.Namespace, key.Name).Set(float64(demand))
}

func dropMetrics(key ledger.Key) {
	labels := prometheus.Labels{"namespace": key.Namespace, "pool": key.Name}
	podsGauge.DeletePartialMatch(labels)
	demandGauge.DeletePartialMatch(labels)
}
