package podtemplate

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/token"
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

// Executor is what the operator gives to pods in which tasks run.
type Executor struct {
	// Image of an executor that the operator adds.
	Image string
	// KeyID names the key that the operator signs with.
	KeyID string
	// PublicKeys is that key's public half, as the executor reads it.
	PublicKeys string
	// PodKey makes a key for the executor of one pod, which it proves itself by.
	PodKey func() (ed25519.PrivateKey, error)
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
	if at := taskContainer(pod); at >= 0 {
		return pod.Spec.Containers[at].Name
	}
	return ""
}

func taskContainer(pod *corev1.Pod) int {
	named := func(name string) int {
		return slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool {
			return c.Name != v1alpha1.ExecutorContainerName && (name == "" || c.Name == name)
		})
	}
	if name := pod.Annotations[v1alpha1.AnnotationDefaultContainer]; name != "" {
		if at := named(name); at >= 0 {
			return at
		}
	}
	return named("")
}

// Complete gives the pod what its tasks need: the executor itself where inject says so and
// the pod has none, and the launcher's start in the sandbox container. A pod with an
// executor is told apart by its annotation executor-key. A nil Executor leaves the pod as
// it is.
func (x *Executor) Complete(pod *corev1.Pod, inject Injection) error {
	delete(pod.Annotations, v1alpha1.AnnotationExecutorKey)
	delete(pod.Annotations, v1alpha1.AnnotationExecutorTLSKey)
	written := executorOf(&pod.Spec)
	if x == nil || written == nil && inject == InjectNothing {
		return nil
	}
	if err := refuse(pod); err != nil {
		return err
	}
	if written != nil {
		if written.Image == "" {
			written.Image = x.Image
		}
		var command []string // that of an image of theirs is not known
		if written.Image == x.Image {
			command = []string{program(&pod.Spec)}
		}
		if len(written.Command) == 0 {
			written.Command = command
		}
		pod.Spec.InitContainers = slices.Insert(pod.Spec.InitContainers, 0, installer(&pod.Spec, written.Image, command))
		written = executorOf(&pod.Spec) // it may have moved
		probeWritten(&pod.Spec, written)
	} else {
		if x.Image == "" {
			return errors.New("the pod needs a task executor, and the operator was not told its image (RELATED_IMAGE_TASK_EXECUTOR)")
		}
		pod.Spec.InitContainers = slices.Insert(pod.Spec.InitContainers, 0, x.container(&pod.Spec, inject == InjectRestarter && x.RestartRules))
		written = &pod.Spec.InitContainers[0]
	}
	if inject == InjectRestarter && pod.Spec.AutomountServiceAccountToken == nil {
		pod.Spec.AutomountServiceAccountToken = ptr.To(false) // a restart does not renew it
	}
	mountVolumes(&pod.Spec, written)
	startLauncher(&pod.Spec.Containers[taskContainer(pod)])
	return x.introduce(pod, written)
}

// introduce makes executor and operator known to each other.
func (x *Executor) introduce(pod *corev1.Pod, executor *corev1.Container) error {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[v1alpha1.AnnotationExecutorKey] = x.KeyID
	setEnv(executor, corev1.EnvVar{Name: executorapi.EnvPublicKeys, Value: x.PublicKeys})
	setEnv(executor, corev1.EnvVar{Name: executorapi.EnvPodUID, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.uid"},
	}})
	if x.PodKey == nil { // a pod that is only tried out
		return nil
	}
	key, err := x.PodKey()
	if err != nil {
		return fmt.Errorf("making a key for the pod's executor: %w", err)
	}
	public, _ := key.Public().(ed25519.PublicKey) // which it always is
	pod.Annotations[v1alpha1.AnnotationExecutorTLSKey] = token.FormatPublicKey(public)
	setEnv(executor, corev1.EnvVar{Name: executorapi.EnvTLSKey, Value: token.FormatSeed(key)})
	return nil
}

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

// isInit says that the executor is one of the init containers.
func isInit(spec *corev1.PodSpec) bool {
	return slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool { return c.Name == v1alpha1.ExecutorContainerName })
}

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

// setEnv sets a variable over what a template says of it: nobody else has the key.
func setEnv(c *corev1.Container, variable corev1.EnvVar) {
	c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == variable.Name })
	c.Env = append(c.Env, variable)
}
