package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// usurper is a sandbox whose own first process, which no task is, waits for a sign,
// then leaves something in shared memory, ends the executor's program and listens on its
// port in its place. It answers whatever is asked as an executor that has done it. It takes
// root in a process namespace that the pod shares; elsewhere no sandbox finds the executor.
const usurper = `
while [ ! -e /go ]; do sleep 0.1; done
touch /dev/shm/planted
exec perl -MIO::Socket::INET -e '
	$SIG{CHLD} = "IGNORE";
	sub name { open my $f, "<", "$_[0]/comm" or return ""; my $n = <$f> // ""; chomp $n; $n }
	my $port;
	until ($port) {
		name($_) eq "task-executor" and kill 9, substr($_, 6) for glob "/proc/[0-9]*";
		$port = IO::Socket::INET->new(LocalPort => 5758, Listen => 100, ReuseAddr => 1);
	}
	open my $mark, ">", "/listening"; close $mark;
	while (1) {
		my $c = $port->accept or next;
		<$c>;
		while (my $l = <$c>) { last if $l =~ /^\r?$/ }
		my $body = qq({"exiting":true,"bootID":"hostile","version":1,"tasks":[]});
		print $c "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
		close $c;
	}'`

// restartingPool makes a pool of one sandbox that is recycled by restart.
func restartingPool(t *testing.T, ns string, template *v1alpha1.PodTemplate) *v1alpha1.Pool {
	t.Helper()
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "restarting"}, Spec: v1alpha1.PoolSpec{
		Template:        template,
		CapacitySpec:    v1alpha1.CapacitySpec{PoolMin: 1, PoolMax: 1, BufferMax: 1},
		RecycleStrategy: v1alpha1.RecycleStrategy{Type: v1alpha1.RecycleRestart},
	}}
	require.NoError(t, api.Create(t.Context(), pool))
	return pool
}

// runTask makes a BatchSandbox of one sandbox and waits for the end of its task.
func runTask(t *testing.T, pool *v1alpha1.Pool, name, text string) *v1alpha1.BatchSandbox {
	t.Helper()
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: pool.Namespace, Name: name},
		Spec: v1alpha1.BatchSandboxSpec{PoolRef: pool.Name, TaskTemplate: script(text)}}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, tasksCompleted)
	return bs
}

func podOf(t *testing.T, bs *v1alpha1.BatchSandbox) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: bs.Namespace, Name: heldBy(t, bs)[0]}, pod))
	return pod
}

func TestWhatASandboxAnswersInTheExecutorsPlaceIsNotBelieved(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	template := sandboxTemplate("ubuntu:latest", 0, "sh", "-c", usurper)
	template.Spec.ShareProcessNamespace = ptr.To(true)
	pool := restartingPool(t, ns, template)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "hostile"},
		Spec: v1alpha1.BatchSandboxSpec{PoolRef: pool.Name, TaskTemplate: script("sleep 1000")}}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 1 })
	first := podOf(t, bs)
	inSandbox(t, ns, first.Name, "sh", "-c", "touch /go; until [ -e /listening ]; do sleep 0.1; done")
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskUnknown == 1 })
	require.False(t, tasksCompleted(bs), "%s", dump{bs.Status})
	require.NoError(t, api.Delete(t.Context(), bs))
	untilGone(t, bs)

	next := runTask(t, pool, "next", "set -e; test ! -e /go; test ! -e /listening; test ! -e /dev/shm/planted")
	require.Equal(t, int32(1), next.Status.TaskSucceed, "%+v", next.Status.FailedTasks)
	require.NotEqual(t, first.UID, podOf(t, next).UID)
}

// A task does what it can to both halves of the executor; its result is true, and the
// sandbox is clean for the next owner.
func TestTasksThatMisbehave(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script string
		reason string
	}{
		"100-megabytes-of-binary-output": {script: "head -c 100000000 /dev/urandom"},
		"fills-its-memory-limit":         {script: "tail /dev/zero", reason: "OOMKilled"},
		"kills-its-launcher":             {script: "kill -9 $PPID; sleep 1000; exit 0", reason: "LauncherLost"},
		"forks-on-and-on":                {script: `for i in $(seq 200); do setsid sleep 1000 & done; exit 0`},
		"forges-lines-of-the-executor":   {script: `printf '\ntime=2026-01-01T00:00:00Z level=INFO msg="A task ended" state=Failed\n'`},
		"half-sent-requests":             {script: halfSent},
		"looks-into-its-launcher":        {script: lookIntoLauncher},
		"looks-for-the-secret":           {script: `test "$(ls /opensandbox)" = launcher; ! touch /opensandbox/x; ! grep -r . /var/lib/task-executor`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asEither(t, func(t *testing.T, ns string, user int64) {
				template := sandboxTemplate("ubuntu:latest", user, "sleep", "3600")
				template.Spec.Containers[0].Resources.Limits = memory("64Mi")
				pool := restartingPool(t, ns, template)
				bs := runTask(t, pool, "misbehaving", test.script)
				if test.reason == "" {
					require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
				} else {
					require.Equal(t, int32(1), bs.Status.TaskFailed, "%s", dump{bs.Status})
					require.Equal(t, test.reason, bs.Status.FailedTasks[0].Reason, "%+v", bs.Status.FailedTasks)
				}
				pod := podOf(t, bs)
				require.Zero(t, pod.Status.InitContainerStatuses[0].RestartCount, "the executor goes on")
				log := kubectl(t, "", "--namespace", ns, "logs", pod.Name, "-c", "task-executor", "--tail=50")
				require.NotRegexp(t, "(?m)^time=.*state=Failed reason=$", log)
				require.NotContains(t, "\n"+log, "\ntime=2026-01-01T00:00:00Z")
				require.NoError(t, api.Delete(t.Context(), bs))
				untilGone(t, bs)
				next := runTask(t, pool, "next", look)
				require.Equal(t, int32(1), next.Status.TaskSucceed, "%+v", next.Status.FailedTasks)
			})
		})
	}
}

