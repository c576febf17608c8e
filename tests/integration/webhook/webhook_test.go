// Package webhook tests admission against a real kube-apiserver, with the webhook
// configurations as they are generated.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/webhook"
	"github.com/opensandbox/operator/scorecard/checks"
	"github.com/opensandbox/operator/tests/internal/evidence"
	"github.com/opensandbox/operator/tests/internal/webhooks"
)

const (
	// patience is how long a test waits for what must happen, on a machine that is
	// busy with other things too.
	patience = 5 * time.Minute
	poll     = 100 * time.Millisecond
)

var (
	env    *envtest.Environment
	config *rest.Config
	api    client.Client
	seen   recorder
	// clients has signed the certificate that the API server shows to the webhooks.
	clients *authority
	// stopServing ends the webhook server; one test runs without it.
	stopServing func()
)

// recorder keeps the warnings that the API server answers with.
type recorder struct {
	mu    sync.Mutex // guards texts
	texts []string
}

func (r *recorder) HandleWarningHeader(_ int, _, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.texts = append(r.texts, text)
}

func (r *recorder) has(part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.texts, func(text string) bool { return strings.Contains(text, part) })
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration tests cannot run:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return 0, fmt.Errorf("KUBEBUILDER_ASSETS is not set: run them by 'make test-integration'")
	}
	if err := v1alpha1.AddToScheme(clientgoscheme.Scheme); err != nil {
		return 0, err
	}
	env = &envtest.Environment{
		CRDDirectoryPaths: []string{"../../../config/crd/bases"}, ErrorIfCRDPathMissing: true,
		WebhookInstallOptions:    envtest.WebhookInstallOptions{Paths: []string{"../../../config/webhook/manifests.yaml"}},
		ControlPlaneStartTimeout: 2 * time.Minute, ControlPlaneStopTimeout: time.Minute,
	}
	folder, err := os.MkdirTemp("", "webhook-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	if clients, err = newAuthority(folder); err != nil {
		return 0, fmt.Errorf("making the API server's client certificate: %w", err)
	}
	env.ControlPlane.GetAPIServer().Configure().Append("admission-control-config-file", clients.admission)
	if config, err = env.Start(); err != nil {
		return 0, fmt.Errorf("starting the control plane: %w", err)
	}
	defer func() { _ = env.Stop() }()
	config.QPS = -1
	config.WarningHandler = &seen
	if api, err = client.New(config, client.Options{Scheme: clientgoscheme.Scheme}); err != nil {
		return 0, err
	}
	if err := serve(); err != nil {
		return 0, err
	}
	defer func() { stopServing() }()
	return m.Run(), nil
}

// serve runs the webhooks, and no reconcilers, until stopServing is called.
func serve() (err error) {
	answered, err := webhook.NewClients(clients.file, apiServerName)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if stopServing, err = serveAt(ctx, env.WebhookInstallOptions.LocalServingPort, cache.Options{}, answered); err != nil {
		return err
	}
	// It fails open as long as the API server, which watches the configurations, asks nobody.
	var last error
	err = wait.PollUntilContextTimeout(ctx, poll, patience, true, func(ctx context.Context) (bool, error) {
		last = webhooks.Asked(ctx, api, metav1.NamespaceDefault)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("waiting until the webhooks are asked: %w", errors.Join(err, last))
	}
	return nil
}

// serveAt runs the webhooks of an operator that caches what the options say, and answers those
// clients. Its caches are filled when it returns.
func serveAt(ctx context.Context, port int, cached cache.Options, answered *webhook.Clients) (stop func(), err error) {
	o := env.WebhookInstallOptions
	watched := rest.CopyConfig(config)
	watched.Wrap(asked.wrap)
	mgr, err := ctrl.NewManager(watched, ctrl.Options{
		Scheme:  clientgoscheme.Scheme,
		Cache:   cached,
		Metrics: metricsserver.Options{BindAddress: "0"},
		WebhookServer: ctrlwebhook.NewServer(ctrlwebhook.Options{
			Host: o.LocalServingHost, Port: port, CertDir: o.LocalServingCertDir,
			TLSOpts: []func(*tls.Config){webhook.ServerTLS},
		}),
	})
	if err != nil {
		return nil, err
	}
	if err := webhook.Register(mgr, &podtemplate.Executor{Image: "executor:v1"}, answered); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		if err := mgr.Start(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "the webhooks end:", err)
		}
	})
	stop = func() { cancel(); running.Wait() }
	if !mgr.GetCache().WaitForCacheSync(ctx) {
		stop()
		return nil, fmt.Errorf("the caches do not sync")
	}
	return stop, nil
}

