package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

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

// restrictedPool is the same in a namespace that enforces the restricted Pod Security
// Standard: the executor is the operator's.
const restrictedPool = `
apiVersion: sandbox.opensandbox.io/v1alpha1
kind: Pool
metadata: {name: task-example-pool}
spec:
  taskExecutor: {enabled: true}
  template:
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 1234, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: sandbox-container
        image: ubuntu:latest
        command: ["sleep", "3600"]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
  capacitySpec: {bufferMin: 2, bufferMax: 2, poolMin: 2, poolMax: 8}
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

func TestTheSamplesOfTasksRunUnderTheRestrictedStandard(t *testing.T) {
	t.Parallel()
	ns := restrictedNamespace(t)
	for _, file := range []string{"pool_tasks", "batchsandbox_tasks", "batchsandbox_release"} {
		kubectl(t, "", "--namespace", ns, "apply", "--filename", "../../config/samples/"+file+".yaml")
	}
	for name, shards := range map[string]string{"task-batch-sandbox": "0-1", "release-batch-sandbox": "0-2"} {
		bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
		until(t, bs, tasksCompleted)
		require.Equal(t, shards, bs.Status.SucceededShards, "%+v", bs.Status.FailedTasks)
	}
}

// script makes a task of a shell script.
func script(text string) *v1alpha1.TaskTemplate {
	return &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"sh", "-c", text}}}}
}

// sandboxTemplate is a pod of one container in its own directory. As another user than
// root it meets the restricted Pod Security Standard.
func sandboxTemplate(image string, user int64, command ...string) *v1alpha1.PodTemplate {
	c := corev1.Container{Name: "sandbox-container", Image: image, Command: command, WorkingDir: "/var/tmp"}
	spec := corev1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(1)), SecurityContext: &corev1.PodSecurityContext{RunAsUser: &user}}
	if user != 0 {
		spec.SecurityContext.RunAsNonRoot = ptr.To(true)
		spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
		c.SecurityContext = &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		}
	}
	spec.Containers = []corev1.Container{c}
	return &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: spec}}
}

// asEither runs a test in a sandbox of root's, and in one of a user's in a namespace that
// enforces the restricted Pod Security Standard.
func asEither(t *testing.T, test func(t *testing.T, ns string, user int64)) {
	t.Helper()
	t.Run("as-root", func(t *testing.T) {
		t.Parallel()
		test(t, newNamespace(t), 0)
	})
	t.Run("as-a-user", func(t *testing.T) {
		t.Parallel()
		test(t, restrictedNamespace(t), 1234)
	})
}

// inEitherRuntime is asEither with the node's own runtime, and in gVisor.
func inEitherRuntime(t *testing.T, test func(t *testing.T, ns string, sandbox *v1alpha1.PodTemplate)) {
	t.Helper()
	asEither(t, func(t *testing.T, ns string, user int64) {
		test(t, ns, sandboxTemplate("ubuntu:latest", user, "sleep", "3600"))
	})
	t.Run("in-gvisor", func(t *testing.T) {
		t.Parallel()
		asEither(t, func(t *testing.T, ns string, user int64) {
			test(t, ns, inGVisor(t, sandboxTemplate("ubuntu:latest", user, "sleep", "3600")))
		})
	})
}

// fromSandbox runs a task in a sandbox of the template and returns the BatchSandbox and its
// pod.
func fromSandbox(t *testing.T, ns string, template *v1alpha1.PodTemplate, task *v1alpha1.TaskTemplate) (*v1alpha1.BatchSandbox, *corev1.Pod) {
	t.Helper()
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "sandbox"},
		Spec: v1alpha1.BatchSandboxSpec{Template: template, TaskTemplate: task}}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, tasksCompleted)
	pod := &corev1.Pod{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: bs.Name + "-0"}, pod))
	return bs, pod
}

// describe prints what a process sees of its container.
const describe = `echo env; env | grep -v -e ^_= -e ^SHLVL= -e ^PWD= -e ^OLDPWD= | sort
	echo directory; pwd; echo user; id; umask; echo limits; ulimit -a; cat /proc/self/oom_score_adj
	echo namespaces; for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done
	echo groups; cat /proc/self/cgroup; echo mounts; cat /proc/self/mountinfo
	echo rights; grep -E "^(Cap|Seccomp|NoNewPrivs|Groups|Uid|Gid)" /proc/self/status
	echo memory; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; echo end`

func TestATaskSeesWhatKubectlExecSees(t *testing.T) {
	t.Parallel()
	inEitherRuntime(t, func(t *testing.T, ns string, template *v1alpha1.PodTemplate) {
		require.NoError(t, api.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "values"}, Data: map[string]string{"FROM_CONFIGMAP": "a"}}))
		require.NoError(t, api.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "values"}, StringData: map[string]string{"FROM_SECRET": "b"}}))
		template.Spec.SecurityContext.SupplementalGroups = []int64{5000}
		c := &template.Spec.Containers[0]
		c.Resources.Limits = memory("128Mi")
		c.Env = []corev1.EnvVar{{Name: "PLAIN", Value: "x y=z"}, {Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
		c.EnvFrom = []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "values"}}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "values"}}},
		}
		bs, pod := fromSandbox(t, ns, template, script(describe))
		require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
		want := inSandbox(t, ns, pod.Name, "sh", "-c", describe)
		for _, part := range []string{"FROM_CONFIGMAP=a\n", "FROM_SECRET=b\n", "POD=" + pod.Name + "\n", "\n/var/tmp\n", " / / "} {
			require.Contains(t, want, part, "it is worth comparing")
		}
		var got strings.Builder
		for line := range strings.Lines(kubectl(t, "", "--namespace", ns, "logs", pod.Name, "-c", "task-executor")) {
			if text, found := strings.CutPrefix(line, "shard 0 stdout: "); found {
				got.WriteString(text)
			}
		}
		require.Equal(t, want, got.String())
	})
}

func TestATaskNeedsNothingOfItsImage(t *testing.T) {
	t.Parallel()
	ns := restrictedNamespace(t)
	operator := &appsv1.Deployment{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: operatorNamespace, Name: "opensandbox-controller-manager"}, operator))
	image := ""
	for _, e := range operator.Spec.Template.Spec.Containers[0].Env {
		if e.Name == "RELATED_IMAGE_TASK_EXECUTOR" {
			image = e.Value
		}
	}
	// The executor's own image has one static program and nothing else. As a launcher that
	// finds no executor it runs for ever.
	template := sandboxTemplate(image, 1000740000, "/task-executor", "launch")
	template.Spec.SecurityContext.FSGroup = ptr.To(int64(1000740000))
	c := &template.Spec.Containers[0]
	c.WorkingDir, c.SecurityContext.ReadOnlyRootFilesystem = "", ptr.To(true)
	bs, _ := fromSandbox(t, ns, template, &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"/task-executor", "await"}}}})
	require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
}

func TestATaskRunsInTheDefaultContainerAfterItsOwnHook(t *testing.T) {
	t.Parallel()
	ns := restrictedNamespace(t)
	template := sandboxTemplate("ubuntu:latest", 1234, "sleep", "3600")
	template.Annotations = map[string]string{v1alpha1.AnnotationDefaultContainer: "second"}
	second := template.Spec.Containers[0].DeepCopy()
	second.Name = "second"
	second.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo hooked >/tmp/hook"}}}}
	template.Spec.Containers = append(template.Spec.Containers, *second)
	bs, pod := fromSandbox(t, ns, template, script(`set -e; test "$(cat /tmp/hook)" = hooked; echo x >/tmp/here`))
	require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
	require.Equal(t, "x\n", kubectl(t, "", "--namespace", ns, "exec", pod.Name, "-c", "second", "--", "cat", "/tmp/here"))
	for _, s := range pod.Status.ContainerStatuses {
		require.Zero(t, s.RestartCount, s.Name)
	}
}

func TestAGuaranteedPodStaysGuaranteedAndItsTaskHasItsLimits(t *testing.T) {
	t.Parallel()
	ns := restrictedNamespace(t)
	template := sandboxTemplate("ubuntu:latest", 1234, "sleep", "3600")
	limits := memory("64Mi")
	limits[corev1.ResourceCPU] = resource.MustParse("200m")
	template.Spec.Containers[0].Resources.Limits = limits
	bs, pod := fromSandbox(t, ns, template, script("tail /dev/zero"))
	require.Equal(t, int32(1), bs.Status.TaskFailed)
	require.Equal(t, "OOMKilled", bs.Status.FailedTasks[0].Reason, "%+v", bs.Status.FailedTasks)
	require.Equal(t, corev1.PodQOSGuaranteed, pod.Status.QOSClass)
	require.Zero(t, pod.Status.InitContainerStatuses[0].RestartCount, "the executor does not share the sandbox's memory")
}

func TestTasksFailWithAReason(t *testing.T) {
	t.Parallel()
	t.Run("in-a-restricted-pool", func(t *testing.T) {
		t.Parallel()
		ns := restrictedNamespace(t)
		apply(t, ns, restrictedPool)
		failWithAReason(t, ns, "task-example-pool")
	})
	t.Run("in-the-sample-for-gvisor", func(t *testing.T) {
		t.Parallel()
		ns := restrictedNamespace(t)
		kubectl(t, "", "--namespace", ns, "apply", "--filename", "../../config/samples/pool_gvisor.yaml")
		failWithAReason(t, ns, "gvisor-example-pool")
	})
}

func failWithAReason(t *testing.T, ns, pool string) {
	t.Helper()
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
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "failing"}, Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(len(wants))), PoolRef: pool, TaskTemplate: script("true"),
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
	ns := restrictedNamespace(t)
	apply(t, ns, restrictedPool)
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

// plant is a script that leaves things behind, as any user; more may follow.
const plant = `set -e; echo x >/tmp/planted; echo x >/dev/shm/planted; touch /dev/mqueue/planted
	ipcmk -M 1024; ipcmk -S 1; ipcmk -Q; setsid sleep 1000 & `

// look fails where something of it is left. A command after an exclamation mark would not
// end it.
const look = `set -ex; test ! -e /planted; test ! -e /tmp/planted; test ! -e /dev/shm/planted; test ! -e /dev/mqueue/planted
	if ipcs | grep ^0x; then exit 1; fi
	if grep -l "^sleep.1000" /proc/*/cmdline; then exit 1; fi
	if grep -r 10.9.9.9 /etc/hosts /etc/resolv.conf; then exit 1; fi`

func addEphemeral(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debugger", Image: "busybox:latest", ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "3600"},
		SecurityContext: pod.Spec.Containers[0].SecurityContext,
	}}}
	require.NoError(t, api.SubResource("ephemeralcontainers").Update(t.Context(), pod))
}

func TestASandboxIsRestartedInPlaceOrReplaced(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		user     int64
		more     string
		then     func(t *testing.T, pod *corev1.Pod)
		replaced bool
	}{
		"what-restarts-clean": {more: "echo x >/planted"},
		"what-a-user-leaves":  {user: 1234, more: "true"},
		// The launcher, which is root without the capability for it, may not remove that.
		"what-root-leaves-as-another": {more: "setpriv --reuid=5 --regid=5 --clear-groups ipcmk -M 1024 -p 600", replaced: true},
		// The kubelet writes the file anew for every container.
		"a-changed-hosts":             {more: "echo 10.9.9.9 example.com >>/etc/hosts"},
		"a-changed-resolvconf":        {more: "echo nameserver 10.9.9.9 >>/etc/resolv.conf", replaced: true},
		"a-changed-hostname":          {more: "echo other >/etc/hostname", replaced: true},
		"another-mode-of-the-queues":  {more: "chmod 0770 /dev/mqueue", replaced: true},
		"another-owner-of-the-queues": {more: "chown 5:5 /dev/mqueue", replaced: true},
		"another-mode-of-the-memory":  {more: "chmod 0777 /dev/shm", replaced: true},
		"an-ephemeral-container":      {user: 1234, more: "true", then: addEphemeral, replaced: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			if test.user != 0 {
				ns = restrictedNamespace(t)
			}
			pool := restartingPool(t, ns, sandboxTemplate("ubuntu:latest", test.user, "sleep", "3600"))
			bs := runTask(t, pool, "hostile", plant+test.more)
			require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
			first := podOf(t, bs)
			if test.then != nil {
				test.then(t, first)
			}
			require.NoError(t, api.Delete(t.Context(), bs))
			untilGone(t, bs)

			next := runTask(t, pool, "next", look)
			require.Equal(t, int32(1), next.Status.TaskSucceed, "%+v", next.Status.FailedTasks)
			second := podOf(t, next)
			if !restartsInPlace {
				untilNotRestartable(t, pool, v1alpha1.ReasonRestartRulesUnknown)
			}
			if test.replaced || !restartsInPlace {
				require.NotEqual(t, first.UID, second.UID)
				return
			}
			require.Equal(t, first.UID, second.UID)
			require.Equal(t, first.Status.PodIP, second.Status.PodIP)
			require.NotEqual(t, first.Status.ContainerStatuses[0].ContainerID, second.Status.ContainerStatuses[0].ContainerID)
			require.Zero(t, next.Status.Restarted)
			untilRestartable(t, pool, metav1.ConditionTrue, v1alpha1.ReasonRestartable)
		})
	}
}

// untilNotRestartable waits for the reason. Where nothing can be restarted in place, that is
// said before what the template asks for.
func untilNotRestartable(t *testing.T, pool *v1alpha1.Pool, reason string) {
	t.Helper()
	if !restartsInPlace && reason != v1alpha1.ReasonHandWrittenExecutor {
		reason = v1alpha1.ReasonRestartRulesUnknown
	}
	untilRestartable(t, pool, metav1.ConditionFalse, reason)
}

func untilRestartable(t *testing.T, pool *v1alpha1.Pool, status metav1.ConditionStatus, reason string) {
	t.Helper()
	until(t, pool, func(p *v1alpha1.Pool) bool {
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionRestartable)
		return c != nil && c.Status == status && c.Reason == reason
	})
}

func TestWhatCanNeverBeRestartedInPlaceIsSaidAndDeleted(t *testing.T) {
	t.Parallel()
	mount := func(s *corev1.PodSpec, source corev1.VolumeSource) {
		s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: source}}
		s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", ReadOnly: true}}
	}
	for reason, change := range map[string]func(*corev1.PodSpec){
		// By a socket in it one owner's processes could hand open files to the next one's.
		v1alpha1.ReasonVolume: func(s *corev1.PodSpec) {
			mount(s, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/tmp"}})
		},
		v1alpha1.ReasonServiceAccountToken:    func(s *corev1.PodSpec) { s.AutomountServiceAccountToken = ptr.To(true) },
		v1alpha1.ReasonRuntimeClass:           func(s *corev1.PodSpec) { s.RuntimeClassName = ptr.To("gvisor") },
		v1alpha1.ReasonSharedProcessNamespace: func(s *corev1.PodSpec) { s.ShareProcessNamespace = ptr.To(true) },
		v1alpha1.ReasonCapability: func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
		},
		v1alpha1.ReasonHandWrittenExecutor: func(s *corev1.PodSpec) {
			s.Containers = append(s.Containers, corev1.Container{Name: v1alpha1.ExecutorContainerName})
		},
	} {
		t.Run(strings.ToLower(reason), func(t *testing.T) {
			t.Parallel()
			template := sandboxTemplate("ubuntu:latest", 0, "sleep", "3600")
			change(&template.Spec)
			pool := restartingPool(t, newNamespace(t), template)
			bs := runTask(t, pool, "first", "true")
			require.Equal(t, int32(1), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)
			untilNotRestartable(t, pool, reason)
			first := podOf(t, bs)
			require.NoError(t, api.Delete(t.Context(), bs))
			untilGone(t, bs)
			untilGone(t, first)
		})
	}
}
