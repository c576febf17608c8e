package tasks

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/task"
)

type (
	pool  = v1alpha1.Pool
	batch = v1alpha1.BatchSandbox
)

// newPool makes a pool whose pods have an executor, hand-written or none.
func newPool(t *testing.T, ns string, size int32, change func(*pool)) *pool {
	t.Helper()
	p := &pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "task-example-pool"}, Spec: v1alpha1.PoolSpec{
		Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "sandbox-container", Image: "ubuntu", Env: []corev1.EnvVar{{Name: "A", Value: "1"}}}},
		}}},
		CapacitySpec: v1alpha1.CapacitySpec{BufferMin: size, BufferMax: size, PoolMax: 4 * size},
		TaskExecutor: v1alpha1.TaskExecutorSpec{Enabled: true},
	}}
	if change != nil {
		change(p)
	}
	require.NoError(t, api.Create(t.Context(), p))
	return p
}

func newBatch(t *testing.T, ns string, replicas int32, change func(*batch), command ...string) *batch {
	t.Helper()
	bs := &batch{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "task-batch-sandbox"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(replicas), PoolRef: "task-example-pool",
		TaskTemplate: &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: command}}},
	}}
	if change != nil {
		change(bs)
	}
	require.NoError(t, api.Create(t.Context(), bs))
	return bs
}

func patches(texts ...string) []v1alpha1.Patch {
	var list []v1alpha1.Patch
	for _, text := range texts {
		list = append(list, v1alpha1.Patch{RawExtension: runtime.RawExtension{Raw: []byte(text)}})
	}
	return list
}

func release(bs *batch) { bs.Spec.TaskResourcePolicyWhenCompleted = v1alpha1.TaskResourceRelease }

func completed(bs *batch) bool {
	return meta.IsStatusConditionTrue(bs.Status.Conditions, v1alpha1.ConditionTasksCompleted)
}

func runs(n int32) func(*batch) bool {
	return func(bs *batch) bool { return bs.Status.TaskRunning == n }
}

func reasonOf(bs *batch, kind string) string {
	if c := meta.FindStatusCondition(bs.Status.Conditions, kind); c != nil {
		return c.Reason
	}
	return ""
}

// held returns the pods of a pooled BatchSandbox by shard.
func held(t *testing.T, bs *batch) []*corev1.Pod {
	t.Helper()
	var status v1alpha1.AllocStatus
	require.NoError(t, json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationAllocStatus]), &status))
	var pods []*corev1.Pod
	for _, name := range status.Pods {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: bs.Namespace, Name: name}}
		require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		pods = append(pods, pod)
	}
	return pods
}

func hasEvent(t *testing.T, bs *batch, reason string) bool {
	t.Helper()
	var list eventsv1.EventList
	require.NoError(t, api.List(t.Context(), &list, client.InNamespace(bs.Namespace)))
	for _, e := range list.Items {
		if e.Reason == reason && e.Regarding.Name == bs.Name {
			return true
		}
	}
	return false
}

func TestEverySandboxRunsItsTask(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 3, nil)
	bs := newBatch(t, ns, 3, func(bs *batch) {
		bs.Spec.ShardTaskPatches = patches(`{"spec":{"process":{"command":["exit"],"args":["7"]}}}`, `{"spec":{"process":{"env":[{"name":"B","value":"2"}]}}}`)
	}, "true")
	until(t, bs, completed)
	require.Equal(t, int32(2), bs.Status.TaskSucceed)
	require.Equal(t, int32(1), bs.Status.TaskFailed)
	require.Equal(t, "1-2", bs.Status.SucceededShards)
	require.Equal(t, "0", bs.Status.FailedShards)
	pods := held(t, bs)
	require.Equal(t, []v1alpha1.FailedTask{{Sandbox: pods[0].Name, ExitCode: 7, Reason: "ExitCode", Message: "last words"}}, bs.Status.FailedTasks)
	require.Equal(t, v1alpha1.ReasonTasksFailed, reasonOf(bs, v1alpha1.ConditionTasksCompleted))
	require.Equal(t, v1alpha1.PhaseSucceed, bs.Status.Phase, "the sandboxes are kept")
	for _, request := range node.executor(pods[1].UID).requests {
		require.Equal(t, "B", request.Spec.Process.Env[0].Name)
		require.Equal(t, int32(1), request.Shard)
	}
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
	_, resets := node.executor(pods[1].UID).seen()
	require.Equal(t, 1, resets, "tasks are ended before the sandbox is given back")
}

