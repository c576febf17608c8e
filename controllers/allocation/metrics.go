package allocation

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// DoubleAllocations counts the pods that were found in two allocations: by the start of
// a leader, and by the batchsandbox reconciler.
var DoubleAllocations = prometheus.NewCounter(prometheus.CounterOpts{
	Name: "opensandbox_double_allocations_total",
	Help: "Pods that were found in two allocations: at the rebuild of the ledger, or because a BatchSandbox was changed by someone else.",
})

func init() { metrics.Registry.MustRegister(DoubleAllocations) }
