package olm

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// before is the version that the test makes to upgrade from.
const before = "0.0.9"

func TestInstallUpgradeAndRemove(t *testing.T) {
	api, current := connect(t), environment(t, "VERSION")
	old := withoutExpires(t, bundle(t, before, environment(t, "OLD_IMG"), environment(t, "OLD_TASK_EXECUTOR_IMG")))
	next := bundle(t, current, environment(t, "IMG"), environment(t, "TASK_EXECUTOR_IMG"))
	startOLM(t)
	stop := catalog(t, old)
	subscribe(t)
	succeeded(t, api, namespace, before)
	requireImage(t, api, environment(t, "OLD_IMG"))

	ns := newNamespace(t, api)
	held, working := use(t, api, ns)
	was := containers(t, api, ns)
	annotations := held.Annotations
	require.Empty(t, held.Status.Expires, "the CRD of before does not have it")
	require.ErrorContains(t, misspelt(t, api, ns), unknownField)

	stop()
	catalog(t, old, next)
	succeeded(t, api, namespace, current)
	requireImage(t, api, environment(t, "IMG"))
	sh(t, "kubectl -n "+namespace+" rollout status deployment/"+deployment+" --timeout=180s")
	_, err := read(t.Context(), api, "coordination.k8s.io", "v1", "Lease", namespace, "opensandbox-operator")
	require.NoError(t, err)
	require.ErrorContains(t, misspelt(t, api, ns), unknownField)

	// The new version reads what the one before stored, and fills in what is new.
	until(t, api, held, "the object has what the new CRD has", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Expires != "" })

	// It serves, and what was there went on undisturbed.
	late := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "late"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(1)), PoolRef: "example-pool"}}
	require.NoError(t, api.Create(t.Context(), late))
	until(t, api, late, "a batch of after the upgrade", ready)
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(held), held))
	for _, key := range []string{v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationEndpoints} {
		assert.Equal(t, annotations[key], held.Annotations[key], key)
	}
	requireSame(t, was, containers(t, api, ns))
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(working), working))
	require.Equal(t, int32(2), working.Status.TaskRunning, "%+v", working.Status)
	for _, pod := range []string{"working-0", "working-1"} {
		sh(t, "kubectl -n "+ns+" exec "+pod+" -- touch /tmp/finish")
	}
	until(t, api, working, "tasks of before the upgrade end", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskSucceed == 2 })

	follow(t, "Remove from OLM", namespace)
	requireNothingLeft(t, api, ns)
}

// use holds a batch of the pooled example and has a task run in another.
func use(t *testing.T, api client.Client, namespace string) (held, working *v1alpha1.BatchSandbox) {
	t.Helper()
	held = pooled(t, namespace)
	working = tasks(namespace, "working", "until [ -e /tmp/finish ]; do sleep 0.2; done")
	require.NoError(t, api.Create(t.Context(), working))
	until(t, api, held, "the pooled example", ready)
	until(t, api, working, "tasks run", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 2 })
	requireExecutor(t, api, working, environment(t, "OLD_TASK_EXECUTOR_IMG"))
	return held, working
}

func requireImage(t *testing.T, api client.Client, image string) {
	t.Helper()
	manager := &appsv1.Deployment{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: deployment}, manager))
	require.Equal(t, image, manager.Spec.Template.Spec.Containers[0].Image)
}
