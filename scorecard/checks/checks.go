// Package checks holds the operator's own scorecard tests: what a user of the bundle
// relies on, tried on the cluster that the scorecard runs in. The scorecard's main calls
// it.
package checks

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	operatorsv1alpha1 "github.com/operator-framework/api/pkg/operators/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
)

const (
	// Patience is how long the scorecard waits for what a test wants to see.
	Patience = 3 * time.Minute

	sandbox = "busybox:latest"
)

// Check runs in a namespace of the scorecard.
type Check struct {
	Client    client.Client
	Namespace string
	// Bundle is the folder of the bundle.
	Bundle string
	// Name makes the names of the objects of one test differ from those of another.
	Name string
	// Patience is how long to wait for what a test wants to see.
	Patience time.Duration
}

// All are the tests, by the name that the scorecard's configuration gives.
var All = map[string]func(*Check, context.Context) error{
	"opensandbox-pooled":         (*Check).Pooled,
	"opensandbox-tasks":          (*Check).Tasks,
	"opensandbox-returns":        (*Check).Returns,
	"opensandbox-refuses":        (*Check).Refuses,
	"opensandbox-executor-image": (*Check).ExecutorImage,
}

// Pooled says whether a pooled BatchSandbox becomes ready, with an endpoint for each sandbox.
func (c *Check) Pooled(ctx context.Context) error {
	_, bs, err := c.hold(ctx)
	if err != nil {
		return err
	}
	var endpoints []string
	if err := json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationEndpoints]), &endpoints); err != nil {
		return fmt.Errorf("annotation %s: %w", v1alpha1.AnnotationEndpoints, err)
	}
	if len(endpoints) != 2 || endpoints[0] == "" || endpoints[1] == "" || endpoints[0] == endpoints[1] {
		return fmt.Errorf("annotation %s: got %q, want two addresses", v1alpha1.AnnotationEndpoints, endpoints)
	}
	return nil
}

// Tasks says whether each sandbox of a batch runs its own task, and all succeed.
func (c *Check) Tasks(ctx context.Context) error {
	// The template's own task fails, and each of the patched ones in the other's sandbox.
	bs := c.working([]string{"sh", "-c", "exit 1"})
	for shard := range 2 {
		patch, err := json.Marshal(v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{
			Command: []string{"sh", "-c", `test "$(hostname)" = "$POD"`},
			Env:     []v1alpha1.EnvVar{{Name: "POD", Value: fmt.Sprintf("%s-%d", c.Name, shard)}},
		}}})
		if err != nil {
			return fmt.Errorf("patch of shard %d: %w", shard, err)
		}
		bs.Spec.ShardTaskPatches = append(bs.Spec.ShardTaskPatches, v1alpha1.Patch{RawExtension: runtime.RawExtension{Raw: patch}})
	}
	if err := c.create(ctx, bs); err != nil {
		return err
	}
	return c.until(ctx, bs, func() error {
		if s := bs.Status; s.TaskSucceed != 2 || s.SucceededShards != "0-1" {
			return fmt.Errorf("tasks: %d succeeded (%q), %d failed %+v", s.TaskSucceed, s.SucceededShards, s.TaskFailed, s.FailedTasks)
		}
		return nil
	})
}

// Returns says whether deletion gives the sandboxes back to the pool.
func (c *Check) Returns(ctx context.Context) error {
	pool, bs, err := c.hold(ctx)
	if err != nil {
		return err
	}
	if err := c.until(ctx, pool, func() error {
		if pool.Status.Allocated != 2 {
			return fmt.Errorf("pool: %d allocated, want 2", pool.Status.Allocated)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := c.Client.Delete(ctx, bs); err != nil {
		return fmt.Errorf("deleting the BatchSandbox: %w", err)
	}
	return c.until(ctx, pool, func() error {
		if s := pool.Status; s.Allocated != 0 || s.Available < 2 {
			return fmt.Errorf("pool: %d allocated, want 0; %d available, want at least 2", s.Allocated, s.Available)
		}
		return nil
	})
}

// Refuses says whether objects that make no sense are refused, by CEL and by the webhook. Those that
// differ from them in nothing else are not: it is no want of permission. The webhook fails open, and
// the API server reaches it a moment after its rollout: what is accepted is tried again.
func (c *Check) Refuses(ctx context.Context) error {
	const good = `{"spec":{"containers":[{"name":"main","image":"` + sandbox + `"}]}}`
	for _, t := range []struct {
		kind, spec string
		refused    bool
	}{
		{v1alpha1.KindBatchSandbox, `{"template":` + good + `}`, false},
		{v1alpha1.KindBatchSandbox, `{"replicas":1,"poolRef":"a"}`, false},
		{v1alpha1.KindPool, `{"template":` + good + `,"capacitySpec":{"bufferMin":1,"bufferMax":1,"poolMin":0,"poolMax":5}}`, false},
		{v1alpha1.KindBatchSandbox, `{}`, true},
		{v1alpha1.KindBatchSandbox, `{"poolRef":"a","template":` + good + `}`, true},
		{v1alpha1.KindBatchSandbox, `{"replicas":-1,"poolRef":"a"}`, true},
		{v1alpha1.KindBatchSandbox, `{"template":{"spec":{"contaners":[]}}}`, true},
		{v1alpha1.KindBatchSandbox, `{"template":{"spec":{"containers":[{"name":"main"}]}}}`, true},
		{v1alpha1.KindPool, `{"template":` + good + `,"capacitySpec":{"bufferMin":2,"bufferMax":1,"poolMin":0,"poolMax":5}}`, true},
		{v1alpha1.KindPool, `{"template":{"spec":{"containers":[{"name":"main"}]}},"capacitySpec":{"bufferMin":1,"bufferMax":1,"poolMin":0,"poolMax":5}}`, true},
	} {
		var spec map[string]any
		if err := json.Unmarshal([]byte(t.spec), &spec); err != nil {
			return fmt.Errorf("case %s: %w", t.spec, err)
		}
		obj := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
		obj.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(t.kind))
		obj.SetNamespace(c.Namespace)
		obj.SetName(c.Name)
		err := wait.PollUntilContextTimeout(ctx, time.Second/2, c.Patience, true, func(context.Context) (bool, error) {
			err := c.Client.Create(ctx, obj.DeepCopy(), client.DryRunAll)
			if t.refused && (apierrors.IsInvalid(err) || apierrors.IsForbidden(err)) {
				return true, nil
			}
			return !t.refused, err
		})
		if wait.Interrupted(err) {
			return fmt.Errorf("%s with spec %s: accepted, want a refusal", t.kind, t.spec)
		}
		if err != nil {
			return fmt.Errorf("%s with spec %s: %w", t.kind, t.spec, err)
		}
	}
	return nil
}

// ExecutorImage says whether the CSV names the executor's image, and that is what pods get.
func (c *Check) ExecutorImage(ctx context.Context) error {
	want, err := c.relatedImage("task-executor")
	if err != nil {
		return err
	}
	bs := c.working([]string{"true"})
	if err := c.create(ctx, bs); err != nil {
		return err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name + "-0"}}
	return c.until(ctx, pod, func() error {
		at := slices.IndexFunc(pod.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == v1alpha1.ExecutorContainerName })
		if at < 0 {
			return fmt.Errorf("pod %s has no task executor", pod.Name)
		}
		if got := pod.Spec.InitContainers[at].Image; got != want {
			return fmt.Errorf("pod %s has executor %s, and the bundle names %s", pod.Name, got, want)
		}
		return nil
	})
}

