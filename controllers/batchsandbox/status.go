package batchsandbox

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/taskreport"
)

// view is what a reconcile saw of a BatchSandbox.
type view struct {
	// total, allocated, ready and restarted as in the status.
	total, allocated, ready, restarted int32
	// problem is the reason why one of the sandboxes cannot become ready, or empty.
	problem string
	// blocked says why sandboxes are missing; nil when none is.
	blocked *blocked
	// deleting says what the deletion waits for; nil when nothing is deleted or waited for.
	deleting *blocked
	// tasks is what is known of the tasks; nil without any.
	tasks *taskreport.Report
}

// blocked is a reason of a condition.
type blocked struct{ reason, message string }

// expireTime is the earlier of the two ways to say when the BatchSandbox ends, or nil.
func expireTime(bs *v1alpha1.BatchSandbox) *metav1.Time {
	at := bs.Spec.ExpireTime
	if ttl := bs.Spec.TTLSeconds; ttl != nil {
		end := metav1.NewTime(bs.CreationTimestamp.Add(time.Duration(*ttl) * time.Second))
		if at == nil || end.Before(at) {
			at = &end
		}
	}
	return at
}

// statusOf returns the status that follows from what was seen.
func statusOf(bs *v1alpha1.BatchSandbox, v view, now time.Time) v1alpha1.BatchSandboxStatus {
	status := *bs.Status.DeepCopy()
	status.ObservedGeneration = bs.Generation
	status.Replicas, status.Allocated, status.Ready, status.Restarted = v.total, v.allocated, v.ready, v.restarted
	status.ExpireTime, status.Expires = expireTime(bs), "<none>"
	if at := status.ExpireTime; at != nil {
		status.Expires = at.UTC().Format(time.RFC3339)
	}
	ready := readyCondition(bs, v)
	switch {
	case ready.Status == metav1.ConditionTrue:
		status.Phase = v1alpha1.PhaseSucceed
	case ready.Reason == v1alpha1.ReasonPodsFailing || ready.Reason == v1alpha1.ReasonTemplateInvalid:
		status.Phase = v1alpha1.PhaseFailed
	default:
		status.Phase = v1alpha1.PhasePending
	}
	conditions := []metav1.Condition{ready}
	if v.restarted > 0 {
		conditions = append(conditions, metav1.Condition{
			Type: v1alpha1.ConditionSandboxesRestarted, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonContainersRestarted,
			Message: fmt.Sprintf("containers restarted in %d sandboxes after they were handed over: what ran there is gone", v.restarted),
		})
	} else {
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionSandboxesRestarted)
	}
	if v.deleting != nil {
		conditions = append(conditions, metav1.Condition{
			Type: v1alpha1.ConditionDeleting, Status: metav1.ConditionTrue, Reason: v.deleting.reason, Message: v.deleting.message,
		})
	}
	if v.tasks != nil {
		conditions = append(conditions, setTasks(&status, v.tasks))
	}
	for _, c := range conditions {
		c.Message = cutMessage(c.Message)
		c.ObservedGeneration, c.LastTransitionTime = bs.Generation, metav1.NewTime(now.Truncate(time.Second))
		meta.SetStatusCondition(&status.Conditions, c)
	}
	return status
}

// maxMessage of a condition, in bytes: an event has no more room. The API server
// refuses a status with a message of more than 32768, and some hold what others wrote.
const maxMessage = 1024

func cutMessage(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage-len("...")], "") + "..."
}

// setTasks takes the report of the tasks into the status and returns its condition.
func setTasks(status *v1alpha1.BatchSandboxStatus, tasks *taskreport.Report) metav1.Condition {
	status.TaskPending, status.TaskRunning, status.TaskUnknown = tasks.Pending, tasks.Running, tasks.Unknown
	status.TaskSucceed, status.TaskFailed = int32(len(tasks.Succeeded)), int32(len(tasks.Failed)) //nolint:gosec // bounded by spec.replicas
	status.SucceededShards, status.FailedShards = taskreport.FormatShards(tasks.Succeeded), taskreport.FormatShards(tasks.Failed)
	status.FailedTasks = tasks.FailedTasks
	c := metav1.Condition{Type: v1alpha1.ConditionTasksCompleted, Status: metav1.ConditionFalse, Reason: tasks.Reason, Message: tasks.Message}
	if tasks.Completed {
		c.Status = metav1.ConditionTrue
	}
	return c
}

func readyCondition(bs *v1alpha1.BatchSandbox, v view) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	desired := bs.DesiredReplicas() - int32(len(taskreport.Released(bs))) //nolint:gosec // bounded by spec.replicas
	switch {
	case v.blocked != nil:
		c.Reason, c.Message = v.blocked.reason, v.blocked.message
	case v.ready == desired && v.total == desired:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, v1alpha1.ReasonAllReady, "all sandboxes are ready"
	case v.problem != "":
		c.Reason, c.Message = v1alpha1.ReasonPodsFailing, v.problem
	case v.total != desired:
		c.Reason, c.Message = v1alpha1.ReasonScaling, fmt.Sprintf("%d sandboxes exist and %d are asked for", v.total, desired)
	default:
		c.Reason, c.Message = v1alpha1.ReasonPodsNotReady, fmt.Sprintf("waiting until all %d sandboxes are ready", desired)
	}
	return c
}

