package olm

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/documented"
	"github.com/opensandbox/operator/tests/internal/webhooks"
)

// TestInstallModes installs the bundle in each mode that confines the operator to some
// namespaces: there it does all it can do, and nothing elsewhere.
func TestInstallModes(t *testing.T) {
	version := os.Getenv("VERSION")
	startOLM(t)
	catalog(t, bundle(t, version, os.Getenv("IMG"), os.Getenv("TASK_EXECUTOR_IMG")))
	install := func(t *testing.T, targets ...string) (elsewhere string) {
		t.Helper()
		elsewhere = newNamespace(t)
		subscribe(t, targets...)
		untilSucceeded(t, version)
		untilRolledOut(t, os.Getenv("IMG"))
		sh(t, "kubectl -n "+elsewhere+" apply -f config/samples/pool.yaml")
		requireServed(t, targets...)
		requireLeftAlone(t, elsewhere)
		requireQuiet(t)
		return elsewhere
	}

	t.Run("OwnNamespace", func(t *testing.T) {
		clearAfterFailure(t)
		elsewhere := install(t, namespace)
		for _, command := range documented.Commands(t, root, "Remove from OLM") {
			sh(t, command)
			if strings.Contains(command, "delete clusterserviceversions") {
				leaveRoles(t, version)
			}
		}
		requireNothingLeft(t, elsewhere)
	})
	t.Run("SingleNamespace", func(t *testing.T) {
		clearAfterFailure(t)
		target := newNamespace(t)
		elsewhere := install(t, target)
		follow(t, "Remove from OLM", namespace)
		requireNothingLeft(t, target, elsewhere)
	})
	t.Run("MultiNamespace", func(t *testing.T) {
		clearAfterFailure(t)
		dropped, kept := newNamespace(t), newNamespace(t)
		added := install(t, dropped, kept)
		was := containers(t, kept)
		follow(t, "Change the namespaces", dropped)
		apply(t, operatorGroup(kept, added))
		// It finds the Pool that nobody cared for.
		pool := &v1alpha1.Pool{}
		pool.Namespace, pool.Name = added, "example-pool"
		until(t, pool, "the pool of the added namespace is filled", func(p *v1alpha1.Pool) bool { return p.Status.Available > 0 })
		untilRolledOut(t, os.Getenv("IMG"))
		sh(t, "kubectl -n "+dropped+" wait rolebindings -l olm.copiedFrom="+namespace+" --for=delete --timeout=180s")
		sh(t, "kubectl -n "+dropped+" apply -f config/samples/pool.yaml")
		requireServed(t, kept, added)
		requireLeftAlone(t, dropped)
		requireSame(t, was, containers(t, kept))
		requireQuiet(t)
		follow(t, "Remove from OLM", namespace)
		requireNothingLeft(t, dropped, kept, added)
	})
}

// leaveRoles makes what OLM makes when it executes an InstallPlan again and the
// ClusterServiceVersion is deleted in between: OLM itself takes it away no more.
func leaveRoles(t *testing.T, version string) {
	t.Helper()
	meta := `
metadata:
  name: opensandbox-operator.v0.-late
  labels:
    olm.managed: "true"
    olm.owner: opensandbox-operator.v` + version + `
    olm.owner.kind: ClusterServiceVersion
    olm.owner.namespace: ` + namespace
	apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole`+meta+`
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding`+meta+`
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: opensandbox-operator.v0.-late}
`)
}

// requireServed sees that the operator does in the namespaces what it is for, and that it
// may do no more with Secrets than it must.
func requireServed(t *testing.T, namespaces ...string) {
	t.Helper()
	var held, working []*v1alpha1.BatchSandbox
	for _, namespace := range namespaces {
		held = append(held, pooled(t, namespace))
		working = append(working, tasks(namespace, "tasks-"+rand.String(5), "true"))
		require.NoError(t, api.Create(t.Context(), working[len(working)-1]))
	}
	for i, namespace := range namespaces {
		until(t, held[i], "the pooled example is ready", ready)
		until(t, working[i], "its tasks succeed", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskSucceed == 2 })
		requireExecutor(t, working[i], os.Getenv("TASK_EXECUTOR_IMG"))
		untilAsked(t, namespace)
		requireMay(t, namespace, true)
	}
}

// requireLeftAlone sees that the operator took no notice of the Pool in a namespace that
// is none of its own, and could have done nothing there. The caller has seen it done with
// what was created later.
func requireLeftAlone(t *testing.T, namespace string) {
	t.Helper()
	pool := &v1alpha1.Pool{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "example-pool"}, pool))
	require.Empty(t, pool.Finalizers)
	require.Zero(t, pool.Status)
	requireMay(t, namespace, false)
	eventually(t, func(c *assert.CollectT) {
		requireNoPods(t, c, namespace)
		require.ErrorIs(c, webhooks.Asked(t.Context(), api, namespace), webhooks.ErrNotAsked)
	}, "no pods in %s, and no webhooks", namespace)
}