func (c *Check) relatedImage(name string) (string, error) {
	files, err := filepath.Glob(filepath.Join(c.Bundle, "manifests", "*.clusterserviceversion.yaml"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("want one ClusterServiceVersion in %s, got %q: %w", c.Bundle, files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return "", fmt.Errorf("reading the bundle: %w", err)
	}
	csv := &operatorsv1alpha1.ClusterServiceVersion{}
	if err := yaml.Unmarshal(text, csv); err != nil {
		return "", fmt.Errorf("reading the ClusterServiceVersion: %w", err)
	}
	for _, image := range csv.Spec.RelatedImages {
		if image.Name == name {
			return image.Image, nil
		}
	}
	return "", fmt.Errorf("the ClusterServiceVersion has no related image %s", name)
}

// hold makes a pool, and a batch that is ready with two of its sandboxes.
func (c *Check) hold(ctx context.Context) (*v1alpha1.Pool, *v1alpha1.BatchSandbox, error) {
	pool := &v1alpha1.Pool{ObjectMeta: c.meta(), Spec: v1alpha1.PoolSpec{
		Template: template(), CapacitySpec: v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 2, PoolMin: 2, PoolMax: 6},
	}}
	bs := &v1alpha1.BatchSandbox{ObjectMeta: c.meta(), Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(2)), PoolRef: c.Name}}
	for _, obj := range []client.Object{pool, bs} {
		if err := c.create(ctx, obj); err != nil {
			return nil, nil, err
		}
	}
	return pool, bs, c.until(ctx, bs, func() error {
		if bs.Status.Phase != v1alpha1.PhaseSucceed {
			return fmt.Errorf("phase %q, want %s: %+v", bs.Status.Phase, v1alpha1.PhaseSucceed, bs.Status.Conditions)
		}
		return nil
	})
}

// working is a batch of two sandboxes that run the command as their task.
func (c *Check) working(command []string) *v1alpha1.BatchSandbox {
	return &v1alpha1.BatchSandbox{ObjectMeta: c.meta(), Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(2)), Template: template(),
		TaskTemplate: &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: command}}},
	}}
}

func (c *Check) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name}
}

func template() *v1alpha1.PodTemplate {
	return &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To(int64(1)),
		Containers: []corev1.Container{{Name: "main", Image: sandbox, ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{"sleep", "3600"}}},
	}}}
}

func (c *Check) create(ctx context.Context, obj client.Object) error {
	if err := c.Client.Create(ctx, obj); err != nil {
		return fmt.Errorf("creating %T %s: %w", obj, obj.GetName(), err)
	}
	return nil
}

// until reads the object until the condition has no error, and else returns the last.
func (c *Check) until(ctx context.Context, obj client.Object, condition func() error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, time.Second/2, c.Patience, true, func(ctx context.Context) (bool, error) {
		err := c.Client.Get(ctx, client.ObjectKeyFromObject(obj), obj)
		if err == nil {
			err = condition()
		}
		if ctx.Err() == nil || last == nil { // else the time is over, which says less
			last = err
		}
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%T %s after %s: %w", obj, obj.GetName(), c.Patience, last)
	}
	return nil
}

// Clean deletes what the test made.
func (c *Check) Clean(ctx context.Context) error {
	for _, obj := range []client.Object{&v1alpha1.BatchSandbox{ObjectMeta: c.meta()}, &v1alpha1.Pool{ObjectMeta: c.meta()}} {
		if err := client.IgnoreNotFound(c.Client.Delete(ctx, obj)); err != nil {
			return fmt.Errorf("deleting %T %s: %w", obj, c.Name, err)
		}
	}
	return nil
}