func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "webhook-"}}
	require.NoError(t, api.Create(t.Context(), ns))
	evidence.OnFailure(t, config, ns.Name)
	return ns.Name
}

// create creates an object from text, as kubectl does, and returns it.
func create(t *testing.T, ns, kind, text string) (*unstructured.Unstructured, error) {
	t.Helper()
	obj := &unstructured.Unstructured{}
	require.NoError(t, yaml.Unmarshal([]byte(text), &obj.Object))
	obj.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
	obj.SetNamespace(ns)
	if obj.GetName() == "" {
		obj.SetName("it")
	}
	return obj, api.Create(t.Context(), obj)
}

const (
	capacity = `capacitySpec: {bufferMin: 1, bufferMax: 1, poolMin: 0, poolMax: 2}`
	good     = `{spec: {containers: [{name: main, image: nginx}]}}`
)

func TestWhatIsRefused(t *testing.T) {
	ns := newNamespace(t)
	cases := []struct{ name, kind, spec, want string }{
		{"a pool with a misspelt field", "Pool", `{template: {spec: {contaners: []}}, ` + capacity + `}`, `spec.template: not a pod template: unknown field "spec.contaners"`},
		{"a pool whose pod the API server refuses", "Pool", `{template: {spec: {containers: [{name: main}]}}, ` + capacity + `}`, `spec.template.spec.containers[0].image: Required value`},
		{"a pool with an executor and a hook that is no command", "Pool", `{taskExecutor: {enabled: true}, template: {spec: {containers: [{name: main, image: a, lifecycle: {postStart: {sleep: {seconds: 1}}}}]}}, ` + capacity + `}`, `spec.template.spec.containers[0].lifecycle.postStart`},
		{"a pool with nothing but a task executor", "Pool", `{template: {spec: {containers: [{name: task-executor, image: a}]}}, ` + capacity + `}`, `spec.template.spec.containers: there is none beside the task executor`},
		{"a batch that is to be paused", "BatchSandbox", `{pause: true, template: ` + good + `}`, `sandboxes cannot be paused`},
		{"a field of another type", "Pool", `{template: {spec: {containers: main}}, ` + capacity + `}`, `containers`},
		{"a batch with tasks and a hook that is no command in one sandbox", "BatchSandbox", `{replicas: 2, template: ` + good + `, taskTemplate: {spec: {process: {command: [a]}}}, shardPatches: [{}, {spec: {containers: [{name: main, lifecycle: {postStart: {sleep: {seconds: 1}}}}]}}]}`, `spec.shardPatches[1].spec.containers[0].lifecycle.postStart`},
		{"a template whose pod the API server refuses", "BatchSandbox", `{template: {spec: {containers: [{name: main, image: a, ports: [{containerPort: 99999}]}]}}}`, `spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 99999`},
		{"a patch that does not apply", "BatchSandbox", `{replicas: 2, template: ` + good + `, shardPatches: [{}, {spec: {hostnam: x}}]}`, `spec.shardPatches[1]: `},
		{"a patch whose pod the API server refuses", "BatchSandbox", `{replicas: 2, template: ` + good + `, shardPatches: [{spec: {hostname: BAD}}]}`, `spec.shardPatches[0].spec.hostname: Invalid value: "BAD"`},
		{"a task patch that does not apply", "BatchSandbox", `{template: ` + good + `, taskTemplate: {spec: {process: {command: [a]}}}, shardTaskPatches: [{spec: {prozess: {}}}]}`, `spec.shardTaskPatches[0]: `},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := create(t, ns, c.kind, `{spec: `+c.spec+`}`)
			require.Error(t, err)
			assert.Contains(t, err.Error(), c.want)
		})
	}
	pods := &corev1.PodList{}
	require.NoError(t, api.List(t.Context(), pods, client.InNamespace(ns)))
	assert.Empty(t, pods.Items, "a dry run creates nothing")
}

