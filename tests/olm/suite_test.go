// Package olm tests the way in by OLM: its own two programs, run beside the cluster,
// install the bundle from a catalog in each install mode, upgrade it from a version before,
// and it is removed in the order that docs/install.md gives. KUBECONFIG names a cluster without the
// operator; 'make test-olm' starts one and builds what the test needs.
package olm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/documented"
)

const (
	root     = "../.."
	patience = 3 * time.Minute
	// catalogPort is where opm serves the catalog.
	catalogPort = "50051"

	namespace  = "opensandbox-system"
	deployment = "opensandbox-controller-manager"
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

// subscribe applies what users apply, for these namespaces or, without any, for all. The
// catalog is the test's own.
func subscribe(t *testing.T, targets ...string) {
	t.Helper()
	enforce := "restricted"
	if slices.Contains(targets, namespace) {
		enforce = "privileged" // the sandboxes live there, too
	}
	apply(t, `
apiVersion: v1
kind: Namespace
metadata:
  name: `+namespace+`
  labels: {pod-security.kubernetes.io/enforce: `+enforce+`}
---
apiVersion: operators.coreos.com/v1alpha1
kind: CatalogSource
metadata: {name: opensandbox, namespace: `+namespace+`}
spec: {sourceType: grpc, address: "127.0.0.1:`+catalogPort+`"}
---`+operatorGroup(targets...)+`---
apiVersion: operators.coreos.com/v1alpha1
kind: Subscription
metadata: {name: opensandbox-operator, namespace: `+namespace+`}
spec: {channel: stable, name: opensandbox-operator, source: opensandbox, sourceNamespace: `+namespace+`}
`)
}

func operatorGroup(targets ...string) string {
	spec := ""
	if len(targets) > 0 {
		spec = "targetNamespaces: [" + strings.Join(targets, ", ") + "]"
	}
	return `
apiVersion: operators.coreos.com/v1
kind: OperatorGroup
metadata: {name: opensandbox, namespace: ` + namespace + `}
spec: {` + spec + `}
`
}

func apply(t *testing.T, manifest string) {
	t.Helper()
	sh(t, "kubectl apply -f - <<'YAML'"+manifest+"YAML")
}

// follow runs the commands under a heading of docs/install.md; NAMESPACE stands for the
// one given.
func follow(t *testing.T, heading, namespace string) {
	t.Helper()
	for _, command := range documented.Commands(t, root, heading) {
		sh(t, strings.ReplaceAll(command, "NAMESPACE", namespace))
	}
}

func newNamespace(t *testing.T, api client.Client) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "olm-"}}
	require.NoError(t, api.Create(t.Context(), ns))
	return ns.Name
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

// until waits for the object to be as wanted.
func until[T client.Object](t *testing.T, api client.Client, obj T, what string, wanted func(T) bool) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj))
		require.True(c, wanted(obj), "%s: %+v", what, obj)
	}, patience, 200*time.Millisecond)
}

// pooled applies the pooled example.
func pooled(t *testing.T, namespace string) *v1alpha1.BatchSandbox {
	t.Helper()
	sh(t, "kubectl -n "+namespace+" apply -f config/samples/pool.yaml -f config/samples/batchsandbox_pooled.yaml")
	return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pooled-batch-sandbox"}}
}

// tasks is a batch of two sandboxes, in each of which the script runs.
func tasks(namespace, name, script string) *v1alpha1.BatchSandbox {
	return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(2)),
		Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(1)),
			Containers: []corev1.Container{{Name: "sandbox-container", Image: "busybox:latest", ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sleep", "3600"}}},
		}}},
		TaskTemplate: &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"sh", "-c", script}}}},
	}}
}

func ready(bs *v1alpha1.BatchSandbox) bool {
	return bs.Status.ObservedGeneration == bs.Generation && bs.Status.Phase == v1alpha1.PhaseSucceed
}

// requireExecutor sees that the sandboxes hold the executor that the CSV names.
func requireExecutor(t *testing.T, api client.Client, tasks *v1alpha1.BatchSandbox, image string) {
	t.Helper()
	pod := &corev1.Pod{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: tasks.Namespace, Name: tasks.Name + "-0"}, pod))
	require.Equal(t, image, pod.Spec.InitContainers[0].Image)
}

const unknownField = `unknown field "spec.contaners"`

// misspelt says what comes of a template with a misspelt field. The CRDs do not know
// the fields of pods: the webhook refuses it, with unknownField, where the API server
// reaches it and trusts the certificate that OLM made.
func misspelt(t *testing.T, api client.Client, namespace string) error {
	t.Helper()
	obj := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"contaners": []any{}}}}}}
	obj.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.KindBatchSandbox))
	obj.SetNamespace(namespace)
	obj.SetName("misspelt")
	return api.Create(t.Context(), obj, client.DryRunAll)
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

func requireSame(t *testing.T, was, now map[string]string) {
	t.Helper()
	for name, id := range was {
		assert.Equal(t, id, now[name], "%s is the same, not restarted", name)
	}
}

// requireNothingLeft sees that the cluster does not know the operator any more, and that
// no sandbox is left in the namespaces that it served.
func requireNothingLeft(t *testing.T, api client.Client, used ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { // the garbage collector takes what OLM made for CRDs and CSVs
		for _, kind := range []schema.GroupVersionKind{
			{Version: "v1", Kind: "Namespace"},
			{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"},
			{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"},
			{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"},
			{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"},
			{Group: "operators.coreos.com", Version: "v1", Kind: "Operator"},
			{Group: "operators.coreos.com", Version: "v1alpha1", Kind: "ClusterServiceVersion"},
		} {
			left := &metav1.PartialObjectMetadataList{}
			left.SetGroupVersionKind(kind)
			require.NoError(c, api.List(t.Context(), left))
			for i := range left.Items {
				require.NotContains(c, left.Items[i].Name, "sandbox", kind.Kind)
			}
		}
	}, patience, 500*time.Millisecond)
	for _, namespace := range used {
		requireNoPods(t, api, namespace)
		require.NoError(t, api.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}))
	}
}

func requireNoPods(t *testing.T, api client.Client, namespace string) {
	t.Helper()
	pods := &corev1.PodList{}
	require.NoError(t, api.List(t.Context(), pods, client.InNamespace(namespace)))
	for i := range pods.Items {
		require.NotNil(t, pods.Items[i].DeletionTimestamp, pods.Items[i].Name)
	}
}
