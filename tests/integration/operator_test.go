// Package integration runs the operator's binary against a real etcd and
// kube-apiserver. KUBEBUILDER_ASSETS names the folder of their binaries. There is
// no node: a stand-in for the kubelet marks pods as running and ready.
package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/evidence"
)

var (
	cluster  *rest.Config
	api      client.WithWatch
	auditLog string
	operator *process
)

// operatorNamespace is the operator's own, as far as it knows.
const operatorNamespace = "operator-system"

// process is a running operator.
type process struct {
	binary, kubeconfig string
	// name is what the audit log shows as its user agent.
	name      string
	namespace string
	flags     []string
	log       *os.File
	cmd       *exec.Cmd
}

func (p *process) start() error {
	p.cmd = exec.Command(p.binary, append(p.flags, "--health-probe-bind-address=0")...)
	p.cmd.Args[0] = p.name
	p.cmd.Env = append(os.Environ(), "KUBECONFIG="+p.kubeconfig, "POD_NAMESPACE="+p.namespace)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting the operator: %w", err)
	}
	return nil
}

// kill ends it as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		panic(err)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration tests cannot run:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return 0, fmt.Errorf("KUBEBUILDER_ASSETS is not set: run them by 'make test-integration'")
	}
	dir, err := os.MkdirTemp("", "opensandbox-integration-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	auditLog = filepath.Join(dir, "audit.log")
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata, verbs: [get, create, update, patch, delete]}]\n"), 0o600); err != nil {
		return 0, err
	}
	env := &envtest.Environment{
		CRDDirectoryPaths: []string{"../../config/crd/bases"}, ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: 2 * time.Minute, ControlPlaneStopTimeout: time.Minute,
	}
	env.ControlPlane.GetAPIServer().Configure().Append("audit-policy-file", policy).Append("audit-log-path", auditLog)
	if cluster, err = env.Start(); err != nil {
		return 0, fmt.Errorf("starting the control plane: %w", err)
	}
	defer func() { _ = env.Stop() }()
	cluster.QPS, cluster.Burst = 1000, 1000
	if api, err = client.NewWithWatch(cluster, client.Options{Scheme: scheme.Scheme}); err != nil {
		return 0, err
	}
	if err := api.Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: operatorNamespace}}); err != nil {
		return 0, err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, env.KubeConfig, 0o600); err != nil {
		return 0, err
	}
	binary := filepath.Join(dir, "manager")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/manager").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building the operator: %w\n%s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "operator.log"))
	if err != nil {
		return 0, err
	}
	operator = &process{binary: binary, kubeconfig: kubeconfig, name: "manager", namespace: operatorNamespace, log: log}
	if err := operator.start(); err != nil {
		return 0, err
	}
	defer operator.kill()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go actAsKubelet(ctx)
	return m.Run(), nil
}

// patience is how long a test waits for what must happen, on a machine that is busy
// with other things too.
const patience = 5 * time.Minute

// poll is how often it looks.
const poll = 20 * time.Millisecond

// imageMissing cannot be pulled.
const imageMissing = "missing:1"

// actAsKubelet marks every new pod as running and ready, or says that its image
// cannot be pulled, and ends deleted ones.
func actAsKubelet(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := api.Watch(ctx, &corev1.PodList{})
		if err != nil {
			continue
		}
		n := 0
		for e := range w.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok || pod.Status.PodIP != "" && pod.DeletionTimestamp == nil {
				continue
			}
			if pod.DeletionTimestamp != nil {
				_ = api.Delete(ctx, pod, client.GracePeriodSeconds(0))
				continue
			}
			n++
			before := client.MergeFrom(pod.DeepCopy())
			if pod.Spec.Containers[0].Image == imageMissing {
				pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: pod.Spec.Containers[0].Name, State: corev1.ContainerState{
					Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"},
				}}}
				_ = api.Status().Patch(ctx, pod, before)
				continue
			}
			ip := fmt.Sprintf("10.1.%d.%d", n/250, n%250+1)
			pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			_ = api.Status().Patch(ctx, pod, before)
		}
	}
}

func template() *v1alpha1.PodTemplate {
	return &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "sandbox-container", Image: "nginx:latest"}}}}}
}

