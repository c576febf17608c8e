package olm

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// before is the version that the test makes to upgrade from.
const before = "0.0.9"

func TestInstallUpgradeAndRemove(t *testing.T) {
	current := os.Getenv("VERSION")
	old := withoutExpires(t, bundle(t, before, os.Getenv("OLD_IMG"), os.Getenv("OLD_TASK_EXECUTOR_IMG")))
	next := bundle(t, current, os.Getenv("IMG"), os.Getenv("TASK_EXECUTOR_IMG"))
	startOLM(t)
	clearAfterFailure(t)
	stop := catalog(t, old)
	subscribe(t)
	untilSucceeded(t, before)
	untilRolledOut(t, os.Getenv("OLD_IMG"))

	ns := newNamespace(t)
	held, working := use(t, ns)
	was := containers(t, ns)
	annotations := held.Annotations
	require.Empty(t, held.Status.Expires, "the CRD of before does not have it")
	untilAsked(t, ns)

	stop()
	catalog(t, old, next)
	untilSucceeded(t, current)
	// The webhooks' certificate goes with the version before. OLM makes another one, and
	// starts the operator once more with it.
	untilGone(t, before)
	untilCertified(t, current)
	untilSucceeded(t, current)
	untilRolledOut(t, os.Getenv("IMG"))
	_, err := read(t, "coordination.k8s.io", "v1", "Lease", "opensandbox-operator")
	require.NoError(t, err)
	untilAsked(t, ns)

	// The new version reads what the one before stored, and fills in what is new.
	until(t, held, "the object has what the new CRD has", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Expires != "" })

	// It serves, and what was there went on undisturbed.
	late := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "late"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(1)), PoolRef: "example-pool"}}
	require.NoError(t, api.Create(t.Context(), late))
	until(t, late, "a batch of after the upgrade is ready", ready)
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(held), held))
	for _, key := range []string{v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationEndpoints} {
		assert.Equal(t, annotations[key], held.Annotations[key], key)
	}
	requireSame(t, was, containers(t, ns))
	until(t, working, "tasks of before the upgrade run", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 2 })
	for _, pod := range []string{"working-0", "working-1"} {
		sh(t, "kubectl -n "+ns+" exec "+pod+" -- touch /tmp/finish")
	}
	until(t, working, "tasks of before the upgrade end", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskSucceed == 2 })

	follow(t, "Remove from OLM", namespace)
	requireNothingLeft(t, ns)
}

// use holds a batch of the pooled example and has a task run in another.
func use(t *testing.T, namespace string) (held, working *v1alpha1.BatchSandbox) {
	t.Helper()
	held = pooled(t, namespace)
	working = tasks(namespace, "working", "until [ -e /tmp/finish ]; do sleep 0.2; done")
	require.NoError(t, api.Create(t.Context(), working))
	until(t, held, "the pooled example is ready", ready)
	until(t, working, "tasks run", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 2 })
	requireExecutor(t, working, os.Getenv("OLD_TASK_EXECUTOR_IMG"))
	return held, working
}