// The API server's own validation answers.
func TestAnObjectWithoutASpec(t *testing.T) {
	ns := newNamespace(t)
	annotated := `metadata: {annotations: {sandbox.opensandbox.io/endpoints: '[]'}}`
	for _, kind := range []string{"Pool", "BatchSandbox"} {
		for _, text := range []string{`{}`, `{spec: null}`, `{` + annotated + `}`, `{metadata: {annotations: null}}`} {
			_, err := create(t, ns, kind, text)
			require.True(t, apierrors.IsInvalid(err), "%s %s: %v", kind, text, err)
			assert.Contains(t, err.Error(), "spec: Required value")
		}
	}
	pool, err := create(t, ns, "Pool", `{spec: {template: `+good+`, `+capacity+`}}`)
	require.NoError(t, err)
	err = api.Patch(t.Context(), pool, client.RawPatch("application/merge-patch+json", []byte(`{"spec":null}`)))
	require.True(t, apierrors.IsInvalid(err), err)
	assert.Contains(t, err.Error(), "spec: Required value")
}

func TestTheScorecardSeesThatTheyAreRefused(t *testing.T) {
	c := checks.Check{Client: api, Namespace: newNamespace(t), Name: "check", Patience: patience}
	require.NoError(t, c.Refuses(t.Context()))
}

func TestAnUpdateOfAPool(t *testing.T) {
	ns := newNamespace(t)
	pool, err := create(t, ns, "Pool", `{spec: {template: `+good+`, `+capacity+`}}`)
	require.NoError(t, err)
	value, _, _ := unstructured.NestedString(pool.Object, "spec", "updateStrategy", "maxUnavailable")
	assert.Equal(t, "25%", value, "the default is written out")
	bad := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"main"}]}}}}`))
	require.ErrorContains(t, api.Patch(t.Context(), pool, bad), "image: Required value")
	misspelt := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"template":{"spec":{"hostnam":"x"}}}}`))
	require.ErrorContains(t, api.Patch(t.Context(), pool, misspelt), `unknown field "spec.hostnam"`)
	fine := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"b"}]}}}}`))
	require.NoError(t, api.Patch(t.Context(), pool, fine))
}

func TestWarnings(t *testing.T) {
	ns := newNamespace(t)
	_, err := create(t, ns, "BatchSandbox", `{metadata: {name: no-pool}, spec: {poolRef: missing, expireTime: "2999-01-01T00:00:00Z"}}`)
	require.NoError(t, err, "GitOps applies in any order")
	assert.True(t, seen.has("there is no Pool missing in namespace "+ns+" yet"))

	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "none"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}}}
	require.NoError(t, api.Create(t.Context(), quota))
	quota.Status.Hard = quota.Spec.Hard
	quota.Status.Used = quota.Spec.Hard
	require.NoError(t, api.Status().Update(t.Context(), quota))
	require.Eventually(t, func() bool {
		_, err := create(t, ns, "BatchSandbox", fmt.Sprintf(`{metadata: {name: quota-%d}, spec: {template: %s}}`, time.Now().UnixNano(), good))
		require.NoError(t, err, "the quota may be raised later")
		return seen.has("exceeded quota")
	}, patience, 10*poll)
}

func TestARestoredAllocationIsRemoved(t *testing.T) {
	ns := newNamespace(t)
	bs, err := create(t, ns, "BatchSandbox", `{metadata: {annotations: {mine: kept, sandbox.opensandbox.io/alloc-status: '{"pods":["a"]}', sandbox.opensandbox.io/endpoints: '["10.0.0.1"]'}}, spec: {poolRef: missing}}`)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"mine": "kept"}, bs.GetAnnotations())
	assert.True(t, seen.has("metadata.annotations[sandbox.opensandbox.io/alloc-status] was removed"))
}

func TestForegroundDeletionOfAPoolWithHeldSandboxes(t *testing.T) {
	ns := newNamespace(t)
	pool, err := create(t, ns, "Pool", `{metadata: {name: lender}, spec: {template: `+good+`, `+capacity+`}}`)
	require.NoError(t, err)
	bs, err := create(t, ns, "BatchSandbox", `{metadata: {name: holder}, spec: {poolRef: lender}}`)
	require.NoError(t, err)
	hold := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":["`+v1alpha1.FinalizerPoolAllocation+`"],"annotations":{"`+v1alpha1.AnnotationAllocStatus+`":"{\"pods\":[\"a\"]}"}}}`))
	require.NoError(t, api.Patch(t.Context(), bs, hold))
	require.Eventually(t, func() bool {
		err = api.Delete(t.Context(), pool.DeepCopy(), client.PropagationPolicy(metav1.DeletePropagationForeground), client.DryRunAll)
		return err != nil
	}, patience, poll, "the webhook reads a cache")
	require.True(t, apierrors.IsForbidden(err), err)
	assert.Contains(t, err.Error(), "held by BatchSandbox holder")
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan} {
		require.True(t, apierrors.IsForbidden(api.Delete(t.Context(), pool.DeepCopy(), client.PropagationPolicy(policy))), policy)
		err := api.DeleteAllOf(t.Context(), pool.DeepCopy(), client.InNamespace(ns), client.PropagationPolicy(policy))
		require.Error(t, err, "deleting a collection with %s", policy)
	}
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pool), pool))
	require.Nil(t, pool.GetDeletionTimestamp())
	require.NoError(t, api.Delete(t.Context(), pool.DeepCopy(), client.PropagationPolicy(metav1.DeletePropagationBackground)), "waits for the sandboxes")

	empty, err := create(t, ns, "Pool", `{metadata: {name: empty}, spec: {template: `+good+`, `+capacity+`}}`)
	require.NoError(t, err)
	require.NoError(t, api.Delete(t.Context(), empty, client.PropagationPolicy(metav1.DeletePropagationForeground)))
}