func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "it-"}}
	require.NoError(t, api.Create(t.Context(), ns))
	evidence.OnFailure(t, cluster, ns.Name)
	evidence.File(t, operator.log.Name())
	return ns.Name
}

func newPool(t *testing.T, ns string, buffer, most int32) *v1alpha1.Pool {
	t.Helper()
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}, Spec: v1alpha1.PoolSpec{
		Template: template(), CapacitySpec: v1alpha1.CapacitySpec{BufferMin: buffer, BufferMax: buffer, PoolMax: most},
	}}
	require.NoError(t, api.Create(t.Context(), pool))
	return pool
}

func pooled(ns, name string, replicas int32) *v1alpha1.BatchSandbox {
	return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(replicas), PoolRef: "example-pool"}}
}

// until reads the object until the condition holds.
func until[T client.Object](t *testing.T, obj T, condition func(T) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		return api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj) == nil && condition(obj)
	}, patience, poll, "last seen: %+v", obj)
}

func ready(n int32) func(*v1alpha1.BatchSandbox) bool {
	return func(bs *v1alpha1.BatchSandbox) bool {
		return bs.Status.Ready == n && bs.Status.Phase == v1alpha1.PhaseSucceed
	}
}

// held returns the pods that the BatchSandbox holds; none where it says nothing, as between
// the loss of its only sandbox and the next.
func held(t *testing.T, bs *v1alpha1.BatchSandbox) []string {
	t.Helper()
	if bs.Annotations[v1alpha1.AnnotationAllocStatus] == "" {
		return nil
	}
	var status v1alpha1.AllocStatus
	require.NoError(t, json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationAllocStatus]), &status))
	return status.Pods
}

func reasonIs(reason string) func(*v1alpha1.BatchSandbox) bool {
	return func(bs *v1alpha1.BatchSandbox) bool {
		for _, c := range bs.Status.Conditions {
			if c.Type == v1alpha1.ConditionReady {
				return c.Reason == reason
			}
		}
		return false
	}
}

func gone(t *testing.T, obj client.Object) {
	t.Helper()
	require.Eventually(t, func() bool {
		return apierrors.IsNotFound(api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj))
	}, patience, poll, "%s is still there", obj.GetName())
}

// request is a write, or the read of one object, in the audit log.
type request struct {
	Verb, UserAgent string
	ObjectRef       struct{ Resource, Subresource, Namespace, Name string }
	ResponseStatus  struct{ Code int }
	// RequestReceivedTimestamp is when the API server had read the request's headers.
	RequestReceivedTimestamp time.Time
}

// requests returns the requests in the audit log that the function selects.
func requests(t *testing.T, selects func(*request) bool) []request {
	t.Helper()
	file, err := os.Open(auditLog)
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	var found []request
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var r request
		require.NoError(t, json.Unmarshal(scanner.Bytes(), &r))
		if selects(&r) {
			found = append(found, r)
		}
	}
	return found
}

// writes counts the writes of a namespace's objects of a resource in the audit log,
// all or those with the verb.
func writes(t *testing.T, ns, resource string, verb ...string) int {
	t.Helper()
	return len(requests(t, func(r *request) bool {
		return r.ObjectRef.Namespace == ns && r.ObjectRef.Resource == resource && r.Verb != "get" && (len(verb) == 0 || slices.Contains(verb, r.Verb))
	}))
}

func TestDelivering100PooledSandboxesCostsThreeWrites(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 100, 100)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 100 })
	pods := writes(t, ns, "pods")
	bs := pooled(ns, "batch", 100)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, ready(100))
	// The pool's status follows later than anything that the delivery would still write.
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 100 })
	require.Equal(t, 3, writes(t, ns, "batchsandboxes"), "writes of the BatchSandbox")
	require.Equal(t, pods, writes(t, ns, "pods"), "writes of pods")
	require.Len(t, held(t, bs), 100)
}

// What a pool is chosen by, and what is to be had at once, costs no write more.
func TestAGangOfAChosenPoolCostsThreeWrites(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 20, 20)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 20 })
	pods := writes(t, ns, "pods")
	gang, chosen := pooled(ns, "gang", 10), pooled(ns, "chosen", 10)
	gang.Spec.MinAvailable, chosen.Spec.MinAvailable = 10, 10
	chosen.Spec.PoolRef, chosen.Spec.Template = v1alpha1.AnyPool, template()
	for _, bs := range []*v1alpha1.BatchSandbox{gang, chosen} {
		require.NoError(t, api.Create(t.Context(), bs))
		until(t, bs, ready(10))
	}
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 20 })
	require.Equal(t, 2*3, writes(t, ns, "batchsandboxes"))
	require.Equal(t, pods, writes(t, ns, "pods"), "writes of pods")
	require.Equal(t, pool.Name, chosen.Spec.PoolRef)
}

