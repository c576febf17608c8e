package pool

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

func status(last *v1alpha1.PoolStatus, snapshot ledger.Snapshot, bounds *v1alpha1.PoolSpec, change ...func(*facts)) *v1alpha1.PoolStatus {
	f := &facts{
		generation: 7, revision: currentRev, capacity: bounds.CapacitySpec,
		counts: count(snapshot.Pods, poolUID, currentRev), snapshot: &snapshot, now: metav1.NewTime(now),
	}
	for _, fn := range change {
		fn(f)
	}
	return nextStatus(last, f)
}

func snapshotOf(demand int, groups ...[]ledger.PodState) ledger.Snapshot {
	s := ledger.Snapshot{Demand: demand}
	for _, group := range groups {
		s.Pods = append(s.Pods, group...)
	}
	return s
}

func TestCounts(t *testing.T) {
	s := snapshotOf(0,
		pods(3), pods(2, outdated), pods(1, notReady), pods(1, creating),
		pods(2, in(ledger.Held), notReady), pods(1, in(ledger.Releasing)), pods(1, in(ledger.SetAside)),
		// None of these counts.
		pods(1, terminating), pods(1, finished), pods(1, evicted), pods(1, in(ledger.Retiring)),
		pods(1, in(ledger.Held), terminating),
		pods(1, func(p *ledger.PodState) { p.PoolUID = "other" }),
	)
	assert.Equal(t, counts{total: 11, allocated: 4, available: 5, updated: 9}, count(s.Pods, poolUID, currentRev))
}

