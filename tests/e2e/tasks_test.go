package e2e

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/yaml"

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

// apply creates an object in the namespace as it is written in YAML.
func apply[T client.Object](t *testing.T, api client.Client, ns, text string, obj T) T {
	t.Helper()
	require.NoError(t, yaml.UnmarshalStrict([]byte(text), obj))
	obj.SetNamespace(ns)
	require.NoError(t, api.Create(t.Context(), obj))
	return obj
}

func untilBatch(t *testing.T, api client.Client, bs *v1alpha1.BatchSandbox, condition func(*v1alpha1.BatchSandbox) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		return api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs) == nil && condition(bs)
	}, patience, 100*time.Millisecond, "last seen: %+v", &bs.Status)
}

func tasksCompleted(bs *v1alpha1.BatchSandbox) bool {
	return meta.IsStatusConditionTrue(bs.Status.Conditions, v1alpha1.ConditionTasksCompleted)
}

func podsOf(t *testing.T, bs *v1alpha1.BatchSandbox) []string {
	t.Helper()
	var status v1alpha1.AllocStatus
	require.NoError(t, json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationAllocStatus]), &status))
	return status.Pods
}

// executorLog is what `kubectl logs POD -c task-executor` prints.
func executorLog(t *testing.T, ns, pod string) string {
	t.Helper()
	cfg, err := config.GetConfig()
	require.NoError(t, err)
	clientset, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)
	stream, err := clientset.CoreV1().Pods(ns).GetLogs(pod, &corev1.PodLogOptions{Container: v1alpha1.ExecutorContainerName}).Stream(t.Context())
	require.NoError(t, err)
	defer func() { _ = stream.Close() }()
	text, err := io.ReadAll(stream)
	require.NoError(t, err)
	return string(text)
}

// kubectl prints what the user sees.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	program := os.Getenv("KUBECTL")
	if program == "" {
		program = filepath.Join(os.Getenv("OPENSANDBOX_CLUSTER_BIN"), "kubectl")
	}
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

func TestTasksOfAPoolWithAHandWrittenExecutor(t *testing.T) {
	api := connect(t)
	ns := newNamespace(t, api)
	apply(t, api, ns, taskPool, &v1alpha1.Pool{})
	bs := apply(t, api, ns, taskBatch, &v1alpha1.BatchSandbox{})
	untilBatch(t, api, bs, func(bs *v1alpha1.BatchSandbox) bool { return tasksCompleted(bs) && bs.Status.Ready == 2 })

	lines := strings.Split(strings.TrimSpace(kubectl(t, "--namespace", ns, "get", "batchsandbox", "task-batch-sandbox", "-o", "wide")), "\n")
	require.Len(t, lines, 2)
	require.Equal(t, []string{"NAME", "DESIRED", "TOTAL", "ALLOCATED", "READY", "TASK_RUNNING", "TASK_SUCCEED", "TASK_FAILED", "TASK_UNKNOWN", "EXPIRE", "AGE"},
		strings.Fields(lines[0]))
	require.Equal(t, []string{"task-batch-sandbox", "2", "2", "2", "2", "0", "2", "0", "0", "<none>"}, strings.Fields(lines[1])[:10])

	pods := podsOf(t, bs)
	require.Contains(t, executorLog(t, ns, pods[0]), "Custom task for sandbox 1\n")
	require.Contains(t, executorLog(t, ns, pods[1]), "Custom task for sandbox 2 with additional arguments\n")
}

// script makes a task of a shell script.
func script(text string) *v1alpha1.TaskTemplate {
	return &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"sh", "-c", text}}}}
}

// sandboxTemplate is a pod whose file system, environment, user and working
// directory are not those of the executor.
func sandboxTemplate(image string, user int64, command ...string) *corev1.PodTemplateSpec {
	c := corev1.Container{
		Name: "sandbox-container", Image: image, Command: command, WorkingDir: "/var/tmp",
		Env:             []corev1.EnvVar{{Name: "GREETING", Value: "hello"}},
		SecurityContext: &corev1.SecurityContext{RunAsUser: &user},
	}
	return &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{c}, TerminationGracePeriodSeconds: ptr.To(int64(1))}}
}

func TestATaskIsInItsSandbox(t *testing.T) {
	api := connect(t)
	const common = `set -ex; test "$GREETING" = hello; test -e /etc/os-release; test ! -e /task-executor; test "$(pwd)" = /var/tmp; `
	for name, test := range map[string]struct {
		template *corev1.PodTemplateSpec
		script   string
	}{
		"as-root":                 {sandboxTemplate("ubuntu:latest", 0, "sleep", "3600"), `test "$(id -u)" = 0; touch /owned; chown 1:1 /owned`},
		"as-an-unprivileged-user": {sandboxTemplate("ubuntu:latest", 1000, "sleep", "3600"), `test "$(id -u)" = 1000; ! touch /owned; ! grep CapEff.*[1-9a-f] /proc/self/status`},
		"beside-nginx":            {sandboxTemplate("nginx:latest", 0), `test "$(id -u)" = 0; touch /owned; chown 1:1 /owned`},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t, api)
			bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
				Spec: v1alpha1.BatchSandboxSpec{Template: test.template, TaskTemplate: script(common + test.script)}}
			require.NoError(t, api.Create(t.Context(), bs))
			untilBatch(t, api, bs, tasksCompleted)
			require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
		})
	}
}

func TestTasksFailWithAReason(t *testing.T) {
	api := connect(t)
	ns := newNamespace(t, api)
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
	pool := apply(t, api, ns, taskPool, &v1alpha1.Pool{})
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "failing"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(len(wants))), PoolRef: pool.Name, TaskTemplate: script("true"),
		TaskResourcePolicyWhenCompleted: v1alpha1.TaskResourceRelease,
	}}
	for _, want := range wants {
		bs.Spec.ShardTaskPatches = append(bs.Spec.ShardTaskPatches, v1alpha1.Patch{RawExtension: runtime.RawExtension{Raw: []byte(want.patch)}})
	}
	require.NoError(t, api.Create(t.Context(), bs))
	untilBatch(t, api, bs, func(bs *v1alpha1.BatchSandbox) bool { return tasksCompleted(bs) && bs.Status.Allocated == 0 })
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
	api := connect(t)
	ns := newNamespace(t, api)
	apply(t, api, ns, taskPool, &v1alpha1.Pool{})
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "running"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(2)), PoolRef: "task-example-pool",
		// The second ignores SIGTERM and leaves a daemon behind.
		TaskTemplate:     script(`trap 'echo stopped in order; exit 0' TERM; while true; do sleep 0.1; done`),
		ShardTaskPatches: []v1alpha1.Patch{{RawExtension: runtime.RawExtension{Raw: []byte(`{}`)}}, {RawExtension: runtime.RawExtension{Raw: []byte(`{"spec":{"process":{"command":["sh","-c","trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & sleep 1000; sleep 1000"]}}}`)}}},
	}}
	require.NoError(t, api.Create(t.Context(), bs))
	untilBatch(t, api, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 2 })
	require.NoError(t, api.Delete(t.Context(), bs))
	untilBatch(t, api, bs, func(bs *v1alpha1.BatchSandbox) bool {
		c := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionDeleting)
		return c != nil && c.Reason == v1alpha1.ReasonStoppingTasks && bs.Status.TaskRunning == 1
	})
	require.Eventually(t, func() bool {
		return apierrors.IsNotFound(api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
	}, patience, 100*time.Millisecond)
}
