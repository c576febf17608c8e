package batchsandbox

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/clock"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// firstWait is how long a new BatchSandbox waits for pods before its status says so: where they
// come within that time, a status and two events are spared just when the API server is busy.
const firstWait = time.Second

// statusMemo is what is remembered of the status of one BatchSandbox.
type statusMemo struct {
	// sent is the last status that was written and answered what the API server
	// made of it: they differ where the installed CRD lacks a field.
	sent, answered *v1alpha1.BatchSandboxStatus
	written        time.Time
	// waiting is when a status that only says that pods are waited for was first to be written.
	waiting time.Time
	// refusedAt is the resourceVersion at which a status was refused because the object
	// would have become too large, and announced the status that events have told instead.
	refusedAt string
	announced *v1alpha1.BatchSandboxStatus
}

// statuses writes the status, once per change and not faster than the size of the object
// allows.
type statuses struct {
	writer *writer
	tasks  Tasks
	events announcer
	clock  clock.PassiveClock
}

// statusWrite is what became of a status that was sent. Nothing was where status is nil.
type statusWrite struct {
	status  *v1alpha1.BatchSandboxStatus
	version string // that it was sent for
	outcome outcome
}

// write patches the status if it changed. Where only numbers move, it waits so long
// between two writes that a big batch does not flood the API server, and returns when to
// come back.
func (s *statuses) write(ctx context.Context, o *object, v *view) (statusWrite, time.Duration, error) {
	now := s.clock.Now()
	if o.bs.Spec.TaskTemplate != nil {
		report := s.tasks.Report(o.bs)
		v.tasks = &report
	}
	want, is := statusOf(o.bs, v, now), o.bs.Status
	if o.status.shows(&want, &is) || o.status.refusedAt == o.bs.ResourceVersion && !reasonsDiffer(o.status.announced, &want) {
		return statusWrite{}, 0, nil
	}
	urgent := reasonOf(&want) != reasonOf(&is) || want.MinAvailableReached != is.MinAvailableReached || tasksCompleted(&want) && !tasksCompleted(&is)
	size := sizeOf(o.bs) + len(want.SucceededShards) + len(want.FailedShards)
	if wait := o.status.written.Add(writeInterval(size)).Sub(now); wait > 0 && !urgent {
		return statusWrite{}, wait, nil
	}
	if wait := o.status.untilTold(&want, &is, now); wait > 0 {
		return statusWrite{}, wait, nil
	}
	p, err := statusPatch(o.bs, &want)
	if err != nil {
		return statusWrite{}, 0, err
	}
	before := o.bs
	result, err := s.writer.send(ctx, o, p)
	sent := statusWrite{status: &want, version: p.version, outcome: result}
	switch result {
	case done:
		o.status = statusMemo{sent: &want, answered: o.bs.Status.DeepCopy(), written: now}
		s.events.statusChanged(before, &is, &want)
		return sent, 0, nil
	case overtaken:
		return sent, s.writer.lookAgain(ctx, o), nil
	case tooLarge: // events say what the status cannot
		if reasonsDiffer(o.status.announced, &want) {
			s.events.statusChanged(before, cmp.Or(o.status.announced, &is), &want)
		}
		o.status.refusedAt, o.status.announced = p.version, &want
		return sent, 0, nil
	}
	return sent, 0, fmt.Errorf("writing the status: %w", err)
}

// shows says that the wanted status stands in the object, as far as the installed CRD
// knows its fields.
func (m *statusMemo) shows(want, is *v1alpha1.BatchSandboxStatus) bool {
	return equality.Semantic.DeepEqual(want, is) || m.sent != nil &&
		equality.Semantic.DeepEqual(want, m.sent) && equality.Semantic.DeepEqual(is, m.answered)
}

// untilTold returns how long to wait before a first status says that pods are waited for.
func (m *statusMemo) untilTold(want, is *v1alpha1.BatchSandboxStatus, now time.Time) time.Duration {
	if len(is.Conditions) > 0 || want.Allocated > 0 || reasonOf(want) != v1alpha1.ReasonPoolExhausted {
		return 0
	}
	if m.waiting.IsZero() {
		m.waiting = now
	}
	return m.waiting.Add(firstWait).Sub(now)
}

// reasonsDiffer says that users were not told this yet; nil is nothing.
func reasonsDiffer(told, now *v1alpha1.BatchSandboxStatus) bool {
	return told == nil || reasonOf(told) != reasonOf(now) ||
		conditionReason(told, v1alpha1.ConditionTasksCompleted) != conditionReason(now, v1alpha1.ConditionTasksCompleted)
}
