package podtemplate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// holding capabilities let a sandbox change what a restart of its containers leaves.
var holding = []string{"SYS_ADMIN", "NET_ADMIN", "ALL"}

// Restartable returns nil where a restart of all containers in place, with the
// executor's cleaning, leaves nothing of the last owner in the pod, and else says why
// not. It wants the whole pod, as the API server has it.
func Restartable(pod *corev1.Pod) error {
	spec := &pod.Spec
	switch {
	case len(spec.InitContainers) == 0 || !restartsAll(&spec.InitContainers[0]):
		return errors.New("its first init container is not a task executor that restarts all containers")
	case len(spec.EphemeralContainers) > 0:
		return fmt.Errorf("ephemeral container %s was added", spec.EphemeralContainers[0].Name)
	case spec.HostNetwork || spec.HostIPC || spec.HostPID:
		return errors.New("it uses namespaces of its node")
	}
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			if c := &containers[i]; c.Name != v1alpha1.ExecutorContainerName && hasRestartAllRule(c) {
				return fmt.Errorf("container %s may have all containers restarted too", c.Name)
			}
			if err := leavesNothing(spec, &containers[i]); err != nil {
				return fmt.Errorf("container %s %w", containers[i].Name, err)
			}
		}
	}
	return nil
}

func restartsAll(c *corev1.Container) bool {
	return c.Name == v1alpha1.ExecutorContainerName && slices.Contains(c.Args, executorapi.ArgRestartable) &&
		ptr.Deref(c.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways && hasRestartAllRule(c)
}

func hasRestartAllRule(c *corev1.Container) bool {
	return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
		return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
	})
}

func leavesNothing(spec *corev1.PodSpec, c *corev1.Container) error {
	if s := c.SecurityContext; s != nil {
		if ptr.Deref(s.Privileged, false) {
			return errors.New("is privileged")
		}
		if s.Capabilities != nil {
			for _, added := range s.Capabilities.Add {
				if slices.Contains(holding, strings.TrimPrefix(strings.ToUpper(string(added)), "CAP_")) {
					return fmt.Errorf("has capability %s", added)
				}
			}
		}
	}
	if len(c.VolumeDevices) > 0 {
		return fmt.Errorf("has volume device %s", c.VolumeDevices[0].Name)
	}
	for _, mount := range c.VolumeMounts {
		if c.Name != v1alpha1.ExecutorContainerName && !mount.ReadOnly && !readOnlyVolume(spec, mount.Name) {
			return fmt.Errorf("may write to volume %s", mount.Name)
		}
	}
	return nil
}

// readOnlyVolume says that nobody can write to the volume, however it is mounted.
func readOnlyVolume(spec *corev1.PodSpec, name string) bool {
	return slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == name && (v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil || v.Image != nil)
	})
}