func TestAHandWrittenExecutorRunsTasks(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, func(p *pool) {
		p.Spec.TaskExecutor.Enabled = false
		p.Spec.Template.Spec.Containers = append(p.Spec.Template.Spec.Containers, corev1.Container{Name: v1alpha1.ExecutorContainerName, Image: "executor"})
	})
	bs := newBatch(t, ns, 1, nil, "true")
	until(t, bs, completed)
}

func TestSandboxesFromATemplateRunTasks(t *testing.T) {
	ns := newNamespace(t)
	bs := newBatch(t, ns, 2, func(bs *batch) {
		bs.Spec.PoolRef = ""
		bs.Spec.Template = &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "ubuntu"}}}}}
	}, "wait")
	until(t, bs, runs(2))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: bs.Name + "-1"}}
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
	node.executor(pod.UID).finish(0)
	until(t, bs, func(bs *batch) bool { return bs.Status.SucceededShards == "1" && bs.Status.TaskRunning == 1 })
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
	_, resets := node.executor(pod.UID).seen()
	require.Equal(t, 1, resets)
	gone(t, pod)
}

func TestAReleasedShardKeepsItsResultAndGetsNoNewSandbox(t *testing.T) {
	ns := newNamespace(t)
	p := newPool(t, ns, 3, nil)
	bs := newBatch(t, ns, 3, func(bs *batch) {
		release(bs)
		bs.Spec.ShardTaskPatches = patches(`{"spec":{"process":{"command":["wait"]}}}`, `{"spec":{"process":{"command":["false"]}}}`)
	}, "true")
	until(t, bs, func(bs *batch) bool {
		return bs.Status.SucceededShards == "2" && bs.Status.FailedShards == "1" && bs.Status.Allocated == 1 && bs.Status.TaskRunning == 1
	})
	waiting := held(t, bs)
	require.Len(t, waiting, 1)

	op.kill()
	require.NoError(t, op.start())
	until(t, p, func(p *pool) bool { return p.Status.Allocated == 1 && p.Status.Available >= 3 })
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
	require.Equal(t, waiting[0].Name, held(t, bs)[0].Name)
	require.Len(t, held(t, bs), 1, "a released shard gets no new sandbox")
	node.executor(waiting[0].UID).finish(0)
	until(t, bs, func(bs *batch) bool { return completed(bs) && bs.Status.Allocated == 0 })
	require.Equal(t, "0,2", bs.Status.SucceededShards)
	require.Equal(t, "1", bs.Status.FailedShards)
	require.Equal(t, int32(0), bs.Status.Replicas)
	require.Equal(t, v1alpha1.PhaseSucceed, bs.Status.Phase)
	starts, _ := node.executor(waiting[0].UID).seen()
	require.Equal(t, 1, starts, "the task ran once")
	until(t, bs, func(bs *batch) bool {
		return len(bs.Finalizers) == 0 && bs.Annotations[v1alpha1.AnnotationAllocRelease] == ""
	})
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
}

func TestAPoolWithoutExecutorIsACondition(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, func(p *pool) { p.Spec.TaskExecutor.Enabled = false })
	bs := newBatch(t, ns, 1, nil, "true")
	until(t, bs, func(bs *batch) bool {
		return reasonOf(bs, v1alpha1.ConditionTasksCompleted) == v1alpha1.ReasonExecutorMissing && bs.Status.TaskPending == 1
	})
	require.Eventually(t, func() bool { return hasEvent(t, bs, v1alpha1.ReasonExecutorMissing) }, patience, poll)
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
}

func TestATaskThatCannotBeIsACondition(t *testing.T) {
	for patch, field := range map[string]string{
		`{"spec":{"process":{"comand":["x"]}}}`: "comand",
		`{"spec":{"process":{"command":[]}}}`:   "process.command",
		`{"spec":{"process":{"command":1}}}`:    "command",
	} {
		t.Run(field, func(t *testing.T) {
			ns := newNamespace(t)
			newPool(t, ns, 2, nil)
			bs := newBatch(t, ns, 2, func(bs *batch) { bs.Spec.ShardTaskPatches = patches(patch) }, "true")
			until(t, bs, func(bs *batch) bool {
				return bs.Status.SucceededShards == "1" && reasonOf(bs, v1alpha1.ConditionTasksCompleted) == v1alpha1.ReasonTaskTemplateInvalid
			})
			c := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionTasksCompleted)
			require.Contains(t, c.Message, "spec.shardTaskPatches[0]")
			require.Contains(t, c.Message, field)
			require.Equal(t, int32(1), bs.Status.TaskPending)
		})
	}
}

