package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/evidence"
)

// outcome is a test that has failed or passed by the time that its cleanups run.
type outcome struct {
	*testing.T
	failed   bool
	folder   string
	cleanups []func()
}

func (o *outcome) Failed() bool        { return o.failed }
func (o *outcome) ArtifactDir() string { return o.folder }
func (o *outcome) Cleanup(fn func())   { o.cleanups = append(o.cleanups, fn) }

func TestAFailingTestLeavesObjectsEventsAndLogs(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	startPool(t, ns, shell("echo what the sandbox says; exec sleep 3600"), v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 1})
	bs := pooled(ns, "early", 1)
	bs.Spec.PoolRef = "no-such-pool"
	require.NoError(t, api.Create(t.Context(), bs))
	untilEvent(t, ns, bs.Name, v1alpha1.ReasonPoolNotFound)
	pod := listPods(t, ns)[0].Name

	leave := func(failed bool) string {
		o := &outcome{T: t, failed: failed, folder: t.TempDir()}
		evidence.OnFailure(o, cluster, ns, operatorNamespace)
		evidence.File(o, "../../go.mod")
		for _, cleanup := range o.cleanups {
			cleanup()
		}
		return filepath.Join(o.folder, t.Name())
	}
	require.NoDirExists(t, leave(false))
	left := leave(true)
	for name, want := range map[string]string{
		ns + "/Pool.yaml":                         "name: example-pool",
		ns + "/BatchSandbox.yaml":                 "name: early",
		ns + "/Event.yaml":                        v1alpha1.ReasonPoolNotFound,
		ns + "/Pod.yaml":                          pod,
		ns + "/" + pod + ".sandbox-container.log": "what the sandbox says",
		operatorNamespace + "/Deployment.yaml":    "opensandbox-controller-manager",
		"go.mod":                                  "module github.com/opensandbox/operator",
	} {
		text, err := os.ReadFile(filepath.Join(left, name))
		require.NoError(t, err)
		require.Contains(t, string(text), want, name)
	}
	logs, err := filepath.Glob(filepath.Join(left, operatorNamespace, "*.manager.log"))
	require.NoError(t, err)
	require.NotEmpty(t, logs)
}
