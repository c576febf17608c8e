package podtemplate

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
)

var testExecutor = &Executor{Image: "executor:v1", KeyID: "k1", PublicKeys: `{"k1":"..."}`}

func sandboxPod() *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "prepare"}},
		Containers: []corev1.Container{{Name: "sandbox-container", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
			corev1.ResourceMemory: resource.MustParse("8Mi"), corev1.ResourceCPU: resource.MustParse("1"), "example.com/gpu": resource.MustParse("1"),
		}}}},
	}}
}

func TestAnExecutorIsInjectedAsTheFirstRestartableInitContainer(t *testing.T) {
	pod := sandboxPod()
	executor := *testExecutor
	executor.RestartRules = true
	require.NoError(t, executor.Complete(pod, InjectRestarter))
	require.Len(t, pod.Spec.InitContainers, 2)
	c := pod.Spec.InitContainers[0]
	require.Equal(t, v1alpha1.ExecutorContainerName, c.Name)
	require.Equal(t, "executor:v1", c.Image)
	require.Equal(t, corev1.ContainerRestartPolicyAlways, *c.RestartPolicy)
	require.Equal(t, []int32{88}, c.RestartPolicyRules[0].ExitCodes.Values)
	plain := sandboxPod()
	require.NoError(t, executor.Complete(plain, InjectExecutor))
	require.Empty(t, plain.Spec.InitContainers[0].RestartPolicyRules, "not every node takes such a pod")
	require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
	require.ElementsMatch(t, executorCapabilities, c.SecurityContext.Capabilities.Add)
	require.Equal(t, corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Mi"), corev1.ResourceCPU: resource.MustParse("1")}, c.Resources.Limits, "no devices")
	require.Equal(t, "8Mi", c.Resources.Requests.Memory().String(), "a request is at most the limit")
	require.Equal(t, "5m", c.Resources.Requests.Cpu().String())
	require.True(t, *pod.Spec.ShareProcessNamespace)
	require.Equal(t, "k1", pod.Annotations[v1alpha1.AnnotationExecutorKey])
	require.Equal(t, "sandbox-container", TaskContainer(pod))
	requireExecutorVariables(t, &c)
}

func TestTheSampleForOpenShiftAllowsTheExecutorsCapabilities(t *testing.T) {
	text, err := os.ReadFile("../../config/samples/namespace/security_context_constraints.yaml")
	require.NoError(t, err)
	sample, _, _ := strings.Cut(string(text), "\n---\n")
	var scc struct{ AllowedCapabilities []corev1.Capability }
	require.NoError(t, yaml.Unmarshal([]byte(sample), &scc))
	require.ElementsMatch(t, executorCapabilities, scc.AllowedCapabilities)
}

func requireExecutorVariables(t *testing.T, c *corev1.Container) {
	t.Helper()
	values := map[string]string{}
	for _, e := range c.Env {
		values[e.Name] = e.Value
		if e.ValueFrom != nil {
			values[e.Name] = e.ValueFrom.FieldRef.FieldPath
		}
	}
	require.Equal(t, map[string]string{"OPENSANDBOX_EXECUTOR_PUBLIC_KEYS": testExecutor.PublicKeys, "OPENSANDBOX_POD_UID": "metadata.uid"}, values)
	require.Equal(t, []corev1.VolumeMount{{Name: executorVolume, MountPath: "/var/lib/task-executor"}}, c.VolumeMounts)
}

func TestAHandWrittenExecutorIsCompleted(t *testing.T) {
	pod := sandboxPod()
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To(int64(1000))}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
		Name: v1alpha1.ExecutorContainerName, Command: []string{"/my-executor"},
		Env:             []corev1.EnvVar{{Name: "OPENSANDBOX_POD_UID", Value: "forged"}},
		SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}},
	})
	require.NoError(t, testExecutor.Complete(pod, InjectRestarter))
	require.Len(t, pod.Spec.InitContainers, 1, "no second executor")
	c := &pod.Spec.Containers[1]
	require.Equal(t, "executor:v1", c.Image)
	require.Equal(t, []string{"/my-executor"}, c.Command)
	require.ElementsMatch(t, executorCapabilities, c.SecurityContext.Capabilities.Add)
	require.Zero(t, *c.SecurityContext.RunAsUser)
	require.Equal(t, executorVolume, pod.Spec.Volumes[0].Name)
	requireExecutorVariables(t, c)
	require.Equal(t, "sandbox-container", TaskContainer(pod))
}

func TestAPodWithoutTasksIsLeftAsItIs(t *testing.T) {
	pod := sandboxPod()
	pod.Annotations = map[string]string{v1alpha1.AnnotationExecutorKey: "forged"}
	require.NoError(t, testExecutor.Complete(pod, InjectNothing))
	require.Empty(t, pod.Annotations)
	require.Equal(t, sandboxPod().Spec, pod.Spec)
	var none *Executor
	require.NoError(t, none.Complete(pod, InjectRestarter))
	require.Equal(t, sandboxPod().Spec, pod.Spec)
}

func TestAnExecutorIsRefusedWhereASandboxCouldTakeItOver(t *testing.T) {
	tests := map[string]struct {
		change func(*corev1.PodSpec)
		want   string
	}{
		"a privileged sandbox": {func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		}, "spec.containers[0].securityContext.privileged"},
		"a sandbox that may trace": {func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CAP_SYS_PTRACE"}}}
		}, "must not have CAP_SYS_PTRACE"},
		"an init container with all capabilities": {func(s *corev1.PodSpec) {
			s.InitContainers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"ALL"}}}
		}, "container prepare must not have ALL"},
		"the host's network":                {func(s *corev1.PodSpec) { s.HostNetwork = true }, "spec.hostNetwork"},
		"process namespaces kept apart":     {func(s *corev1.PodSpec) { s.ShareProcessNamespace = ptr.To(false) }, "spec.shareProcessNamespace"},
		"a sandbox that mounts the records": {func(s *corev1.PodSpec) { s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: executorVolume}} }, "must not mount volume"},
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

func TestTheExecutorsImageIsInTheRevisionWhereItIsInjected(t *testing.T) {
	pool := &v1alpha1.Pool{Spec: v1alpha1.PoolSpec{Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: sandboxPod().Spec}}}}
	require.Equal(t, Revision(pool.Spec.Template), PoolRevision(pool, "executor:v1"), "without an executor")
	pool.Spec.TaskExecutor.Enabled = true
	first := PoolRevision(pool, "executor:v1")
	require.NotEqual(t, Revision(pool.Spec.Template), first)
	require.NotEqual(t, first, PoolRevision(pool, "executor:v2"))
	pool.Spec.RecycleStrategy.Type = v1alpha1.RecycleRestart
	require.NotEqual(t, first, PoolRevision(pool, "executor:v1"), "such pods can be restarted")
	pool.Spec.Template.Spec.Containers = append(pool.Spec.Template.Spec.Containers, corev1.Container{Name: v1alpha1.ExecutorContainerName})
	require.Equal(t, Revision(pool.Spec.Template), PoolRevision(pool, "executor:v2"), "with a hand-written executor")
}

func TestTheContainerOfTasksIsTheDefaultContainer(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: v1alpha1.ExecutorContainerName}, {Name: "a"}, {Name: "b"}}}}
	require.Equal(t, "a", TaskContainer(pod))
	pod.Annotations = map[string]string{v1alpha1.AnnotationDefaultContainer: "b"}
	require.Equal(t, "b", TaskContainer(pod))
	pod.Annotations[v1alpha1.AnnotationDefaultContainer] = "no such container"
	require.Equal(t, "a", TaskContainer(pod))
}
