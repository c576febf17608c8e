package podtemplate

import (
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
	// recordsVolume holds the executor's records. Nobody but it mounts the volume.
	recordsVolume = "task-executor-records"
	// launcherVolume holds the launcher and how it finds its executor. The executor writes
	// it, the sandbox container reads it.
	launcherVolume = "task-executor-launcher"
	// installContainer puts the launcher there for a hand-written executor.
	installContainer = "task-executor-install"
	// executorUser is who the executor runs as where the pod's user would be root.
	executorUser = 65532
	// readySeconds is how often the kubelet looks whether a launcher is there. It looks at
	// once when the sandbox container has started.
	readySeconds = 2
)

// The executor's own share: it is idle most of the time, and tasks run in the sandbox's.
var (
	executorRequests = corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("5m"),
		corev1.ResourceMemory: resource.MustParse("16Mi"),
	}
	executorLimits = corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("500m"), // less would slow its start down
		corev1.ResourceMemory: resource.MustParse("64Mi"),
	}
	// guaranteedShare is both, in pods whose quality of service is Guaranteed.
	guaranteedShare = corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("100m"),
		corev1.ResourceMemory: resource.MustParse("64Mi"),
	}
)

// container is the executor that the operator adds. It meets the restricted Pod Security
// Standard. It names no user, so that an SCC may choose one; its image does.
func (x *Executor) container(spec *corev1.PodSpec, restarts bool) corev1.Container {
	c := corev1.Container{
		Name:          v1alpha1.ExecutorContainerName,
		Image:         x.Image,
		Command:       []string{program(spec)},
		RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
		Ports:         []corev1.ContainerPort{{Name: v1alpha1.ExecutorContainerName, ContainerPort: v1alpha1.ExecutorPort}},
		// No container after it starts before it has looked at the pod, and listens.
		Lifecycle:       &corev1.Lifecycle{PostStart: execHook(program(spec), executorapi.AwaitCommand)},
		ReadinessProbe:  readiness(),
		LivenessProbe:   liveness(),
		Resources:       corev1.ResourceRequirements{Requests: executorRequests.DeepCopy(), Limits: executorLimits.DeepCopy()},
		SecurityContext: restricted(spec),
	}
	if guaranteed(spec) {
		c.Resources = corev1.ResourceRequirements{Requests: guaranteedShare.DeepCopy(), Limits: guaranteedShare.DeepCopy()}
	}
	if restarts {
		c.RestartPolicyRules = RestartRules()
	}
	return c
}

// program is the path of the executor in its image: that of which no other process can
// read the environment, where the container runtime can run it. gVisor cannot.
func program(spec *corev1.PodSpec) string {
	if spec.RuntimeClassName != nil {
		return v1alpha1.LauncherProgram
	}
	return v1alpha1.ExecutorProgram
}

// RestartRules have the kubelet restart all containers of the pod in place when the
// executor ends with its exit code for that.
func RestartRules() []corev1.ContainerRestartRule {
	return []corev1.ContainerRestartRule{{
		Action: corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{
			Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{executorapi.RestartExitCode},
		},
	}}
}

// installer puts the launcher in place before the sandbox container starts, whatever the
// order that a template names its containers in.
func installer(spec *corev1.PodSpec, image string, command []string) corev1.Container {
	c := corev1.Container{
		Name: installContainer, Image: image, Command: command, Args: []string{executorapi.InstallCommand},
		VolumeMounts:    []corev1.VolumeMount{{Name: launcherVolume, MountPath: executorapi.LauncherDir}},
		SecurityContext: restricted(spec),
	}
	if guaranteed(spec) {
		c.Resources = corev1.ResourceRequirements{Requests: guaranteedShare.DeepCopy(), Limits: guaranteedShare.DeepCopy()}
	}
	return c
}

func restricted(spec *corev1.PodSpec) *corev1.SecurityContext {
	s := &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		ReadOnlyRootFilesystem:   ptr.To(true),
		RunAsNonRoot:             ptr.To(true),
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if pod := spec.SecurityContext; pod != nil && pod.RunAsUser != nil && *pod.RunAsUser == 0 {
		s.RunAsUser = ptr.To(int64(executorUser))
	}
	return s
}

// guaranteed says that the pod's quality of service is Guaranteed, and is to stay so.
func guaranteed(spec *corev1.PodSpec) bool {
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			r := &containers[i].Resources
			for name := range executorLimits {
				limit, limited := r.Limits[name]
				request, requested := r.Requests[name]
				if !limited || limit.IsZero() || requested && request.Cmp(limit) != 0 {
					return false
				}
			}
		}
	}
	return true
}

// probeWritten gives a hand-written executor the probes that it lacks, where it may have any.
func probeWritten(spec *corev1.PodSpec, c *corev1.Container) {
	if isInit(spec) && ptr.Deref(c.RestartPolicy, "") != corev1.ContainerRestartPolicyAlways {
		return
	}
	if c.ReadinessProbe == nil {
		c.ReadinessProbe = readiness()
	}
	if c.LivenessProbe == nil {
		c.LivenessProbe = liveness()
	}
}

// readiness keeps a pod from being handed out while no launcher is there.
func readiness() *corev1.Probe { return probe(executorapi.ReadyPath, readySeconds, 1) }

// liveness has an executor that hangs started anew.
func liveness() *corev1.Probe { return probe(executorapi.HealthPath, 10, 6) }

func probe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: path, Port: intstr.FromInt32(v1alpha1.ExecutorPort), Scheme: corev1.URISchemeHTTPS,
		}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 5,
	}
}

func execHook(command ...string) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: command}}
}

// startLauncher has the kubelet start the launcher in the sandbox container. A hook of the
// template's own comes after it.
func startLauncher(c *corev1.Container) {
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: launcherVolume, MountPath: executorapi.LauncherDir, ReadOnly: true})
	hook := execHook(executorapi.LauncherPath, executorapi.HookCommand)
	if c.Lifecycle == nil {
		c.Lifecycle = &corev1.Lifecycle{}
	}
	if own := c.Lifecycle.PostStart; own != nil && own.Exec != nil {
		hook.Exec.Command = append(hook.Exec.Command, own.Exec.Command...)
	}
	c.Lifecycle.PostStart = hook
}

// mountVolumes gives the executor its two volumes, where a hand-written one has none of
// its own at those places.
func mountVolumes(spec *corev1.PodSpec, executor *corev1.Container) {
	for name, path := range map[string]string{recordsVolume: executorapi.DefaultStateDir, launcherVolume: executorapi.LauncherDir} {
		if name == launcherVolume || !slices.ContainsFunc(executor.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path }) {
			executor.VolumeMounts = append(executor.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path})
		}
	}
	slices.SortStableFunc(executor.VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.Name, b.Name) })
	for _, name := range []string{recordsVolume, launcherVolume} {
		spec.Volumes = append(spec.Volumes, corev1.Volume{
			Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse("64Mi"))}},
		})
	}
}