// The certificate that the operator makes itself, by two replicas.
func TestCertificatesAreMadeSharedAndRotated(t *testing.T) {
	ns := newNamespace(t)
	address := "https://127.0.0.1:1/"
	none := admissionregistrationv1.SideEffectClassNone
	hook := admissionregistrationv1.ValidatingWebhook{Name: "a.example.com", SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &address}}
	second := hook
	second.Name = "b.example.com"
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: webhook.ValidatingName},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{hook, second}}
	require.NoError(t, api.Create(t.Context(), validating))
	t.Cleanup(func() { _ = api.Delete(context.Background(), validating) })

	clock := clocktesting.NewFakeClock(time.Now())
	replicas := make([]*webhook.Certificates, 2)
	for i := range replicas {
		var err error
		replicas[i], err = webhook.NewCertificates(api, ns, clock)
		require.NoError(t, err)
		require.Error(t, replicas[i].Ready(nil))
		go func() { _ = replicas[i].Start(t.Context()) }()
	}
	// served returns the one certificate that both serve and the API server trusts.
	served := func(c *assert.CollectT) []byte {
		secret := &corev1.Secret{}
		require.NoError(c, api.Get(context.Background(), client.ObjectKey{Namespace: ns, Name: webhook.SecretName}, secret))
		require.NoError(c, api.Get(context.Background(), client.ObjectKeyFromObject(validating), validating))
		for i := range validating.Webhooks {
			require.Equal(c, secret.Data["ca.crt"], validating.Webhooks[i].ClientConfig.CABundle)
		}
		var first []byte
		for _, replica := range replicas {
			certificate, err := replica.GetCertificate(nil)
			require.NoError(c, err)
			if first == nil {
				first = certificate.Certificate[0]
			}
			require.Equal(c, first, certificate.Certificate[0], "both serve the same")
		}
		return first
	}
	var before []byte
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		clock.Step(5 * time.Second) // whoever came second tries again
		before = served(c)
	}, patience, poll)
	clock.Step(300 * 24 * time.Hour)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		clock.Step(10 * time.Minute)
		require.NotEqual(c, before, served(c), "a new one")
	}, patience, poll)
}

