package batchsandbox

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
)

func batch(replicas int32, options ...func(*v1alpha1.BatchSandbox)) *v1alpha1.BatchSandbox {
	bs := &v1alpha1.BatchSandbox{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "batch", UID: "batch-uid", Generation: 7, CreationTimestamp: metav1.NewTime(now)},
		Spec:       v1alpha1.BatchSandboxSpec{Replicas: ptr.To(replicas), PoolRef: "pool"},
	}
	for _, option := range options {
		option(bs)
	}
	return bs
}

func TestStatusOf(t *testing.T) {
	exhausted := &blocked{v1alpha1.ReasonPoolExhausted, "waiting for 1 of 2 sandboxes"}
	tests := map[string]struct {
		view    *view
		phase   v1alpha1.Phase
		ready   metav1.ConditionStatus
		reason  string
		message string
	}{
		"all exist and are ready": {
			&view{total: 2, allocated: 2, ready: 2}, v1alpha1.PhaseSucceed, metav1.ConditionTrue, v1alpha1.ReasonAllReady, "all sandboxes are ready",
		},
		"all exist and one is not ready": {
			&view{total: 2, allocated: 2, ready: 1}, v1alpha1.PhasePending, metav1.ConditionFalse, v1alpha1.ReasonPodsNotReady, "waiting until all 2 sandboxes are ready",
		},
		"one is missing": {
			&view{total: 1, ready: 1}, v1alpha1.PhasePending, metav1.ConditionFalse, v1alpha1.ReasonScaling, "1 sandboxes exist and 2 are asked for",
		},
		"one too many is not complete": {
			&view{total: 3, ready: 2}, v1alpha1.PhasePending, metav1.ConditionFalse, v1alpha1.ReasonScaling, "3 sandboxes exist and 2 are asked for",
		},
		"one cannot become ready": {
			&view{total: 2, ready: 1, failing: trouble{"b", "ErrImagePull: no such image"}}, v1alpha1.PhaseFailed, metav1.ConditionFalse,
			v1alpha1.ReasonPodsFailing, "sandbox b: ErrImagePull: no such image",
		},
		"one has no node yet": {
			&view{total: 2, ready: 1, waiting: trouble{"b", "Unschedulable: 0/3 nodes are available"}}, v1alpha1.PhasePending, metav1.ConditionFalse,
			v1alpha1.ReasonPodsUnschedulable, "sandbox b: Unschedulable: 0/3 nodes are available",
		},
		"one has no node yet and another cannot become ready": {
			&view{total: 2, failing: trouble{"b", "ErrImagePull"}, waiting: trouble{"a", "Unschedulable"}}, v1alpha1.PhaseFailed, metav1.ConditionFalse,
			v1alpha1.ReasonPodsFailing, "sandbox b: ErrImagePull",
		},
		"the pool has no more": {
			&view{total: 1, ready: 1, blocked: exhausted}, v1alpha1.PhasePending, metav1.ConditionFalse, exhausted.reason, exhausted.message,
		},
		"the template is refused": {
			&view{blocked: &blocked{v1alpha1.ReasonTemplateInvalid, "image: Required value"}}, v1alpha1.PhaseFailed, metav1.ConditionFalse,
			v1alpha1.ReasonTemplateInvalid, "image: Required value",
		},
		"what stands in the way goes before the numbers": {
			&view{total: 2, ready: 2, blocked: &blocked{v1alpha1.ReasonAllocationUnreadable, "cannot be read"}}, v1alpha1.PhasePending, metav1.ConditionFalse,
			v1alpha1.ReasonAllocationUnreadable, "cannot be read",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			status := statusOf(batch(2), test.view, now)
			c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
			require.NotNil(t, c)
			require.Equal(t, test.ready, c.Status)
			require.Equal(t, test.reason, c.Reason)
			require.Equal(t, test.message, c.Message)
			require.Equal(t, int64(7), c.ObservedGeneration)
			require.Equal(t, test.phase, status.Phase)
			require.Equal(t, int64(7), status.ObservedGeneration)
			require.Equal(t, test.view.total, status.Replicas)
			require.Equal(t, test.view.allocated, status.Allocated)
			require.Equal(t, test.view.ready, status.Ready)
			require.Nil(t, meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionSandboxesRestarted))
			require.Nil(t, meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionDeleting))
		})
	}
}

