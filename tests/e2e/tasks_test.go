package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

const taskPool = `
apiVersion: sandbox.opensandbox.io/v1alpha1
kind: Pool
metadata: {name: task-example-pool}
spec:
  template:
    spec:
      shareProcessNamespace: true
      terminationGracePeriodSeconds: 1
      containers:
      - name: sandbox-container
        image: ubuntu:latest
        command: ["sleep", "3600"]
      - name: task-executor
        securityContext: {capabilities: {add: ["SYS_PTRACE"]}}
  capacitySpec: {bufferMin: 2, bufferMax: 2, poolMin: 2, poolMax: 8}
`

const taskBatch = `
apiVersion: sandbox.opensandbox.io/v1alpha1
kind: BatchSandbox
metadata: {name: task-batch-sandbox}
spec:
  replicas: 2
  poolRef: task-example-pool
  taskTemplate:
    spec: {process: {command: ["echo", "Default task"]}}
  shardTaskPatches:
  - spec: {process: {command: ["echo", "Custom task for sandbox 1"]}}
  - spec:
      process:
        command: ["echo", "Custom task for sandbox 2"]
        args: ["with", "additional", "arguments"]
`

// apply creates what the YAML says with kubectl, as a user would.
func apply(t *testing.T, ns, text string) {
	t.Helper()
	kubectl(t, text, "--namespace", ns, "apply", "--filename", "-")
}

func tasksCompleted(bs *v1alpha1.BatchSandbox) bool {
	return meta.IsStatusConditionTrue(bs.Status.Conditions, v1alpha1.ConditionTasksCompleted)
}

func TestTasksOfAPoolWithAHandWrittenExecutor(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	apply(t, ns, taskPool)
	apply(t, ns, taskBatch)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "task-batch-sandbox"}}
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return tasksCompleted(bs) && bs.Status.Ready == 2 })

	lines := strings.Split(strings.TrimSpace(kubectl(t, "", "--namespace", ns, "get", "batchsandbox", "task-batch-sandbox", "-o", "wide")), "\n")
	require.Len(t, lines, 2)
	require.Equal(t, []string{"NAME", "DESIRED", "TOTAL", "ALLOCATED", "READY", "TASK_RUNNING", "TASK_SUCCEED", "TASK_FAILED", "TASK_UNKNOWN", "EXPIRE", "AGE"},
		strings.Fields(lines[0]))
	require.Equal(t, []string{"task-batch-sandbox", "2", "2", "2", "2", "0", "2", "0", "0", "<none>"}, strings.Fields(lines[1])[:10])

	pods := heldBy(t, bs)
	require.Contains(t, kubectl(t, "", "--namespace", ns, "logs", pods[0], "-c", "task-executor"), "Custom task for sandbox 1\n")
	require.Contains(t, kubectl(t, "", "--namespace", ns, "logs", pods[1], "-c", "task-executor"), "Custom task for sandbox 2 with additional arguments\n")
}

// script makes a task of a shell script.
func script(text string) *v1alpha1.TaskTemplate {
	return &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"sh", "-c", text}}}}
}

// sandboxTemplate is a pod whose file system, environment, user and working
// directory are not those of the executor.
func sandboxTemplate(image string, user int64, command ...string) *v1alpha1.PodTemplate {
	c := corev1.Container{
		Name: "sandbox-container", Image: image, Command: command, WorkingDir: "/var/tmp",
		Env:             []corev1.EnvVar{{Name: "GREETING", Value: "hello"}},
		SecurityContext: &corev1.SecurityContext{RunAsUser: &user},
	}
	return &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		Containers: []corev1.Container{c}, TerminationGracePeriodSeconds: ptr.To(int64(1)),
	}}}
}

func TestATaskIsInItsSandbox(t *testing.T) {
	t.Parallel()
	const common = `set -ex; test "$GREETING" = hello; test -e /etc/os-release; test ! -e /task-executor; test "$(pwd)" = /var/tmp; `
	for name, test := range map[string]struct {
		template *v1alpha1.PodTemplate
		script   string
	}{
		"as-root":                 {sandboxTemplate("ubuntu:latest", 0, "sleep", "3600"), `test "$(id -u)" = 0; touch /owned; chown 1:1 /owned`},
		"as-an-unprivileged-user": {sandboxTemplate("ubuntu:latest", 1000, "sleep", "3600"), `test "$(id -u)" = 1000; ! touch /owned; ! grep CapEff.*[1-9a-f] /proc/self/status`},
		"beside-nginx":            {sandboxTemplate("nginx:latest", 0), `test "$(id -u)" = 0; touch /owned; chown 1:1 /owned`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
				Spec: v1alpha1.BatchSandboxSpec{Template: test.template, TaskTemplate: script(common + test.script)}}
			require.NoError(t, api.Create(t.Context(), bs))
			until(t, bs, tasksCompleted)
			require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
		})
	}
}

