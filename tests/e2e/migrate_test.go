package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// runOperator scales the operator and waits until as many replicas are there.
func runOperator(t *testing.T, replicas int32) {
	t.Helper()
	operator := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: operatorNamespace, Name: "opensandbox-controller-manager"}}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))
	require.NoError(t, api.Patch(context.Background(), operator, patch))
	require.Eventually(t, func() bool {
		var pods corev1.PodList
		err := api.List(context.Background(), &pods, client.InNamespace(operatorNamespace), client.MatchingLabels(operator.Spec.Selector.MatchLabels))
		return err == nil && len(pods.Items) == int(replicas) && api.Get(context.Background(), client.ObjectKeyFromObject(operator), operator) == nil &&
			operator.Status.AvailableReplicas == replicas
	}, patience, poll)
}

// asAnotherControllerMakes creates a running pod in the shape of OpenSandbox's controller.
func asAnotherControllerMakes(t *testing.T, owner client.Object, kind, name string, labels map[string]string) *corev1.Pod {
	t.Helper()
	template := shell("echo $RANDOM >/tmp/mine; exec sleep 3600")
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), Name: name, GenerateName: owner.GetName() + "-", Labels: labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, v1alpha1.GroupVersion.WithKind(kind))},
		},
		Spec: template.Spec,
	}
	require.NoError(t, api.Create(t.Context(), pod))
	until(t, pod, func(pod *corev1.Pod) bool {
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return pod.Status.PodIP != ""
			}
		}
		return false
	})
	return pod
}

// Not parallel: for a while nobody serves the others.
func TestSandboxesOfOpenSandboxsControllerRunOnWhenTheOperatorTakesOver(t *testing.T) {
	ns := newNamespace(t)
	runOperator(t, 0)
	t.Cleanup(func() { runOperator(t, 2) })
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}, Spec: v1alpha1.PoolSpec{
		Template:        shell("exec sleep 3600"),
		CapacitySpec:    v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 5},
		RecycleStrategy: v1alpha1.RecycleStrategy{Type: v1alpha1.RecycleNoop},
	}}
	require.NoError(t, api.Create(t.Context(), pool))
	inPool := map[string]string{v1alpha1.LabelPoolName: pool.Name, v1alpha1.LabelPoolRevision: "6f1ed002ab559585"}
	holds := asAnotherControllerMakes(t, pool, v1alpha1.KindPool, "example-pool-held1", inPool)
	used := asAnotherControllerMakes(t, pool, v1alpha1.KindPool, "example-pool-used1", inPool)
	holder := pooled(ns, "holder", 1)
	holder.Finalizers = []string{v1alpha1.FinalizerPoolAllocation}
	holder.Annotations = map[string]string{
		v1alpha1.AnnotationAllocStatus:   `{"pods":["example-pool-held1"],"poolRef":"example-pool","generation":1}`,
		v1alpha1.AnnotationAllocReleased: `{"pods":["example-pool-used1"]}`,
		v1alpha1.AnnotationEndpoints:     fmt.Sprintf(`[%q]`, holds.Status.PodIP),
	}
	require.NoError(t, api.Create(t.Context(), holder))
	templated := fromTemplate(ns, "templated", 1, shell("exec sleep 3600"))
	require.NoError(t, api.Create(t.Context(), templated))
	shard := asAnotherControllerMakes(t, templated, v1alpha1.KindBatchSandbox, "templated-0", map[string]string{
		v1alpha1.LabelBatchSandboxName: "templated", v1alpha1.LabelBatchSandboxPodIndex: "0",
	})
	mine := inSandbox(t, ns, holds.Name, "cat", "/tmp/mine")

	kubectl(t, "", "create", "clusterrolebinding", "opensandbox-pod-adopter", "--clusterrole=opensandbox-pod-adopter",
		"--serviceaccount="+operatorNamespace+":opensandbox-controller-manager")
	t.Cleanup(func() {
		require.NoError(t, api.Delete(context.Background(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "opensandbox-pod-adopter"}}))
	})
	runOperator(t, 2)
	for _, bs := range []*v1alpha1.BatchSandbox{holder, templated} {
		until(t, bs, ready)
	}
	require.Equal(t, []string{holds.Name}, heldBy(t, holder))
	require.Equal(t, []string{holds.Status.PodIP}, endpointsOf(t, holder))
	require.Equal(t, []string{shard.Status.PodIP}, endpointsOf(t, templated))
	require.Equal(t, mine, inSandbox(t, ns, holds.Name, "cat", "/tmp/mine"), "what is in it is there")
	untilGone(t, used)
	next := pooled(ns, "next", 1)
	start(t, next)
	require.NotContains(t, []string{holds.Name, used.Name}, heldBy(t, next)[0])

	for _, bs := range []*v1alpha1.BatchSandbox{holder, templated, next} {
		require.NoError(t, api.Delete(t.Context(), bs))
		untilGone(t, bs)
	}
	untilGone(t, holds)
	untilGone(t, shard)
	require.NoError(t, api.Delete(t.Context(), pool))
	untilGone(t, pool)
}
