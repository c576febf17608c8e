package pool

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// A pool's status follows a change at once while changes are rare: statusBurst writes may
// follow each other, and one more for each statusInterval without any. A pool that changes all
// the time is written once an interval.
const (
	statusInterval = time.Second
	statusBurst    = 5
)

// writeStatus writes the status if it differs from what was written last; what is too early
// is due later.
func (p *pass) writeStatus(ctx context.Context, snapshot *ledger.Snapshot, overdue int) error {
	numbers := count(snapshot.Pods, p.pool.UID, p.state.revision)
	showMetrics(p.key, &numbers, snapshot.Demand)
	shown := p.state.shownStatus(p.pool)
	next := nextStatus(shown, &facts{
		name:       p.pool.Name,
		generation: p.pool.Generation,
		revision:   p.state.revision,
		capacity:   p.pool.Spec.CapacitySpec,
		counts:     numbers,
		snapshot:   snapshot,
		overdue:    overdue,
		failure:    p.state.failure,
		deleting:   p.deleting(),
		verdict:    p.state.verdict,
		now:        metav1.NewTime(p.now).Rfc3339Copy(),
	})
	if equality.Semantic.DeepEqual(shown, next) {
		return nil
	}
	if early := p.state.statusEarly(p.Clock.Now()); early > 0 {
		p.due(early)
		return nil
	}
	p.state.noteStatus(p.Clock.Now()) // also one that meets another write, and is sent again
	changed := p.pool.DeepCopy()
	changed.Status = *next.DeepCopy()
	lock := client.MergeFromWithOptions(p.pool, client.MergeFromWithOptimisticLock{})
	if err := p.Client.Status().Patch(ctx, changed, lock); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	p.state.newest.Note(changed)
	p.state.sent, p.state.answered = next, changed.Status.DeepCopy()
	p.recordChange(shown, next)
	return nil
}

// recordChange records an event when the pool gets into trouble, out of it, or
// begins to wait for its deletion.
func (p *pass) recordChange(before, after *v1alpha1.PoolStatus) {
	if r := meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionReady); r != nil {
		was := ""
		if old := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionReady); old != nil {
			was = old.Reason
		}
		switch {
		case was == r.Reason:
		case isTrouble(r.Reason):
			p.event(corev1.EventTypeWarning, r, "Fill")
		case isTrouble(was) && r.Status == metav1.ConditionTrue:
			p.event(corev1.EventTypeNormal, r, "Fill")
		}
	}
	d := meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionDeleting)
	if d != nil && meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionDeleting) == nil {
		p.event(corev1.EventTypeNormal, d, "Delete")
	}
}

func (p *pass) event(kind string, c *metav1.Condition, action string) {
	p.Recorder.Eventf(p.pool, nil, kind, c.Reason, action, "%s", c.Message)
}

// isTrouble says that somebody has to do something about the reason.
func isTrouble(reason string) bool {
	switch reason {
	case v1alpha1.ReasonPodsCannotStart, v1alpha1.ReasonTemplateInvalid, v1alpha1.ReasonCreateFailed:
		return true
	}
	return false
}
