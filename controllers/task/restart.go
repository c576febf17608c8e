package task

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
	executorapi "github.com/opensandbox/operator/executor/api"
)

const (
	// restartPatience is how long the containers of a pod may take to be there again.
	restartPatience = 30 * time.Second
	// restartLook is how often the cache is asked whether they are.
	restartLook = 50 * time.Millisecond
)

// restartable returns the ids of the pod's containers, or nil where it must not be
// restarted in place.
func (r *Reconciler) restartable(ctx context.Context, namespace, name string, uid types.UID) map[string]string {
	pod := &corev1.Pod{}
	err := r.Live.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, pod)
	if err == nil && pod.UID != uid {
		err = errGone
	}
	if err == nil {
		err = podtemplate.Restartable(pod)
	}
	if err != nil {
		log.FromContext(ctx).V(1).Info("a sandbox is not restarted in place", "pod", name, "namespace", namespace, "why", err.Error())
		return nil
	}
	return containerIDs(pod)
}

func containerIDs(pod *corev1.Pod) map[string]string {
	ids := map[string]string{}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range statuses {
			ids[statuses[i].Name] = statuses[i].ContainerID
		}
	}
	return ids
}

// restarted returns when every container is another one than before and the pod is
// Ready, and says whether that came about in time. No word of the executor is
// believed for this: the kubelet's is.
func (r *Reconciler) restarted(ctx context.Context, namespace, name string, uid types.UID, before map[string]string) bool {
	l := leg{Reconciler: r}
	for deadline := r.Clock.Now().Add(restartPatience); r.Clock.Now().Before(deadline); {
		pod := &corev1.Pod{}
		err := r.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, pod)
		if err != nil || pod.UID != uid || pod.DeletionTimestamp != nil {
			return false
		}
		if podfeed.Ready(pod) && allOthers(before, containerIDs(pod)) {
			if key, poolUID, ok := podfeed.PoolOf(pod); ok {
				r.Ledger.Observe(key, podfeed.Facts(pod, poolUID)) // its handler may lag behind the cache
			}
			return r.restartable(ctx, namespace, name, uid) != nil // nothing was added meanwhile
		}
		if !l.sleep(ctx, restartLook) {
			return false
		}
	}
	return false
}

// allOthers says that every container has another id than before.
func allOthers(before, now map[string]string) bool {
	if len(before) == 0 || len(now) != len(before) {
		return false
	}
	for name, id := range before {
		if now[name] == "" || now[name] == id {
			return false
		}
	}
	return true
}

// RestartRulesKept finds out whether the API server keeps the rule by which an
// executor restarts all containers of its pod, by a pod that is not made.
func RestartRulesKept(ctx context.Context, writer client.Client, namespace string) (bool, error) {
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	rules := []corev1.ContainerRestartRule{{
		Action: corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{
			Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{executorapi.RestartExitCode},
		},
	}}
	restricted := &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false), RunAsNonRoot: ptr.To(true), RunAsUser: ptr.To(int64(65532)),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "opensandbox-restart-rules-"},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{
				Name: v1alpha1.ExecutorContainerName, Image: "none", SecurityContext: restricted,
				RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways), RestartPolicyRules: rules,
			}},
			Containers: []corev1.Container{{Name: "sandbox", Image: "none", SecurityContext: restricted}},
		},
	}
	if err := writer.Create(ctx, pod, client.DryRunAll); err != nil {
		return false, fmt.Errorf("trying out a pod with restart rules: %w", err)
	}
	kept := pod.Spec.InitContainers[0].RestartPolicyRules
	return len(kept) == 1 && kept[0].Action == corev1.ContainerRestartRuleActionRestartAllContainers, nil
}
