package podtemplate

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

const (
	// executorVolume holds the executor's records. Nobody but it may mount the volume.
	executorVolume = "task-executor-state"
	// startupProbeFailures in a row, one a second, restart an executor that does not
	// come up. The probe holds the sandbox back until the executor has cleaned the pod.
	startupProbeFailures = 60
)

// executorCapabilities are all that the executor uses: container runtimes differ in
// what they give by default.
var executorCapabilities = []corev1.Capability{"SYS_PTRACE", "SYS_CHROOT", "SETUID", "SETGID", "SETPCAP", "KILL"}

// executorRequests of an injected executor: it is idle most of the time.
var executorRequests = corev1.ResourceList{
	corev1.ResourceCPU:    resource.MustParse("5m"),
	corev1.ResourceMemory: resource.MustParse("16Mi"),
}

// Executor is what the operator gives to pods in which tasks run.
type Executor struct {
	// Image of an executor that the operator adds.
	Image string
	// KeyID names the key that the operator signs with.
	KeyID string
	// PublicKeys is that key's public half, as the executor reads it.
	PublicKeys string
	// RestartRules: the cluster keeps the rule by which the executor restarts all
	// containers of its pod in place.
	RestartRules bool
}

// Injection is which executor the operator adds to a pod that has none.
type Injection int

const (
	// InjectNothing adds none.
	InjectNothing Injection = iota
	// InjectExecutor adds one that runs tasks.
	InjectExecutor
	// InjectRestarter adds one that can have all containers restarted too. Nodes that
	// do not know how get no such pod from the scheduler.
	InjectRestarter
)

// PoolInjects says which executor the operator adds to the pool's pods.
func PoolInjects(pool *v1alpha1.Pool) Injection {
	switch {
	case HasExecutor(pool.Spec.Template):
		return InjectNothing
	case pool.Spec.RecycleStrategy.Type == v1alpha1.RecycleRestart:
		return InjectRestarter
	case pool.Spec.TaskExecutor.Enabled:
		return InjectExecutor
	}
	return InjectNothing
}

// ShardInjects says which executor the operator adds to the template-mode pods of the
// BatchSandbox.
func ShardInjects(bs *v1alpha1.BatchSandbox) Injection {
	if bs.Spec.TaskTemplate == nil {
		return InjectNothing
	}
	return InjectExecutor
}

// HasExecutor says that the template has a container of the executor's name.
func HasExecutor(template *v1alpha1.PodTemplate) bool {
	return template != nil && executorOf(&template.Spec) != nil
}

// TaskContainer is the name of the container that tasks run in, or empty.
func TaskContainer(pod *corev1.Pod) string {
	if name := pod.Annotations[v1alpha1.AnnotationDefaultContainer]; name != "" && name != v1alpha1.ExecutorContainerName {
		for i := range pod.Spec.Containers {
			if pod.Spec.Containers[i].Name == name {
				return name
			}
		}
	}
	for i := range pod.Spec.Containers {
		if name := pod.Spec.Containers[i].Name; name != v1alpha1.ExecutorContainerName {
			return name
		}
	}
	return ""
}

// ImageName is the image of an executor that the operator adds, or empty.
func (x *Executor) ImageName() string {
	if x == nil {
		return ""
	}
	return x.Image
}

// Complete gives the pod what its executor needs: the executor itself where inject
// says so and the pod has none. A pod with an executor is told apart by its
// annotation executor-key. A nil Executor leaves the pod as it is.
func (x *Executor) Complete(pod *corev1.Pod, inject Injection) error {
	delete(pod.Annotations, v1alpha1.AnnotationExecutorKey)
	if x == nil {
		return nil
	}
	container := executorOf(&pod.Spec)
	switch {
	case container != nil:
		if container.Image == "" {
			container.Image = x.Image
		}
		asRoot(container, &pod.Spec)
	case inject == InjectNothing:
		return nil
	case x.Image == "":
		return fmt.Errorf("the pod needs a task executor, and the operator was not told its image (RELATED_IMAGE_TASK_EXECUTOR)")
	default:
		pod.Spec.InitContainers = slices.Insert(pod.Spec.InitContainers, 0, x.container(pod, inject == InjectRestarter && x.RestartRules))
		container = &pod.Spec.InitContainers[0]
	}
	if err := refuse(&pod.Spec); err != nil {
		return err
	}
	pod.Spec.ShareProcessNamespace = ptr.To(true)
	addCapabilities(container)
	setEnv(container, corev1.EnvVar{Name: executorapi.EnvPublicKeys, Value: x.PublicKeys})
	setEnv(container, corev1.EnvVar{Name: executorapi.EnvPodUID, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.uid"},
	}})
	if err := addState(&pod.Spec, container); err != nil {
		return err
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[v1alpha1.AnnotationExecutorKey] = x.KeyID
	return nil
}

