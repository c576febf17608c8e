package e2e

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// inGVisor has the pods of a template run in gVisor.
func inGVisor(t *testing.T, template *v1alpha1.PodTemplate) *v1alpha1.PodTemplate {
	t.Helper()
	class := &nodev1.RuntimeClass{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Name: "gvisor"}, class), "this cluster offers no gVisor: start the hermetic one with 'make cluster-up GVISOR=1'")
	template.Spec.RuntimeClassName = ptr.To(class.Name)
	return template
}

func TestAPoolOfGVisorPodsDeliversCleanSandboxes(t *testing.T) {
	const size = 2
	t.Parallel()
	ns := newNamespace(t)
	startPool(t, ns, inGVisor(t, webServer()), v1alpha1.CapacitySpec{BufferMin: 0, BufferMax: size, PoolMin: size, PoolMax: size})
	first := pooled(ns, "first", size)
	start(t, first)
	endpoints := endpointsOf(t, first)
	for i, pod := range heldBy(t, first) {
		require.Contains(t, inSandbox(t, ns, pod, "cat", "/proc/version"), "gvisor")
		inSandbox(t, ns, pod, "sh", "-c", "echo secret >/usr/share/nginx/html/dirty")
		require.Equal(t, http.StatusOK, getPage(t, endpoints[i], "/dirty"), "the test sees what it wrote")
	}
	require.NoError(t, api.Delete(t.Context(), first))
	second := pooled(ns, "second", size)
	start(t, second)
	for _, ip := range endpointsOf(t, second) {
		require.Equal(t, http.StatusOK, getPage(t, ip, "/"))
		require.Equal(t, http.StatusNotFound, getPage(t, ip, "/dirty"))
	}
}

// The limit is the pod's there: the kernel of the sandbox is killed, and all containers
// with it.
func TestATaskInGVisorThatFillsItsMemoryLimitIsOOMKilled(t *testing.T) {
	t.Parallel()
	template := inGVisor(t, sandboxTemplate("ubuntu:latest", 1234, "sleep", "3600"))
	template.Spec.Containers[0].Resources.Limits = memory("128Mi")
	bs, _ := fromSandbox(t, restrictedNamespace(t), template, script("tail /dev/zero"))
	require.Equal(t, int32(1), bs.Status.TaskFailed, "%s", dump{bs.Status})
	require.Equal(t, "OOMKilled", bs.Status.FailedTasks[0].Reason, "%+v", bs.Status.FailedTasks)
}

// outlive leaves what a restart of the containers would leave in gVisor, whose kernel goes on,
// and no look would find: message queues, which are mounted nowhere, and, of root, what is
// written to /proc/sys.
const outlive = `set -e
perl -e '$name = "planted"; exit(syscall(240, $name, 0102, 0666, 0) < 0)' # mq_open
test "$(id -u)" != 0 || echo 40000 40001 >/proc/sys/net/ipv4/ip_local_port_range
`

// lookInGVisor fails where something of it is left.
const lookInGVisor = look + `
perl -e '$name = "planted"; exit(syscall(240, $name, 0, 0, 0) >= 0)'
if grep 40000.40001 /proc/sys/net/ipv4/ip_local_port_range; then exit 1; fi`

// takePort listens beside the executor, which gVisor allows on a single address, and
// answers everything as an executor that has done it.
const takePort = `
perl -MSocket -e '
	for my $ip ("127.0.0.1", split " ", qx(hostname -I)) {
		next if fork;
		socket my $port, PF_INET, SOCK_STREAM, 0; setsockopt $port, SOL_SOCKET, SO_REUSEADDR, 1; setsockopt $port, SOL_SOCKET, 15, 1;
		bind $port, sockaddr_in(5758, inet_aton($ip)) and listen $port, 100 or exit;
		open my $mark, ">", "/tmp/listening"; close $mark;
		while (1) { accept my $c, $port or next; syswrite $c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"; close $c }
	}' &
until [ -e /tmp/listening ]; do sleep 0.1; done`

func TestAHostileSandboxInGVisorForgesNothingAndIsNotHandedOn(t *testing.T) {
	t.Parallel()
	asEither(t, func(t *testing.T, ns string, user int64) {
		template := inGVisor(t, sandboxTemplate("ubuntu:latest", user, "sleep", "3600"))
		pool := restartingPool(t, ns, template)
		giveBack := func(bs *v1alpha1.BatchSandbox) {
			require.NoError(t, api.Delete(t.Context(), bs))
			untilGone(t, bs)
		}
		bs := runTask(t, pool, "leaving", outlive)
		require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
		giveBack(bs)

		// It succeeds if it finds something or can look into its launcher, else it kills what
		// it can.
		bs = runTask(t, pool, "hostile", "sh <<'END' || exit 0\n"+lookInGVisor+`
END
			ipcmk -M 1024; ipcmk -S 1; ipcmk -Q; echo x >/dev/shm/planted; setsid sleep 1000 &`+takePort+`
			(`+lookIntoLauncher+`) || exit 0
			perl -e 'kill 9, -1'; sleep 1000; exit 0`)
		require.Equal(t, int32(1), bs.Status.TaskFailed, "%s", dump{bs.Status})
		require.Equal(t, "LauncherLost", bs.Status.FailedTasks[0].Reason, "%+v", bs.Status.FailedTasks)
		giveBack(bs)

		bs = runTask(t, pool, "next", lookInGVisor)
		require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
		untilNotRestartable(t, pool, v1alpha1.ReasonRuntimeClass)
	})
}
