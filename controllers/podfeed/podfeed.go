// Package podfeed turns what the pod cache shows into what the ledger needs to
// know, and keeps the cached pods small. It decides nothing.
package podfeed

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// PoolOf returns the Pool that controls the object, by its owner reference. The
// reference has the Pool's UID, so that pods of an earlier Pool of the same name are told
// from those of this one, and it is what the garbage collector goes by; a label has
// neither. It is no protection: whoever may write pods in a namespace can forge an owner
// reference as well as a label. The namespace is the trust boundary.
func PoolOf(obj metav1.Object) (ledger.Key, types.UID, bool) {
	return controllerOf(obj, v1alpha1.KindPool)
}

// controllerOf returns the object of that kind of ours that controls obj.
func controllerOf(obj metav1.Object, kind string) (types.NamespacedName, types.UID, bool) {
	ref := metav1.GetControllerOf(obj)
	if ref == nil || ref.Kind != kind {
		return types.NamespacedName{}, "", false
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil || gv.Group != v1alpha1.GroupName {
		return types.NamespacedName{}, "", false
	}
	return types.NamespacedName{Namespace: obj.GetNamespace(), Name: ref.Name}, ref.UID, true
}

// Facts returns what the ledger is to know of a pool pod.
func Facts(pod *corev1.Pod, pool types.UID) ledger.Pod {
	_, evict := pod.Labels[v1alpha1.LabelPoolEvict]
	since, ready := readySince(pod)
	facts := ledger.Pod{
		Name:        pod.Name,
		UID:         pod.UID,
		PoolUID:     pool,
		Revision:    pod.Labels[v1alpha1.LabelPoolRevision],
		Created:     pod.CreationTimestamp.Time,
		IP:          pod.Status.PodIP,
		Restarts:    Restarts(pod),
		Ready:       ready,
		ReadySince:  since,
		Terminating: pod.DeletionTimestamp != nil,
		Finished:    Finished(pod),
		Disrupted:   Disrupted(pod),
		Evict:       evict,
		Problem:     Problem(pod),
	}
	if !ready {
		facts.StartingSince = startingSince(pod)
	}
	return facts
}

// startingSince is since when a pod that is not Ready has been on its way to become so.
// The time at which it was last Ready does not count where containers have restarted:
// a pod that crashes again and again may be Ready for a moment each time. Nor does it
// where the pod has finished and never becomes Ready again.
func startingSince(pod *corev1.Pod) time.Time {
	counts := Restarts(pod) == 0 && !Finished(pod)
	var since time.Time
	for _, c := range pod.Status.Conditions {
		started := c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue || c.Type == corev1.PodReady && counts
		if started && c.LastTransitionTime.After(since) {
			since = c.LastTransitionTime.Time
		}
	}
	return since
}

// Ready says that the pod has the condition Ready.
func Ready(pod *corev1.Pod) bool {
	_, ready := readySince(pod)
	return ready
}

// readySince says whether the pod is Ready, and since when; the time is zero if it is not.
func readySince(pod *corev1.Pod) (time.Time, bool) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time, true
		}
	}
	return time.Time{}, false
}

// Finished says that the pod's containers run no more and are not started again.
func Finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// reasonDeadlineExceeded is the kubelet's reason for a pod that has run for the
// activeDeadlineSeconds of its own template.
const reasonDeadlineExceeded = "DeadlineExceeded"

// Disrupted says that the cluster has ended the pod, and not its containers by
// themselves. Whoever ends a pod from outside leaves one of two marks. It sets the
// condition DisruptionTarget: the kubelet for an eviction, a preemption by a critical
// pod and the shutdown of its node; the pod garbage collector for a node that is gone.
// Or it names a reason in the pod's status: Evicted, Preempting, Terminated,
// NodeShutdown, NodeLost, and those for which a kubelet that has restarted refuses a
// pod that it ran before (NodeAffinity, OutOfcpu, UnexpectedAdmissionError and others;
// device plugins add more, so there is no list to compare with). Containers that finish
// by themselves leave none. The one reason that the pod's own template asks for is
// DeadlineExceeded: such a pod is not disrupted, since another one would run it all again.
func Disrupted(pod *corev1.Pod) bool {
	if !Finished(pod) {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return pod.Status.Reason != "" && pod.Status.Reason != reasonDeadlineExceeded
}

// Restarts is the sum of the restart counts of the pod's containers.
func Restarts(pod *corev1.Pod) int32 {
	var sum int32
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, s := range statuses {
			sum += s.RestartCount
		}
	}
	return sum
}

// Problem is the kubelet's or the scheduler's own reason why a pod cannot become
// ready, as "Reason: message", or empty while it may just be starting.
func Problem(pod *corev1.Pod) string {
	if Finished(pod) {
		return reasonAndMessage(orElse(pod.Status.Reason, "Pod"+string(pod.Status.Phase)), pod.Status.Message)
	}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, s := range statuses {
			if w := s.State.Waiting; w != nil && !starting[w.Reason] {
				return reasonAndMessage(w.Reason, fmt.Sprintf("container %s: %s", s.Name, orElse(w.Message, "no message")))
			}
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return reasonAndMessage(c.Reason, c.Message)
		}
	}
	return ""
}

