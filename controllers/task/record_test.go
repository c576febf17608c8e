package task

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestAnExecutorsWordIsTakenIn(t *testing.T) {
	rec := record{pod: "a", podName: "pod-a", stale: true, unknown: true}
	rec.refuse("reason", "message")
	rec.learn(&executorapi.Task{State: executorapi.Running}, now)
	require.Equal(t, record{pod: "a", podName: "pod-a", state: running, answered: now}, rec)
	rec.learn(&executorapi.Task{State: executorapi.Failed, Reason: executorapi.ReasonSignaled, Signal: 9, ExitCode: ptr.To(int32(137)),
		Message: strings.Repeat("x", 300) + "\xff€"}, now)
	require.True(t, rec.ended())
	require.LessOrEqual(t, len(rec.failure.Message), 256)
	require.True(t, strings.HasSuffix(rec.failure.Message, "x€"), "the end of it, as whole characters")
	rec.failure.Message = ""
	require.Equal(t, v1alpha1.FailedTask{Sandbox: "pod-a", ExitCode: 137, Signal: 9, Reason: "Signaled"}, rec.failure)
}

func TestATaskIsUnknownAfterThirtySecondsOfSilence(t *testing.T) {
	rec := record{state: running, answered: now}
	rec.miss(now.Add(29*time.Second), true)
	require.False(t, rec.unknown)
	rec.miss(now.Add(30*time.Second), true)
	require.True(t, rec.unknown)
	rec.miss(now.Add(31*time.Second), false)
	require.True(t, rec.unknown, "without its executor the pod is not ready")
	rec.hear(now.Add(62 * time.Second))
	require.False(t, rec.unknown)

	rec = record{answered: now}
	rec.miss(now.Add(31*time.Second), false)
	require.False(t, rec.unknown, "a pod that is not ready need not take a task")
	rec.miss(now.Add(60*time.Second), true)
	require.False(t, rec.unknown, "its time begins anew")
	rec.miss(now.Add(61*time.Second), true)
	require.True(t, rec.unknown)
}

func TestARefusalIsAnAnswer(t *testing.T) {
	refusal := func(reason string) error {
		return &executorclient.Error{Status: 503, Problem: executorapi.Problem{Reason: reason, Detail: "because"}}
	}
	for reason, want := range map[string]state{
		executorapi.ProblemNoLauncher: pending, executorapi.ProblemAnotherTask: pending, executorapi.ProblemClock: pending,
		executorapi.ProblemResetting: pending, executorapi.ProblemInvalid: failed,
	} {
		rec := record{podName: "a"}
		require.True(t, rec.refused(refusal(reason), now), reason)
		require.Equal(t, want, rec.state, reason)
	}
	for _, err := range []error{refusal(""), errors.New("connection refused")} {
		rec := record{}
		require.False(t, rec.refused(err, now), "whoever answers so is no executor: %v", err)
	}
}

func TestWhyAnExecutorTakesNoTaskIsSaid(t *testing.T) {
	for problem, want := range map[string]string{
		executorapi.ProblemNoLauncher: v1alpha1.ReasonExecutorRefuses, executorapi.ProblemClock: v1alpha1.ReasonExecutorClock,
	} {
		rec := record{podName: "pod-a"}
		require.True(t, rec.refused(&executorclient.Error{Status: 503, Problem: executorapi.Problem{Reason: problem, Detail: "its own words"}}, now))
		r := report(map[int32]*record{0: &rec}, 1)
		require.Equal(t, int32(1), r.Pending, "that is no failure of the task")
		require.Equal(t, want, r.Reason)
		require.Contains(t, r.Message, "pod-a")
		require.Contains(t, r.Message, "its own words")
		rec.learn(&executorapi.Task{State: executorapi.Running}, now)
		require.Equal(t, v1alpha1.ReasonTasksRunning, report(map[int32]*record{0: &rec}, 1).Reason)
	}
}

func TestTheReportSumsUp(t *testing.T) {
	failure := v1alpha1.FailedTask{Sandbox: "p", Reason: "ExitCode", ExitCode: 1}
	records := map[int32]*record{
		0: {state: succeeded}, 1: {state: failed, failure: failure}, 2: {state: running}, 3: {state: running, unknown: true, podName: "q"},
		4: {missing: "has none", podName: "r"}, 5: {state: running, stopped: true}, 7: {state: succeeded, unknown: true}, 9: {state: succeeded},
	}
	r := report(records, 8)
	failure.Shard = 1
	require.Equal(t, shardtask.Report{
		Pending: 2, Running: 1, Unknown: 1, Succeeded: []int32{0, 7}, Failed: []int32{1}, FailedTasks: []v1alpha1.FailedTask{failure},
		Reason: v1alpha1.ReasonExecutorMissing, Message: r.Message,
	}, r)
	require.Contains(t, r.Message, "sandbox r of shard 4")
	records[6] = &record{invalid: "spec.shardTaskPatches[6]: wrong"}
	require.Equal(t, v1alpha1.ReasonTaskTemplateInvalid, report(records, 8).Reason)
	require.Equal(t, v1alpha1.ReasonTasksRunning, report(records, 3).Reason)
	require.Equal(t, v1alpha1.ReasonTasksFailed, report(records, 2).Reason)
	require.True(t, report(records, 2).Completed)
	require.Equal(t, v1alpha1.ReasonTasksSucceeded, report(records, 1).Reason)
	require.True(t, report(nil, 0).Completed)
}

func TestOnlyTenFailedTasksAreListed(t *testing.T) {
	records := map[int32]*record{}
	for shard := range int32(30) {
		records[shard] = &record{podName: "p"}
		records[shard].fail("ExitCode", "")
	}
	r := report(records, 30)
	require.Len(t, r.Failed, 30)
	require.Len(t, r.FailedTasks, v1alpha1.MaxFailedTasks)
	require.Equal(t, int32(9), r.FailedTasks[9].Shard)
}

func TestTheStatusIsTheSeed(t *testing.T) {
	bs := &v1alpha1.BatchSandbox{Status: v1alpha1.BatchSandboxStatus{SucceededShards: "0", FailedShards: "1-2",
		FailedTasks: []v1alpha1.FailedTask{{Sandbox: "p", Shard: 2, ExitCode: 5}, {Sandbox: "forged", Shard: 0}}}}
	records := seed(bs)
	require.Len(t, records, 3)
	require.Equal(t, succeeded, records[0].state)
	require.Equal(t, int32(5), records[2].failure.ExitCode)
	r := report(records, 3)
	require.Equal(t, []int32{1, 2}, r.Failed)
	require.Len(t, r.FailedTasks, 1)
}