// writeStatus patches the status if it changed. Where only numbers move, it waits
// so long between two writes that a big batch does not flood the API server, and
// returns when to come back.
func (r *Reconciler) writeStatus(ctx context.Context, s *scope, v view) (time.Duration, error) {
	now := r.Clock.Now()
	if r.Tasks != nil && s.bs.Spec.TaskTemplate != nil {
		report := r.Tasks.Report(s.bs)
		v.tasks = &report
	}
	want := statusOf(s.bs, v, now)
	is := s.bs.Status
	if equality.Semantic.DeepEqual(want, is) || s.memo.sent != nil &&
		equality.Semantic.DeepEqual(want, *s.memo.sent) && equality.Semantic.DeepEqual(is, *s.memo.answered) {
		return 0, nil
	}
	if s.memo.full == s.bs.ResourceVersion && !reasonsDiffer(s.memo.told, &want) {
		return 0, nil // it would be refused again
	}
	urgent := reasonOf(&want) != reasonOf(&is) || tasksCompleted(&want) && !tasksCompleted(&is)
	size := sizeOf(s.bs) + len(want.SucceededShards) + len(want.FailedShards)
	if wait := s.memo.statusWritten.Add(writeInterval(size)).Sub(now); wait > 0 && !urgent {
		return wait, nil
	}
	answer := s.bs.DeepCopy()
	answer.Status = want
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := r.Client.Status().Patch(ctx, answer, client.MergeFromWithOptions(s.bs, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsConflict(err):
		return r.lookAgain(ctx, s), nil
	case apiwrite.TooLarge(err): // the object is full: events say what its status cannot
		if reasonsDiffer(s.memo.told, &want) {
			r.eventsOf(s.bs, cmp.Or(s.memo.told, &is), &want)
		}
		s.memo.full, s.memo.told = s.bs.ResourceVersion, &want
		return 0, nil
	}
	r.fence(s, answer, err)
	if err != nil {
		return 0, client.IgnoreNotFound(fmt.Errorf("writing the status: %w", err))
	}
	s.memo.told = nil
	s.memo.latest, s.memo.sent, s.memo.answered, s.memo.statusWritten = answer, &want, answer.Status.DeepCopy(), now
	r.eventsOf(s.bs, &is, &want)
	return 0, nil
}

// fence takes in what a status write, whose answer or error is given, means to an
// allocation write of unknown outcome that has the same precondition.
func (r *Reconciler) fence(s *scope, status *v1alpha1.BatchSandbox, err error) {
	p := s.memo.pending
	switch {
	case p == nil || p.resourceVersion != s.bs.ResourceVersion:
	case err != nil:
		p.fence = status.Status.DeepCopy()
	case status.ResourceVersion != p.resourceVersion:
		r.rollback(s, p) // it was not done until now, and can no longer be
	}
}

// lookAgain takes in what somebody else has made of the object, which the cache may show
// late, and returns when to come back.
func (r *Reconciler) lookAgain(ctx context.Context, s *scope) time.Duration {
	live := &v1alpha1.BatchSandbox{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(s.bs), live); err == nil && live.UID == s.bs.UID {
		s.memo.latest = live
	}
	return conflictPause
}

// reasonsDiffer says that users were not told this yet; nil is nothing.
func reasonsDiffer(told, now *v1alpha1.BatchSandboxStatus) bool {
	return told == nil || reasonOf(told) != reasonOf(now) ||
		conditionReason(told, v1alpha1.ConditionTasksCompleted) != conditionReason(now, v1alpha1.ConditionTasksCompleted)
}

func reasonOf(status *v1alpha1.BatchSandboxStatus) string {
	return conditionReason(status, v1alpha1.ConditionReady)
}

func conditionReason(status *v1alpha1.BatchSandboxStatus, kind string) string {
	if c := meta.FindStatusCondition(status.Conditions, kind); c != nil {
		return c.Reason
	}
	return ""
}

func tasksCompleted(status *v1alpha1.BatchSandboxStatus) bool {
	return meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionTasksCompleted)
}

// normalReasons are those of states that pass by themselves.
var normalReasons = map[string]bool{
	v1alpha1.ReasonAllReady: true, v1alpha1.ReasonScaling: true, v1alpha1.ReasonPodsNotReady: true, v1alpha1.ReasonPoolExhausted: true,
}

// taskTroubles are the reasons of TasksCompleted of which an event tells.
var taskTroubles = map[string]bool{
	v1alpha1.ReasonTaskTemplateInvalid: true, v1alpha1.ReasonExecutorMissing: true, v1alpha1.ReasonExecutorUnsupported: true,
	v1alpha1.ReasonExecutorUnreachable: true, v1alpha1.ReasonExecutorCapabilities: true, v1alpha1.ReasonTasksFailed: true,
}

// eventsOf tells what changed, once per change. A batch that is complete at once
// says nothing: an event is a write too.
func (r *Reconciler) eventsOf(bs *v1alpha1.BatchSandbox, old, now *v1alpha1.BatchSandboxStatus) {
	before, after := reasonOf(old), reasonOf(now)
	if before != after && (before != "" || after != v1alpha1.ReasonAllReady) {
		kind := corev1.EventTypeWarning
		if normalReasons[after] {
			kind = corev1.EventTypeNormal
		}
		r.event(bs, kind, after, "Reconcile", "%s", meta.FindStatusCondition(now.Conditions, v1alpha1.ConditionReady).Message)
	}
	before, after = conditionReason(old, v1alpha1.ConditionTasksCompleted), conditionReason(now, v1alpha1.ConditionTasksCompleted)
	if before != after && taskTroubles[after] {
		r.event(bs, corev1.EventTypeWarning, after, "RunTask", "%s", meta.FindStatusCondition(now.Conditions, v1alpha1.ConditionTasksCompleted).Message)
	}
	if now.Restarted > old.Restarted {
		r.event(bs, corev1.EventTypeWarning, v1alpha1.ConditionSandboxesRestarted, "Reconcile", "%s",
			meta.FindStatusCondition(now.Conditions, v1alpha1.ConditionSandboxesRestarted).Message)
	}
}