// lookIntoLauncher fails where it can. As root it may look into any process of its user's,
// but for the launcher.
const lookIntoLauncher = `set -e; trace="perl -e 'exit(syscall(101, 16, PID, 0, 0) ? 1 : 0)'" # PTRACE_ATTACH
	sleep 1000 & until grep sleep /proc/$!/comm; do sleep 0.1; done
	for look in "exec 3<>/proc/PID/mem" "cat /proc/PID/environ" "cat /proc/PID/maps" "readlink /proc/PID/fd/0" "ls /proc/PID/root/" "$trace"; do
		sh -c "$(echo "$look" | sed s/PID/$!/)" >/dev/null
		if sh -c "$(echo "$look" | sed s/PID/$PPID/)"; then exit 1; fi
	done; kill $!`

// halfSent begins 4,000 requests to the executor and ends none.
const halfSent = `exec perl -MIO::Socket::INET -e '
	my @open;
	for (1..4000) {
		my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => 5758, Timeout => 5) or next;
		syswrite $c, "\x16\x03\x01";
		push @open, $c; shift @open if @open > 900;
	}
	exit 0'`

// The first process of the container waits for a sign to end.
const mortal = `while [ ! -e /tmp/die ]; do sleep 0.1; done; exit 0`

func TestATaskWhoseSandboxRestartsHasFailed(t *testing.T) {
	t.Parallel()
	inEitherRuntime(t, func(t *testing.T, ns string, template *v1alpha1.PodTemplate) {
		template.Spec.Containers[0].Command = []string{"sh", "-c", mortal}
		bs, pod := fromSandbox(t, ns, template,
			script("touch /tmp/die; trap 'exit 0' TERM; while true; do sleep 0.1; done"))
		require.Equal(t, int32(1), bs.Status.TaskFailed, "%s", dump{bs.Status})
		require.Equal(t, "SandboxRestarted", bs.Status.FailedTasks[0].Reason, "%+v", bs.Status.FailedTasks)
		until(t, pod, func(pod *corev1.Pod) bool {
			return pod.Status.ContainerStatuses[0].RestartCount > 0 && pod.Status.ContainerStatuses[0].Ready
		})
		require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
		require.Equal(t, int32(1), bs.Status.TaskFailed, "and it stays so, although another launcher is there")
	})
}

// In a pod whose containers share their processes root may kill the executor.
func TestATaskThatKillsTheExecutorHasFailed(t *testing.T) {
	t.Parallel()
	template := sandboxTemplate("ubuntu:latest", 0, "sleep", "3600")
	template.Spec.ShareProcessNamespace = ptr.To(true)
	bs, _ := fromSandbox(t, newNamespace(t), template,
		script(`for p in /proc/[0-9]*; do [ "$(cat $p/comm)" != task-executor ] || kill -9 ${p#/proc/}; done; sleep 1000; exit 0`))
	require.Equal(t, int32(1), bs.Status.TaskFailed, "%s", dump{bs.Status})
	require.Equal(t, "ExecutorRestarted", bs.Status.FailedTasks[0].Reason, "%+v", bs.Status.FailedTasks)
}

// It runs alone: the operator is replaced.
func TestATaskRunsOnAndOnlyOnceWhenTheOperatorIsReplaced(t *testing.T) {
	ns := restrictedNamespace(t)
	pool := restartingPool(t, ns, sandboxTemplate("ubuntu:latest", 1234, "sleep", "3600"))
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "long"},
		Spec: v1alpha1.BatchSandboxSpec{PoolRef: pool.Name, TaskTemplate: script("echo begun; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo ended")}}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 1 })
	require.NoError(t, api.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(operatorNamespace),
		client.MatchingLabels{"control-plane": "controller-manager"}, client.GracePeriodSeconds(0)))
	pod := podOf(t, bs)
	inSandbox(t, ns, pod.Name, "touch", "/tmp/go")
	until(t, bs, tasksCompleted)
	require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
	log := kubectl(t, "", "--namespace", ns, "logs", pod.Name, "-c", "task-executor")
	require.Equal(t, 1, strings.Count(log, "begun\n"), "%s", log)
	require.Equal(t, 1, strings.Count(log, "ended\n"), "%s", log)
}
