// Package e2e tests the operator as users run it: deployed as a pod under its own
// RBAC on a cluster with a real node. KUBECONFIG names the cluster; 'make test-e2e'
// starts one.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/evidence"
)

const (
	// patience is how long a test waits for what must happen, on a machine that is
	// busy with other things too.
	patience = 5 * time.Minute
	poll     = 100 * time.Millisecond
	// operatorNamespace is where config/default deploys the operator.
	operatorNamespace = "opensandbox-system"
)

var (
	// cluster is where the operator is deployed.
	cluster *rest.Config
	// api reads and writes without a cache.
	api client.WithWatch
	// restartsInPlace says that the cluster knows the rule by which all containers of a pod
	// restart in place. Elsewhere pools of the type Restart delete what comes back.
	restartsInPlace bool
)

func TestMain(m *testing.M) {
	if err := connect(); err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end tests cannot run:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func connect() error {
	for _, variable := range []string{"KUBECONFIG", "KUBECTL"} {
		if os.Getenv(variable) == "" {
			return fmt.Errorf("%s is not set: run them by 'make test-e2e'", variable)
		}
	}
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return err
	}
	var err error
	if cluster, err = config.GetConfig(); err != nil {
		return err
	}
	cluster.QPS = -1
	if api, err = client.NewWithWatch(cluster, client.Options{Scheme: scheme.Scheme}); err != nil {
		return err
	}
	return askForRestarts()
}

// askForRestarts tries out a pod with the rule, which is not made. Older clusters drop or
// refuse the rule. From 1.36 on it is on by default, and tests that found it missing there
// would test too little.
func askForRestarts() error {
	asked, err := discovery.NewDiscoveryClientForConfig(cluster)
	if err != nil {
		return err
	}
	version, err := asked.ServerVersion()
	if err != nil {
		return err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: "e2e-"}, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{
			Name: "restarter", Image: "none", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
			RestartPolicyRules: []corev1.ContainerRestartRule{{
				Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
				ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{1}},
			}},
		}},
		Containers: []corev1.Container{{Name: "sandbox", Image: "none"}},
	}}
	if err := api.Create(context.Background(), pod, client.DryRunAll); err == nil {
		restartsInPlace = len(pod.Spec.InitContainers[0].RestartPolicyRules) == 1
	} else if !apierrors.IsInvalid(err) {
		return err
	}
	fmt.Printf("Kubernetes %s, sandboxes restart in place: %t\n", version, restartsInPlace)
	if minor, err := strconv.Atoi(version.Minor); err == nil && minor >= 36 && !restartsInPlace {
		return errors.New("it should know the rule by which all containers of a pod restart in place")
	}
	return nil
}

// newNamespace makes a namespace that is deleted, with all in it, after the test;
// the test fails when that hangs. What is in it is kept when the test has failed.
func newNamespace(t *testing.T) string {
	t.Helper()
	return namespaceWith(t, nil)
}

// restrictedNamespace enforces what untrusted code should be under: the restricted Pod
// Security Standard.
func restrictedNamespace(t *testing.T) string {
	t.Helper()
	return namespaceWith(t, map[string]string{
		"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest",
	})
}

func namespaceWith(t *testing.T, labels map[string]string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: labels}}
	require.NoError(t, api.Create(t.Context(), ns))
	t.Cleanup(func() { deleteNamespace(t, ns.Name) })
	evidence.OnFailure(t, cluster, ns.Name, operatorNamespace)
	return ns.Name
}

func deleteNamespace(t *testing.T, name string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	require.NoError(t, client.IgnoreNotFound(api.Delete(context.Background(), ns)))
	untilGone(t, ns)
}

// kubectl runs kubectl as a user would, with this input, and returns what it prints.
func kubectl(t *testing.T, input string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Getenv("KUBECTL"), args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	require.NoError(t, cmd.Run(), "kubectl %s: %s", strings.Join(args, " "), &errs)
	return out.String()
}

// inSandbox runs a command in the first container of a pod.
func inSandbox(t *testing.T, ns, pod string, command ...string) string {
	t.Helper()
	return kubectl(t, "", append([]string{"exec", "--namespace", ns, pod, "--"}, command...)...)
}

