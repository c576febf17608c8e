package e2e

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// applySample applies a file of config/samples with a text in it replaced.
func applySample(t *testing.T, ns, file string, replace ...string) {
	t.Helper()
	text, err := os.ReadFile("../../config/samples/" + file + ".yaml")
	require.NoError(t, err)
	apply(t, ns, strings.NewReplacer(replace...).Replace(string(text)))
}

func executorLog(t *testing.T, ns, pod string) string {
	t.Helper()
	return kubectl(t, "", "--namespace", ns, "logs", pod, "-c", "task-executor")
}

func TestTheSamplesOfValuesFilesAndHooks(t *testing.T) {
	t.Parallel()
	t.Run("in-the-nodes-runtime", func(t *testing.T) {
		t.Parallel()
		ns := restrictedNamespace(t)
		applySample(t, ns, "pool_tasks")
		samplesOfValuesFilesAndHooks(t, ns)
	})
	t.Run("in-gvisor", func(t *testing.T) {
		t.Parallel()
		ns := restrictedNamespace(t)
		applySample(t, ns, "pool_gvisor", "gvisor-example-pool", "task-example-pool")
		samplesOfValuesFilesAndHooks(t, ns)
	})
}

func samplesOfValuesFilesAndHooks(t *testing.T, ns string) {
	t.Helper()
	value := "hush-" + strings.TrimPrefix(ns, "e2e-")
	for _, file := range []string{"batchsandbox_values", "batchsandbox_files", "batchsandbox_hooks"} {
		applySample(t, ns, file)
	}
	named := func(name string) *v1alpha1.BatchSandbox {
		return &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	}
	waitsFor := func(reason string) func(*v1alpha1.BatchSandbox) bool {
		return func(bs *v1alpha1.BatchSandbox) bool {
			return hasCondition(v1alpha1.ConditionTasksCompleted, reason)(bs.Status.Conditions)
		}
	}
	values := named("values-batch-sandbox")
	until(t, values, waitsFor(v1alpha1.ReasonValuesNotReadable))
	require.Contains(t, meta.FindStatusCondition(values.Status.Conditions, v1alpha1.ConditionTasksCompleted).Message,
		"namespace "+ns+" has no RoleBinding of ClusterRole opensandbox-task-values-reader")
	kubectl(t, "", "--namespace", ns, "create", "rolebinding", "opensandbox-task-values",
		"--clusterrole=opensandbox-task-values-reader", "--serviceaccount=opensandbox-system:opensandbox-controller-manager")
	until(t, values, waitsFor(v1alpha1.ReasonValuesNotFound))

	files := named("files-batch-sandbox")
	until(t, files, tasksCompleted)
	require.Equal(t, "0-1", files.Status.SucceededShards, "%+v", files.Status.FailedTasks)
	for i, part := range []string{"shard 0 stdout: this sandbox works on the first part\n", "shard 1 stdout: this sandbox works on the second part\n"} {
		require.Contains(t, executorLog(t, ns, heldBy(t, files)[i]), part)
	}
	hooks := named("hooks-batch-sandbox")
	until(t, hooks, tasksCompleted)
	require.Equal(t, "0", hooks.Status.SucceededShards, "%+v", hooks.Status.FailedTasks)
	said := executorLog(t, ns, heldBy(t, hooks)[0])
	require.Contains(t, said, "shard 0 stdout: working in /tmp/tmp.")
	require.Contains(t, said, "shard 0 postStop stdout: cleared away\n")

	kubectl(t, "", "--namespace", ns, "create", "secret", "generic", "model-access", "--from-literal=token="+value)
	until(t, values, tasksCompleted)
	require.Equal(t, "0", values.Status.SucceededShards, "%+v", values.Status.FailedTasks)
	pod := heldBy(t, values)[0]
	require.Contains(t, executorLog(t, ns, pod), "shard 0 stdout: "+pod+" in anywhere has its token\n")

	for where, text := range map[string]string{
		"objects":  kubectl(t, "", "--namespace", ns, "get", "batchsandboxes,pools,pods,events,configmaps", "-o", "json"),
		"executor": executorLog(t, ns, pod),
		"operator": kubectl(t, "", "--namespace", operatorNamespace, "logs", "--selector=control-plane=controller-manager", "--tail=-1"),
	} {
		require.Contains(t, strings.ReplaceAll(text, pod, ns), ns, "the right thing was searched: %s", where)
		require.NotContains(t, text, value, where)
		require.NotContains(t, text, base64.StdEncoding.EncodeToString([]byte(value))[:len(value)], where)
	}
}

func patch(text string) v1alpha1.Patch {
	return v1alpha1.Patch{RawExtension: runtime.RawExtension{Raw: []byte(text)}}
}

