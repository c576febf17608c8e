package podtemplate

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestAPodIsRestartedInPlaceOnlyWhereThatLeavesNothing(t *testing.T) {
	volume := func(source corev1.VolumeSource, readOnly bool) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) {
			s.Volumes = append(s.Volumes, corev1.Volume{Name: "v", VolumeSource: source})
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", ReadOnly: readOnly}}
		}
	}
	capability := func(name corev1.Capability) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{name}}}
		}
	}
	tests := map[string]struct {
		change func(*corev1.PodSpec)
		want   string
	}{
		"as it was injected":         {func(*corev1.PodSpec) {}, ""},
		"a secret":                   {volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}, false), ""},
		"a volume that is read only": {volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, true), ""},
		"a volume that is writable":  {volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, false), "may write to volume v"},
		"a block device":             {func(s *corev1.PodSpec) { s.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "d"}} }, "volume device d"},
		"an ephemeral container": {func(s *corev1.PodSpec) {
			s.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}}
		}, "ephemeral container e"},
		"a privileged container": {func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		}, "is privileged"},
		"NET_ADMIN":                     {capability("NET_ADMIN"), "has capability NET_ADMIN"},
		"SYS_ADMIN in another spelling": {capability("cap_sys_admin"), "has capability cap_sys_admin"},
		"NET_RAW":                       {capability("NET_RAW"), ""},
		"the node's IPC":                {func(s *corev1.PodSpec) { s.HostIPC = true }, "namespaces of its node"},
		"no rule":                       {func(s *corev1.PodSpec) { s.InitContainers[0].RestartPolicyRules = nil }, "first init container"},
		"another container first": {func(s *corev1.PodSpec) {
			s.InitContainers[0], s.InitContainers[1] = s.InitContainers[1], s.InitContainers[0]
		}, "first init container"},
		"an executor of a version that did not guard pause": {func(s *corev1.PodSpec) { s.InitContainers[0].Args = []string{"--clean-on-start"} }, "first init container"},
		"an executor that does not clean":                   {func(s *corev1.PodSpec) { s.InitContainers[0].Args = nil }, "first init container"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := sandboxPod()
			executor := *testExecutor
			executor.RestartRules = true
			require.NoError(t, executor.Complete(pod, InjectRestarter))
			test.change(&pod.Spec)
			err := Restartable(pod)
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.want)
		})
	}
	require.Error(t, Restartable(sandboxPod()))
}