func TestSandboxesComeBackAreScaledAndReplaced(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 3, 20)
	bs := pooled(ns, "batch", 3)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, ready(3))
	first := held(t, bs)

	lost := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: first[1]}}
	require.NoError(t, api.Delete(t.Context(), lost))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return ready(3)(bs) && held(t, bs)[1] != first[1] })
	require.Equal(t, first[0], held(t, bs)[0], "the other shards keep their sandboxes")

	change(t, bs, func(bs *v1alpha1.BatchSandbox) { bs.Spec.Replicas = ptr.To(int32(1)) })
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
		return ready(1)(bs) && len(held(t, bs)) == 1 && bs.Annotations[v1alpha1.AnnotationAllocRelease] == ""
	})
	gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: first[2]}})

	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
	gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: first[0]}})
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 0 && p.Status.Available >= 3 })
	require.NoError(t, api.Delete(t.Context(), pool))
	gone(t, pool)
}

func TestABatchWaitsForItsPool(t *testing.T) {
	ns := newNamespace(t)
	bs := pooled(ns, "batch", 4)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, reasonIs(v1alpha1.ReasonPoolNotFound))
	pool := newPool(t, ns, 0, 2)
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
		return bs.Status.Allocated == 2 && reasonIs(v1alpha1.ReasonPoolExhausted)(bs)
	})
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 2 })
	change(t, pool, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.PoolMax = 4 })
	until(t, bs, ready(4))
}

func TestATemplateBatch(t *testing.T) {
	ns := newNamespace(t)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "basic"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(2)), Template: template()}}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
		return ready(2)(bs) && strings.Count(bs.Annotations[v1alpha1.AnnotationEndpoints], `"10.1.`) == 2
	})
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "basic-0"}})
}

func TestAnExpiredBatchIsDeleted(t *testing.T) {
	ns := newNamespace(t)
	bs := pooled(ns, "past", 1)
	bs.Spec.ExpireTime = &metav1.Time{Time: time.Now().Add(-time.Hour)}
	require.NoError(t, api.Create(t.Context(), bs))
	gone(t, bs)
}

func TestBadInputIsRefusedByTheAPIServer(t *testing.T) {
	ns := newNamespace(t)
	tests := map[string]struct {
		change func(*v1alpha1.BatchSandbox)
		want   string
	}{
		"neither poolRef nor template": {func(b *v1alpha1.BatchSandbox) { b.Spec.PoolRef = "" }, "exactly one of spec.poolRef and spec.template"},
		"both poolRef and template":    {func(b *v1alpha1.BatchSandbox) { b.Spec.Template = template() }, "exactly one of spec.poolRef and spec.template"},
		"negative replicas":            {func(b *v1alpha1.BatchSandbox) { b.Spec.Replicas = ptr.To(int32(-1)) }, "spec.replicas"},
		"5,001 replicas":               {func(b *v1alpha1.BatchSandbox) { b.Spec.Replicas = ptr.To(int32(5001)) }, "spec.replicas"},
		"minAvailable above replicas":  {func(b *v1alpha1.BatchSandbox) { b.Spec.MinAvailable = 2 }, "spec.minAvailable must be at most spec.replicas"},
		"negative minAvailable":        {func(b *v1alpha1.BatchSandbox) { b.Spec.MinAvailable = -1 }, "spec.minAvailable"},
		"a name of 64 characters":      {func(b *v1alpha1.BatchSandbox) { b.Name = strings.Repeat("a", 64) }, "at most 63 characters"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bs := pooled(ns, "bad", 1)
			test.change(bs)
			require.ErrorContains(t, api.Create(t.Context(), bs), test.want)
		})
	}
	bs := pooled(ns, "good", 1)
	require.NoError(t, api.Create(t.Context(), bs))
	before := client.MergeFrom(bs.DeepCopy())
	bs.Spec.PoolRef = "other"
	require.ErrorContains(t, api.Patch(t.Context(), bs, before), "immutable")
	bs.Spec.PoolRef, bs.Spec.MinAvailable = "example-pool", 1
	require.ErrorContains(t, api.Patch(t.Context(), bs, before), "spec.minAvailable is immutable")
}

