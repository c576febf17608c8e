// Package e2e tests the operator as users run it: deployed as a pod under its own
// RBAC on a cluster with a real node. KUBECONFIG names the cluster; 'make test-e2e'
// starts one.
package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/opensandbox/operator/api/v1alpha1"
)

const patience = 2 * time.Minute

func connect(t *testing.T) client.Client {
	t.Helper()
	require.NotEmpty(t, os.Getenv("KUBECONFIG"), "KUBECONFIG is not set: run the end-to-end tests by 'make test-e2e'")
	require.NoError(t, v1alpha1.AddToScheme(scheme.Scheme))
	cfg, err := config.GetConfig()
	require.NoError(t, err)
	api, err := client.New(cfg, client.Options{Scheme: scheme.Scheme})
	require.NoError(t, err)
	return api
}

// newNamespace makes a namespace that is deleted, with all in it, after the test;
// the test fails when that hangs.
func newNamespace(t *testing.T, api client.Client) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}
	require.NoError(t, api.Create(t.Context(), ns))
	t.Cleanup(func() {
		ctx := context.Background()
		require.NoError(t, client.IgnoreNotFound(api.Delete(ctx, ns)))
		require.Eventually(t, func() bool {
			return apierrors.IsNotFound(api.Get(ctx, client.ObjectKeyFromObject(ns), ns))
		}, patience, 200*time.Millisecond, "namespace %s is still there: %+v", ns.Name, ns.Status)
	})
	return ns.Name
}

func template() *corev1.PodTemplateSpec {
	return &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "sandbox-container", Image: "nginx:latest", Ports: []corev1.ContainerPort{{ContainerPort: 80}},
	}}}}
}

func untilReady(t *testing.T, api client.Client, bs *v1alpha1.BatchSandbox) []string {
	t.Helper()
	require.Eventually(t, func() bool {
		return api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs) == nil && bs.Status.Phase == v1alpha1.PhaseSucceed
	}, patience, 100*time.Millisecond, "last seen: %+v", &bs.Status)
	var endpoints []string
	require.NoError(t, json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationEndpoints]), &endpoints))
	require.Len(t, endpoints, int(bs.DesiredReplicas()))
	return endpoints
}

func requireAnswer(t *testing.T, ip string) {
	t.Helper()
	response, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + ip + "/")
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	_, err = io.Copy(io.Discard, response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func TestSandboxesFromATemplateAnswer(t *testing.T) {
	api := connect(t)
	ns := newNamespace(t, api)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "basic-batch-sandbox"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(2)), Template: template()}}
	require.NoError(t, api.Create(t.Context(), bs))
	for _, ip := range untilReady(t, api, bs) {
		requireAnswer(t, ip)
	}
}

func TestSandboxesFromAPoolAnswerAndNeverComeBackDirty(t *testing.T) {
	api := connect(t)
	ns := newNamespace(t, api)
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}, Spec: v1alpha1.PoolSpec{
		Template: template(), CapacitySpec: v1alpha1.CapacitySpec{BufferMin: 2, BufferMax: 4, PoolMin: 3, PoolMax: 8},
	}}
	require.NoError(t, api.Create(t.Context(), pool))
	used := map[string]bool{}
	for _, name := range []string{"first", "second"} {
		bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(3)), PoolRef: pool.Name}}
		require.NoError(t, api.Create(t.Context(), bs))
		for _, ip := range untilReady(t, api, bs) {
			requireAnswer(t, ip)
		}
		var status v1alpha1.AllocStatus
		require.NoError(t, json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationAllocStatus]), &status))
		for _, pod := range status.Pods {
			require.False(t, used[pod], "pod %s was handed to a second owner", pod)
			used[pod] = true
		}
		require.NoError(t, api.Delete(t.Context(), bs))
	}
}

func TestANamespaceWithHeldSandboxesCanBeDeleted(t *testing.T) {
	api := connect(t)
	ns := newNamespace(t, api)
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}, Spec: v1alpha1.PoolSpec{
		Template: template(), CapacitySpec: v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 3},
	}}
	require.NoError(t, api.Create(t.Context(), pool))
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "held"},
		Spec: v1alpha1.BatchSandboxSpec{PoolRef: pool.Name}}
	require.NoError(t, api.Create(t.Context(), bs))
	untilReady(t, api, bs)
	// The clean-up of newNamespace deletes it and fails when that hangs.
}
