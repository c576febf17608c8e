package olm

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/webhooks"
)

// eventually tries until the checks hold: after a change, the first answer says little.
func eventually(t *testing.T, checks func(c *assert.CollectT), what string, args ...any) {
	t.Helper()
	require.EventuallyWithT(t, checks, patience, poll, append([]any{what}, args...)...)
}

// until waits for the object to be as wanted.
func until[T client.Object](t *testing.T, obj T, what string, wanted func(T) bool) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		require.NoError(c, api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj))
		require.True(c, wanted(obj), "%+v", obj)
	}, what)
}

// pooled applies the pooled example.
func pooled(t *testing.T, namespace string) *v1alpha1.BatchSandbox {
	t.Helper()
	sh(t, "kubectl -n "+namespace+" apply -f config/samples/pool.yaml -f config/samples/batchsandbox_pooled.yaml")
	return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pooled-batch-sandbox"}}
}

// tasks is a batch of two sandboxes, in each of which the script runs.
func tasks(namespace, name, script string) *v1alpha1.BatchSandbox {
	return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(2)),
		Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(1)),
			Containers: []corev1.Container{{Name: "sandbox-container", Image: "busybox:latest", ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sleep", "3600"}}},
		}}},
		TaskTemplate: &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"sh", "-c", script}}}},
	}}
}

func ready(bs *v1alpha1.BatchSandbox) bool {
	return bs.Status.ObservedGeneration == bs.Generation && bs.Status.Phase == v1alpha1.PhaseSucceed
}

// requireExecutor sees that the sandboxes hold the executor that the CSV names.
func requireExecutor(t *testing.T, tasks *v1alpha1.BatchSandbox, image string) {
	t.Helper()
	pod := &corev1.Pod{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: tasks.Namespace, Name: tasks.Name + "-0"}, pod))
	require.Equal(t, image, pod.Spec.InitContainers[0].Image)
}

// untilRolledOut waits until the operator runs with the image, and none of its pods is
// left from before.
func untilRolledOut(t *testing.T, image string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		manager := &appsv1.Deployment{}
		require.NoError(c, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: deployment}, manager))
		require.Equal(c, image, manager.Spec.Template.Spec.Containers[0].Image)
		require.Equal(c, manager.Generation, manager.Status.ObservedGeneration)
		replicas := *manager.Spec.Replicas
		require.Equal(c, replicas, manager.Status.UpdatedReplicas, "updated")
		require.Equal(c, replicas, manager.Status.AvailableReplicas, "available")
		pods := &corev1.PodList{}
		require.NoError(c, api.List(t.Context(), pods, client.InNamespace(namespace), client.MatchingLabels(manager.Spec.Selector.MatchLabels)))
		require.Len(c, pods.Items, int(replicas), "pods, those that end counted")
	}, "the operator is rolled out")
}

// untilAsked waits until the API server asks the webhooks about this namespace.
func untilAsked(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) { require.NoError(c, webhooks.Asked(t.Context(), api, namespace)) }, "the webhooks are asked")
}

// podVerbs are what the operator does with pods.
var podVerbs = []string{"create", "delete", "get", "list", "watch"}

// requireMay waits until the operator's rights in a namespace are what they are to be:
// to work with pods or not, and with Secrets no more than it must.
func requireMay(t *testing.T, namespace string, work bool) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		for _, verb := range podVerbs {
			require.Equal(c, work, may(t, c, verb, "pods", "", namespace), "%s pods", verb)
		}
		for _, verb := range []string{"list", "watch"} {
			require.False(c, may(t, c, verb, "secrets", "", namespace), verb)
			require.False(c, may(t, c, verb, "secrets", "", metav1.NamespaceAll), verb)
		}
		require.False(c, may(t, c, "get", "secrets", "of-somebody-else", namespace))
		if !work {
			require.False(c, may(t, c, "create", "secrets", "", namespace))
			require.False(c, may(t, c, "get", "secrets", "opensandbox-executor-keys", namespace))
		}
	}, "the operator's rights in %s", namespace)
}

// may asks the API server what the operator's service account is allowed.
func may(t *testing.T, c *assert.CollectT, verb, resource, name, in string) bool {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + namespace + ":" + deployment,
		Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: resource, Name: name, Namespace: in},
	}}
	require.NoError(c, api.Create(t.Context(), review))
	return review.Status.Allowed
}

// requireQuiet sees that the operator did not end by itself, and tried nothing that it
// may not do.
func requireQuiet(t *testing.T) {
	t.Helper()
	pods := &corev1.PodList{}
	require.NoError(t, api.List(t.Context(), pods, client.InNamespace(namespace), client.MatchingLabels{"control-plane": "controller-manager"}))
	require.NotEmpty(t, pods.Items)
	for i := range pods.Items {
		pod := &pods.Items[i]
		require.Zero(t, pod.Status.ContainerStatuses[0].RestartCount, pod.Name)
		log := sh(t, "kubectl -n "+namespace+" logs "+pod.Name)
		require.NotEmpty(t, log)
		require.NotContains(t, strings.ToLower(log), "forbidden")
	}
}

// containers returns what tells that the pods of a namespace are the same and were not
// restarted: the ids of all their containers, once all have started.
func containers(t *testing.T, namespace string) (ids map[string]string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		pods := &corev1.PodList{}
		require.NoError(c, api.List(t.Context(), pods, client.InNamespace(namespace)))
		require.NotEmpty(c, pods.Items)
		ids = map[string]string{}
		for i := range pods.Items {
			pod := &pods.Items[i]
			statuses := slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
			require.NotEmpty(c, statuses, pod.Name)
			for _, status := range statuses {
				require.NotEmpty(c, status.ContainerID, "%s/%s", pod.Name, status.Name)
				ids[pod.Name+"/"+status.Name] = status.ContainerID
			}
		}
	}, "all containers of %s have started", namespace)
	return ids
}

func requireSame(t *testing.T, was, now map[string]string) {
	t.Helper()
	for name, id := range was {
		assert.Equal(t, id, now[name], "%s is the same, not restarted", name)
	}
}

// requireNothingLeft waits until the cluster does not know the operator any more, and no
// sandbox is left in the namespaces that it served.
func requireNothingLeft(t *testing.T, used ...string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		for _, kind := range []schema.GroupVersionKind{
			{Version: "v1", Kind: "Namespace"},
			{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"},
			{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"},
			{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"},
			{Group: "operators.coreos.com", Version: "v1", Kind: "Operator"},
			{Group: "operators.coreos.com", Version: "v1alpha1", Kind: "ClusterServiceVersion"},
		} {
			left := &metav1.PartialObjectMetadataList{}
			left.SetGroupVersionKind(kind)
			require.NoError(c, api.List(t.Context(), left))
			for i := range left.Items {
				left.Items[i].ManagedFields = nil
				assert.NotContains(c, left.Items[i].Name, "sandbox", "%s: %+v", kind.Kind, left.Items[i].ObjectMeta)
			}
		}
		for _, namespace := range used {
			requireNoPods(t, c, namespace)
		}
	}, "nothing is left")
}

// requireNoPods sees that there are none but those that end.
func requireNoPods(t *testing.T, c *assert.CollectT, namespace string) {
	pods := &corev1.PodList{}
	require.NoError(c, api.List(t.Context(), pods, client.InNamespace(namespace)))
	for i := range pods.Items {
		require.NotNil(c, pods.Items[i].DeletionTimestamp, pods.Items[i].Name)
	}
}