func TestReadyCondition(t *testing.T) {
	cases := []struct {
		name     string
		spec     *v1alpha1.PoolSpec
		snapshot ledger.Snapshot
		change   func(*facts)
		last     string

		status  metav1.ConditionStatus
		reason  string
		message string
	}{
		{
			name: "a full buffer", spec: capacity(2, 4, 0, 10), snapshot: snapshotOf(0, pods(3)),
			status: metav1.ConditionTrue, reason: v1alpha1.ReasonBufferFilled, message: "3 idle pods are ready, bufferMin is 2",
		},
		{
			name: "a buffer that fills", spec: capacity(2, 4, 0, 10), snapshot: snapshotOf(5, pods(1), pods(2, notReady), pods(1, creating)),
			status: metav1.ConditionFalse, reason: v1alpha1.ReasonFilling,
			message: "1 idle pods are ready, bufferMin is 2; 3 are starting; 5 sandboxes are waited for",
		},
		{
			name: "pods that take too long are told", spec: capacity(2, 4, 0, 10), snapshot: snapshotOf(0, pods(1), pods(3, notReady)),
			change: func(f *facts) { f.overdue = 2 },
			status: metav1.ConditionFalse, reason: v1alpha1.ReasonFilling,
			message: "1 idle pods are ready, bufferMin is 2; 3 are starting; 2 of them take too long and are replaced",
		},
		{
			name: "a pool that may not grow", spec: capacity(2, 4, 0, 4), snapshot: snapshotOf(9, pods(1), pods(3, in(ledger.Held))),
			status: metav1.ConditionTrue, reason: v1alpha1.ReasonAtPoolMax,
			message: "1 idle pods are ready, bufferMin is 2; 9 sandboxes are waited for; poolMax 4 allows no more",
		},
		{
			name: "pods that cannot start are told with the kubelet's reason of the oldest",
			spec: capacity(2, 4, 0, 10),
			snapshot: snapshotOf(0, pods(1, called("young"), failing("CrashLoopBackOff: x"), aged(time.Second)),
				pods(1, called("old"), failing("ErrImagePull: no such image"), aged(time.Minute)), pods(1)),
			status: metav1.ConditionFalse, reason: v1alpha1.ReasonPodsCannotStart,
			message: "2 of 3 idle pods cannot start; old0: ErrImagePull: no such image",
		},
		{
			name: "with a full buffer they are told beside it", spec: capacity(1, 4, 0, 10),
			snapshot: snapshotOf(0, pods(1), pods(1, called("bad"), failing("ErrImagePull: x"))),
			status:   metav1.ConditionTrue, reason: v1alpha1.ReasonBufferFilled,
			message: "1 idle pods are ready, bufferMin is 1; 1 are starting; 1 of 2 idle pods cannot start; bad0: ErrImagePull: x",
		},
		{
			name: "between two crashes of a crash loop the condition stays", spec: capacity(1, 4, 0, 10),
			snapshot: snapshotOf(0, pods(1, notReady, func(p *ledger.PodState) { p.Restarts = 2 })), last: v1alpha1.ReasonPodsCannotStart,
			status: metav1.ConditionFalse, reason: v1alpha1.ReasonPodsCannotStart, message: "as it was",
		},
		{
			name: "a refused create is told in the API server's words", spec: capacity(1, 4, 0, 10), snapshot: snapshotOf(0, pods(2)),
			change: func(f *facts) {
				f.failure = &failure{v1alpha1.ReasonTemplateInvalid, "spec.containers: Required value"}
			},
			status: metav1.ConditionFalse, reason: v1alpha1.ReasonTemplateInvalid, message: "spec.containers: Required value",
		},
		{
			name: "a pool that is deleted", spec: capacity(1, 4, 0, 10), snapshot: snapshotOf(0, pods(2)),
			change: func(f *facts) { f.deleting = true },
			status: metav1.ConditionFalse, reason: v1alpha1.ReasonPoolDeleting, message: "the pool is being deleted and hands out nothing more",
		},
		{
			name: "a very long message is cut", spec: capacity(1, 4, 0, 10), snapshot: snapshotOf(0),
			change: func(f *facts) { f.failure = &failure{v1alpha1.ReasonCreateFailed, strings.Repeat("ö", 5000)} },
			status: metav1.ConditionFalse, reason: v1alpha1.ReasonCreateFailed, message: strings.Repeat("ö", maxMessage/2) + "...",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			last := &v1alpha1.PoolStatus{}
			if c.last != "" {
				last.Conditions = []metav1.Condition{{
					Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: c.last, Message: "as it was",
				}}
			}
			if c.change == nil {
				c.change = func(*facts) {}
			}
			next := status(last, c.snapshot, c.spec, c.change)
			got := meta.FindStatusCondition(next.Conditions, v1alpha1.ConditionReady)
			require.NotNil(t, got)
			assert.Equal(t, c.status, got.Status)
			assert.Equal(t, c.reason, got.Reason)
			assert.Equal(t, c.message, got.Message)
			assert.Equal(t, int64(7), got.ObservedGeneration)
		})
	}
}

func TestDeletingCondition(t *testing.T) {
	s := snapshotOf(0, pods(2, in(ledger.Held)), pods(1, in(ledger.Releasing)), pods(1, in(ledger.Held), terminating))
	s.Holders = 2
	s.Unreadable = []types.NamespacedName{{Namespace: "ns", Name: "b"}, {Namespace: "ns", Name: "a"}}
	next := status(&v1alpha1.PoolStatus{}, s, capacity(1, 1, 0, 1), func(f *facts) { f.deleting = true })
	got := meta.FindStatusCondition(next.Conditions, v1alpha1.ConditionDeleting)
	require.NotNil(t, got)
	assert.Equal(t, v1alpha1.ReasonWaitingForSandboxes, got.Reason)
	assert.Equal(t, "waiting for 4 sandboxes of 2 BatchSandboxes to come back; the allocation of a, b cannot be read", got.Message)
}

func TestStatusThatSaysNothingNewIsEqual(t *testing.T) {
	s := snapshotOf(3, pods(2), pods(1, failing("ErrImagePull: x")))
	first := status(&v1alpha1.PoolStatus{}, s, capacity(5, 5, 0, 9))
	second := status(first, s, capacity(5, 5, 0, 9), func(f *facts) { f.now = metav1.NewTime(now.Add(time.Hour)) })
	assert.Equal(t, first, second)
}
