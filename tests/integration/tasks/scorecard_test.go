package tasks

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/opensandbox/operator/scorecard/checks"
)

// newCheck returns what a scorecard test would be given.
func newCheck(t *testing.T, patience time.Duration) *checks.Check {
	t.Helper()
	c := &checks.Check{Client: api, Namespace: newNamespace(t), Name: "check", Patience: patience}
	t.Cleanup(func() { require.NoError(t, c.Clean(context.Background())) })
	return c
}

// requireFails runs a check that must fail, with little patience first, and with more
// where the check did not get as far as the fault.
func requireFails(t *testing.T, want string, run func(*checks.Check) error) {
	t.Helper()
	var err error
	for impatience := 5 * time.Second; impatience <= patience; impatience *= 3 {
		if err = run(newCheck(t, impatience)); err == nil || strings.Contains(err.Error(), want) {
			break
		}
	}
	require.ErrorContains(t, err, want)
}

// A scorecard test that cannot fail says nothing: each is tried with the fault that it
// is there to find.

func TestTheScorecardSeesAPooledBatch(t *testing.T) {
	require.NoError(t, newCheck(t, patience).Pooled(t.Context()))

	requireFails(t, `phase "Pending", want Succeed`, func(starved *checks.Check) error {
		forbidPods(t, starved.Namespace)
		return starved.Pooled(t.Context())
	})
}

func TestTheScorecardSeesTasksThatDoNotEnd(t *testing.T) {
	requireFails(t, "tasks: 0 succeeded", func(c *checks.Check) error { return c.Tasks(t.Context()) })
}

func TestTheScorecardSeesSandboxesReturn(t *testing.T) {
	require.NoError(t, newCheck(t, patience).Returns(t.Context()))

	requireFails(t, "pool: 2 allocated, want 0", func(kept *checks.Check) error {
		stopped := false
		kept.Client = interceptor.NewClient(api, interceptor.Funcs{
			Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
				if !stopped {
					op.kill()
					stopped = true
				}
				return c.Delete(ctx, obj, opts...)
			},
		})
		err := kept.Returns(t.Context())
		if stopped {
			require.NoError(t, op.start())
		}
		return err
	})
}

func TestTheScorecardComparesTheExecutorsImage(t *testing.T) {
	c := newCheck(t, patience)
	c.Bundle = bundleWith(t, "executor:test")
	require.NoError(t, c.ExecutorImage(t.Context()))

	requireFails(t, "has executor executor:test, and the bundle names executor:other", func(c *checks.Check) error {
		c.Bundle = bundleWith(t, "executor:other")
		return c.ExecutorImage(t.Context())
	})
}

// forbidPods is a quota that the namespace has used up.
func forbidPods(t *testing.T, namespace string) {
	t.Helper()
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "none"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}}}
	require.NoError(t, api.Create(t.Context(), quota))
	quota.Status.Hard, quota.Status.Used = quota.Spec.Hard, quota.Spec.Hard
	require.NoError(t, api.Status().Update(t.Context(), quota))
}

// bundleWith is a bundle that names this image for the task executor.
func bundleWith(t *testing.T, image string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "manifests"), 0o700))
	csv := "spec: {relatedImages: [{name: controller, image: c}, {name: task-executor, image: \"" + image + "\"}]}"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "manifests/a.clusterserviceversion.yaml"), []byte(csv), 0o600))
	return dir
}
