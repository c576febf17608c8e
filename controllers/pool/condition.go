package pool

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// maxMessage bounds a message of the kubelet or the API server in a condition.
const maxMessage = 1024

// counts are the numbers of a pool's live pods.
type counts struct {
	total, allocated, available, updated int
}

func count(pods []ledger.PodState, uid types.UID, revision string) counts {
	var c counts
	for i := range pods {
		pod := &pods[i]
		if !pod.Live() {
			continue
		}
		idle := pod.State == ledger.Idle
		if idle && (pod.Evict || pod.PoolUID != uid) {
			continue
		}
		c.total++
		if pod.Revision == revision {
			c.updated++
		}
		switch {
		case pod.State == ledger.Creating:
		case !idle:
			c.allocated++
		case pod.Ready:
			c.available++
		}
	}
	return c
}

// facts are what a status is made of.
type facts struct {
	name       string
	generation int64
	revision   string
	capacity   v1alpha1.CapacitySpec
	counts     counts
	snapshot   *ledger.Snapshot
	failure    *failure
	overdue    int // of the pods that are starting
	deleting   bool
	// verdict is nil where pods are not to be restarted in place, or none was seen yet.
	verdict *podtemplate.Verdict
	now     metav1.Time
}

// nextStatus returns the status that the facts ask for, going on from the last one.
func nextStatus(last *v1alpha1.PoolStatus, f *facts) *v1alpha1.PoolStatus {
	next := last.DeepCopy()
	next.ObservedGeneration = f.generation
	next.Revision = f.revision
	next.Selector = labels.Set{v1alpha1.LabelPoolName: f.name}.String()
	next.Total = int32(f.counts.total)         //nolint:gosec // bounded by poolMax
	next.Allocated = int32(f.counts.allocated) //nolint:gosec // bounded by the total
	next.Available = int32(f.counts.available) //nolint:gosec // bounded by the total
	next.Updated = int32(f.counts.updated)     //nolint:gosec // bounded by the total
	f.set(next, f.ready(meta.FindStatusCondition(last.Conditions, v1alpha1.ConditionReady)))
	if f.deleting {
		f.set(next, f.deletion())
	}
	if f.verdict != nil {
		f.set(next, f.restartable())
	} else {
		meta.RemoveStatusCondition(&next.Conditions, v1alpha1.ConditionRestartable)
	}
	return next
}

func (f *facts) set(status *v1alpha1.PoolStatus, c metav1.Condition) {
	c.ObservedGeneration, c.LastTransitionTime = f.generation, f.now
	meta.SetStatusCondition(&status.Conditions, c)
}

// ready is the condition Ready.
func (f *facts) ready(last *metav1.Condition) metav1.Condition {
	condition := func(status metav1.ConditionStatus, reason, message string) metav1.Condition {
		return metav1.Condition{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message}
	}
	problem, failing, restarted := f.problem()
	filled := f.counts.available >= int(f.capacity.BufferMin)
	atMax := f.counts.total >= int(f.capacity.PoolMax)
	idle := f.counts.total - f.counts.allocated
	state := f.numbers()
	switch {
	case f.deleting:
		return condition(metav1.ConditionFalse, v1alpha1.ReasonPoolDeleting, "the pool is being deleted and hands out nothing more")
	case f.failure != nil:
		return condition(metav1.ConditionFalse, f.failure.reason, cut(f.failure.message))
	case filled && failing > 0:
		return condition(metav1.ConditionTrue, v1alpha1.ReasonBufferFilled, state+"; "+problem)
	case filled:
		return condition(metav1.ConditionTrue, v1alpha1.ReasonBufferFilled, state)
	case failing > 0:
		return condition(metav1.ConditionFalse, v1alpha1.ReasonPodsCannotStart, problem)
	case restarted && last != nil && last.Reason == v1alpha1.ReasonPodsCannotStart:
		// Between two crashes of a crash loop nothing is better.
		return *last
	case atMax && f.counts.available == idle:
		return condition(metav1.ConditionTrue, v1alpha1.ReasonAtPoolMax,
			fmt.Sprintf("%s; poolMax %d allows no more", state, f.capacity.PoolMax))
	}
	return condition(metav1.ConditionFalse, v1alpha1.ReasonFilling, state)
}

// numbers tells how full the buffer is.
func (f *facts) numbers() string {
	pending := f.counts.total - f.counts.allocated - f.counts.available
	s := fmt.Sprintf("%d idle pods are ready, bufferMin is %d", f.counts.available, f.capacity.BufferMin)
	if pending > 0 {
		s += fmt.Sprintf("; %d are starting", pending)
	}
	if f.overdue > 0 {
		s += fmt.Sprintf("; %d of them take too long and are replaced", f.overdue)
	}
	if f.snapshot.Demand > 0 {
		s += fmt.Sprintf("; %d sandboxes are waited for", f.snapshot.Demand)
	}
	return s
}

// problem describes the idle pods that cannot become ready, with the reason of the
// oldest, and says whether there are others that have restarted and are not ready.
func (f *facts) problem() (message string, failing int, restarted bool) {
	var oldest *ledger.PodState
	for i := range f.snapshot.Pods {
		pod := &f.snapshot.Pods[i]
		switch {
		case pod.State != ledger.Idle || pod.Terminating || pod.Deleted || pod.Evict || usable(pod):
		case pod.Problem == "":
			restarted = restarted || pod.Restarts > 0
		default:
			failing++
			if oldest == nil || oldestFirst(pod, oldest) < 0 {
				oldest = pod
			}
		}
	}
	if oldest == nil {
		return "", 0, restarted
	}
	idle := f.counts.total - f.counts.allocated
	return fmt.Sprintf("%d of %d idle pods cannot start; %s: %s",
		failing, max(idle, failing), oldest.Name, cut(oldest.Problem)), failing, restarted
}

// deletion is the condition Deleting.
func (f *facts) deletion() metav1.Condition {
	held := 0
	for i := range f.snapshot.Pods {
		switch f.snapshot.Pods[i].State {
		case ledger.Held, ledger.Releasing, ledger.SetAside:
			held++
		}
	}
	message := fmt.Sprintf("waiting for %d sandboxes of %d BatchSandboxes to come back", held, f.snapshot.Holders)
	if names := f.unreadable(); names != "" {
		message += "; the allocation of " + names + " cannot be read"
	}
	return metav1.Condition{
		Type: v1alpha1.ConditionDeleting, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonWaitingForSandboxes, Message: message,
	}
}

func (f *facts) unreadable() string {
	var names []string
	for _, name := range f.snapshot.Unreadable {
		names = append(names, name.Name)
	}
	slices.Sort(names)
	return cut(strings.Join(names, ", "))
}

func cut(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "..."
}