// until reads the object until the condition holds.
func until[T client.Object](t *testing.T, obj T, condition func(T) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		return api.Get(context.Background(), client.ObjectKeyFromObject(obj), obj) == nil && condition(obj)
	}, patience, poll, "last seen: %s", dump{obj})
}

func untilGone(t *testing.T, obj client.Object) {
	t.Helper()
	require.Eventually(t, func() bool {
		return apierrors.IsNotFound(api.Get(context.Background(), client.ObjectKeyFromObject(obj), obj))
	}, patience, poll, "it is still there: %s", dump{obj})
}

// dump prints an object as it is when it is printed.
type dump struct{ value any }

func (d dump) String() string {
	raw, err := json.MarshalIndent(d.value, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func ready(bs *v1alpha1.BatchSandbox) bool {
	return bs.Status.ObservedGeneration == bs.Generation && bs.Status.Phase == v1alpha1.PhaseSucceed
}

func hasCondition(kind, reason string) func(conditions []metav1.Condition) bool {
	return func(conditions []metav1.Condition) bool {
		c := meta.FindStatusCondition(conditions, kind)
		return c != nil && c.Reason == reason
	}
}

// endpointsOf reads the annotation that clients read.
func endpointsOf(t *testing.T, bs *v1alpha1.BatchSandbox) []string {
	t.Helper()
	var endpoints []string
	require.NoError(t, json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationEndpoints]), &endpoints))
	return endpoints
}

// heldBy returns the pool pods of a BatchSandbox in shard order.
func heldBy(t *testing.T, bs *v1alpha1.BatchSandbox) []string {
	t.Helper()
	pods, err := readHeld(bs)
	require.NoError(t, err)
	return pods
}

func readHeld(bs *v1alpha1.BatchSandbox) ([]string, error) {
	raw := bs.Annotations[v1alpha1.AnnotationAllocStatus]
	if raw == "" {
		return nil, nil
	}
	var status v1alpha1.AllocStatus
	err := json.Unmarshal([]byte(raw), &status)
	return status.Pods, err
}

// getPage asks a sandbox for a page and returns the status code. The samples have no
// readiness probe, so that a pod is Ready a moment before its server listens.
func getPage(t *testing.T, ip, path string) int {
	t.Helper()
	web := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var code int
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+ip+path, http.NoBody)
		require.NoError(c, err)
		response, err := web.Do(request)
		require.NoError(c, err)
		defer func() { _ = response.Body.Close() }()
		_, err = io.Copy(io.Discard, response.Body)
		require.NoError(c, err)
		code = response.StatusCode
	}, patience, poll)
	return code
}

// webServer is the template of the samples.
func webServer() *v1alpha1.PodTemplate {
	return &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "sandbox-container", Image: "nginx:latest", Ports: []corev1.ContainerPort{{ContainerPort: 80}},
	}}}}}
}

// shell runs a script in busybox.
func shell(script string) *v1alpha1.PodTemplate {
	return &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To(int64(1)),
		Containers: []corev1.Container{{
			Name: "sandbox-container", Image: "busybox:latest", ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{"sh", "-c", script},
		}},
	}}}
}

// startPool makes a pool and waits until it has its pods.
func startPool(t *testing.T, ns string, template *v1alpha1.PodTemplate, capacity v1alpha1.CapacitySpec) *v1alpha1.Pool {
	t.Helper()
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"},
		Spec: v1alpha1.PoolSpec{Template: template, CapacitySpec: capacity}}
	require.NoError(t, api.Create(t.Context(), pool))
	until(t, pool, func(p *v1alpha1.Pool) bool {
		return p.Status.Total >= capacity.PoolMin && p.Status.Available >= max(capacity.BufferMin, capacity.PoolMin)
	})
	return pool
}

func pooled(ns, name string, replicas int32) *v1alpha1.BatchSandbox {
	return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(replicas), PoolRef: "example-pool"}}
}

func fromTemplate(ns, name string, replicas int32, template *v1alpha1.PodTemplate) *v1alpha1.BatchSandbox {
	return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(replicas), Template: template}}
}

// start creates a BatchSandbox and waits until all its sandboxes are ready.
func start(t *testing.T, bs *v1alpha1.BatchSandbox) {
	t.Helper()
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, ready)
}
