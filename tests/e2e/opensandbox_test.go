package e2e

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// What OpenSandbox's own server reads and sends.

func TestWhatAServerOfOpenSandboxReadsWhileSandboxesWait(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	pending := func(bs *v1alpha1.BatchSandbox) bool {
		return meta.IsStatusConditionTrue(bs.Status.Conditions, v1alpha1.ConditionPoolAllocationPending)
	}
	waits := pooled(ns, "waits", 1)
	require.NoError(t, api.Create(t.Context(), waits))
	until(t, waits, func(bs *v1alpha1.BatchSandbox) bool {
		return pending(bs) && hasCondition(v1alpha1.ConditionPoolAllocationPending, v1alpha1.ReasonPoolNotFound)(bs.Status.Conditions)
	})
	require.NoError(t, api.Create(t.Context(), &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: waits.Spec.PoolRef},
		Spec: v1alpha1.PoolSpec{Template: shell("sleep 3600"), CapacitySpec: v1alpha1.CapacitySpec{PoolMax: 1}}}))
	until(t, waits, func(bs *v1alpha1.BatchSandbox) bool { return ready(bs) && !pending(bs) })
	require.Contains(t, waits.Annotations[v1alpha1.AnnotationAllocStatus], `"poolRef":"example-pool"`)

	template := shell("sleep 3600")
	template.Spec.Containers[0].Image = "opensandbox.io/no-such-image:v1"
	broken := fromTemplate(ns, "broken", 1, template)
	require.NoError(t, api.Create(t.Context(), broken))
	until(t, broken, func(bs *v1alpha1.BatchSandbox) bool {
		c := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionPodFailed)
		return bs.Status.Phase == v1alpha1.PhaseFailed && c != nil && c.Status == metav1.ConditionTrue &&
			slices.Contains([]string{"ErrImagePull", "ImagePullBackOff"}, c.Reason)
	})

	template = shell("sleep 3600")
	template.Spec.NodeSelector = map[string]string{"no-such": "node"}
	nowhere := fromTemplate(ns, "nowhere", 1, template)
	require.NoError(t, api.Create(t.Context(), nowhere))
	until(t, nowhere, func(bs *v1alpha1.BatchSandbox) bool {
		return hasCondition(v1alpha1.ConditionReady, v1alpha1.ReasonPodsUnschedulable)(bs.Status.Conditions)
	})
	require.Equal(t, v1alpha1.PhasePending, nowhere.Status.Phase, "an autoscaler may still come")
	require.Nil(t, meta.FindStatusCondition(nowhere.Status.Conditions, v1alpha1.ConditionPodFailed))
}

func TestAPauseIsRefusedWithASentence(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	bs := pooled(ns, "batch", 0)
	bs.Spec.Pause = ptr.To(false)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, ready)
	before := client.MergeFrom(bs.DeepCopy())
	bs.Spec.Pause = ptr.To(true)
	require.ErrorContains(t, api.Patch(t.Context(), bs, before), "sandboxes cannot be paused; delete the BatchSandbox, or set spec.replicas to 0, to give them up")
}

// setExecutorInAllPools deploys the operator with the flag or without it.
func setExecutorInAllPools(t *testing.T, on bool) {
	t.Helper()
	const flag = "--task-executor-in-all-pools"
	operator := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: operatorNamespace, Name: "opensandbox-controller-manager"}}
	require.NoError(t, api.Get(context.Background(), client.ObjectKeyFromObject(operator), operator))
	before := client.MergeFrom(operator.DeepCopy())
	args := &operator.Spec.Template.Spec.Containers[0].Args
	*args = slices.DeleteFunc(*args, func(arg string) bool { return arg == flag })
	if on {
		*args = append(*args, flag)
	}
	require.NoError(t, api.Patch(context.Background(), operator, before))
	until(t, operator, func(d *appsv1.Deployment) bool {
		s := &d.Status
		return s.ObservedGeneration == d.Generation && s.Replicas == *d.Spec.Replicas && s.UpdatedReplicas == s.Replicas && s.AvailableReplicas == s.Replicas
	})
}

// It runs alone: the operator is replaced.
func TestTheOperatorCanGiveEveryPoolAnExecutor(t *testing.T) {
	ns := newNamespace(t)
	capacity := v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 2}
	pool := startPool(t, ns, shell("sleep 3600"), capacity)
	waits := pooled(ns, "batch", 1)
	waits.Spec.TaskTemplate = script("true")
	require.NoError(t, api.Create(t.Context(), waits))
	until(t, waits, func(bs *v1alpha1.BatchSandbox) bool {
		return hasCondition(v1alpha1.ConditionTasksCompleted, v1alpha1.ReasonExecutorMissing)(bs.Status.Conditions)
	})

	t.Cleanup(func() { setExecutorInAllPools(t, false) })
	setExecutorInAllPools(t, true)
	until(t, pool, func(p *v1alpha1.Pool) bool { // its idle pod is another one
		return p.Status.Available == 1 && slices.ContainsFunc(listPods(t, ns), func(pod corev1.Pod) bool {
			return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == v1alpha1.ExecutorContainerName })
		})
	})
	bs := pooled(ns, "served", 1)
	bs.Spec.TaskTemplate = script("true")
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, tasksCompleted)
	require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
}