func TestABatchOfNoneIsReady(t *testing.T) {
	status := statusOf(batch(0), &view{}, now)
	require.True(t, meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionReady))
	require.Equal(t, v1alpha1.PhaseSucceed, status.Phase)
}

func TestRestartsAfterTheHandOverAreShownAndWithdrawn(t *testing.T) {
	bs := batch(2)
	bs.Status = statusOf(bs, &view{total: 2, ready: 2, restarted: 1}, now)
	require.Equal(t, int32(1), bs.Status.Restarted)
	c := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionSandboxesRestarted)
	require.NotNil(t, c)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Equal(t, v1alpha1.ReasonContainersRestarted, c.Reason)
	require.Contains(t, c.Message, "1 sandboxes")
	require.True(t, meta.IsStatusConditionTrue(bs.Status.Conditions, v1alpha1.ConditionReady), "the sandbox is ready again all the same")

	bs.Status = statusOf(bs, &view{total: 2, ready: 2}, now)
	require.Zero(t, bs.Status.Restarted)
	require.Nil(t, meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionSandboxesRestarted))
}

func TestConditionsForOpenSandboxAreShownAndWithdrawn(t *testing.T) {
	bs := batch(2)
	bs.Status = statusOf(bs, &view{blocked: &blocked{v1alpha1.ReasonPoolExhausted, "waiting"}, failing: trouble{"b", "ErrImagePull: no such image"}}, now)
	waits := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionPoolAllocationPending)
	require.NotNil(t, waits)
	require.Equal(t, []string{string(metav1.ConditionTrue), v1alpha1.ReasonPoolExhausted, "waiting"}, []string{string(waits.Status), waits.Reason, waits.Message})
	fails := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionPodFailed)
	require.NotNil(t, fails)
	require.Equal(t, []string{string(metav1.ConditionTrue), "ErrImagePull", "sandbox b: ErrImagePull: no such image"}, []string{string(fails.Status), fails.Reason, fails.Message})

	bs.Status = statusOf(bs, &view{blocked: &blocked{v1alpha1.ReasonAllocationUnreadable, "cannot be read"}, waiting: trouble{"b", "Unschedulable"}}, now)
	require.Nil(t, meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionPoolAllocationPending), "it does not wait for the pool")
	require.Nil(t, meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionPodFailed), "it may still get a node")
}

// The API server would refuse the whole status for a reason that it does not take.
func TestTheReasonOfAFailingPodIsAWord(t *testing.T) {
	for problem, want := range map[string]string{
		"ErrImagePull: no such image": "ErrImagePull",
		"PodFailed":                   "PodFailed",
		"two words: and more":         v1alpha1.ReasonPodsFailing,
		"":                            v1alpha1.ReasonPodsFailing,
		strings.Repeat("a", 1100):     v1alpha1.ReasonPodsFailing,
	} {
		require.Equal(t, want, (&trouble{"b", problem}).reason(), problem)
	}
}

func TestOfSeveralTroublesTheSameIsShownEachTime(t *testing.T) {
	problems := map[string]string{"a": "ErrImagePull", "b": "CrashLoopBackOff", "c": "Unschedulable: no node", "d": "SchedulingGated"}
	for range 20 {
		v := &view{}
		for sandbox, problem := range problems {
			v.troubled(sandbox, problem)
		}
		require.Equal(t, trouble{"a", "ErrImagePull"}, v.failing)
		require.Equal(t, trouble{"c", "Unschedulable: no node"}, v.waiting)
	}
}

func TestADeletionThatWaitsSaysWhatFor(t *testing.T) {
	status := statusOf(batch(1), &view{deleting: waitsFor(0, errors.New("deleting pod ns/a: forbidden"))}, now)
	c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionDeleting)
	require.NotNil(t, c)
	require.Equal(t, v1alpha1.ReasonRecycling, c.Reason)
	require.Contains(t, c.Message, "deleting pod ns/a: forbidden")
}

func TestALongMessageDoesNotFreezeTheStatus(t *testing.T) {
	v := &view{tasks: &shardtask.Report{Reason: v1alpha1.ReasonTaskTemplateInvalid, Message: strings.Repeat("\u00e9", 40000)}}
	bs := batch(1)
	bs.Spec.TaskTemplate = &v1alpha1.TaskTemplate{}
	status := statusOf(bs, v, now)
	message := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionTasksCompleted).Message
	require.LessOrEqual(t, len(message), maxMessage)
	require.True(t, utf8.ValidString(message))
	require.True(t, strings.HasSuffix(message, "..."))
}