// container is the executor that the operator adds. Tasks run under its seccomp,
// AppArmor and SELinux settings and in its limits, so these are the sandbox's.
func (x *Executor) container(pod *corev1.Pod, restarts bool) corev1.Container {
	sandbox := &corev1.Container{}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == TaskContainer(pod) {
			sandbox = &pod.Spec.Containers[i]
		}
	}
	c := corev1.Container{
		Name:          v1alpha1.ExecutorContainerName,
		Image:         x.Image,
		Args:          []string{executorapi.ArgRestartable},
		RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
		Ports:         []corev1.ContainerPort{{Name: v1alpha1.ExecutorContainerName, ContainerPort: v1alpha1.ExecutorPort}},
		Resources:     executorResources(sandbox.Resources.Limits),
		StartupProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: executorapi.HealthPath, Port: intstr.FromInt32(v1alpha1.ExecutorPort),
			}},
			PeriodSeconds: 1, FailureThreshold: startupProbeFailures,
		},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: ptr.To(int64(0)), RunAsGroup: ptr.To(int64(0)), RunAsNonRoot: ptr.To(false),
			ReadOnlyRootFilesystem: ptr.To(true),
		},
	}
	if s := sandbox.SecurityContext; s != nil {
		c.SecurityContext.SeccompProfile = s.SeccompProfile.DeepCopy()
		c.SecurityContext.AppArmorProfile = s.AppArmorProfile.DeepCopy()
		c.SecurityContext.SELinuxOptions = s.SELinuxOptions.DeepCopy()
	}
	if restarts {
		c.RestartPolicyRules = []corev1.ContainerRestartRule{{
			Action: corev1.ContainerRestartRuleActionRestartAllContainers,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{
				Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{executorapi.RestartExitCode},
			},
		}}
	}
	return c
}

// executorResources are the sandbox's limits of what every container uses, a device
// being the sandbox's alone, and small requests: without them they would equal the limits.
func executorResources(limits corev1.ResourceList) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{}}
	for name, request := range executorRequests {
		if limit, limited := limits[name]; limited {
			if r.Limits == nil {
				r.Limits = corev1.ResourceList{}
			}
			r.Limits[name] = limit
			if request.Cmp(limit) > 0 {
				request = limit
			}
		}
		r.Requests[name] = request
	}
	return r
}

func executorOf(spec *corev1.PodSpec) *corev1.Container {
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			if containers[i].Name == v1alpha1.ExecutorContainerName {
				return &containers[i]
			}
		}
	}
	return nil
}

// asRoot has a hand-written executor run as the user of its image, root, also where
// the pod names another user for its containers.
func asRoot(c *corev1.Container, spec *corev1.PodSpec) {
	if spec.SecurityContext == nil || spec.SecurityContext.RunAsUser == nil && spec.SecurityContext.RunAsNonRoot == nil {
		return
	}
	if c.SecurityContext == nil {
		c.SecurityContext = &corev1.SecurityContext{}
	}
	if c.SecurityContext.RunAsUser == nil {
		c.SecurityContext.RunAsUser = ptr.To(int64(0))
	}
	if c.SecurityContext.RunAsNonRoot == nil {
		c.SecurityContext.RunAsNonRoot = ptr.To(false)
	}
}

// dangerous capabilities let a sandbox take over the executor beside it.
var dangerous = []string{"SYS_PTRACE", "SYS_ADMIN", "ALL"}

// refuse says why an executor cannot be beside what the pod has.
func refuse(spec *corev1.PodSpec) error {
	if spec.HostNetwork {
		return fmt.Errorf("spec.hostNetwork: must not be true in a pod with a task executor: its port would be the node's")
	}
	if shared := spec.ShareProcessNamespace; shared != nil && !*shared {
		return fmt.Errorf("spec.shareProcessNamespace: must not be false in a pod with a task executor: it could not see the sandbox")
	}
	for field, containers := range map[string][]corev1.Container{"initContainers": spec.InitContainers, "containers": spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if c.Name == v1alpha1.ExecutorContainerName || c.SecurityContext == nil {
				continue
			}
			at := fmt.Sprintf("spec.%s[%d].securityContext", field, i)
			if ptr.Deref(c.SecurityContext.Privileged, false) {
				return fmt.Errorf("%s.privileged: container %s must not be privileged beside a task executor", at, c.Name)
			}
			if c.SecurityContext.Capabilities == nil {
				continue
			}
			for _, added := range c.SecurityContext.Capabilities.Add {
				if slices.Contains(dangerous, strings.TrimPrefix(strings.ToUpper(string(added)), "CAP_")) {
					return fmt.Errorf("%s.capabilities.add: container %s must not have %s beside a task executor", at, c.Name, added)
				}
			}
		}
	}
	return nil
}

func addCapabilities(c *corev1.Container) {
	if c.SecurityContext == nil {
		c.SecurityContext = &corev1.SecurityContext{}
	}
	if c.SecurityContext.Capabilities == nil {
		c.SecurityContext.Capabilities = &corev1.Capabilities{}
	}
	added := &c.SecurityContext.Capabilities.Add
	for _, capability := range executorCapabilities {
		if !slices.Contains(*added, capability) && !slices.Contains(*added, "CAP_"+capability) && !slices.Contains(*added, "ALL") {
			*added = append(*added, capability)
		}
	}
}

// setEnv sets a variable over what a template says of it: nobody else has the key.
func setEnv(c *corev1.Container, variable corev1.EnvVar) {
	c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == variable.Name })
	c.Env = append(c.Env, variable)
}

// addState mounts a volume for the executor's records where it has none.
func addState(spec *corev1.PodSpec, executor *corev1.Container) error {
	name := executorVolume
	at := slices.IndexFunc(executor.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == executorapi.DefaultStateDir })
	if at >= 0 {
		name = executor.VolumeMounts[at].Name
	} else {
		executor.VolumeMounts = append(executor.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: executorapi.DefaultStateDir})
		if !slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }) {
			spec.Volumes = append(spec.Volumes, corev1.Volume{
				Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
			})
		}
	}
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if c.Name != executor.Name && slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name }) {
				return fmt.Errorf("container %s must not mount volume %s: it holds the task executor's records", c.Name, name)
			}
		}
	}
	return nil
}