func TestMorePatchesThanSandboxesAreRefused(t *testing.T) {
	bs := &batch{ObjectMeta: metav1.ObjectMeta{Namespace: newNamespace(t), Name: "many"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(1)), PoolRef: "any",
		TaskTemplate:     &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"true"}}}},
		ShardTaskPatches: patches(`{}`, `{}`),
	}}
	require.ErrorContains(t, api.Create(t.Context(), bs), "spec.shardTaskPatches must not be longer than spec.replicas")
}

func TestATaskRunsAgainWhereItsSandboxWasLost(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 2, nil)
	bs := newBatch(t, ns, 2, nil, "wait")
	until(t, bs, runs(2))
	first := held(t, bs)
	node.executor(first[0].UID).finish(0)
	until(t, bs, func(bs *batch) bool { return bs.Status.SucceededShards == "0" })
	require.NoError(t, api.Delete(t.Context(), first[0]))
	until(t, bs, func(bs *batch) bool { return runs(2)(bs) && bs.Status.SucceededShards == "" })
	second := held(t, bs)
	require.NotEqual(t, first[0].Name, second[0].Name)
	require.Equal(t, first[1].Name, second[1].Name)
	require.Eventually(t, func() bool { return hasEvent(t, bs, "TaskRunsAgain") }, patience, poll)
	starts, _ := node.executor(first[1].UID).seen()
	require.Equal(t, 1, starts)
}

func TestADeletionStopsTasksAndASandboxThatCannotBeReachedIsDeleted(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 2, func(p *pool) {
		p.Spec.RecycleStrategy.Type = v1alpha1.RecycleNoop
		p.Spec.CapacitySpec = v1alpha1.CapacitySpec{PoolMin: 2, PoolMax: 2, BufferMax: 2}
	})
	bs := newBatch(t, ns, 2, nil, "wait")
	until(t, bs, runs(2))
	pods := held(t, bs)
	node.executor(pods[1].UID).close()
	require.NoError(t, api.Delete(t.Context(), bs))
	until(t, bs, func(bs *batch) bool {
		return reasonOf(bs, v1alpha1.ConditionDeleting) == v1alpha1.ReasonStoppingTasks && bs.Status.TaskRunning == 1
	})
	gone(t, bs)
	gone(t, pods[1])
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pods[0]), pods[0]), "the other one is handed on")
	require.Nil(t, pods[0].DeletionTimestamp)
	_, resets := node.executor(pods[0].UID).seen()
	require.Equal(t, 1, resets)
}

func TestATaskIsUnknownWhileItsExecutorDoesNotAnswer(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	newPool(t, ns, 1, nil)
	bs := newBatch(t, ns, 1, nil, "wait")
	until(t, bs, runs(1))
	x := node.executor(held(t, bs)[0].UID)
	x.close()
	cut := time.Now()
	until(t, bs, func(bs *batch) bool {
		return bs.Status.TaskUnknown == 1 && reasonOf(bs, v1alpha1.ConditionTasksCompleted) == v1alpha1.ReasonExecutorUnreachable
	})
	require.Greater(t, time.Since(cut), 10*time.Second)
	x.finish(0)
	x.listen()
	until(t, bs, completed)
	require.Equal(t, int32(0), bs.Status.TaskUnknown)
	require.Equal(t, "0", bs.Status.SucceededShards)
}

