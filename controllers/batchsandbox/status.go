package batchsandbox

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// view is what a reconcile saw of a BatchSandbox.
type view struct {
	// total, allocated, ready, restarted and ended as in the status.
	total, allocated, ready, restarted, ended int32
	// failing is the first sandbox that cannot become ready, waiting the first that has no
	// node yet; both are empty where there is none.
	failing, waiting trouble
	// gang says what a gang that is not delivered yet waits for, or is empty; delivered says
	// that as many as spec.minAvailable are.
	gang      string
	delivered bool
	// blocked says why sandboxes are missing; nil when none is.
	blocked *blocked
	// deleting says what the deletion waits for; nil when nothing is deleted or waited for.
	deleting *blocked
	// tasks is what is known of the tasks; nil without any.
	tasks *shardtask.Report
}

// trouble is the kubelet's or the scheduler's reason why a sandbox is not ready.
type trouble struct{ sandbox, problem string }

func (t *trouble) message() string { return "sandbox " + t.sandbox + ": " + t.problem }

// reason is the first word of the problem, where that can be the reason of a condition.
func (t *trouble) reason() string {
	word, _, _ := strings.Cut(t.problem, ":")
	if !reasonWord.MatchString(word) {
		return v1alpha1.ReasonPodsFailing
	}
	return word
}