// With the webhooks down, or even failing closed, what the operator does goes on: its
// writes never pass through a webhook.
func TestWithTheWebhooksDown(t *testing.T) {
	ns := newNamespace(t)
	restoreWebhooks(t)
	pool, err := create(t, ns, "Pool", `{metadata: {name: pool}, spec: {template: `+good+`, `+capacity+`}}`)
	require.NoError(t, err)
	bs, err := create(t, ns, "BatchSandbox", `{metadata: {name: batch}, spec: {poolRef: pool}}`)
	require.NoError(t, err)
	stopServing()

	_, err = create(t, ns, "BatchSandbox", `{metadata: {name: second}, spec: {poolRef: pool, expireTime: "2999-01-01T00:00:00Z"}}`)
	require.NoError(t, err, "they fail open")
	scorecard := checks.Check{Client: api, Namespace: ns, Name: "check", Patience: 10 * poll}
	require.ErrorContains(t, scorecard.Refuses(t.Context()), "accepted, want a refusal", "the scorecard sees it")
	_, err = create(t, ns, "BatchSandbox", `{metadata: {name: third}, spec: {poolRef: pool, template: {}}}`)
	require.ErrorContains(t, err, "exactly one of spec.poolRef and spec.template", "CEL holds")

	failClosed(t)
	_, err = create(t, ns, "BatchSandbox", `{metadata: {name: fourth}, spec: {poolRef: pool}}`)
	require.NoError(t, err, "no webhook is asked about sandboxes of a pool alone")
	for _, obj := range []*unstructured.Unstructured{pool, bs} {
		finalize := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":["`+v1alpha1.FinalizerPoolAllocation+`"],"annotations":{"a":"b"}}}`))
		require.NoError(t, api.Patch(t.Context(), obj, finalize), "finalizers and annotations of %s", obj.GetKind())
		status := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"observedGeneration":1}}`))
		require.NoError(t, api.Status().Patch(t.Context(), obj.DeepCopy(), status), "status of %s", obj.GetKind())
	}
	require.NoError(t, api.Delete(t.Context(), bs))
	failOpen(t)
	require.NoError(t, api.Delete(t.Context(), pool))
	failClosed(t)
	for _, obj := range []*unstructured.Unstructured{pool, bs} {
		release := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
		require.NoError(t, api.Patch(t.Context(), obj, release), "%s lets go", obj.GetKind())
		require.True(t, apierrors.IsNotFound(api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj)))
	}
}

// restoreWebhooks has them configured and served as before when the test ends.
func restoreWebhooks(t *testing.T) {
	t.Helper()
	validating := &admissionregistrationv1.ValidatingWebhookConfigurationList{}
	require.NoError(t, api.List(t.Context(), validating))
	mutating := &admissionregistrationv1.MutatingWebhookConfigurationList{}
	require.NoError(t, api.List(t.Context(), mutating))
	t.Cleanup(func() {
		for i := range validating.Items {
			now := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: validating.Items[i].Name}}
			restore(t, now, func() { now.Webhooks = validating.Items[i].Webhooks })
		}
		for i := range mutating.Items {
			now := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: mutating.Items[i].Name}}
			restore(t, now, func() { now.Webhooks = mutating.Items[i].Webhooks })
		}
		require.NoError(t, serve())
	})
}

func restore(t *testing.T, now client.Object, change func()) {
	t.Helper()
	ctx := context.Background() // the test's own has ended
	require.NoError(t, api.Get(ctx, client.ObjectKeyFromObject(now), now))
	before := client.MergeFrom(now.DeepCopyObject().(client.Object))
	change()
	require.NoError(t, api.Patch(ctx, now, before))
}

func failClosed(t *testing.T) { setPolicy(t, admissionregistrationv1.Fail) }
func failOpen(t *testing.T)   { setPolicy(t, admissionregistrationv1.Ignore) }

// setPolicy returns once the API server, which watches the configurations, follows it.
func setPolicy(t *testing.T, policy admissionregistrationv1.FailurePolicyType) {
	t.Helper()
	validating := &admissionregistrationv1.ValidatingWebhookConfigurationList{}
	require.NoError(t, api.List(t.Context(), validating))
	for i := range validating.Items {
		for j := range validating.Items[i].Webhooks {
			validating.Items[i].Webhooks[j].FailurePolicy = &policy
			validating.Items[i].Webhooks[j].TimeoutSeconds = ptr.To(int32(1))
		}
		require.NoError(t, api.Update(t.Context(), &validating.Items[i]))
	}
	follows(t, policy, "vbatchsandbox.")
	mutating := &admissionregistrationv1.MutatingWebhookConfigurationList{}
	require.NoError(t, api.List(t.Context(), mutating))
	for i := range mutating.Items {
		for j := range mutating.Items[i].Webhooks {
			mutating.Items[i].Webhooks[j].FailurePolicy = &policy
		}
		require.NoError(t, api.Update(t.Context(), &mutating.Items[i]))
	}
	follows(t, policy, "mbatchsandbox.")
}

// follows waits until the webhook, which is down, refuses or lets through.
func follows(t *testing.T, policy admissionregistrationv1.FailurePolicyType, name string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		probe := &v1alpha1.BatchSandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "probe", Annotations: map[string]string{v1alpha1.AnnotationEndpoints: "[]"}},
			Spec:       v1alpha1.BatchSandboxSpec{PoolRef: "none", ExpireTime: &metav1.Time{Time: time.Now().Add(time.Hour)}},
		}
		err := api.Create(context.Background(), probe, client.DryRunAll)
		if policy == admissionregistrationv1.Fail {
			assert.ErrorContains(c, err, `failed calling webhook "`+name)
		} else if err != nil {
			assert.NotContains(c, err.Error(), `failed calling webhook "`+name)
		}
	}, patience, poll)
}
