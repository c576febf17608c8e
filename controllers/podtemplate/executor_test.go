package podtemplate

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/token"
)

var podKey = ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", ed25519.SeedSize)))

var testExecutor = &Executor{
	Image: "executor:v1", KeyID: "k1", PublicKeys: `{"k1":"..."}`, RestartRules: true,
	PodKey: func() (ed25519.PrivateKey, error) { return podKey, nil },
}

func sandboxPod() *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "prepare"}},
		Containers:     []corev1.Container{{Name: "sandbox-container"}, {Name: "sidecar"}},
	}}
}

func TestAnExecutorIsInjectedAsTheFirstRestartableInitContainer(t *testing.T) {
	pod := sandboxPod()
	require.NoError(t, testExecutor.Complete(pod, InjectRestarter))
	require.Len(t, pod.Spec.InitContainers, 2)
	c := pod.Spec.InitContainers[0]
	require.Equal(t, v1alpha1.ExecutorContainerName, c.Name)
	require.Equal(t, "executor:v1", c.Image)
	require.Equal(t, corev1.ContainerRestartPolicyAlways, *c.RestartPolicy)
	require.Equal(t, []int32{88}, c.RestartPolicyRules[0].ExitCodes.Values)
	require.Equal(t, []string{"/task-executor", "await"}, c.Lifecycle.PostStart.Exec.Command, "it has looked before another container starts")
	require.Equal(t, corev1.URISchemeHTTPS, c.ReadinessProbe.HTTPGet.Scheme)
	require.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path, "one that hangs is started anew")
	require.False(t, *pod.Spec.AutomountServiceAccountToken, "a restart does not renew it")
	requireIntroduced(t, pod, &c)

	plain := sandboxPod()
	require.NoError(t, testExecutor.Complete(plain, InjectExecutor))
	require.Empty(t, plain.Spec.InitContainers[0].RestartPolicyRules, "not every node takes such a pod")
	require.Nil(t, plain.Spec.AutomountServiceAccountToken)
	asked := sandboxPod()
	asked.Spec.AutomountServiceAccountToken = ptr.To(true)
	require.NoError(t, testExecutor.Complete(asked, InjectRestarter))
	require.True(t, *asked.Spec.AutomountServiceAccountToken, "the template asks for it")
}

func TestTheLauncherIsStartedInTheSandboxContainerAlone(t *testing.T) {
	pod := sandboxPod()
	require.NoError(t, testExecutor.Complete(pod, InjectExecutor))
	c := &pod.Spec.Containers[0]
	require.Equal(t, []string{"/opensandbox/launcher", "hook"}, c.Lifecycle.PostStart.Exec.Command)
	require.Equal(t, []corev1.VolumeMount{{Name: launcherVolume, MountPath: "/opensandbox", ReadOnly: true}}, c.VolumeMounts)
	require.Equal(t, corev1.Container{Name: "sidecar"}, pod.Spec.Containers[1])
	require.Equal(t, corev1.Container{Name: "prepare"}, pod.Spec.InitContainers[1])
	for _, v := range pod.Spec.Volumes {
		require.NotNil(t, v.EmptyDir.SizeLimit, v.Name)
	}

	own := sandboxPod()
	own.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: execHook("/prepare", "--all"), PreStop: execHook("/bye")}
	require.NoError(t, testExecutor.Complete(own, InjectExecutor))
	c = &own.Spec.Containers[0]
	require.Equal(t, []string{"/opensandbox/launcher", "hook", "/prepare", "--all"}, c.Lifecycle.PostStart.Exec.Command)
	require.Equal(t, execHook("/bye"), c.Lifecycle.PreStop)
}

func TestTheExecutorMeetsTheRestrictedStandardAndAnyUser(t *testing.T) {
	for name, test := range map[string]struct {
		podUser, want *int64
	}{
		"the image's user":                  {nil, nil},
		"the pod's":                         {ptr.To(int64(1234)), nil},
		"another where the pod's is root's": {ptr.To(int64(0)), ptr.To(int64(65532))},
	} {
		t.Run(name, func(t *testing.T) {
			pod := sandboxPod()
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: test.podUser}
			require.NoError(t, testExecutor.Complete(pod, InjectExecutor))
			s := pod.Spec.InitContainers[0].SecurityContext
			require.Equal(t, test.want, s.RunAsUser)
			require.True(t, *s.RunAsNonRoot)
			require.True(t, *s.ReadOnlyRootFilesystem)
			require.False(t, *s.AllowPrivilegeEscalation)
			require.Equal(t, &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, s.Capabilities)
			require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, s.SeccompProfile.Type)
			require.Nil(t, pod.Spec.ShareProcessNamespace)
		})
	}
}