func TestTasksFailWithAReason(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	wants := []struct {
		patch  string
		reason string
		code   int32
		signal int32
	}{
		{`{"spec":{"process":{"command":["no-such-command"]}}}`, "CommandNotFound", 127, 0},
		{`{"spec":{"process":{"command":["/etc/os-release"]}}}`, "NotExecutable", 126, 0},
		{`{"spec":{"process":{"workingDir":"/no/such/dir"}}}`, "WorkingDirUnusable", 128, 0},
		{`{"spec":{"process":{"command":["sh","-c","exit 255"]}}}`, "ExitCode", 255, 0},
		{`{"spec":{"process":{"command":["sh","-c","echo broken >&2; kill -KILL $$"]}}}`, "Signaled", 137, 9},
		{`{"spec":{"process":{"command":["sh","-c","trap '' TERM; (trap '' TERM; sleep 1000) & sleep 1000; sleep 1000"]},"timeoutSeconds":1}}`, "Timeout", 137, 9},
	}
	apply(t, ns, taskPool)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "failing"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(len(wants))), PoolRef: "task-example-pool", TaskTemplate: script("true"),
		TaskResourcePolicyWhenCompleted: v1alpha1.TaskResourceRelease,
	}}
	for _, want := range wants {
		bs.Spec.ShardTaskPatches = append(bs.Spec.ShardTaskPatches, v1alpha1.Patch{RawExtension: runtime.RawExtension{Raw: []byte(want.patch)}})
	}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return tasksCompleted(bs) && bs.Status.Allocated == 0 })
	require.Len(t, bs.Status.FailedTasks, len(wants))
	for i, want := range wants {
		got := bs.Status.FailedTasks[i]
		require.Equal(t, want.reason, got.Reason, "%+v", got)
		require.Equal(t, want.code, got.ExitCode, "%+v", got)
		require.Equal(t, want.signal, got.Signal, "%+v", got)
	}
	require.Contains(t, bs.Status.FailedTasks[4].Message, "broken")
	require.Equal(t, "0-5", bs.Status.FailedShards)
}

func TestADeletionStopsRunningTasksFirst(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	apply(t, ns, taskPool)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "running"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(2)), PoolRef: "task-example-pool",
		// The second ignores SIGTERM and leaves a daemon behind.
		TaskTemplate:     script(`trap 'echo stopped in order; exit 0' TERM; while true; do sleep 0.1; done`),
		ShardTaskPatches: []v1alpha1.Patch{{RawExtension: runtime.RawExtension{Raw: []byte(`{}`)}}, {RawExtension: runtime.RawExtension{Raw: []byte(`{"spec":{"process":{"command":["sh","-c","trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & sleep 1000; sleep 1000"]}}}`)}}},
	}}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 2 })
	require.NoError(t, api.Delete(t.Context(), bs))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
		c := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionDeleting)
		return c != nil && c.Reason == v1alpha1.ReasonStoppingTasks && bs.Status.TaskRunning == 1
	})
	untilGone(t, bs)
}

// plant is a script that leaves things behind; more may follow.
const plant = `set -e; echo x >/planted; echo x >/tmp/planted; echo x >/dev/shm/planted; touch /dev/mqueue/planted
	ipcmk -M 1024; ipcmk -S 1; ipcmk -Q; setsid sleep 1000 & `

func addEphemeral(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debugger", Image: "busybox:latest", ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "3600"},
	}}}
	require.NoError(t, api.SubResource("ephemeralcontainers").Update(t.Context(), pod))
}

func TestASandboxIsRestartedInPlaceOrReplaced(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		more     string
		then     func(t *testing.T, pod *corev1.Pod)
		replaced bool
	}{
		"what-restarts-clean": {more: "true"},
		// The kubelet writes the file anew for every container.
		"a-changed-hosts":        {more: "echo 10.9.9.9 example.com >>/etc/hosts"},
		"a-changed-resolvconf":   {more: "echo nameserver 10.9.9.9 >>/etc/resolv.conf", replaced: true},
		"a-changed-hostname":     {more: "echo other >/etc/hostname", replaced: true},
		"an-ephemeral-container": {more: "true", then: addEphemeral, replaced: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			pool := restartingPool(t, ns, sandboxTemplate("ubuntu:latest", 0, "sleep", "3600"))
			bs := runTask(t, pool, "hostile", plant+test.more)
			require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
			first := podOf(t, bs)
			if test.then != nil {
				test.then(t, first)
			}
			require.NoError(t, api.Delete(t.Context(), bs))
			untilGone(t, bs)

			next := runTask(t, pool, "next",
				`set -ex; test ! -e /planted; test ! -e /tmp/planted; test ! -e /dev/shm/planted; test ! -e /dev/mqueue/planted; ! ipcs | grep ^0x; ! grep -l "^sleep.1000" /proc/*/cmdline; ! grep -r 10.9.9.9 /etc/hosts /etc/resolv.conf`)
			require.Equal(t, int32(1), next.Status.TaskSucceed, "%+v", next.Status.FailedTasks)
			second := podOf(t, next)
			if test.replaced {
				require.NotEqual(t, first.UID, second.UID)
				return
			}
			require.Equal(t, first.UID, second.UID)
			require.Equal(t, first.Status.PodIP, second.Status.PodIP)
			require.NotEqual(t, first.Status.ContainerStatuses[0].ContainerID, second.Status.ContainerStatuses[0].ContainerID)
			require.Zero(t, next.Status.Restarted)
		})
	}
}
