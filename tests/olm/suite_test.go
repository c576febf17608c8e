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
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/documented"
	"github.com/opensandbox/operator/tests/internal/evidence"
)

const (
	root     = "../.."
	patience = 5 * time.Minute
	poll     = 200 * time.Millisecond

	// namespace is the operator's own.
	namespace  = "opensandbox-system"
	deployment = "opensandbox-controller-manager"
)

var (
	// cluster is where OLM installs the operator.
	cluster *rest.Config
	// api reads and writes without a cache.
	api client.Client
)

func TestMain(m *testing.M) {
	if err := connect(); err != nil {
		fmt.Fprintln(os.Stderr, "the tests of OLM cannot run:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// variables are what hack/test-olm.sh says.
var variables = []string{
	"KUBECONFIG", "KUBECTL", "OPM", "OLM", "OLM_CATALOG", "OLM_CRDS",
	"VERSION", "IMG", "TASK_EXECUTOR_IMG", "OLD_IMG", "OLD_TASK_EXECUTOR_IMG",
}

func connect() error {
	for _, variable := range variables {
		if os.Getenv(variable) == "" {
			return fmt.Errorf("%s is not set: run them by 'make test-olm'", variable)
		}
	}
	log.SetLogger(logr.Discard())
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return err
	}
	var err error
	if cluster, err = config.GetConfig(); err != nil {
		return err
	}
	cluster.QPS = -1
	api, err = client.New(cluster, client.Options{Scheme: scheme.Scheme})
	return err
}

// sh runs commands at the root of the source tree, as a reader of docs/install.md.
func sh(t *testing.T, command string) string {
	t.Helper()
	return shell(t.Context(), t, command)
}

func shell(ctx context.Context, t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(os.Getenv("KUBECTL"))+":"+os.Getenv("PATH"))
	started := time.Now()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
	t.Logf("%s $ %s (%s)\n%s", started.Format(time.TimeOnly), command, time.Since(started).Round(time.Second/10), out)
	return string(out)
}

// apply creates or changes what the manifest says.
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

// clearAfterFailure has a test that fails leave a cluster that the next one can start on.
// What the operator said and did is kept before.
func clearAfterFailure(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			shell(context.Background(), t, "hack/clear-cluster.sh")
		}
	})
	evidence.OnFailure(t, cluster, namespace)
}

// newNamespace makes a namespace for sandboxes. It is deleted after the test, and what is
// in it is kept before when the test has failed.
func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "olm-", Labels: map[string]string{"opensandbox-test": ""}}}
	require.NoError(t, api.Create(t.Context(), ns))
	t.Cleanup(func() { require.NoError(t, client.IgnoreNotFound(api.Delete(context.Background(), ns))) })
	evidence.OnFailure(t, cluster, ns.Name)
	return ns.Name
}
