// Package install tests the way in by one file: dist/install.yaml, applied with
// kubectl, and its removal in the order that docs/install.md gives. KUBECONFIG names
// a cluster without the operator; 'make test-install' starts one and writes the file.
package install

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/documented"
)

const (
	root      = "../.."
	patience  = 3 * time.Minute
	namespace = "opensandbox-system"
)

func connect(t *testing.T) client.Client {
	t.Helper()
	require.NotEmpty(t, os.Getenv("KUBECONFIG"), "run it by 'make test-install'")
	require.NoError(t, v1alpha1.AddToScheme(scheme.Scheme))
	cfg, err := config.GetConfig()
	require.NoError(t, err)
	api, err := client.New(cfg, client.Options{Scheme: scheme.Scheme})
	require.NoError(t, err)
	return api
}

// run runs a command at the root of the source tree, as a reader of docs/install.md.
func run(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", command)
	cmd.Dir = root
	cmd.Env = os.Environ()
	if kubectl := os.Getenv("KUBECTL"); kubectl != "" {
		cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(kubectl)+":"+os.Getenv("PATH"))
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
	t.Logf("$ %s\n%s", command, out)
	return string(out)
}

func eventually(t *testing.T, condition func() bool, what string, args ...any) {
	t.Helper()
	require.Eventuallyf(t, condition, patience, 200*time.Millisecond, what, args...)
}

func TestInstallUseAndRemove(t *testing.T) {
	api := connect(t)
	run(t, "kubectl apply -f dist/install.yaml")
	run(t, "kubectl -n "+namespace+" rollout status deployment/opensandbox-controller-manager --timeout=180s")
	run(t, "kubectl apply -f dist/install.yaml") // again: nothing breaks
	deployment := &appsv1.Deployment{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "opensandbox-controller-manager"}, deployment))
	require.Equal(t, os.Getenv("IMG"), deployment.Spec.Template.Spec.Containers[0].Image)

	ns := &corev1.Namespace{}
	ns.GenerateName = "install-"
	require.NoError(t, api.Create(t.Context(), ns))
	t.Cleanup(func() { _ = api.Delete(context.Background(), ns) })
	requireRefused(t, api, ns.Name)
	run(t, "kubectl -n "+ns.Name+" apply -f config/samples/namespace/network_policy.yaml")
	run(t, "kubectl -n "+ns.Name+" apply -f config/samples/pool.yaml -f config/samples/batchsandbox_pooled.yaml")
	batch := &v1alpha1.BatchSandbox{}
	eventually(t, func() bool {
		err := api.Get(t.Context(), client.ObjectKey{Namespace: ns.Name, Name: "pooled-batch-sandbox"}, batch)
		return err == nil && batch.Status.Phase == v1alpha1.PhaseSucceed
	}, "last seen: %+v", batch)
	var endpoints []string
	require.NoError(t, json.Unmarshal([]byte(batch.Annotations[v1alpha1.AnnotationEndpoints]), &endpoints))
	require.Len(t, endpoints, int(ptr.Deref(batch.Spec.Replicas, 0)))

	before := trusted(t, api)
	for _, command := range documented.Commands(t, root, "Replace the webhooks' certificate") {
		run(t, command)
	}
	requireRefused(t, api, ns.Name)
	require.NotContains(t, trusted(t, api), before)

	for _, command := range documented.Commands(t, root, "Remove") {
		run(t, command)
	}
	left := run(t, "kubectl get crd,clusterrole,clusterrolebinding,validatingwebhookconfiguration,mutatingwebhookconfiguration,namespace -o name")
	require.NotContains(t, left, "opensandbox")
}

// requireRefused sees that the API server reaches the webhook and trusts it: soon after
// the operator says that it is ready, because both learn of that by a watch.
func requireRefused(t *testing.T, api client.Client, namespace string) {
	t.Helper()
	refused := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"contaners": []any{}}}}}}
	refused.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.KindBatchSandbox))
	refused.SetNamespace(namespace)
	refused.SetName("misspelt")
	eventually(t, func() bool {
		err := api.Create(t.Context(), refused.DeepCopy(), client.DryRunAll)
		return err != nil && strings.Contains(err.Error(), `unknown field "spec.contaners"`)
	}, "the webhook is not asked")
}

// trusted returns the certificates that the API server takes from the webhook.
func trusted(t *testing.T, api client.Client) string {
	t.Helper()
	webhooks := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Name: "opensandbox-validating-webhook-configuration"}, webhooks))
	require.NotEmpty(t, webhooks.Webhooks[0].ClientConfig.CABundle)
	return string(webhooks.Webhooks[0].ClientConfig.CABundle)
}
