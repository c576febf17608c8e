package e2e

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestANamespaceWithHeldSandboxesCanBeDeleted(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	startPool(t, ns, webServer(), v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 3})
	start(t, pooled(ns, "held", 2))
	start(t, fromTemplate(ns, "basic", 1, webServer()))
	waiting := pooled(ns, "waiting", 3)
	require.NoError(t, api.Create(t.Context(), waiting))
	until(t, waiting, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Allocated == 1 })
	deleteNamespace(t, ns)
}

// restricted is a template that the operator's own namespace takes.
func restricted() *v1alpha1.PodTemplate {
	template := shell("sleep 3600")
	template.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		RunAsNonRoot: ptr.To(true), RunAsUser: ptr.To(int64(65534)), AllowPrivilegeEscalation: ptr.To(false),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	return template
}

// It runs alone: the operator is away for a while.
func TestTheOperatorsOwnNamespaceCanBeDeletedWithSandboxesInIt(t *testing.T) {
	elsewhere := newNamespace(t)
	startPool(t, operatorNamespace, restricted(), v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 4})
	start(t, pooled(operatorNamespace, "held", 2))
	start(t, fromTemplate(operatorNamespace, "basic", 1, restricted()))
	// What is elsewhere is held before and after.
	startPool(t, elsewhere, shell("sleep 3600"), v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 4})
	other := pooled(elsewhere, "held", 2)
	start(t, other)
	held := heldBy(t, other)

	t.Cleanup(func() { redeploy(t) })
	deleteNamespace(t, operatorNamespace)
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(other), other))
	require.Contains(t, other.Finalizers, v1alpha1.FinalizerPoolAllocation, "other namespaces keep their finalizers")

	redeploy(t)
	other.Spec.Replicas = ptr.To(int32(3))
	require.NoError(t, updated(t, other))
	until(t, other, ready)
	require.Equal(t, held, heldBy(t, other)[:2], "the new operator knows who holds what")
}

// redeploy deploys the operator as it was deployed for the tests.
func redeploy(t *testing.T) {
	t.Helper()
	var deployment appsv1.Deployment
	key := client.ObjectKey{Namespace: operatorNamespace, Name: "opensandbox-controller-manager"}
	if api.Get(context.Background(), key, &deployment) == nil && deployment.Status.AvailableReplicas > 0 {
		return
	}
	for _, variable := range []string{"IMG", "TASK_EXECUTOR_IMG"} {
		require.NotEmpty(t, os.Getenv(variable), "%s names the image to deploy", variable)
	}
	deploy := exec.CommandContext(context.Background(), "make", "-C", "../..", "--no-print-directory", "deploy")
	deploy.Env = append(os.Environ(), "MAKEFLAGS=")
	out, err := deploy.CombinedOutput()
	require.NoError(t, err, string(out))
}
