package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// restartTakes is how long the containers of a pod are away while all of them are restarted in
// place: what a kubelet with containerd was seen to take.
const restartTakes = 1200 * time.Millisecond

// kubelet stands in for those of simulated nodes in what these do not simulate: containers have ids,
// and all of a pod are restarted in place. It writes what a kubelet writes of that into the pod's
// status. No container runs, so nothing of a restart itself is measured but the time that it takes.
type kubelet struct {
	api client.Client
}

// start gives ids to the containers of a pod that has become ready, and the condition that a kubelet
// leaves behind where all may be restarted.
func (k *kubelet) start(ctx context.Context, pod *corev1.Pod) error {
	before := client.MergeFrom(pod.DeepCopy())
	eachContainer(pod, func(s *corev1.ContainerStatus) { s.ContainerID = nextID(string(pod.UID) + s.Name) })
	setCondition(pod, corev1.AllContainersRestarting, corev1.ConditionFalse, pod.CreationTimestamp)
	return k.write(ctx, pod, before)
}

// restart restarts all containers of the pod, of which it keeps the status.
func (k *kubelet) restart(ctx context.Context, pod *corev1.Pod) error {
	before := client.MergeFrom(pod.DeepCopy())
	eachContainer(pod, func(s *corev1.ContainerStatus) {
		s.Ready, s.State = false, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.Now(), ContainerID: s.ContainerID}}
	})
	now := metav1.Now()
	setCondition(pod, corev1.AllContainersRestarting, corev1.ConditionTrue, now)
	setCondition(pod, corev1.ContainersReady, corev1.ConditionFalse, now)
	setCondition(pod, corev1.PodReady, corev1.ConditionFalse, now)
	if err := k.write(ctx, pod, before); err != nil {
		return err
	}
	if err := sleep(ctx, restartTakes); err != nil {
		return err
	}
	before = client.MergeFrom(pod.DeepCopy())
	now = metav1.Now()
	eachContainer(pod, func(s *corev1.ContainerStatus) {
		s.ContainerID, s.RestartCount = nextID(s.ContainerID), s.RestartCount+1
		s.Ready, s.State = true, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
	})
	setCondition(pod, corev1.AllContainersRestarting, corev1.ConditionFalse, now)
	setCondition(pod, corev1.ContainersReady, corev1.ConditionTrue, now)
	setCondition(pod, corev1.PodReady, corev1.ConditionTrue, now)
	return k.write(ctx, pod, before)
}

func (k *kubelet) write(ctx context.Context, pod *corev1.Pod, before client.Patch) error {
	if err := k.api.Status().Patch(ctx, pod, before); err != nil {
		return fmt.Errorf("writing the status of pod %s in place of a kubelet: %w", pod.Name, err)
	}
	return nil
}

func eachContainer(pod *corev1.Pod, do func(*corev1.ContainerStatus)) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			do(&list[i])
		}
	}
}

func nextID(of string) string {
	sum := sha256.Sum256([]byte(of))
	return "containerd://" + hex.EncodeToString(sum[:])
}

func setCondition(pod *corev1.Pod, which corev1.PodConditionType, status corev1.ConditionStatus, at metav1.Time) {
	condition := corev1.PodCondition{Type: which, Status: status, LastTransitionTime: at}
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == which {
			pod.Status.Conditions[i] = condition
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, condition)
}