func TestQualityOfServiceStaysGuaranteed(t *testing.T) {
	all := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourceCPU: resource.MustParse("1")}
	pod := sandboxPod()
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			list[i].Resources.Limits = all
		}
	}
	require.NoError(t, testExecutor.Complete(pod, InjectExecutor))
	r := pod.Spec.InitContainers[0].Resources
	require.Equal(t, r.Limits, r.Requests)

	pod = sandboxPod()
	pod.Spec.Containers[0].Resources.Limits = all
	require.NoError(t, testExecutor.Complete(pod, InjectExecutor))
	r = pod.Spec.InitContainers[0].Resources
	require.Equal(t, executorRequests, r.Requests, "where one container is without, it was not Guaranteed")
	require.Equal(t, executorLimits, r.Limits, "small and fixed, whatever the sandbox has")
}

// requireIntroduced looks whether operator and executor can know each other.
func requireIntroduced(t *testing.T, pod *corev1.Pod, c *corev1.Container) {
	t.Helper()
	values := map[string]string{}
	for _, e := range c.Env {
		values[e.Name] = e.Value
		if e.ValueFrom != nil {
			values[e.Name] = e.ValueFrom.FieldRef.FieldPath
		}
	}
	require.Equal(t, map[string]string{
		executorapi.EnvPublicKeys: testExecutor.PublicKeys, executorapi.EnvPodUID: "metadata.uid", executorapi.EnvTLSKey: token.FormatSeed(podKey),
	}, values)
	require.Equal(t, "k1", pod.Annotations[v1alpha1.AnnotationExecutorKey])
	public, err := token.ParsePublicKey(pod.Annotations[v1alpha1.AnnotationExecutorTLSKey])
	require.NoError(t, err)
	require.Equal(t, podKey.Public(), public)
	require.Equal(t, []corev1.VolumeMount{{Name: launcherVolume, MountPath: "/opensandbox"}, {Name: recordsVolume, MountPath: "/var/lib/task-executor"}}, c.VolumeMounts)
	require.Equal(t, "sandbox-container", TaskContainer(pod))
}

func TestAHandWrittenExecutorIsCompleted(t *testing.T) {
	pod := sandboxPod()
	pod.Spec.ShareProcessNamespace = ptr.To(true)
	given := &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
		Name: v1alpha1.ExecutorContainerName, Command: []string{"/my-executor"},
		Env: []corev1.EnvVar{{Name: executorapi.EnvPodUID, Value: "forged"}}, SecurityContext: given.DeepCopy(),
	})
	require.NoError(t, testExecutor.Complete(pod, InjectRestarter))
	require.Len(t, pod.Spec.InitContainers, 2, "no second executor")
	install := pod.Spec.InitContainers[0]
	require.Equal(t, []string{"install"}, install.Args)
	require.Equal(t, "executor:v1", install.Image)
	require.Equal(t, []corev1.VolumeMount{{Name: launcherVolume, MountPath: "/opensandbox"}}, install.VolumeMounts)
	c := &pod.Spec.Containers[2]
	require.Equal(t, "executor:v1", c.Image)
	require.Equal(t, []string{"/my-executor"}, c.Command)
	require.Equal(t, given, c.SecurityContext, "what the user gave it stays")
	require.Equal(t, "/healthz?launcher=wanted", c.ReadinessProbe.HTTPGet.Path)
	require.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path)
	requireIntroduced(t, pod, c)
	require.Equal(t, []string{"/opensandbox/launcher", "hook"}, pod.Spec.Containers[0].Lifecycle.PostStart.Exec.Command)
}

