package task

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/opensandbox/operator/controllers/shardtask"
)

// Results, as they stand in the label result. An executor's own words are no labels:
// a sandbox could make up any number of them.
const (
	resultOK        = "ok"
	resultFailed    = "failed"
	resultSucceeded = "succeeded"
)

var (
	dispatches = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "opensandbox_task_dispatches_total",
		Help: "Requests to task executors to start a task, by result: ok or failed. A task may take several.",
	}, []string{"result"})
	ends = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "opensandbox_tasks_ended_total",
		Help: "Tasks whose end this process has learnt of from their executor, by result: succeeded or failed.",
	}, []string{"result"})
	unanswered = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "opensandbox_tasks_unknown_total",
		Help: "Times that a task became unknown because its executor did not answer.",
	})
	stops = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "opensandbox_task_stops_total",
		Help: "Sandboxes whose tasks were stopped, by result: stopped, restarted (in place) or unstoppable.",
	}, []string{"result"})
)

var stopResults = map[shardtask.Stopping]string{
	shardtask.Stopped: "stopped", shardtask.Restarted: "restarted", shardtask.Unstoppable: "unstoppable",
}

func init() { metrics.Registry.MustRegister(dispatches, ends, unanswered, stops) }

func countDispatch(err error) {
	if err != nil {
		dispatches.WithLabelValues(resultFailed).Inc()
		return
	}
	dispatches.WithLabelValues(resultOK).Inc()
}

// countChange counts what a change of a record means.
func countChange(before, after *record) {
	if after.unknown && !before.unknown {
		unanswered.Inc()
	}
	if !after.ended() || before.ended() {
		return
	}
	if after.state == succeeded {
		ends.WithLabelValues(resultSucceeded).Inc()
	} else {
		ends.WithLabelValues(resultFailed).Inc()
	}
}