func TestNoTaskRunsTwiceAndNoResultIsLostWhenTheOperatorIsKilled(t *testing.T) {
	const n = 100
	ns := newNamespace(t)
	p := newPool(t, ns, n, nil)
	until(t, p, func(p *pool) bool { return p.Status.Available == n })
	bs := newBatch(t, ns, n, nil, "wait")
	until(t, bs, runs(n))
	pods := held(t, bs)
	for _, pod := range pods[:n/4] {
		node.executor(pod.UID).finish(0)
	}
	until(t, bs, func(bs *batch) bool { return bs.Status.TaskSucceed == n/4 })
	op.kill()
	for _, pod := range pods[n/4 : n/2] {
		node.executor(pod.UID).finish(3)
	}
	require.NoError(t, op.start())
	until(t, bs, func(bs *batch) bool { return bs.Status.TaskFailed == n/4 && bs.Status.TaskRunning == n/2 })
	require.Equal(t, int32(n/4), bs.Status.TaskSucceed)
	for _, pod := range pods[n/2:] {
		node.executor(pod.UID).finish(0)
	}
	until(t, bs, completed)
	require.Equal(t, fmt.Sprintf("0-%d,%d-%d", n/4-1, n/2, n-1), bs.Status.SucceededShards)
	require.Equal(t, fmt.Sprintf("%d-%d", n/4, n/2-1), bs.Status.FailedShards)
	require.Len(t, bs.Status.FailedTasks, v1alpha1.MaxFailedTasks)
	for i, pod := range pods {
		starts, _ := node.executor(pod.UID).seen()
		require.Equal(t, 1, starts, "shard %d", i)
	}
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
}

func TestScalingDownStopsTheTasksOfTheHighestShards(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 2, nil)
	bs := newBatch(t, ns, 2, nil, "wait")
	until(t, bs, runs(2))
	pods := held(t, bs)
	before := client.MergeFrom(bs.DeepCopy())
	bs.Spec.Replicas = ptr.To(int32(1))
	require.NoError(t, api.Patch(t.Context(), bs, before))
	gone(t, pods[1])
	until(t, bs, func(bs *batch) bool {
		return runs(1)(bs) && !strings.Contains(bs.Annotations[v1alpha1.AnnotationAllocRelease], pods[1].Name)
	})
	_, resets := node.executor(pods[1].UID).seen()
	require.Equal(t, 1, resets)
	_, resets = node.executor(pods[0].UID).seen()
	require.Zero(t, resets)
}

func TestAClockThatIsOffIsACondition(t *testing.T) {
	ns := newNamespace(t)
	p := newPool(t, ns, 1, nil)
	until(t, p, func(p *pool) bool { return p.Status.Available == 1 })
	var pods corev1.PodList
	require.NoError(t, api.List(t.Context(), &pods, client.InNamespace(ns)))
	x := node.executor(pods.Items[0].UID)
	x.mu.Lock()
	x.clockOff = true
	x.mu.Unlock()
	bs := newBatch(t, ns, 1, nil, "true")
	until(t, bs, func(bs *batch) bool {
		return reasonOf(bs, v1alpha1.ConditionTasksCompleted) == v1alpha1.ReasonExecutorClock && bs.Status.TaskPending == 1
	})
}

func TestASandboxIsRestartedInPlaceAndHandedOutAgain(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, func(p *pool) {
		p.Spec.TaskExecutor.Enabled = false
		p.Spec.RecycleStrategy.Type = v1alpha1.RecycleRestart
		p.Spec.CapacitySpec = v1alpha1.CapacitySpec{PoolMin: 1, PoolMax: 1, BufferMax: 1}
	})
	bs := newBatch(t, ns, 1, nil, "wait")
	until(t, bs, runs(1))
	pod := held(t, bs)[0]
	scale := func(n int32) {
		before := client.MergeFrom(bs.DeepCopy())
		bs.Spec.Replicas = ptr.To(n)
		require.NoError(t, api.Patch(t.Context(), bs, before))
	}
	if kept, err := task.RestartRulesKept(t.Context(), api, ns); err == nil && !kept {
		// An older Kubernetes: the pod is deleted, and another one is handed out.
		scale(0)
		gone(t, pod)
		scale(1)
		until(t, bs, runs(1))
		require.NotEqual(t, pod.UID, held(t, bs)[0].UID)
		return
	}
	// The same BatchSandbox gives it back and gets it again, twice.
	for round := range 2 {
		scale(0)
		until(t, bs, func(bs *batch) bool {
			return bs.Annotations[v1alpha1.AnnotationAllocStatus] == "" && len(bs.Finalizers) == 0
		})
		scale(1)
		until(t, bs, runs(1))
		require.Equal(t, pod.UID, held(t, bs)[0].UID)
		require.Zero(t, bs.Status.Restarted, "a restart before the hand-over does not count")
		starts, resets := node.executor(pod.UID).seen()
		require.Equal(t, round+2, starts)
		require.Equal(t, round+1, resets)
	}
	// A restart that does not come about.
	node.executor(pod.UID).mu.Lock()
	node.executor(pod.UID).restart = nil
	node.executor(pod.UID).mu.Unlock()
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
	gone(t, pod)
}