func TestAPodWithoutTasksIsLeftAsItIs(t *testing.T) {
	pod := sandboxPod()
	pod.Annotations = map[string]string{v1alpha1.AnnotationExecutorKey: "forged", v1alpha1.AnnotationExecutorTLSKey: "forged"}
	require.NoError(t, testExecutor.Complete(pod, InjectNothing))
	require.Empty(t, pod.Annotations)
	require.Equal(t, sandboxPod().Spec, pod.Spec)
	var none *Executor
	require.NoError(t, none.Complete(pod, InjectRestarter))
	require.Equal(t, sandboxPod().Spec, pod.Spec)
}

func TestAnExecutorIsRefusedWhereTasksCannotRun(t *testing.T) {
	tests := map[string]struct {
		change func(*corev1.PodSpec)
		want   string
	}{
		"the host's network": {func(s *corev1.PodSpec) { s.HostNetwork = true }, "spec.hostNetwork"},
		"a volume of the records' name": {func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "other"}, {Name: recordsVolume}}
		}, "spec.volumes[1].name"},
		"a volume of the launcher's name": {func(s *corev1.PodSpec) { s.Volumes = []corev1.Volume{{Name: launcherVolume}} }, "spec.volumes[0].name"},
		"a mount of the records": {func(s *corev1.PodSpec) {
			s.InitContainers = []corev1.Container{{Name: "init", VolumeMounts: []corev1.VolumeMount{{Name: "own"}, {Name: recordsVolume, MountPath: "/x"}}}}
		}, "spec.initContainers[0].volumeMounts[1].name"},
		"a mount of the launcher": {func(s *corev1.PodSpec) {
			s.Containers[1].VolumeMounts = []corev1.VolumeMount{{Name: launcherVolume, MountPath: "/x"}}
		}, "spec.containers[1].volumeMounts[0].name"},
		"a hook that is no command": {func(s *corev1.PodSpec) {
			s.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}}
		}, "spec.containers[0].lifecycle.postStart"},
		"no container for tasks": {func(s *corev1.PodSpec) {
			s.Containers = []corev1.Container{{Name: v1alpha1.ExecutorContainerName}}
		}, "spec.containers"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := sandboxPod()
			test.change(&pod.Spec)
			require.ErrorContains(t, testExecutor.Complete(pod, InjectRestarter), test.want)
		})
	}
	require.ErrorContains(t, (&Executor{}).Complete(sandboxPod(), InjectRestarter), "RELATED_IMAGE_TASK_EXECUTOR")
}

func TestAWarningNamesWhoCouldForgeResults(t *testing.T) {
	pod := sandboxPod()
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
	pod.Spec.Containers[1].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CAP_SYS_PTRACE", "CHOWN"}}}
	require.Empty(t, Warnings(&pod.Spec), "there is no executor")
	require.NoError(t, testExecutor.Complete(pod, InjectExecutor))
	require.Equal(t, []string{
		"spec.containers[0].securityContext.privileged: container sandbox-container could forge the results of tasks",
		"spec.containers[1].securityContext.capabilities.add: with SYS_PTRACE container sidecar could forge the results of tasks",
	}, Warnings(&pod.Spec))
}

func TestTheExecutorIsInTheRevisionWhereThereIsOne(t *testing.T) {
	pool := &v1alpha1.Pool{Spec: v1alpha1.PoolSpec{Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: sandboxPod().Spec}}}}
	v1, v2, rotated := &Executor{Image: "executor:v1", KeyID: "a"}, &Executor{Image: "executor:v2", KeyID: "a"}, &Executor{Image: "executor:v1", KeyID: "b"}
	require.Equal(t, Revision(pool.Spec.Template), PoolRevision(pool, v1), "without an executor")
	require.Equal(t, Revision(pool.Spec.Template), PoolRevision(pool, rotated), "nobody signs anything for it")
	pool.Spec.TaskExecutor.Enabled = true
	first := PoolRevision(pool, v1)
	require.NotEqual(t, Revision(pool.Spec.Template), first)
	require.NotEqual(t, first, PoolRevision(pool, v2))
	require.NotEqual(t, first, PoolRevision(pool, rotated), "its pods know the old key")
	pool.Spec.RecycleStrategy.Type = v1alpha1.RecycleRestart
	require.NotEqual(t, first, PoolRevision(pool, v1), "such pods can be restarted")
	pool.Spec.Template.Spec.Containers = append(pool.Spec.Template.Spec.Containers, corev1.Container{Name: v1alpha1.ExecutorContainerName})
	require.NotEqual(t, Revision(pool.Spec.Template), PoolRevision(pool, v1), "a hand-written executor is completed")
	require.Equal(t, PoolRevision(pool, v1), PoolRevision(pool, v2), "by its own image")
	require.NotEqual(t, PoolRevision(pool, v1), PoolRevision(pool, rotated), "it knows the old key, too")
}

