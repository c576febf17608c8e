package pool

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// kubeletWorkers is how many pods a kubelet attends to at a time.
const kubeletWorkers = 8

// Images that the kubelet treats in its own way; any other runs and is ready.
const (
	imageGood    = "good:1"
	imageBetter  = "good:2"
	imageMissing = "missing:1" // cannot be pulled
	imageSlow    = "slow:1"    // runs and is not ready
)

// kubelet plays the node for the pods of one namespace. There being no scheduler
// either, pods have no node, and a deleted pod is gone at once.
type kubelet struct {
	client client.Client
	ips    atomic.Int64
	work   chan *corev1.Pod
}

// startKubelet runs a kubelet for a namespace until the test ends.
func startKubelet(t *testing.T, namespace string) *kubelet { return cluster.startKubelet(t, namespace) }

func (s *apiServer) startKubelet(t *testing.T, namespace string) *kubelet {
	t.Helper()
	pods, err := cache.New(s.config, cache.Options{
		Scheme: scheme, DefaultNamespaces: map[string]cache.Config{namespace: {}},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	k := &kubelet{client: s.client, work: make(chan *corev1.Pod, 10000)}
	var running sync.WaitGroup
	running.Go(func() { _ = pods.Start(ctx) })
	for range kubeletWorkers {
		running.Go(func() { k.attend(ctx) })
	}
	t.Cleanup(func() { cancel(); running.Wait() })

	informer, err := pods.GetInformer(ctx, &corev1.Pod{})
	require.NoError(t, err)
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { k.work <- obj.(*corev1.Pod) },
		UpdateFunc: func(_, obj any) { k.work <- obj.(*corev1.Pod) },
	})
	require.NoError(t, err)
	return k
}

func (k *kubelet) attend(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case pod := <-k.work:
			k.sync(ctx, pod.DeepCopy())
		}
	}
}

// sync writes the status that the pod's image asks for. An error is not dealt with:
// the pod is gone, or has changed and comes again.
func (k *kubelet) sync(ctx context.Context, pod *corev1.Pod) {
	if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed || pod.Status.PodIP != "" {
		return
	}
	before := pod.DeepCopy()
	container := &pod.Spec.Containers[0]
	if strings.HasPrefix(container.Image, "missing") {
		waiting(pod, "ErrImagePull", fmt.Sprintf("%q not found", container.Image))
	} else {
		n := k.ips.Add(1)
		runs(pod, fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255), !strings.HasPrefix(container.Image, "slow"))
	}
	if !equality.Semantic.DeepEqual(before.Status, pod.Status) {
		_ = k.client.Status().Patch(ctx, pod, client.MergeFrom(before))
	}
}

func waiting(pod *corev1.Pod, reason, message string) {
	pod.Status.Phase = corev1.PodPending
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name:  pod.Spec.Containers[0].Name,
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
	}}
}

func runs(pod *corev1.Pod, ip string, ready bool) {
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP = ip
	pod.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: pod.Spec.Containers[0].Name, Ready: ready, Image: pod.Spec.Containers[0].Image,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
	setReady(pod, ready)
}

func setReady(pod *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodReady {
			pod.Status.Conditions[i].Status = status
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: status})
}

// change writes another status for a pod.
func (k *kubelet) change(t *testing.T, pod *corev1.Pod, fn func(*corev1.Pod)) {
	t.Helper()
	before := pod.DeepCopy()
	fn(pod)
	require.NoError(t, k.client.Status().Patch(t.Context(), pod, client.MergeFrom(before)))
}
