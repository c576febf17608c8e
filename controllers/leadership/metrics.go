package leadership

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var doubleAllocations = prometheus.NewCounter(prometheus.CounterOpts{
	Name: "opensandbox_double_allocations_total",
	Help: "Pods that were found in two allocations when the ledger was rebuilt.",
})

func init() { metrics.Registry.MustRegister(doubleAllocations) }
