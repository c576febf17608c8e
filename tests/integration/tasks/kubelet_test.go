package tasks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// kubelet marks new pods as running and ready, runs their executors, and ends
// deleted ones.
type kubelet struct {
	// network is the second number of the loopback addresses that it gives to pods.
	network int
	// taken keeps other test processes from using them.
	taken net.Listener

	mu    sync.Mutex // guards what follows
	count int
	// executors by pod, also of pods that are gone.
	executors map[types.UID]*executor
}

// newKubelet takes the first network of which no other test process has the last address.
func newKubelet() (*kubelet, error) {
	var err error
	for network := 101; network <= 200; network++ {
		var taken net.Listener
		taken, err = net.Listen("tcp", fmt.Sprintf("127.%d.255.254:%d", network, executorapi.Port))
		if err == nil {
			return &kubelet{network: network, taken: taken, executors: map[types.UID]*executor{}}, nil
		}
	}
	return nil, fmt.Errorf("no loopback addresses are free: %w", err)
}

func (k *kubelet) run(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := api.Watch(ctx, &corev1.PodList{})
		if err != nil {
			continue
		}
		for e := range w.ResultChan() {
			if pod, ok := e.Object.(*corev1.Pod); ok {
				k.see(ctx, pod)
			}
		}
	}
}

func (k *kubelet) see(ctx context.Context, pod *corev1.Pod) {
	switch {
	case pod.DeletionTimestamp != nil:
		if x := k.executor(pod.UID); x != nil {
			x.close()
		}
		_ = api.Delete(ctx, pod, client.GracePeriodSeconds(0))
	case pod.Status.PodIP == "":
		ip := k.address()
		k.startExecutor(pod, ip)
		before := client.MergeFrom(pod.DeepCopy())
		pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, endOfRestart(time.Now().Add(-time.Hour))}
		for _, c := range pod.Spec.Containers {
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
				Name: c.Name, ContainerID: containerID(pod, c.Name), Ready: true,
				State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			})
		}
		_ = api.Status().Patch(ctx, pod, before)
	}
}

// endOfRestart is the condition that a kubelet leaves behind.
func endOfRestart(at time.Time) corev1.PodCondition {
	return corev1.PodCondition{Type: corev1.AllContainersRestarting, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(at)}
}

// restart gives the containers of a pod new ids, as a restart of all of them does.
func (k *kubelet) restart(name types.NamespacedName) {
	pod := &corev1.Pod{}
	ctx := context.Background()
	if api.Get(ctx, name, pod) != nil {
		return
	}
	before := client.MergeFrom(pod.DeepCopy())
	for i := range pod.Status.ContainerStatuses {
		s := &pod.Status.ContainerStatuses[i]
		sum := sha256.Sum256([]byte(s.ContainerID))
		s.ContainerID, s.RestartCount = "containerd://"+hex.EncodeToString(sum[:]), s.RestartCount+1
	}
	restarts := int(pod.Status.ContainerStatuses[0].RestartCount)
	pod.Status.Conditions[1] = endOfRestart(time.Now().Add(time.Duration(restarts-60) * time.Minute))
	_ = api.Status().Patch(ctx, pod, before)
}

func containerID(pod *corev1.Pod, container string) string {
	sum := sha256.Sum256([]byte(string(pod.UID) + container))
	return "containerd://" + hex.EncodeToString(sum[:])
}

// address returns a loopback address that no other test process uses.
func (k *kubelet) address() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.count++
	return fmt.Sprintf("127.%d.%d.%d", k.network, k.count/250, k.count%250+1)
}

func (k *kubelet) executor(pod types.UID) *executor {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.executors[pod]
}

func (k *kubelet) startExecutor(pod *corev1.Pod, ip string) {
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if c := &containers[i]; c.Name == v1alpha1.ExecutorContainerName {
				x := newExecutor(pod, c, ip)
				name := client.ObjectKeyFromObject(pod)
				x.restart = func() { k.restart(name) }
				k.mu.Lock()
				k.executors[pod.UID] = x
				k.mu.Unlock()
				x.listen()
			}
		}
	}
}