// reasonWord is what the API server takes as the reason of a condition, and is one word.
var reasonWord = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,127}$`)

// troubled notes the problem of a sandbox. Of several the first by name is shown, whatever
// the order that they are looked at in: another one each time would be a write each time.
func (v *view) troubled(sandbox, problem string) {
	shown := &v.failing
	if podfeed.WaitsForNode(problem) {
		shown = &v.waiting
	}
	if shown.sandbox == "" || sandbox < shown.sandbox {
		*shown = trouble{sandbox, problem}
	}
}

// blocked is a reason of a condition.
type blocked struct{ reason, message string }

// waitsFor says what a deletion waits for.
func waitsFor(stopping int, err error) *blocked {
	switch {
	case err != nil:
		return &blocked{v1alpha1.ReasonRecycling, "waiting until the sandboxes are recycled: " + err.Error()}
	case stopping > 0:
		return &blocked{v1alpha1.ReasonStoppingTasks, fmt.Sprintf("waiting until %d sandboxes have stopped their tasks or are restarted", stopping)}
	}
	return &blocked{v1alpha1.ReasonRecycling, "waiting until the sandboxes are recycled"}
}

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
func statusOf(bs *v1alpha1.BatchSandbox, v *view, now time.Time) v1alpha1.BatchSandboxStatus {
	status := *bs.Status.DeepCopy()
	status.ObservedGeneration = bs.Generation
	status.Replicas, status.Allocated, status.Ready, status.Restarted, status.Ended = v.total, v.allocated, v.ready, v.restarted, v.ended
	status.MinAvailableReached = bs.Spec.MinAvailable > 0 && (v.delivered || bs.Delivered())
	if bs.Spec.PoolRef == "" {
		status.Selector = labels.Set{v1alpha1.LabelBatchSandboxName: bs.Name}.String()
	}
	status.ExpireTime, status.Expires = expireTime(bs), "<none>"
	if at := status.ExpireTime; at != nil {
		status.Expires = at.UTC().Format(time.RFC3339)
	}
	ready := readyCondition(bs, v)
	switch {
	case ready.Status == metav1.ConditionTrue:
		status.Phase = v1alpha1.PhaseSucceed
	case ready.Reason == v1alpha1.ReasonPodsFailing || ready.Reason == v1alpha1.ReasonContainersEnded || ready.Reason == v1alpha1.ReasonTemplateInvalid:
		status.Phase = v1alpha1.PhaseFailed
	default:
		status.Phase = v1alpha1.PhasePending
	}
	conditions := append([]metav1.Condition{ready}, troubles(v)...)
	if v.tasks != nil {
		conditions = append(conditions, setTasks(&status, v.tasks))
	}
	for _, kind := range passing {
		if !slices.ContainsFunc(conditions, func(c metav1.Condition) bool { return c.Type == kind }) {
			meta.RemoveStatusCondition(&status.Conditions, kind)
		}
	}
	for _, c := range conditions {
		c.Message = cutMessage(c.Message)
		c.ObservedGeneration, c.LastTransitionTime = bs.Generation, metav1.NewTime(now.Truncate(time.Second))
		meta.SetStatusCondition(&status.Conditions, c)
	}
	return status
}

// passing are the conditions of troubles that are taken away when the trouble is over.
var passing = []string{
	v1alpha1.ConditionPoolAllocationPending, v1alpha1.ConditionPodFailed,
	v1alpha1.ConditionSandboxesRestarted, v1alpha1.ConditionSandboxesEnded,
	// OpenSandbox's controller has left these, and nobody brings them up to date any more.
	"Progressing", "Paused", "PauseFailed", "ResumeFailed", "InvalidShardPatch", "PoolRefUpdateRejected",
}

// poolReasons are those for which sandboxes wait for their pool.
var poolReasons = map[string]bool{
	v1alpha1.ReasonPoolNotFound: true, v1alpha1.ReasonPoolExhausted: true, v1alpha1.ReasonPoolDeleting: true,
	v1alpha1.ReasonPoolTooSmall: true,
}

// troubles are the conditions that are there, and True, only while there is something to tell.
func troubles(v *view) []metav1.Condition {
	var conditions []metav1.Condition
	add := func(kind, reason, message string) {
		conditions = append(conditions, metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: message})
	}
	if v.blocked != nil && poolReasons[v.blocked.reason] {
		add(v1alpha1.ConditionPoolAllocationPending, v.blocked.reason, v.blocked.message)
	}
	if v.failing.sandbox != "" {
		add(v1alpha1.ConditionPodFailed, v.failing.reason(), v.failing.message())
	}
	if v.restarted > 0 {
		add(v1alpha1.ConditionSandboxesRestarted, v1alpha1.ReasonContainersRestarted,
			fmt.Sprintf("containers restarted in %d sandboxes after they were handed over: what ran there is gone", v.restarted))
	}
	if v.ended > 0 {
		add(v1alpha1.ConditionSandboxesEnded, v1alpha1.ReasonContainersEnded, fmt.Sprintf(endedMessage, v.ended))
	}
	if v.deleting != nil {
		add(v1alpha1.ConditionDeleting, v.deleting.reason, v.deleting.message)
	}
	return conditions
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
func setTasks(status *v1alpha1.BatchSandboxStatus, tasks *shardtask.Report) metav1.Condition {
	status.TaskPending, status.TaskRunning, status.TaskUnknown = tasks.Pending, tasks.Running, tasks.Unknown
	status.TaskSucceed, status.TaskFailed = int32(len(tasks.Succeeded)), int32(len(tasks.Failed)) //nolint:gosec // bounded by spec.replicas
	status.SucceededShards, status.FailedShards = shardtask.FormatShards(tasks.Succeeded), shardtask.FormatShards(tasks.Failed)
	status.FailedTasks = tasks.FailedTasks
	c := metav1.Condition{Type: v1alpha1.ConditionTasksCompleted, Status: metav1.ConditionFalse, Reason: tasks.Reason, Message: tasks.Message}
	if tasks.Completed {
		c.Status = metav1.ConditionTrue
	}
	return c
}

const endedMessage = "the containers of %d sandboxes finished by themselves and are not restarted; each keeps its shard until it is released"

func readyCondition(bs *v1alpha1.BatchSandbox, v *view) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	desired := bs.DesiredReplicas() - int32(len(shardtask.Released(bs))) //nolint:gosec // bounded by spec.replicas
	switch {
	case v.blocked != nil:
		c.Reason, c.Message = v.blocked.reason, v.blocked.message
	case v.ready == desired && v.total == desired:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, v1alpha1.ReasonAllReady, "all sandboxes are ready"
	case v.failing.sandbox != "":
		c.Reason, c.Message = v1alpha1.ReasonPodsFailing, v.failing.message()
	case v.ended > 0:
		c.Reason, c.Message = v1alpha1.ReasonContainersEnded, fmt.Sprintf(endedMessage, v.ended)
	case v.waiting.sandbox != "":
		c.Reason, c.Message = v1alpha1.ReasonPodsUnschedulable, v.waiting.message()
	case v.gang != "":
		c.Reason, c.Message = v1alpha1.ReasonPodsNotReady, v.gang
	case v.total != desired:
		c.Reason, c.Message = v1alpha1.ReasonScaling, fmt.Sprintf("%d sandboxes exist and %d are asked for", v.total, desired)
	default:
		c.Reason, c.Message = v1alpha1.ReasonPodsNotReady, fmt.Sprintf("waiting until all %d sandboxes are ready", desired)
	}
	return c
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
