package task

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

const (
	// restartPatience is how long the containers of a pod may take to be there again.
	restartPatience = 30 * time.Second
)

// containers are those of a pod at one time.
type containers struct {
	// ids by container.
	ids map[string]string
	// restartedAt is when the kubelet last began or ended to restart all of them.
	restartedAt time.Time
}

// restartable returns the pod's containers, or nil where they must not be restarted
// in place.
func (r *Reconciler) restartable(ctx context.Context, namespace, name string, uid types.UID) *containers {
	pod := &corev1.Pod{}
	err := r.Live.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, pod)
	if err == nil && pod.UID != uid {
		err = errGone
	}
	if err == nil && !podfeed.Ready(pod) {
		err = errors.New("it is not ready")
	}
	if v := podtemplate.Restartable(pod); err == nil && v.Reason != "" {
		err = errors.New(v.Message)
	}
	if err != nil {
		log.FromContext(ctx).V(1).Info("a sandbox is not restarted in place", "pod", name, "namespace", namespace, "why", err.Error())
		return nil
	}
	return containersOf(pod)
}

func containersOf(pod *corev1.Pod) *containers {
	c := &containers{ids: map[string]string{}}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range statuses {
			c.ids[statuses[i].Name] = statuses[i].ContainerID
		}
	}
	for i := range pod.Status.Conditions {
		if condition := &pod.Status.Conditions[i]; condition.Type == corev1.AllContainersRestarting && condition.Status == corev1.ConditionFalse {
			c.restartedAt = condition.LastTransitionTime.Time
		}
	}
	return c
}

// restarted returns when the kubelet has restarted all containers at once since before
// and the pod is Ready, and says whether that came about in time. No word of the
// executor is believed for this, and containers that died one by one do not count: a
// sandbox can kill them, the executor too, and then nothing was cleaned. By its rule
// the kubelet restarts all only after the executor's own exit code.
func (r *Reconciler) restarted(ctx context.Context, namespace, name string, uid types.UID, before *containers) bool {
	changed, unwatch := r.changes.watch(uid)
	defer unwatch()
	deadline := r.Clock.NewTimer(restartPatience)
	defer deadline.Stop()
	for {
		pod := &corev1.Pod{}
		err := r.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, pod)
		if err != nil || pod.UID != uid || pod.DeletionTimestamp != nil {
			return false
		}
		if podfeed.Ready(pod) && before.restartedTo(containersOf(pod)) {
			if key, poolUID, ok := podfeed.PoolOf(pod); ok {
				r.Ledger.Observe(key, podfeed.Facts(pod, poolUID)) // its handler may lag behind the cache
			}
			return r.restartable(ctx, namespace, name, uid) != nil // nothing was added meanwhile
		}
		select {
		case <-changed:
		case <-deadline.C():
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// podChanges tells those who wait for a pod that the cache has another version of it.
// The zero value is ready to use.
type podChanges struct {
	mu      sync.Mutex // guards waiting
	waiting map[types.UID]chan struct{}
}

// watch returns a channel that is sent to after changes of the pod, and what ends
// that. One at a time may watch a pod.
func (c *podChanges) watch(pod types.UID) (<-chan struct{}, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		c.waiting = map[types.UID]chan struct{}{}
	}
	changed := make(chan struct{}, 1)
	c.waiting[pod] = changed
	return changed, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, pod)
	}
}

func (c *podChanges) note(pod types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.waiting[pod] <- struct{}{}:
	default: // nobody waits, or is told already
	}
}

// restartedTo says that the kubelet has restarted all containers in between.
func (c *containers) restartedTo(now *containers) bool {
	if len(c.ids) == 0 || len(now.ids) != len(c.ids) || c.restartedAt.IsZero() || !now.restartedAt.After(c.restartedAt) {
		return false
	}
	for name, id := range c.ids {
		if now.ids[name] == "" || now.ids[name] == id {
			return false
		}
	}
	return true
}

// RestartRulesKept finds out whether the API server keeps the rule by which an
// executor restarts all containers of its pod, by a pod that is not made. An empty
// namespace stands for default.
func RestartRulesKept(ctx context.Context, writer client.Client, namespace string) (bool, error) {
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	restricted := &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false), RunAsNonRoot: ptr.To(true), RunAsUser: ptr.To(int64(65532)),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "opensandbox-restart-rules-"},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{
				Name: v1alpha1.ExecutorContainerName, Image: "none", SecurityContext: restricted,
				RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways), RestartPolicyRules: podtemplate.RestartRules(),
			}},
			Containers: []corev1.Container{{Name: "sandbox", Image: "none", SecurityContext: restricted}},
		},
	}
	err := writer.Create(ctx, pod, client.DryRunAll)
	if apierrors.IsInvalid(err) { // as Kubernetes 1.35 says, which knows rules but not this one
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("trying out a pod with restart rules: %w", err)
	}
	kept := pod.Spec.InitContainers[0].RestartPolicyRules
	return len(kept) == 1 && kept[0].Action == corev1.ContainerRestartRuleActionRestartAllContainers, nil
}
