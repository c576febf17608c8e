package podtemplate

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/token"
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
	// InAllPools: the pods of every pool that may have an executor get one.
	InAllPools bool
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

// InjectsInto says which executor the operator adds to the pool's pods.
func (x *Executor) InjectsInto(pool *v1alpha1.Pool) Injection {
	switch {
	case HasExecutor(pool.Spec.Template):
		return InjectNothing
	case pool.Spec.RecycleStrategy.Type == v1alpha1.RecycleRestart:
		return InjectRestarter
	case pool.Spec.TaskExecutor.Enabled:
		return InjectExecutor
	case x != nil && x.InAllPools && refuse(fromTemplate(pool.Spec.Template, pool.Namespace, pool.Name)) == nil:
		return InjectExecutor // a pool that did not ask for one is not refused for it
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

// setEnv sets a variable over what a template says of it: nobody else has the key.
func setEnv(c *corev1.Container, variable corev1.EnvVar) {
	c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == variable.Name })
	c.Env = append(c.Env, variable)
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
