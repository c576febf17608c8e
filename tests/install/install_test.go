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
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/documented"
	"github.com/opensandbox/operator/tests/internal/evidence"
	"github.com/opensandbox/operator/tests/internal/webhooks"
)

const (
	root      = "../.."
	patience  = 5 * time.Minute
	poll      = 200 * time.Millisecond
	namespace = "opensandbox-system"
)

func connect(t *testing.T) (*rest.Config, client.Client) {
	t.Helper()
	log.SetLogger(logr.Discard())
	require.NotEmpty(t, os.Getenv("KUBECONFIG"), "run it by 'make test-install'")
	require.NoError(t, v1alpha1.AddToScheme(scheme.Scheme))
	cluster, err := config.GetConfig()
	require.NoError(t, err)
	api, err := client.New(cluster, client.Options{Scheme: scheme.Scheme})
	require.NoError(t, err)
	return cluster, api
}

// run runs a command at the root of the source tree, as a reader of docs/install.md.
func run(t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Dir = root
	cmd.Env = os.Environ()
	if kubectl := os.Getenv("KUBECTL"); kubectl != "" {
		cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(kubectl)+":"+os.Getenv("PATH"))
	}
	started := time.Now()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
	t.Logf("%s $ %s (%s)\n%s", started.Format(time.TimeOnly), command, time.Since(started).Round(time.Second/10), out)
	return string(out)
}

// follow runs the commands under a heading of docs/install.md.
func follow(t *testing.T, heading string) {
	t.Helper()
	for _, command := range documented.Commands(t, root, heading) {
		run(t, command)
	}
}

func TestInstallUseAndRemove(t *testing.T) {
	cluster, api := connect(t)
	evidence.OnFailure(t, cluster, namespace)
	run(t, "kubectl apply -f dist/install.yaml")
	run(t, "kubectl -n "+namespace+" rollout status deployment/opensandbox-controller-manager --timeout=180s")
	run(t, "kubectl apply -f dist/install.yaml") // again: nothing breaks
	deployment := &appsv1.Deployment{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "opensandbox-controller-manager"}, deployment))
	require.Equal(t, os.Getenv("IMG"), deployment.Spec.Template.Spec.Containers[0].Image)

	ns := &corev1.Namespace{}
	ns.GenerateName, ns.Labels = "install-", map[string]string{"opensandbox-test": ""}
	require.NoError(t, api.Create(t.Context(), ns))
	t.Cleanup(func() { require.NoError(t, client.IgnoreNotFound(api.Delete(context.Background(), ns))) })
	evidence.OnFailure(t, cluster, ns.Name)
	untilAsked(t, api, ns.Name)
	run(t, "kubectl -n "+ns.Name+" apply -f config/samples/namespace/network_policy.yaml")
	run(t, "kubectl -n "+ns.Name+" apply -f config/samples/pool.yaml -f config/samples/batchsandbox_pooled.yaml")
	batch := &v1alpha1.BatchSandbox{}
	require.Eventually(t, func() bool {
		err := api.Get(t.Context(), client.ObjectKey{Namespace: ns.Name, Name: "pooled-batch-sandbox"}, batch)
		return err == nil && batch.Status.Phase == v1alpha1.PhaseSucceed
	}, patience, poll, "last seen: %+v", batch)
	var endpoints []string
	require.NoError(t, json.Unmarshal([]byte(batch.Annotations[v1alpha1.AnnotationEndpoints]), &endpoints))
	require.Len(t, endpoints, int(ptr.Deref(batch.Spec.Replicas, 0)))

	before := trusted(t, api)
	follow(t, "Replace the webhooks' certificate")
	untilAsked(t, api, ns.Name)
	require.NotContains(t, trusted(t, api), before)

	follow(t, "Remove")
	left := run(t, "kubectl get crd,clusterrole,clusterrolebinding,validatingwebhookconfiguration,mutatingwebhookconfiguration,namespace -o name")
	require.NotContains(t, left, "opensandbox")
}

// untilAsked waits until the API server asks the webhooks.
func untilAsked(t *testing.T, api client.Client, namespace string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, webhooks.Asked(t.Context(), api, namespace))
	}, patience, poll, "the webhooks are asked")
}

// trusted returns the certificates that the API server takes from the webhook.
func trusted(t *testing.T, api client.Client) string {
	t.Helper()
	configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Name: "opensandbox-validating-webhook-configuration"}, configuration))
	require.NotEmpty(t, configuration.Webhooks[0].ClientConfig.CABundle)
	return string(configuration.Webhooks[0].ClientConfig.CABundle)
}
