package podtemplate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// refuse says why tasks cannot run in what the pod has.
func refuse(pod *corev1.Pod) error {
	if pod.Spec.HostNetwork {
		return errors.New("spec.hostNetwork: must not be true in a pod with a task executor: its port would be the node's")
	}
	for i := range pod.Spec.Volumes {
		if name := pod.Spec.Volumes[i].Name; name == recordsVolume || name == launcherVolume {
			return fmt.Errorf("spec.volumes[%d].name: %s is the name of a volume of the task executor", i, name)
		}
	}
	for field, containers := range map[string][]corev1.Container{"initContainers": pod.Spec.InitContainers, "containers": pod.Spec.Containers} {
		if err := refuseMounts(field, containers); err != nil {
			return err
		}
	}
	at := taskContainer(pod)
	if at < 0 {
		return errors.New("spec.containers: there is none beside the task executor that tasks could run in")
	}
	if c := &pod.Spec.Containers[at]; c.Lifecycle != nil && c.Lifecycle.PostStart != nil && c.Lifecycle.PostStart.Exec == nil {
		return fmt.Errorf("spec.containers[%d].lifecycle.postStart: must be exec in the container that tasks run in: their launcher is started there too", at)
	}
	return nil
}

// refuseMounts refuses a template that mounts what only the executor and its launcher are
// to see: the operator adds those volumes, so the API server would not.
func refuseMounts(field string, containers []corev1.Container) error {
	for i := range containers {
		for j := range containers[i].VolumeMounts {
			if name := containers[i].VolumeMounts[j].Name; name == recordsVolume || name == launcherVolume {
				return fmt.Errorf("spec.%s[%d].volumeMounts[%d].name: %s is a volume of the task executor, which nothing else mounts", field, i, j, name)
			}
		}
	}
	return nil
}

// dangerous capabilities let a sandbox reach into the launcher, or the executor beside it.
var dangerous = []string{"SYS_PTRACE", "SYS_ADMIN", "ALL"}

// Warnings say of a pod with an executor which of its containers could forge the results
// of tasks.
func Warnings(spec *corev1.PodSpec) []string {
	if executorOf(spec) == nil {
		return nil
	}
	var found []string
	for field, containers := range map[string][]corev1.Container{"initContainers": spec.InitContainers, "containers": spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if c.Name == v1alpha1.ExecutorContainerName || c.SecurityContext == nil {
				continue
			}
			if ptr.Deref(c.SecurityContext.Privileged, false) {
				found = append(found, fmt.Sprintf("spec.%s[%d].securityContext.privileged: container %s could forge the results of tasks", field, i, c.Name))
			}
			for _, added := range addedCapabilities(c) {
				if slices.Contains(dangerous, added) {
					found = append(found, fmt.Sprintf("spec.%s[%d].securityContext.capabilities.add: with %s container %s could forge the results of tasks", field, i, added, c.Name))
				}
			}
		}
	}
	slices.Sort(found)
	return found
}

// addedCapabilities are named as Kubernetes does, without "CAP_".
func addedCapabilities(c *corev1.Container) []string {
	var names []string
	if c.SecurityContext != nil && c.SecurityContext.Capabilities != nil {
		for _, added := range c.SecurityContext.Capabilities.Add {
			names = append(names, strings.TrimPrefix(strings.ToUpper(string(added)), "CAP_"))
		}
	}
	return names
}
