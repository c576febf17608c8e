package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// scaleOf reads the scale subresource, as an autoscaler does.
func scaleOf(t *testing.T, obj client.Object) *autoscalingv1.Scale {
	t.Helper()
	scale := &autoscalingv1.Scale{}
	require.NoError(t, api.SubResource("scale").Get(t.Context(), obj, scale))
	return scale
}

// setScale writes it.
func setScale(t *testing.T, obj client.Object, replicas int32) error {
	t.Helper()
	scale := scaleOf(t, obj)
	scale.Spec.Replicas = replicas
	return api.SubResource("scale").Update(t.Context(), obj, client.WithSubResourceBody(scale))
}

// selected counts the pods that the selector of the scale subresource finds. An autoscaler
// asks for the metrics of these.
func selected(t *testing.T, obj client.Object) int {
	t.Helper()
	selector, err := labels.Parse(scaleOf(t, obj).Status.Selector)
	require.NoError(t, err)
	require.False(t, selector.Empty(), "an autoscaler refuses a target without a selector")
	pods := &corev1.PodList{}
	require.NoError(t, api.List(t.Context(), pods, client.InNamespace(obj.GetNamespace()), client.MatchingLabelsSelector{Selector: selector}))
	return len(pods.Items)
}

func TestAPoolIsScaledByItsScaleSubresource(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 0, 5)
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}}
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Selector != "" })
	require.NoError(t, setScale(t, pool, 3))
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Spec.CapacitySpec.PoolMin == 3 && p.Status.Available == 3 })
	scale := scaleOf(t, pool)
	require.EqualValues(t, 3, scale.Spec.Replicas)
	require.EqualValues(t, 3, scale.Status.Replicas)
	require.Equal(t, 3, selected(t, pool))

	require.ErrorContains(t, setScale(t, pool, 6), "poolMin must be at most poolMax")

	require.NoError(t, setScale(t, pool, 1))
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Total == 1 })
}

func TestABatchIsScaledByItsScaleSubresource(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, 5)
	fromPool := pooled(ns, "pooled", 1)
	fromTemplate := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "from-template"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(1)), Template: template()}}
	for _, bs := range []*v1alpha1.BatchSandbox{fromPool, fromTemplate} {
		require.NoError(t, api.Create(t.Context(), bs))
		until(t, bs, ready(1))
		require.NoError(t, setScale(t, bs, 3))
		until(t, bs, ready(3))
		require.EqualValues(t, 3, scaleOf(t, bs).Status.Replicas)
		require.ErrorContains(t, setScale(t, bs, v1alpha1.MaxReplicas+1), "spec.replicas")
	}
	require.Equal(t, 3, selected(t, fromTemplate))
	require.Empty(t, scaleOf(t, fromPool).Status.Selector, "no label of a pool's pod says who holds it")
}
