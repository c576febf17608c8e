package podtemplate

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// baseline are the capabilities that the baseline Pod Security Standard lets a container
// add. None of them changes what a restart of the containers leaves.
var baseline = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
	"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// Verdict says whether a pod can be made clean by a restart of all its containers in
// place. The reason, one of those of the condition Restartable, is empty where it can.
type Verdict struct{ Reason, Message string }

// Restartable judges a pod as the API server has it: a part of it came only with its
// admission.
func Restartable(pod *corev1.Pod) Verdict {
	for _, judge := range []func(*corev1.PodSpec) Verdict{restarter, namespaces, volumes, containers} {
		if v := judge(&pod.Spec); v.Reason != "" {
			return v
		}
	}
	return Verdict{}
}

// restarter looks for the executor that restarts all containers, and for whatever else
// comes and goes.
func restarter(spec *corev1.PodSpec) Verdict {
	executor := executorOf(spec)
	switch {
	case executor == nil || !slices.ContainsFunc(executor.Env, func(e corev1.EnvVar) bool { return e.Name == executorapi.EnvTLSKey }):
		return Verdict{v1alpha1.ReasonNoRestarter, "the pod was made without a task executor that restarts containers"}
	case len(spec.InitContainers) == 0 || executor != &spec.InitContainers[0] || ptr.Deref(executor.RestartPolicy, "") != corev1.ContainerRestartPolicyAlways:
		return Verdict{v1alpha1.ReasonHandWrittenExecutor, "the template has a container " + executor.Name + " of its own"}
	case !restartsAll(executor):
		return Verdict{v1alpha1.ReasonRestartRulesUnknown, "the cluster does not know the rule by which all containers of a pod are restarted in place"}
	case len(spec.EphemeralContainers) > 0:
		return Verdict{v1alpha1.ReasonEphemeralContainer, fmt.Sprintf("ephemeral container %s was added", spec.EphemeralContainers[0].Name)}
	}
	for _, list := range [][]corev1.Container{spec.InitContainers[1:], spec.Containers} {
		for i := range list {
			if restartsAll(&list[i]) {
				return Verdict{v1alpha1.ReasonHandWrittenExecutor, fmt.Sprintf("container %s may have all containers restarted too", list[i].Name)}
			}
		}
	}
	return Verdict{}
}

func restartsAll(c *corev1.Container) bool {
	return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
		return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
	})
}

// namespaces are those of the pod, and whose kernel they are in.
func namespaces(spec *corev1.PodSpec) Verdict {
	switch {
	case spec.HostNetwork || spec.HostIPC || spec.HostPID:
		return Verdict{v1alpha1.ReasonHostNamespaces, "the pod uses namespaces of its node"}
	case len(spec.ResourceClaims) > 0:
		return Verdict{v1alpha1.ReasonResourceClaim, fmt.Sprintf("resource claim %s may bring a device or a directory that keeps what an owner leaves in it", spec.ResourceClaims[0].Name)}
	case ptr.Deref(spec.ShareProcessNamespace, false):
		return Verdict{v1alpha1.ReasonSharedProcessNamespace, "spec.shareProcessNamespace: the first process of the pod is not restarted, and a sandbox may live on in it"}
	case ptr.Deref(spec.RuntimeClassName, "") != "":
		// gVisor has a kernel in each pod: what root writes to /proc/sys stays, and so do
		// message queues, which nobody can list. Whose a class is the pod does not tell.
		return Verdict{v1alpha1.ReasonRuntimeClass, fmt.Sprintf("spec.runtimeClassName: the runtime of class %s may keep a kernel through the restart, and in it what an owner leaves", *spec.RuntimeClassName)}
	}
	return Verdict{}
}

// volumes keep files; and one that is only read keeps the sockets in it, by which one
// owner's processes can hand the next one's open files.
func volumes(spec *corev1.PodSpec) Verdict {
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		switch {
		case v.Name == recordsVolume, v.Name == launcherVolume:
		case v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Image != nil:
		case v.Projected != nil:
			if slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil }) {
				return Verdict{v1alpha1.ReasonServiceAccountToken, fmt.Sprintf("volume %s holds a service account token, which the last owner may have copied", v.Name)}
			}
		default:
			return Verdict{v1alpha1.ReasonVolume, fmt.Sprintf("volume %s keeps what an owner leaves in it", v.Name)}
		}
	}
	return Verdict{}
}

func containers(spec *corev1.PodSpec) Verdict {
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			c := &list[i]
			if s := c.SecurityContext; s != nil {
				switch {
				case ptr.Deref(s.Privileged, false):
					return Verdict{v1alpha1.ReasonPrivilegedContainer, fmt.Sprintf("container %s is privileged", c.Name)}
				case s.ProcMount != nil && *s.ProcMount != corev1.DefaultProcMount:
					return Verdict{v1alpha1.ReasonProcMount, fmt.Sprintf("container %s has procMount %s", c.Name, *s.ProcMount)}
				}
			}
			for _, added := range addedCapabilities(c) {
				if !slices.Contains(baseline, added) {
					return Verdict{v1alpha1.ReasonCapability, fmt.Sprintf("container %s has capability %s, which the baseline Pod Security Standard does not allow", c.Name, added)}
				}
			}
		}
	}
	return Verdict{}
}
