package podfeed

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

func TestAPodThatFinishedByItselfIsNotOneThatTheClusterHasEnded(t *testing.T) {
	target := func(status corev1.ConditionStatus) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}, {Type: corev1.DisruptionTarget, Status: status}}
	}
	tests := map[string]struct {
		status              corev1.PodStatus
		finished, disrupted bool
	}{
		"it runs": {status: corev1.PodStatus{Phase: corev1.PodRunning}},
		"its containers have succeeded": {
			status: corev1.PodStatus{Phase: corev1.PodSucceeded}, finished: true},
		"a container has failed": {
			status: corev1.PodStatus{Phase: corev1.PodFailed}, finished: true},
		"it has run for as long as its template allows": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "DeadlineExceeded"}, finished: true},
		"it was to be preempted, was not, and finished later": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Conditions: target(corev1.ConditionFalse)}, finished: true},
		"it is about to be evicted and still runs": {
			status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: target(corev1.ConditionTrue)}},
		"the kubelet has evicted it": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"}, finished: true, disrupted: true},
		"its node was shut down": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Terminated"}, finished: true, disrupted: true},
		"its node is gone": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Conditions: target(corev1.ConditionTrue)}, finished: true, disrupted: true},
		"a kubelet that restarted has refused it": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "UnexpectedAdmissionError"}, finished: true, disrupted: true},
		"it handled the signal of its eviction and succeeded": {
			status: corev1.PodStatus{Phase: corev1.PodSucceeded, Conditions: target(corev1.ConditionTrue)}, finished: true, disrupted: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Status: test.status}
			facts := Facts(pod, "pool-uid")
			require.Equal(t, test.finished, facts.Finished, "finished")
			require.Equal(t, test.disrupted, facts.Disrupted, "disrupted")
			stripped, err := Strip(pod)
			require.NoError(t, err)
			require.Equal(t, facts, Facts(stripped.(*corev1.Pod), "pool-uid"), "what the cache keeps says the same")
		})
	}
}