func TestFilesAreWrittenAsTheContainersUser(t *testing.T) {
	t.Parallel()
	inEitherRuntime(t, func(t *testing.T, ns string, template *v1alpha1.PodTemplate) {
		task := script(`set -ex
			test "$(stat -c '%a %u' /tmp/new/deep/bytes)" = "640 $(id -u)"; test "$(stat -c %a /tmp/new/deep)" = 755
			test "$(od -An -tx1 /tmp/new/deep/bytes | tr -d ' \n')" = 00ff0a; test "$(ls -A /tmp/new/deep)" = bytes
			test "$(cat /tmp/link)" = text; test ! -L /tmp/link`)
		task.Spec.Files = []v1alpha1.File{
			{Path: "/tmp/new/deep/bytes", Mode: ptr.To(int32(0o640)), ContentBase64: []byte{0, 0xff, '\n'}},
			{Path: "/tmp/link", Content: ptr.To("text")},
		}
		template.Spec.Containers[0].Command = []string{"sh", "-c", "ln -s /tmp/victim /tmp/link; exec sleep 3600"}
		bs := fromTemplate(ns, "files", 2, template)
		bs.Spec.TaskTemplate = task
		bs.Spec.ShardTaskPatches = []v1alpha1.Patch{patch(`{}`), patch(`{"spec":{"files":[{"path":"/proc/none/x","content":"text"}]}}`)}
		require.NoError(t, api.Create(t.Context(), bs))
		until(t, bs, tasksCompleted)
		require.Equal(t, "0", bs.Status.SucceededShards, "%+v", bs.Status.FailedTasks)
		require.Equal(t, "1", bs.Status.FailedShards)
		require.Equal(t, "FileUnwritable", bs.Status.FailedTasks[0].Reason)
		require.Contains(t, bs.Status.FailedTasks[0].Message, `file "/proc/none/x": `)
	})
}

// In a pool with Noop what the hooks have written can be read when the sandbox is back.
func TestHooksRunHoweverTheTaskEnds(t *testing.T) {
	t.Parallel()
	inEitherRuntime(t, func(t *testing.T, ns string, template *v1alpha1.PodTemplate) {
		pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}, Spec: v1alpha1.PoolSpec{
			Template: template, CapacitySpec: v1alpha1.CapacitySpec{BufferMax: 1, PoolMin: 1, PoolMax: 1},
			TaskExecutor: v1alpha1.TaskExecutorSpec{Enabled: true}, RecycleStrategy: v1alpha1.RecycleStrategy{Type: v1alpha1.RecycleNoop},
		}}
		require.NoError(t, api.Create(t.Context(), pool))
		hook := func(text string) *v1alpha1.LifecycleHook {
			return &v1alpha1.LifecycleHook{Exec: v1alpha1.ExecAction{Command: []string{"sh", "-c", text}}}
		}
		run := func(name, preStart, command string) *v1alpha1.BatchSandbox {
			bs := pooled(ns, name, 1)
			bs.Spec.TaskTemplate = script(command)
			bs.Spec.TaskTemplate.Spec.Process.Lifecycle = &v1alpha1.ProcessLifecycle{
				PreStart: hook(preStart), PostStop: hook("sleep 1; echo after " + name + " >>/tmp/hooks; setsid sleep 1000 &"),
			}
			require.NoError(t, api.Create(t.Context(), bs))
			return bs
		}
		failing := run("failing", "echo broken >&2; exit 4", "echo never >>/tmp/hooks")
		until(t, failing, tasksCompleted)
		require.Equal(t, "PreStartFailed", failing.Status.FailedTasks[0].Reason)
		require.Equal(t, int32(4), failing.Status.FailedTasks[0].ExitCode)
		require.Equal(t, "broken", failing.Status.FailedTasks[0].Message)
		first := heldBy(t, failing)[0]
		require.NoError(t, api.Delete(t.Context(), failing))
		untilGone(t, failing)

		running := run("running", "echo before running >>/tmp/hooks", "sleep 1000; sleep 1000")
		until(t, running, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskRunning == 1 })
		pod := heldBy(t, running)[0]
		require.Equal(t, first, pod, "it came back")
		require.Eventually(t, func() bool {
			return strings.Contains(inSandbox(t, ns, pod, "cat", "/tmp/hooks"), "before running")
		}, patience, poll)
		require.NoError(t, api.Delete(t.Context(), running))
		untilGone(t, running)
		require.Equal(t, "after failing\nbefore running\nafter running\n", inSandbox(t, ns, pod, "cat", "/tmp/hooks"))
		inSandbox(t, ns, pod, "sh", "-c", `if grep -l "^sleep.1000" /proc/*/cmdline; then exit 1; fi`)
	})
}
