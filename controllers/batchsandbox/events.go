package batchsandbox

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/events"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
)

// announcer records events, which tell users what happened to a BatchSandbox.
type announcer struct{ recorder events.EventRecorder }

func (e announcer) warn(bs *v1alpha1.BatchSandbox, reason, action, message string, args ...any) {
	e.recorder.Eventf(bs, nil, corev1.EventTypeWarning, reason, action, message, args...)
}

func (e announcer) expired(bs *v1alpha1.BatchSandbox, at time.Time) {
	e.recorder.Eventf(bs, nil, corev1.EventTypeNormal, v1alpha1.EventExpired, "Delete", "deleted because its time ended at %s", at.UTC().Format(time.RFC3339))
}

func (e announcer) lost(bs *v1alpha1.BatchSandbox, pods []string) {
	e.warn(bs, v1alpha1.EventSandboxLost, "Replace", "lost %d sandboxes (%s): each is replaced at its shard, and what ran there is gone", len(pods), someOf(pods))
}

func (e announcer) restored(bs *v1alpha1.BatchSandbox) {
	e.warn(bs, v1alpha1.EventAllocationRestored, "Restore", "annotation %s or %s was changed by someone else and is written back",
		v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationAllocRelease)
}

// doubleAllocation tells that the object names a pod whose holder, by the ledger, is
// another BatchSandbox, which keeps it.
func (e announcer) doubleAllocation(bs *v1alpha1.BatchSandbox, pod string) {
	allocation.DoubleAllocations.Inc()
	e.warn(bs, v1alpha1.EventDoubleAllocation, "Restore", "pod %s is held by another BatchSandbox: it is replaced here", pod)
}

// normalReasons are those of states that pass by themselves.
var normalReasons = map[string]bool{
	v1alpha1.ReasonAllReady: true, v1alpha1.ReasonScaling: true, v1alpha1.ReasonPodsNotReady: true, v1alpha1.ReasonPoolExhausted: true,
}

// taskTroubles are the reasons of TasksCompleted of which an event tells.
var taskTroubles = map[string]bool{
	v1alpha1.ReasonTaskTemplateInvalid: true, v1alpha1.ReasonExecutorMissing: true, v1alpha1.ReasonExecutorClock: true,
	v1alpha1.ReasonExecutorUnreachable: true, v1alpha1.ReasonTasksFailed: true,
	v1alpha1.ReasonValuesNotReadable: true, v1alpha1.ReasonValuesNotFound: true,
}

// statusChanged tells what changed, once per change. A batch that is complete at once, or after
// what passes by itself, says nothing: an event is a write too.
func (e announcer) statusChanged(bs *v1alpha1.BatchSandbox, old, now *v1alpha1.BatchSandboxStatus) {
	before, after := reasonOf(old), reasonOf(now)
	ready := after == v1alpha1.ReasonAllReady && (before == "" || normalReasons[before])
	if before != after && !ready && after != v1alpha1.ReasonContainersEnded {
		kind := corev1.EventTypeWarning
		if normalReasons[after] {
			kind = corev1.EventTypeNormal
		}
		e.recorder.Eventf(bs, nil, kind, after, "Reconcile", "%s", messageOf(now, v1alpha1.ConditionReady))
	}
	before, after = conditionReason(old, v1alpha1.ConditionTasksCompleted), conditionReason(now, v1alpha1.ConditionTasksCompleted)
	if before != after && taskTroubles[after] {
		e.warn(bs, after, "RunTask", "%s", messageOf(now, v1alpha1.ConditionTasksCompleted))
	}
	if now.Restarted > old.Restarted {
		e.warn(bs, v1alpha1.ConditionSandboxesRestarted, "Reconcile", "%s", messageOf(now, v1alpha1.ConditionSandboxesRestarted))
	}
	if now.Ended > old.Ended {
		e.warn(bs, v1alpha1.ConditionSandboxesEnded, "Reconcile", "%s", messageOf(now, v1alpha1.ConditionSandboxesEnded))
	}
}

func messageOf(status *v1alpha1.BatchSandboxStatus, kind string) string {
	if c := meta.FindStatusCondition(status.Conditions, kind); c != nil {
		return c.Message
	}
	return ""
}

func someOf(list []string) string {
	const most = 5
	if len(list) > most {
		return strings.Join(list[:most], ", ") + ", ..."
	}
	return strings.Join(list, ", ")
}
