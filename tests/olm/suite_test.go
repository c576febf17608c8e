// Package olm tests the way in by OLM: its own two programs, run beside the cluster,
// install the bundle from a catalog, upgrade it from a version before, and it is removed
// in the order that docs/install.md gives. KUBECONFIG names a cluster without the
// operator; 'make test-olm' starts one and builds what the test needs.
package olm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	certutil "k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
)

const (
	root     = "../.."
	patience = 3 * time.Minute
	// catalogPort is where opm serves the catalog.
	catalogPort = "50051"
)

// environment is what hack/test-olm.sh says.
func environment(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	require.NotEmpty(t, value, "%s is not set: run it by 'make test-olm'", name)
	return value
}

func connect(t *testing.T) client.Client {
	t.Helper()
	log.SetLogger(logr.Discard())
	environment(t, "KUBECONFIG")
	require.NoError(t, v1alpha1.AddToScheme(scheme.Scheme))
	cfg, err := config.GetConfig()
	require.NoError(t, err)
	cfg.QPS = -1
	api, err := client.New(cfg, client.Options{Scheme: scheme.Scheme})
	require.NoError(t, err)
	return api
}

// sh runs commands at the root of the source tree, as a reader of docs/install.md.
func sh(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", command)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(environment(t, "KUBECTL"))+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
	t.Logf("$ %s\n%s", command, out)
	return string(out)
}

// serve runs a program until the returned function is called, or the test ends. It is
// started again when it ends by itself, as a Deployment would.
func serve(t *testing.T, name string, args ...string) (stop func()) {
	t.Helper()
	output, err := os.Create(filepath.Join(t.TempDir(), filepath.Base(name)+".log"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, name, args...)
			cmd.Stdout, cmd.Stderr = output, output
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = 10 * time.Second
			for _, variable := range os.Environ() {
				if !strings.HasPrefix(variable, "CI=") { // OLM has checks for its own CI
					cmd.Env = append(cmd.Env, variable)
				}
			}
			err := cmd.Run()
			_, _ = fmt.Fprintf(output, "ended: %v\n", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // a restart, not a wait for something
			}
		}
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			text, _ := os.ReadFile(output.Name())
			t.Logf("the end of what %s says:\n%s", name, text[max(0, len(text)-8000):])
		}
	})
	return stop
}

// startOLM installs OLM's CRDs and runs its two programs beside the cluster.
func startOLM(t *testing.T) {
	t.Helper()
	sh(t, "kubectl apply --server-side --force-conflicts -f '"+environment(t, "OLM_CRDS")+"'")
	sh(t, "kubectl wait --for=condition=Established --timeout=60s -f '"+environment(t, "OLM_CRDS")+"'")
	sh(t, "kubectl create namespace olm --dry-run=client -o yaml | kubectl apply -f -")
	// Both serve metrics on :8080, or one on :8443 with a certificate.
	certificate, key, err := certutil.GenerateSelfSignedCertKey("localhost", nil, nil)
	require.NoError(t, err)
	dir := t.TempDir()
	certificateFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	require.NoError(t, os.WriteFile(certificateFile, certificate, 0o600))
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	serve(t, environment(t, "OLM"), "--namespace", "olm", "--writeStatusName", "", "--tls-cert", certificateFile, "--tls-key", keyFile)
	serve(t, environment(t, "OLM_CATALOG"), "--namespace", "olm", "--writeStatusName", "", "--kubeconfig", environment(t, "KUBECONFIG"))
}

// catalog serves the bundles, oldest first, as make catalog builds them.
func catalog(t *testing.T, bundles ...string) (stop func()) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "catalog")
	sh(t, "hack/catalog.sh '"+dir+"' '"+strings.Join(bundles, "' '")+"'")
	return serve(t, environment(t, "OPM"), "serve", dir, "--port", catalogPort, "--pprof-addr", "127.0.0.1:0",
		"--termination-log", filepath.Join(t.TempDir(), "termination"))
}

// bundle returns a copy of bundle/ with another version and images.
func bundle(t *testing.T, version, controller, executor string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bundle")
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(root, "bundle"))))
	path := filepath.Join(dir, "manifests/opensandbox-operator.clusterserviceversion.yaml")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	current := environment(t, "VERSION")
	changed := strings.NewReplacer(
		"opensandbox.io/controller:v"+current, controller,
		"opensandbox.io/task-executor:v"+current, executor,
		"name: opensandbox-operator.v"+current, "name: opensandbox-operator.v"+version,
		"\n  version: "+current+"\n", "\n  version: "+version+"\n",
	).Replace(string(text))
	require.Contains(t, changed, "image: "+controller)
	require.Contains(t, changed, "\n  version: "+version+"\n")
	require.NoError(t, os.WriteFile(path, []byte(changed), 0o600))
	return dir
}

// withoutExpires takes a field out of a bundle's CRD: an upgrade that changes no CRD
// would say little.
func withoutExpires(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "manifests/sandbox.opensandbox.io_batchsandboxes.yaml")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	crd := &apiextensionsv1.CustomResourceDefinition{}
	require.NoError(t, yaml.UnmarshalStrict(text, crd))
	status := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["status"].Properties
	require.Contains(t, status, "expires")
	delete(status, "expires")
	text, err = yaml.Marshal(crd)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return dir
}

func read(ctx context.Context, api client.Client, group, version, kind, namespace, name string) (*unstructured.Unstructured, error) {
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
	return obj, api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, obj)
}

// succeeded waits until OLM says that the version is installed.
func succeeded(t *testing.T, api client.Client, namespace, version string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		csv, err := read(t.Context(), api, "operators.coreos.com", "v1alpha1", "ClusterServiceVersion", namespace, "opensandbox-operator.v"+version)
		require.NoError(c, err)
		phase, _, _ := unstructured.NestedString(csv.Object, "status", "phase")
		message, _, _ := unstructured.NestedString(csv.Object, "status", "message")
		require.Equal(c, "Succeeded", phase, message)
	}, patience, 500*time.Millisecond, "ClusterServiceVersion v%s", version)
}

// until waits for the batch to be as wanted.
func until(t *testing.T, api client.Client, bs *v1alpha1.BatchSandbox, what string, wanted func(*v1alpha1.BatchSandbox) bool) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
		require.True(c, wanted(bs), "%s: %+v", what, bs.Status)
	}, patience, 200*time.Millisecond)
}

// containers returns what tells that the pods of a namespace are the same and were not
// restarted: the ids of all their containers.
func containers(t *testing.T, api client.Client, namespace string) map[string]string {
	t.Helper()
	pods := &corev1.PodList{}
	require.NoError(t, api.List(t.Context(), pods, client.InNamespace(namespace)))
	ids := map[string]string{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			ids[pod.Name+"/"+status.Name] = status.ContainerID
		}
	}
	return ids
}
