package olm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/tests/internal/evidence"
)

// serve runs a program until the returned function is called, or the test ends. It is
// started again when it ends by itself, as a Deployment would.
func serve(t *testing.T, program string, args ...string) (stop func()) {
	t.Helper()
	output, err := os.CreateTemp(t.TempDir(), filepath.Base(program)+"-*.log")
	require.NoError(t, err)
	evidence.File(t, output.Name())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, program, args...)
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
	t.Cleanup(stop)
	return stop
}

// startOLM installs OLM's CRDs and runs its two programs beside the cluster. Both want
// port 8080 for metrics that nobody reads here, and go on without it where it is taken.
func startOLM(t *testing.T) {
	t.Helper()
	sh(t, "kubectl apply --server-side --force-conflicts -f \"$OLM_CRDS\"")
	sh(t, "kubectl wait --for=condition=Established --timeout=180s -f \"$OLM_CRDS\"")
	sh(t, "kubectl create namespace olm --dry-run=client -o yaml | kubectl apply -f -")
	serve(t, os.Getenv("OLM"), "--namespace", "olm", "--writeStatusName", "")
	serve(t, os.Getenv("OLM_CATALOG"), "--namespace", "olm", "--writeStatusName", "", "--kubeconfig", os.Getenv("KUBECONFIG"))
}

// catalogPort is where opm serves the catalog.
var catalogPort = freePort()

// freePort returns one that nobody listens on, below those that the system itself hands
// out: opm is restarted, and its port must not go to somebody else meanwhile.
func freePort() string {
	for {
		port := strconv.Itoa(10_000 + rand.IntN(10_000))
		if listener, err := net.Listen("tcp", ":"+port); err == nil {
			_ = listener.Close()
			return port
		}
	}
}

// catalog serves the bundles, oldest first, as make catalog builds them.
func catalog(t *testing.T, bundles ...string) (stop func()) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "catalog")
	sh(t, "hack/catalog.sh '"+dir+"' '"+strings.Join(bundles, "' '")+"'")
	return serve(t, os.Getenv("OPM"), "serve", dir, "--port", catalogPort, "--pprof-addr", "127.0.0.1:0",
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
	current := os.Getenv("VERSION")
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