func TestTasksAreShown(t *testing.T) {
	bs := batch(4)
	bs.Spec.TaskTemplate = &v1alpha1.TaskTemplate{}
	bs.Spec.TaskResourcePolicyWhenCompleted = v1alpha1.TaskResourceRelease
	v := &view{total: 4, ready: 4, tasks: &shardtask.Report{Running: 1, Succeeded: []int32{0, 1}, Failed: []int32{3}, Reason: "TasksRunning"}}
	bs.Status = statusOf(bs, v, now)
	require.Equal(t, "0-1", bs.Status.SucceededShards)
	require.Equal(t, "3", bs.Status.FailedShards)
	require.False(t, tasksCompleted(&bs.Status))
	require.Equal(t, v1alpha1.PhaseSucceed, bs.Status.Phase)
	// Those that have ended are given back; the one that is left is all that is asked for.
	v.total, v.ready = 1, 1
	bs.Status = statusOf(bs, v, now)
	require.Equal(t, v1alpha1.PhaseSucceed, bs.Status.Phase)
}

func TestTheSameViewLaterIsTheSameStatus(t *testing.T) {
	bs := batch(2)
	v := &view{total: 1, allocated: 1, ready: 1, restarted: 1, blocked: &blocked{v1alpha1.ReasonPoolExhausted, "waiting"}, deleting: waitsFor(1, nil)}
	bs.Status = statusOf(bs, v, now)
	again := statusOf(bs, v, now.Add(time.Hour))
	require.True(t, equality.Semantic.DeepEqual(bs.Status, again), "got %+v, want %+v", again, bs.Status)
	v.blocked = nil
	require.False(t, equality.Semantic.DeepEqual(bs.Status, statusOf(bs, v, now)), "another view is another status")
}

func TestExpireTime(t *testing.T) {
	at := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(d)} }
	tests := map[string]struct {
		expireTime *metav1.Time
		ttl        *int64
		want       *metav1.Time
	}{
		"neither: never":                 {},
		"an absolute time":               {expireTime: at(time.Hour), want: at(time.Hour)},
		"relative to the creation":       {ttl: ptr.To(int64(60)), want: at(time.Minute)},
		"a ttl of 0 ends it at once":     {ttl: ptr.To(int64(0)), want: at(0)},
		"both: the ttl where it is less": {expireTime: at(time.Hour), ttl: ptr.To(int64(60)), want: at(time.Minute)},
		"both: the time where it is":     {expireTime: at(time.Second), ttl: ptr.To(int64(60)), want: at(time.Second)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bs := batch(1)
			bs.Spec.ExpireTime, bs.Spec.TTLSeconds = test.expireTime, test.ttl
			got := expireTime(bs)
			require.Equal(t, test.want == nil, got == nil)
			if got != nil {
				require.True(t, test.want.Time.Equal(got.Time), "got %s, want %s", got, test.want)
			}
		})
	}
}

func TestWriteInterval(t *testing.T) {
	require.Equal(t, topUpInterval, writeInterval(0))
	require.Equal(t, topUpInterval, writeInterval(25_000))
	require.Equal(t, 2*time.Second, writeInterval(200_000), "100 KB/s")
}

func TestSoonest(t *testing.T) {
	require.Equal(t, time.Second, soonest(time.Second, 2*time.Second))
	require.Equal(t, time.Second, soonest(2*time.Second, time.Second))
	require.Equal(t, time.Second, soonest(0, time.Second), "0 stands for none")
	require.Equal(t, time.Second, soonest(time.Second, 0), "0 stands for none")
	require.Zero(t, soonest(0, 0))
}

func TestSomeOf(t *testing.T) {
	require.Equal(t, "a, b, c, d, e", someOf([]string{"a", "b", "c", "d", "e"}))
	require.Equal(t, "a, b, c, d, e, ...", someOf([]string{"a", "b", "c", "d", "e", "f"}))
}

func TestAMemoBelongsToOneObject(t *testing.T) {
	var mem memory
	key := client.ObjectKeyFromObject(batch(1))
	first := mem.of(key, "first")
	require.Same(t, first, mem.of(key, "first"))
	require.NotSame(t, first, mem.of(key, "second"), "an object made anew under the same name")
	second := mem.of(key, "second")
	mem.forget(key)
	require.NotSame(t, second, mem.of(key, "second"))
}