func TestAHeldPodThatIsHiddenFromTheOperatorIsNotHandedOutAgain(t *testing.T) {
	for name, when := range map[string]func(*testing.T, func()){
		"while the operator runs":    func(_ *testing.T, hide func()) { hide() },
		"while the operator is down": whileDown,
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			newPool(t, ns, 1, 3)
			bs := pooled(ns, "batch", 1)
			require.NoError(t, api.Create(t.Context(), bs))
			until(t, bs, ready(1))
			first := held(t, bs)[0]
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: first}}
			when(t, func() {
				change(t, pod, func(pod *corev1.Pod) { delete(pod.Labels, v1alpha1.LabelManagedBy) })
			})
			gone(t, pod)
			until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
				now := held(t, bs)
				return ready(1)(bs) && len(now) == 1 && now[0] != first
			})
		})
	}
}

func TestAnAllocationThatDoesNotFitClaimsNothing(t *testing.T) {
	ns := newNamespace(t)
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: strings.Repeat("p", 63)}, Spec: v1alpha1.PoolSpec{
		Template: template(), CapacitySpec: v1alpha1.CapacitySpec{BufferMin: 2, BufferMax: 2, PoolMax: 2},
	}}
	require.NoError(t, api.Create(t.Context(), pool))
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 })
	bs := pooled(ns, "big", v1alpha1.MaxReplicas)
	bs.Spec.PoolRef = pool.Name
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, reasonIs(v1alpha1.ReasonAllocationTooLarge))
	require.Empty(t, bs.Annotations)
	require.Empty(t, bs.Finalizers)
	// Nor does the pool grow for it: it makes the pods that the other one needs.
	change(t, pool, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.PoolMax = 100 })
	small := pooled(ns, "small", 2)
	small.Spec.PoolRef = pool.Name
	require.NoError(t, api.Create(t.Context(), small))
	until(t, small, ready(2))
	until(t, pool, func(p *v1alpha1.Pool) bool {
		return p.Status.ObservedGeneration == p.Generation && p.Status.Allocated == 2 && p.Status.Available == 2
	})
	require.EqualValues(t, 4, pool.Status.Total)
}

func TestTheOperatorLetsGoOfItsOwnNamespaceWhenThatIsDeleted(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, 10)
	elsewhere := pooled(ns, "held", 1)
	require.NoError(t, api.Create(t.Context(), elsewhere))
	until(t, elsewhere, ready(1))

	pool := newPool(t, operatorNamespace, 1, 10)
	bs := pooled(operatorNamespace, "held", 2)
	bs.Finalizers = []string{"example.com/of-someone-else"}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, ready(2))
	require.Contains(t, bs.Finalizers, v1alpha1.FinalizerPoolAllocation)
	until(t, pool, func(p *v1alpha1.Pool) bool { return slices.Contains(p.Finalizers, v1alpha1.FinalizerPoolAllocation) })

	require.NoError(t, api.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: operatorNamespace}}))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return len(bs.Finalizers) == 1 })
	require.Equal(t, "example.com/of-someone-else", bs.Finalizers[0], "only its own")
	until(t, pool, func(p *v1alpha1.Pool) bool { return len(p.Finalizers) == 0 })
	require.Nil(t, bs.DeletionTimestamp, "that is the namespace controller's work")
	// Whatever happens there now, it takes hold of nothing again.
	before := client.MergeFrom(bs.DeepCopy())
	bs.Spec.Replicas = ptr.To(int32(1))
	require.NoError(t, api.Patch(t.Context(), bs, before))

	change(t, elsewhere, func(bs *v1alpha1.BatchSandbox) { bs.Spec.Replicas = ptr.To(int32(2)) })
	until(t, elsewhere, ready(2))
	require.Contains(t, elsewhere.Finalizers, v1alpha1.FinalizerPoolAllocation, "it works on elsewhere")
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return len(bs.Finalizers) == 1 })
	require.Len(t, held(t, bs), 2, "nobody acts on it any more")
}
