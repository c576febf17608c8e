// Package tasks runs the operator's binary against a real etcd and kube-apiserver
// with tasks. There is no node: a stand-in for the kubelet gives every pod a loopback
// address, and a pod with an executor a server there that checks tokens as the real
// one does and pretends to run tasks.
package tasks

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/evidence"
)

const (
	// patience is how long a test waits for what must happen, on a machine that is
	// busy with other things too.
	patience = 5 * time.Minute
	poll     = 20 * time.Millisecond
)

var (
	cluster *rest.Config
	api     client.WithWatch
	node    *kubelet
	op      *operator
)

func TestMain(m *testing.M) {
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
	dir, err := os.MkdirTemp("", "opensandbox-tasks-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	env := &envtest.Environment{CRDDirectoryPaths: []string{"../../../config/crd/bases"}, ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: 2 * time.Minute}
	if cluster, err = env.Start(); err != nil {
		return 0, fmt.Errorf("starting the control plane: %w", err)
	}
	defer func() { _ = env.Stop() }()
	cluster.QPS = -1
	if api, err = client.NewWithWatch(cluster, client.Options{Scheme: scheme.Scheme}); err != nil {
		return 0, err
	}
	log, err := os.Create(filepath.Join(dir, "operator.log"))
	if err != nil {
		return 0, err
	}
	op = &operator{binary: filepath.Join(dir, "manager"), kubeconfig: filepath.Join(dir, "kubeconfig"), log: log}
	if err := os.WriteFile(op.kubeconfig, env.KubeConfig, 0o600); err != nil {
		return 0, err
	}
	if out, err := exec.Command("go", "build", "-o", op.binary, "../../../cmd/manager").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building the operator: %w\n%s", err, out)
	}
	if err := op.start(); err != nil {
		return 0, err
	}
	defer op.kill()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if node, err = newKubelet(); err != nil {
		return 0, err
	}
	defer func() { _ = node.taken.Close() }()
	go node.run(ctx)
	return m.Run(), nil
}

// operator is the process under test.
type operator struct {
	binary, kubeconfig string
	log                *os.File
	command            *exec.Cmd
}

func (o *operator) start() error {
	o.command = exec.Command(o.binary, "--health-probe-bind-address=0", "--task-executor-image=executor:test")
	o.command.Env = append(os.Environ(), "KUBECONFIG="+o.kubeconfig, "POD_NAMESPACE=default")
	o.command.Stdout, o.command.Stderr = o.log, o.log
	if err := o.command.Start(); err != nil {
		return fmt.Errorf("starting the operator: %w", err)
	}
	return nil
}

// kill ends the operator as a crash would.
func (o *operator) kill() {
	_ = o.command.Process.Kill()
	_ = o.command.Wait()
}

func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "tasks-"}}
	require.NoError(t, api.Create(t.Context(), ns))
	evidence.OnFailure(t, cluster, ns.Name)
	evidence.File(t, op.log.Name())
	return ns.Name
}

// until reads the object until the condition holds.
func until[T client.Object](t *testing.T, obj T, condition func(T) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		return api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj) == nil && condition(obj)
	}, patience, poll, "last seen: %+v", obj)
}

func gone(t *testing.T, obj client.Object) {
	t.Helper()
	require.Eventually(t, func() bool {
		return apierrors.IsNotFound(api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj))
	}, patience, poll, "%s is still there", obj.GetName())
}
