package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
)

func TestAnExecutorThatRestartsIsInAnotherLife(t *testing.T) {
	tasks := newStandInTasks(&fleet{})
	first := tasks.BootID()
	_, created, err := tasks.Start(t.Context(), first, "a", executorapi.TaskRequest{})
	require.NoError(t, err)
	require.True(t, created)
	tasks.boot()
	require.NotEqual(t, first, tasks.BootID())
	require.Empty(t, tasks.Wait(t.Context(), executorapi.Cursor{}).Tasks)
}

func TestConditionsChangeInPlace(t *testing.T) {
	pod := &corev1.Pod{}
	now := metav1.NewTime(time.Now())
	setCondition(pod, corev1.PodReady, corev1.ConditionTrue, now)
	setCondition(pod, corev1.AllContainersRestarting, corev1.ConditionFalse, now)
	setCondition(pod, corev1.PodReady, corev1.ConditionFalse, now)
	require.Len(t, pod.Status.Conditions, 2)
	require.Equal(t, corev1.ConditionFalse, pod.Status.Conditions[0].Status)
}

func TestAResetThatAsksForARestartIsAnswered(t *testing.T) {
	f, x := started(t, newSigner(t), newSigner(t))
	restarted := make(chan string, 1)
	f.restartPod = func(pod *corev1.Pod) { restarted <- string(pod.UID) }
	c := executorclient.New(executorclient.Options{})
	t.Cleanup(c.Close)
	answer, err := c.Reset(t.Context(), x.target, executorapi.ResetRequest{Restart: true}, time.Second)
	require.NoError(t, err)
	require.True(t, answer.Exiting)
	require.Equal(t, "uid", <-restarted)
}
