package olm

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/documented"
)

const (
	namespace  = "opensandbox-system"
	deployment = "opensandbox-controller-manager"
	// before is the version that the test makes to upgrade from.
	before = "0.0.9"
)

// subscribe is what users apply; the catalog is the test's own.
const subscribe = `
apiVersion: v1
kind: Namespace
metadata:
  name: opensandbox-system
  labels: {pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: operators.coreos.com/v1alpha1
kind: CatalogSource
metadata: {name: opensandbox, namespace: opensandbox-system}
spec: {sourceType: grpc, address: "127.0.0.1:` + catalogPort + `"}
---
apiVersion: operators.coreos.com/v1
kind: OperatorGroup
metadata: {name: opensandbox, namespace: opensandbox-system}
spec: {}
---
apiVersion: operators.coreos.com/v1alpha1
kind: Subscription
metadata: {name: opensandbox-operator, namespace: opensandbox-system}
spec: {channel: stable, name: opensandbox-operator, source: opensandbox, sourceNamespace: opensandbox-system}
`

func TestInstallUpgradeAndRemove(t *testing.T) {
	api, current := connect(t), environment(t, "VERSION")
	old := withoutExpires(t, bundle(t, before, environment(t, "OLD_IMG"), environment(t, "OLD_TASK_EXECUTOR_IMG")))
	next := bundle(t, current, environment(t, "IMG"), environment(t, "TASK_EXECUTOR_IMG"))
	startOLM(t)
	stop := catalog(t, old)
	sh(t, "kubectl apply -f - <<'YAML'"+subscribe+"YAML")
	succeeded(t, api, namespace, before)
	requireImage(t, api, environment(t, "OLD_IMG"))

	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "olm-"}}
	require.NoError(t, api.Create(t.Context(), ns))
	held, working := use(t, api, ns.Name)
	was := containers(t, api, ns.Name)
	annotations := held.Annotations
	require.Empty(t, held.Status.Expires, "the CRD of before does not have it")
	requireWebhook(t, api, ns.Name)

	stop()
	catalog(t, old, next)
	succeeded(t, api, namespace, current)
	requireImage(t, api, environment(t, "IMG"))
	sh(t, "kubectl -n "+namespace+" rollout status deployment/"+deployment+" --timeout=180s")
	_, err := read(t.Context(), api, "coordination.k8s.io", "v1", "Lease", namespace, "opensandbox-operator")
	require.NoError(t, err)
	requireWebhook(t, api, ns.Name)

	// The new version reads what the one before stored, and fills in what is new.
	until(t, api, held, "the object has what the new CRD has", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Expires != "" })

	// It serves, and what was there went on undisturbed.
	late := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "late"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(1)), PoolRef: "example-pool"}}
	require.NoError(t, api.Create(t.Context(), late))
	until(t, api, late, "a batch of after the upgrade", ready)
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(held), held))
	for _, key := range []string{v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationEndpoints} {
		assert.Equal(t, annotations[key], held.Annotations[key], key)
	}
	now := containers(t, api, ns.Name)
	for name, id := range was {
		assert.Equal(t, id, now[name], "%s is the same, not restarted", name)
	}
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(working), working))
	require.Equal(t, int32(2), working.Status.TaskRunning, "%+v", working.Status)
	for _, pod := range []string{"working-0", "working-1"} {
		sh(t, "kubectl -n "+ns.Name+" exec "+pod+" -- touch /tmp/finish")
	}
	until(t, api, working, "tasks of before the upgrade end", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskSucceed == 2 })

	for _, command := range documented.Commands(t, root, "Remove from OLM") {
		sh(t, command)
	}
	requireNothingLeft(t, ns.Name)
}

// use holds a batch of the pooled example and has a task run in another.
func use(t *testing.T, api client.Client, namespace string) (held, working *v1alpha1.BatchSandbox) {
	t.Helper()
	sh(t, "kubectl -n "+namespace+" apply -f config/samples/pool.yaml -f config/samples/batchsandbox_pooled.yaml")
	held = &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pooled-batch-sandbox"}}
	until(t, api, held, "the pooled example", ready)
	working = &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "working"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(2)),
		Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(1)),
			Containers: []corev1.Container{{Name: "sandbox-container", Image: "busybox:latest", ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sleep", "3600"}}},
		}}},
		TaskTemplate: &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{
			Command: []string{"sh", "-c", "until [ -e /tmp/finish ]; do sleep 0.2; done"}}}},
	}}
	require.NoError(t, api.Create(t.Context(), working))
	until(t, api, working, "tasks run", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 2 })
	pod := &corev1.Pod{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "working-0"}, pod))
	require.Equal(t, os.Getenv("OLD_TASK_EXECUTOR_IMG"), pod.Spec.InitContainers[0].Image, "the executor that the CSV names")
	return held, working
}

func ready(bs *v1alpha1.BatchSandbox) bool {
	return bs.Status.ObservedGeneration == bs.Generation && bs.Status.Phase == v1alpha1.PhaseSucceed
}

func requireImage(t *testing.T, api client.Client, image string) {
	t.Helper()
	manager := &appsv1.Deployment{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: deployment}, manager))
	require.Equal(t, image, manager.Spec.Template.Spec.Containers[0].Image)
}

// requireWebhook sees that the API server reaches the webhook and trusts the
// certificate that OLM made.
func requireWebhook(t *testing.T, api client.Client, namespace string) {
	t.Helper()
	obj := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"contaners": []any{}}}}}}
	obj.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.KindBatchSandbox))
	obj.SetNamespace(namespace)
	obj.SetName("misspelt")
	require.ErrorContains(t, api.Create(t.Context(), obj, client.DryRunAll), `unknown field "spec.contaners"`)
}

func requireNothingLeft(t *testing.T, used string) {
	t.Helper()
	left := sh(t, "kubectl get crd,validatingwebhookconfiguration,mutatingwebhookconfiguration,namespace -o name | grep -e sandbox -e opensandbox || true")
	require.Empty(t, strings.TrimSpace(left))
	api := connect(t)
	pods := &corev1.PodList{}
	require.NoError(t, api.List(t.Context(), pods, client.InNamespace(used)))
	for i := range pods.Items {
		require.NotNil(t, pods.Items[i].DeletionTimestamp, pods.Items[i].Name)
	}
	err := api.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: used}})
	require.True(t, err == nil || apierrors.IsNotFound(err), err)
}
