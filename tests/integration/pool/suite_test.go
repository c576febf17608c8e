// Package pool tests the pool reconciler alone against a real etcd and kube-apiserver.
// There is no node: a small kubelet in the tests says what pods do.
package pool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/evidence"
)

const (
	// assetsVariable names the folder with etcd and kube-apiserver.
	assetsVariable = "KUBEBUILDER_ASSETS"
	// patience is how long a test waits for what must happen, on a machine that is
	// busy with other things too.
	patience = 5 * time.Minute
	// calm is how long a test watches for what must not happen.
	calm = 3 * time.Second
	poll = 20 * time.Millisecond
)

// crdFolder has the CRDs as they are generated.
var crdFolder = filepath.Join("..", "..", "..", "config", "crd", "bases")

// scheme has the kinds that the tests use.
var scheme = newScheme()

// cluster is the API server that the tests share.
var cluster *apiServer

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(s))
	utilruntime.Must(v1alpha1.AddToScheme(s))
	return s
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	var err error
	if cluster, err = startAPIServer(crdFolder); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := cluster.env.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the API server:", err)
	}
	os.Exit(code)
}

// apiServer is a running etcd and kube-apiserver.
type apiServer struct {
	env    *envtest.Environment
	config *rest.Config
	// client reads and writes without a cache.
	client client.WithWatch
}

func startAPIServer(crds string) (*apiServer, error) {
	if os.Getenv(assetsVariable) == "" {
		return nil, fmt.Errorf("%s is not set: it must name a folder with etcd and kube-apiserver", assetsVariable)
	}
	env := &envtest.Environment{
		Scheme:                   scheme,
		CRDDirectoryPaths:        []string{crds},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
	}
	config, err := env.Start()
	if err != nil {
		return nil, fmt.Errorf("starting etcd and kube-apiserver from %s: %w", os.Getenv(assetsVariable), err)
	}
	config.QPS = -1 // the tests measure the operator, not its limits
	direct, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return &apiServer{env: env, config: config, client: direct}, nil
}

// newNamespace makes a namespace for one test. It is not deleted: there is no
// namespace controller, and the API server ends with the tests.
func newNamespace(t *testing.T) string { return cluster.newNamespace(t) }

func (s *apiServer) newNamespace(t *testing.T) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	require.NoError(t, s.client.Create(t.Context(), namespace))
	evidence.OnFailure(t, s.config, namespace.Name)
	return namespace.Name
}

// eventually waits until check has nothing to complain of.
func eventually(t *testing.T, check func(*assert.CollectT)) {
	t.Helper()
	require.EventuallyWithT(t, check, patience, poll)
}

// stays checks again and again for a while.
func stays(t *testing.T, check func() bool, what string) {
	t.Helper()
	require.Never(t, func() bool { return !check() }, calm, 10*poll, what)
}

// listPods returns the pods of a namespace, as the API server has them.
func (s *apiServer) listPods(t require.TestingT, namespace string) []corev1.Pod {
	list := &corev1.PodList{}
	require.NoError(t, s.client.List(context.Background(), list, client.InNamespace(namespace)))
	return list.Items
}

// get reads an object anew and says whether it is there.
func (s *apiServer) get(t require.TestingT, obj client.Object) bool {
	err := s.client.Get(context.Background(), client.ObjectKeyFromObject(obj), obj)
	if apierrors.IsNotFound(err) {
		return false
	}
	require.NoError(t, err)
	return true
}
