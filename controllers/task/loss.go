package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// explainLoss waits until the status of the pod says that the sandbox container has ended
// since the task was started in it. It says whether the pod is there.
func (f *follower) explainLoss(ctx context.Context, task *executorapi.Task, patience time.Duration) bool {
	changed, unwatch := f.changes.watch(f.sandbox.uid)
	defer unwatch()
	deadline := f.Clock.NewTimer(patience)
	defer deadline.Stop()
	for {
		_, pod, err := f.target(ctx, f.job.name.Namespace, f.sandbox.pod, f.sandbox.uid)
		if errors.Is(err, errGone) || pod != nil && podfeed.Disrupted(pod) {
			return false
		}
		if err != nil {
			return true
		}
		if ended := endOfSandbox(pod, task.StartedAt); ended != nil {
			task.Reason = v1alpha1.ReasonSandboxRestarted
			task.Message = fmt.Sprintf("the sandbox container ended while the task ran: %s, exit code %d", ended.Reason, ended.ExitCode)
			if ended.Reason == executorapi.ReasonOOMKilled {
				task.Reason = executorapi.ReasonOOMKilled
				task.Message = "the sandbox container was killed because its memory limit was reached"
			}
			return true
		}
		select {
		case <-changed:
		case <-deadline.C():
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// endOfSandbox returns how the container that tasks run in has ended since then, or nil.
// Where the pod has a kernel of its own the memory limit ends that, and all containers with
// it. The end of this one may be told wrongly then, since it was started anew too early; the
// executor's is told.
func endOfSandbox(pod *corev1.Pod, since *time.Time) *corev1.ContainerStateTerminated {
	if len(pod.Spec.Containers) == 0 {
		return nil
	}
	sandbox := endOf(pod.Status.ContainerStatuses, pod.Spec.Containers[0].Name, since) // the cache keeps that of the tasks only
	executor := endOf(pod.Status.InitContainerStatuses, v1alpha1.ExecutorContainerName, since)
	if sandbox != nil && executor != nil && executor.Reason == executorapi.ReasonOOMKilled {
		return executor
	}
	return sandbox
}

func endOf(statuses []corev1.ContainerStatus, name string, since *time.Time) *corev1.ContainerStateTerminated {
	for i := range statuses {
		if statuses[i].Name != name {
			continue
		}
		for _, ended := range []*corev1.ContainerStateTerminated{statuses[i].State.Terminated, statuses[i].LastTerminationState.Terminated} {
			// Both clocks are the node's, and the kubelet's has seconds only.
			if ended != nil && (since == nil || !ended.FinishedAt.Time.Before(since.Truncate(time.Second))) {
				return ended
			}
		}
	}
	return nil
}
