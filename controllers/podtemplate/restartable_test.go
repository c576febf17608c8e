package podtemplate

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestAPodIsRestartedInPlaceOnlyWhereThatLeavesNothing(t *testing.T) {
	volume := func(source corev1.VolumeSource) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) { s.Volumes = append(s.Volumes, corev1.Volume{Name: "v", VolumeSource: source}) }
	}
	projected := func(p corev1.VolumeProjection) func(*corev1.PodSpec) {
		return volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{p}}})
	}
	security := func(s corev1.SecurityContext) func(*corev1.PodSpec) {
		return func(spec *corev1.PodSpec) { spec.Containers[1].SecurityContext = &s }
	}
	capability := func(name corev1.Capability) func(*corev1.PodSpec) {
		return security(corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{name}}})
	}
	tests := map[string]struct {
		change func(*corev1.PodSpec)
		want   string
	}{
		"as it was injected":      {func(*corev1.PodSpec) {}, ""},
		"a secret":                {volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}), ""},
		"a ConfigMap":             {volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}), ""},
		"the downward API":        {volume(corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{}}), ""},
		"an image":                {volume(corev1.VolumeSource{Image: &corev1.ImageVolumeSource{}}), ""},
		"a projected ConfigMap":   {projected(corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{}}), ""},
		"a service account token": {projected(corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}}), v1alpha1.ReasonServiceAccountToken},
		"an emptyDir":             {volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}), v1alpha1.ReasonVolume},
		"a read-only claim, whose sockets pass open files on": {
			volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ReadOnly: true}}), v1alpha1.ReasonVolume,
		},
		"a hostPath":       {volume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}), v1alpha1.ReasonVolume},
		"a resource claim": {func(s *corev1.PodSpec) { s.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}} }, v1alpha1.ReasonResourceClaim},
		"an ephemeral container": {func(s *corev1.PodSpec) {
			s.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}}
		}, v1alpha1.ReasonEphemeralContainer},
		"a privileged container":         {security(corev1.SecurityContext{Privileged: ptr.To(true)}), v1alpha1.ReasonPrivilegedContainer},
		"an unmasked /proc":              {security(corev1.SecurityContext{ProcMount: ptr.To(corev1.UnmaskedProcMount)}), v1alpha1.ReasonProcMount},
		"the default /proc":              {security(corev1.SecurityContext{ProcMount: ptr.To(corev1.DefaultProcMount)}), ""},
		"NET_ADMIN":                      {capability("NET_ADMIN"), v1alpha1.ReasonCapability},
		"SYS_ADMIN in another spelling":  {capability("cap_sys_admin"), v1alpha1.ReasonCapability},
		"a capability of the baseline":   {capability("CAP_CHOWN"), ""},
		"the node's IPC":                 {func(s *corev1.PodSpec) { s.HostIPC = true }, v1alpha1.ReasonHostNamespaces},
		"the node's processes":           {func(s *corev1.PodSpec) { s.HostPID = true }, v1alpha1.ReasonHostNamespaces},
		"another runtime":                {func(s *corev1.PodSpec) { s.RuntimeClassName = ptr.To("gvisor") }, v1alpha1.ReasonRuntimeClass},
		"a shared process namespace":     {func(s *corev1.PodSpec) { s.ShareProcessNamespace = ptr.To(true) }, v1alpha1.ReasonSharedProcessNamespace},
		"no rule":                        {func(s *corev1.PodSpec) { s.InitContainers[0].RestartPolicyRules = nil }, v1alpha1.ReasonRestartRulesUnknown},
		"a rule of another container":    {func(s *corev1.PodSpec) { s.Containers[0].RestartPolicyRules = RestartRules() }, v1alpha1.ReasonHandWrittenExecutor},
		"an executor of another version": {func(s *corev1.PodSpec) { s.InitContainers[0].Env = nil }, v1alpha1.ReasonNoRestarter},
		"another container first": {func(s *corev1.PodSpec) {
			s.InitContainers[0], s.InitContainers[1] = s.InitContainers[1], s.InitContainers[0]
		}, v1alpha1.ReasonHandWrittenExecutor},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := sandboxPod()
			require.NoError(t, testExecutor.Complete(pod, InjectRestarter))
			test.change(&pod.Spec)
			require.Equal(t, test.want, Restartable(pod).Reason, Restartable(pod).Message)
		})
	}
	require.Equal(t, v1alpha1.ReasonNoRestarter, Restartable(sandboxPod()).Reason)

	written := sandboxPod()
	written.Spec.Containers = append(written.Spec.Containers, corev1.Container{Name: v1alpha1.ExecutorContainerName})
	require.NoError(t, testExecutor.Complete(written, InjectRestarter))
	require.Equal(t, v1alpha1.ReasonHandWrittenExecutor, Restartable(written).Reason)
}