// WaitsForNode says of a problem that the pod has no node yet. The cluster may still mend
// it: an autoscaler adds a node, or the volume that the pod waits for is made.
func WaitsForNode(problem string) bool {
	for _, reason := range []string{corev1.PodReasonUnschedulable, corev1.PodReasonSchedulingGated, corev1.PodReasonSchedulerError} {
		if strings.HasPrefix(problem, reason) {
			return true
		}
	}
	return false
}

// starting are the reasons for which a container waits on its normal way to run.
var starting = map[string]bool{"": true, "ContainerCreating": true, "PodInitializing": true}

func reasonAndMessage(reason, message string) string {
	if message == "" {
		return reason
	}
	return reason + ": " + message
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Strip is the transform of the pod cache: it keeps what the reconcilers read, and drops
// the rest, which is most of a pod. The cache holds every pod of every pool.
func Strip(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	pod.ManagedFields = nil
	var kept map[string]string
	var containers []corev1.Container
	if id := pod.Annotations[v1alpha1.AnnotationExecutorKey]; id != "" {
		kept = map[string]string{v1alpha1.AnnotationExecutorKey: id}
		if key := pod.Annotations[v1alpha1.AnnotationExecutorTLSKey]; key != "" {
			kept[v1alpha1.AnnotationExecutorTLSKey] = key
		}
		containers = []corev1.Container{{Name: podtemplate.TaskContainer(pod)}} // the one that tasks run in
	}
	pod.Annotations = kept
	pod.Spec = corev1.PodSpec{NodeName: pod.Spec.NodeName, Containers: containers}
	pod.Status = corev1.PodStatus{
		Phase:                 pod.Status.Phase,
		Reason:                pod.Status.Reason,
		Message:               pod.Status.Message,
		PodIP:                 pod.Status.PodIP,
		Conditions:            readConditions(pod.Status.Conditions),
		InitContainerStatuses: readStatuses(pod.Status.InitContainerStatuses),
		ContainerStatuses:     readStatuses(pod.Status.ContainerStatuses),
	}
	return pod, nil
}

// readConditions returns the conditions that somebody reads.
func readConditions(all []corev1.PodCondition) []corev1.PodCondition {
	var kept []corev1.PodCondition
	for _, c := range all {
		switch c.Type {
		case corev1.PodReady, corev1.PodScheduled, corev1.DisruptionTarget, corev1.AllContainersRestarting:
			kept = append(kept, corev1.PodCondition{
				Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
			})
		}
	}
	return slices.Clip(kept)
}

// readStatuses returns of each container what somebody reads: whether it is another one
// than before, why it does not start, and how it ended.
func readStatuses(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	if all == nil {
		return nil
	}
	kept := make([]corev1.ContainerStatus, len(all))
	for i := range all {
		s := &all[i]
		kept[i] = corev1.ContainerStatus{
			Name: s.Name, ContainerID: s.ContainerID, RestartCount: s.RestartCount,
			State:                corev1.ContainerState{Waiting: s.State.Waiting, Terminated: readEnd(s.State.Terminated)},
			LastTerminationState: corev1.ContainerState{Terminated: readEnd(s.LastTerminationState.Terminated)},
		}
	}
	return kept
}

func readEnd(t *corev1.ContainerStateTerminated) *corev1.ContainerStateTerminated {
	if t == nil {
		return nil
	}
	return &corev1.ContainerStateTerminated{ExitCode: t.ExitCode, Reason: t.Reason, FinishedAt: t.FinishedAt}
}

// Register feeds the ledger from the pod cache and returns when it has taken in
// every pod that the cache had.
func Register(ctx context.Context, pods cache.Cache, book *ledger.Ledger) error {
	informer, err := pods.GetInformer(ctx, &corev1.Pod{})
	if err != nil {
		return fmt.Errorf("getting the pod informer: %w", err)
	}
	observe := func(obj any) {
		if pod, ok := obj.(*corev1.Pod); ok {
			if key, uid, ok := PoolOf(pod); ok {
				book.Observe(key, Facts(pod, uid))
			}
		}
	}
	forget := func(obj any) {
		if pod, ok := obj.(*corev1.Pod); ok {
			if key, _, ok := PoolOf(pod); ok {
				book.ObserveGone(key, pod.Name, pod.UID)
			}
		}
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: observe,
		UpdateFunc: func(old, obj any) {
			if !samePool(old, obj) {
				// The pod has left its Pool: that was deleted without its pods, or the
				// reference was taken out of the pod.
				forget(old)
			}
			observe(obj)
		},
		DeleteFunc: func(obj any) {
			if tombstone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = tombstone.Obj
			}
			forget(obj)
		},
	})
	if err != nil {
		return fmt.Errorf("adding the ledger's handler to the pod informer: %w", err)
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		return fmt.Errorf("waiting for the pod cache: %w", context.Cause(ctx))
	}
	return nil
}

// samePool says that the same Pool controls both, or none does.
func samePool(a, b any) bool {
	before, ok := a.(*corev1.Pod)
	if !ok {
		return true
	}
	after, ok := b.(*corev1.Pod)
	if !ok {
		return true
	}
	keyBefore, uidBefore, _ := PoolOf(before)
	keyAfter, uidAfter, _ := PoolOf(after)
	return keyBefore == keyAfter && uidBefore == uidAfter
}
