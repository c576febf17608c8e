package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// A sandbox whose containers finish by themselves is kept, with its shard; one that is
// evicted is replaced. Either goes when it is let go of.
func TestASandboxThatHasEndedIsKept(t *testing.T) {
	for name, spec := range map[string]v1alpha1.BatchSandboxSpec{
		"pooled":          {Replicas: ptr.To(int32(2)), PoolRef: "example-pool"},
		"from a template": {Replicas: ptr.To(int32(2)), Template: template()},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			newPool(t, ns, 2, 10)
			bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "batch"}, Spec: spec}
			require.NoError(t, api.Create(t.Context(), bs))
			until(t, bs, ready(2))
			pods := sandboxes(t, bs)
			require.Len(t, pods, 2)

			finish(t, ns, pods[0], corev1.PodSucceeded, "")
			until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Ended == 1 && bs.Status.Ready == 1 })
			require.Equal(t, int32(2), bs.Status.Replicas)
			require.Equal(t, pods, sandboxes(t, bs))

			finish(t, ns, pods[1], corev1.PodFailed, "Evicted")
			until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
				return bs.Status.Ended == 1 && bs.Status.Ready == 1 && sandboxes(t, bs)[1] != pods[1]
			})
			require.Equal(t, pods[0], sandboxes(t, bs)[0])

			require.NoError(t, api.Delete(t.Context(), bs))
			gone(t, bs)
			gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pods[0]}})
		})
	}
}

// sandboxes returns the names of the pods by shard; those that leave are left out.
func sandboxes(t *testing.T, bs *v1alpha1.BatchSandbox) []string {
	t.Helper()
	if bs.Spec.PoolRef != "" {
		return held(t, bs)
	}
	var pods corev1.PodList
	require.NoError(t, api.List(t.Context(), &pods, client.InNamespace(bs.Namespace), client.MatchingLabels{v1alpha1.LabelBatchSandboxName: bs.Name}))
	names := make([]string, 2)
	for i := range pods.Items {
		if pod := &pods.Items[i]; pod.DeletionTimestamp == nil {
			names[int(pod.Labels[v1alpha1.LabelBatchSandboxPodIndex][0]-'0')] = pod.Name
		}
	}
	return names
}

// finish ends a pod as the kubelet does.
func finish(t *testing.T, ns, name string, phase corev1.PodPhase, reason string) {
	t.Helper()
	pod := &corev1.Pod{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, pod))
	before := client.MergeFrom(pod.DeepCopy())
	pod.Status.Phase, pod.Status.Reason = phase, reason
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}
	require.NoError(t, api.Status().Patch(t.Context(), pod, before))
}