func TestTheExecutorInAllPoolsIsForThoseThatMayHaveOne(t *testing.T) {
	of := func(change func(*v1alpha1.PoolSpec)) *v1alpha1.Pool {
		pool := &v1alpha1.Pool{Spec: v1alpha1.PoolSpec{Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: sandboxPod().Spec}}}}
		change(&pool.Spec)
		return pool
	}
	everywhere := &Executor{Image: "executor:v1", InAllPools: true}
	for name, test := range map[string]struct {
		change func(*v1alpha1.PoolSpec)
		want   Injection
	}{
		"a pool that says nothing of executors": {func(*v1alpha1.PoolSpec) {}, InjectExecutor},
		"a pool that restarts":                  {func(s *v1alpha1.PoolSpec) { s.RecycleStrategy.Type = v1alpha1.RecycleRestart }, InjectRestarter},
		"a pool with an executor of its own": {func(s *v1alpha1.PoolSpec) {
			s.Template.Spec.Containers = append(s.Template.Spec.Containers, corev1.Container{Name: v1alpha1.ExecutorContainerName})
		}, InjectNothing},
		"a pool in which an executor is refused": {func(s *v1alpha1.PoolSpec) { s.Template.Spec.HostNetwork = true }, InjectNothing},
		"a pool that asks for one all the same":  {func(s *v1alpha1.PoolSpec) { s.Template.Spec.HostNetwork, s.TaskExecutor.Enabled = true, true }, InjectExecutor},
	} {
		require.Equal(t, test.want, everywhere.InjectsInto(of(test.change)), name)
	}
	require.Equal(t, InjectNothing, (&Executor{Image: "executor:v1"}).InjectsInto(of(func(*v1alpha1.PoolSpec) {})), "without the flag")
}

func TestTheContainerOfTasksIsTheDefaultContainer(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: v1alpha1.ExecutorContainerName}, {Name: "a"}, {Name: "b"}}}}
	require.Equal(t, "a", TaskContainer(pod))
	pod.Annotations = map[string]string{v1alpha1.AnnotationDefaultContainer: "b"}
	require.Equal(t, "b", TaskContainer(pod))
	pod.Annotations[v1alpha1.AnnotationDefaultContainer] = "no such container"
	require.Equal(t, "a", TaskContainer(pod))
	pod.Annotations[v1alpha1.AnnotationDefaultContainer] = v1alpha1.ExecutorContainerName
	require.Equal(t, "a", TaskContainer(pod))
}

// gVisor runs no program that its user may not read.
func TestAPodWithARuntimeClassHasAnExecutorThatCanBeRead(t *testing.T) {
	for class, want := range map[string]string{"": "/task-executor", "gvisor": "/launcher"} {
		pod := sandboxPod()
		if class != "" {
			pod.Spec.RuntimeClassName = &class
		}
		written := pod.DeepCopy()
		require.NoError(t, testExecutor.Complete(pod, InjectExecutor))
		require.Equal(t, []string{want}, pod.Spec.InitContainers[0].Command)
		require.Equal(t, want, pod.Spec.InitContainers[0].Lifecycle.PostStart.Exec.Command[0])

		written.Spec.Containers = append(written.Spec.Containers, corev1.Container{Name: v1alpha1.ExecutorContainerName})
		theirs := written.DeepCopy()
		require.NoError(t, testExecutor.Complete(written, InjectNothing))
		require.Equal(t, []string{want}, written.Spec.InitContainers[0].Command)
		require.Equal(t, []string{want}, executorOf(&written.Spec).Command)

		executorOf(&theirs.Spec).Image, executorOf(&theirs.Spec).Command = "example.com/theirs", []string{"theirs"}
		require.NoError(t, testExecutor.Complete(theirs, InjectNothing))
		require.Empty(t, theirs.Spec.InitContainers[0].Command, "where the program is in their image they know")
		require.Equal(t, []string{"theirs"}, executorOf(&theirs.Spec).Command)
	}
}
