package podfeed

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	fcache "k8s.io/client-go/tools/cache/testing"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

func TestAPodThatFinishedByItselfIsNotOneThatTheClusterHasEnded(t *testing.T) {
	target := func(status corev1.ConditionStatus) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}, {Type: corev1.DisruptionTarget, Status: status}}
	}
	tests := map[string]struct {
		status              corev1.PodStatus
		finished, disrupted bool
	}{
		"it runs": {status: corev1.PodStatus{Phase: corev1.PodRunning}},
		"its containers have succeeded": {
			status: corev1.PodStatus{Phase: corev1.PodSucceeded}, finished: true},
		"a container has failed": {
			status: corev1.PodStatus{Phase: corev1.PodFailed}, finished: true},
		"it has run for as long as its template allows": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "DeadlineExceeded"}, finished: true},
		"it was to be preempted, was not, and finished later": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Conditions: target(corev1.ConditionFalse)}, finished: true},
		"it is about to be evicted and still runs": {
			status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: target(corev1.ConditionTrue)}},
		"the kubelet has evicted it": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"}, finished: true, disrupted: true},
		"its node was shut down": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Terminated"}, finished: true, disrupted: true},
		"its node is gone": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Conditions: target(corev1.ConditionTrue)}, finished: true, disrupted: true},
		"a kubelet that restarted has refused it": {
			status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "UnexpectedAdmissionError"}, finished: true, disrupted: true},
		"it handled the signal of its eviction and succeeded": {
			status: corev1.PodStatus{Phase: corev1.PodSucceeded, Conditions: target(corev1.ConditionTrue)}, finished: true, disrupted: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Status: test.status}
			facts := Facts(pod, "pool-uid")
			require.Equal(t, test.finished, facts.Finished, "finished")
			require.Equal(t, test.disrupted, facts.Disrupted, "disrupted")
			stripped, err := Strip(pod)
			require.NoError(t, err)
			require.Equal(t, facts, Facts(stripped.(*corev1.Pod), "pool-uid"), "what the cache keeps says the same")
		})
	}
}

// poolPod is a pod that the Pool with that UID controls.
func poolPod(name string, pool types.UID, options ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: name, UID: types.UID("uid-" + name),
		OwnerReferences: []metav1.OwnerReference{ref(v1alpha1.GroupVersion.String(), v1alpha1.KindPool, pool, true)},
	}}
	for _, option := range options {
		option(pod)
	}
	return pod
}

func ref(apiVersion, kind string, uid types.UID, controller bool) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: apiVersion, Kind: kind, Name: "pool", UID: uid, Controller: &controller}
}

func TestPoolOf(t *testing.T) {
	group, kind := v1alpha1.GroupVersion.String(), v1alpha1.KindPool
	tests := map[string]struct {
		refs []metav1.OwnerReference
		want bool
	}{
		"a Pool controls it": {[]metav1.OwnerReference{ref(group, kind, "u", true)}, true},
		"a Pool of a later version of the API controls it": {[]metav1.OwnerReference{ref(v1alpha1.GroupName+"/v1", kind, "u", true)}, true},
		"a Pool controls it and somebody else owns it too": {[]metav1.OwnerReference{ref("v1", "ConfigMap", "c", false), ref(group, kind, "u", true)}, true},
		"nobody owns it":                         {nil, false},
		"a Pool owns it and does not control it": {[]metav1.OwnerReference{ref(group, kind, "u", false)}, false},
		"another kind of this group controls it": {[]metav1.OwnerReference{ref(group, v1alpha1.KindBatchSandbox, "u", true)}, false},
		"a Pool of another group controls it":    {[]metav1.OwnerReference{ref("example.com/v1alpha1", kind, "u", true)}, false},
		"the reference names no valid version":   {[]metav1.OwnerReference{ref(v1alpha1.GroupName+"/a/b", kind, "u", true)}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: "p", OwnerReferences: test.refs,
				Labels: map[string]string{v1alpha1.LabelPoolName: "forged"},
			}}
			key, uid, ok := PoolOf(pod)
			require.Equal(t, test.want, ok)
			if test.want {
				require.Equal(t, poolKey, key)
				require.Equal(t, types.UID("u"), uid)
			}
		})
	}
}

var poolKey = ledger.Key{Namespace: "ns", Name: "pool"}

func TestFacts(t *testing.T) {
	created := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	ready := metav1.NewTime(created.Add(3 * time.Second))
	pod := poolPod("p", "pool-uid", func(pod *corev1.Pod) {
		pod.CreationTimestamp = created
		pod.Labels = map[string]string{v1alpha1.LabelPoolRevision: "r1"}
		pod.Status = corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.7",
			Conditions:            []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: ready}},
			InitContainerStatuses: []corev1.ContainerStatus{{RestartCount: 1}},
			ContainerStatuses:     []corev1.ContainerStatus{{RestartCount: 2}, {RestartCount: 4}},
		}
	})
	want := ledger.Pod{
		Name: "p", UID: "uid-p", PoolUID: "pool-uid", Revision: "r1", Created: created.Time,
		IP: "10.0.0.7", Restarts: 7, Ready: true, ReadySince: ready.Time,
	}
	require.Equal(t, want, Facts(pod, "pool-uid"))

	pod.DeletionTimestamp = &created
	pod.Labels[v1alpha1.LabelPoolEvict] = ""
	pod.Status.Conditions[1].Status = corev1.ConditionFalse
	node := metav1.NewTime(created.Add(time.Second))
	pod.Status.Conditions[0].LastTransitionTime = node
	want.StartingSince = node.Time // containers have restarted
	want.Terminating, want.Evict, want.Ready, want.ReadySince = true, true, false, time.Time{}
	require.Equal(t, want, Facts(pod, "pool-uid"))

	pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses = nil, nil
	want.Restarts, want.StartingSince = 0, ready.Time
	require.Equal(t, want, Facts(pod, "pool-uid"))
}

func TestProblem(t *testing.T) {
	waiting := func(reason, message string) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{
			{Name: "runs", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
			{Name: "main", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}},
		}
	}
	tests := map[string]struct {
		status corev1.PodStatus
		want   string
		noNode bool
	}{
		"nothing is known yet":           {corev1.PodStatus{}, "", false},
		"its containers are created":     {corev1.PodStatus{ContainerStatuses: waiting("ContainerCreating", "")}, "", false},
		"its init containers run":        {corev1.PodStatus{ContainerStatuses: waiting("PodInitializing", "")}, "", false},
		"an image cannot be pulled":      {corev1.PodStatus{ContainerStatuses: waiting("ErrImagePull", "no such image")}, "ErrImagePull: container main: no such image", false},
		"an init container crashes":      {corev1.PodStatus{InitContainerStatuses: waiting("CrashLoopBackOff", "")}, "CrashLoopBackOff: container main: no message", false},
		"it has failed without a reason": {corev1.PodStatus{Phase: corev1.PodFailed}, "PodFailed", false},
		"it was evicted":                 {corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "low on memory"}, "Evicted: low on memory", false},
		"no node has room for it": {corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/3 nodes are available"},
		}}, "Unschedulable: 0/3 nodes are available", true},
		"its volume is not there yet": {corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "pod has unbound immediate PersistentVolumeClaims"},
		}}, "Unschedulable: pod has unbound immediate PersistentVolumeClaims", true},
		"it is held back from the scheduler": {corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "SchedulingGated"},
		}}, "SchedulingGated", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			problem := Problem(&corev1.Pod{Status: test.status})
			require.Equal(t, test.want, problem)
			require.Equal(t, test.noNode, WaitsForNode(problem))
		})
	}
}

func TestStripKeepsWhatTheReconcilersRead(t *testing.T) {
	pod := poolPod("p", "pool-uid", func(pod *corev1.Pod) {
		pod.ResourceVersion = "7"
		pod.Labels = map[string]string{v1alpha1.LabelPoolRevision: "r1"}
		pod.Finalizers = []string{"example.com/f"}
		pod.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
		pod.Annotations = map[string]string{v1alpha1.AnnotationExecutorKey: "key", v1alpha1.AnnotationExecutorTLSKey: "public", "other": "value"}
		pod.Spec = corev1.PodSpec{
			NodeName: "node", ServiceAccountName: "sa", Volumes: []corev1.Volume{{Name: "v"}},
			InitContainers: []corev1.Container{{Name: "init"}},
			Containers: []corev1.Container{
				{Name: "main", Image: "image", Env: []corev1.EnvVar{{Name: "A", Value: "1"}}},
				{Name: "side", Image: "image"},
			},
		}
		pod.Status = corev1.PodStatus{
			Phase: corev1.PodRunning, Reason: "r", Message: "m", PodIP: "10.0.0.7", HostIP: "1.2.3.4", QOSClass: corev1.PodQOSBurstable,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastProbeTime: metav1.Now(), ObservedGeneration: 1},
				{Type: corev1.ContainersReady, Status: corev1.ConditionTrue},
			},
			InitContainerStatuses: []corev1.ContainerStatus{{
				Name: "init", RestartCount: 1, Image: "image", ImageID: "id", Resources: &corev1.ResourceRequirements{},
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "m"}},
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
					ExitCode: 1, Reason: "Error", FinishedAt: metav1.Unix(1, 0), Message: "last words", ContainerID: "before",
				}},
			}},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "main", ContainerID: "id", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}},
		}
	})
	want := pod.DeepCopy()
	want.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	want.Status.InitContainerStatuses[0].Image, want.Status.InitContainerStatuses[0].ImageID, want.Status.InitContainerStatuses[0].Resources = "", "", nil
	want.Status.InitContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", FinishedAt: metav1.Unix(1, 0)}
	want.Status.ContainerStatuses[0].State.Running = nil
	want.ManagedFields = nil
	want.Annotations = map[string]string{v1alpha1.AnnotationExecutorKey: "key", v1alpha1.AnnotationExecutorTLSKey: "public"}
	want.Spec = corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "main"}}}
	want.Status.HostIP, want.Status.QOSClass = "", ""
	got, err := Strip(pod.DeepCopy())
	require.NoError(t, err)
	require.Equal(t, want, got)

	delete(pod.Annotations, v1alpha1.AnnotationExecutorKey)
	want.Annotations, want.Spec.Containers = nil, nil
	got, err = Strip(pod)
	require.NoError(t, err)
	require.Equal(t, want, got, "without an executor nobody reads its containers")

	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}}}
	got, err = Strip(node.DeepCopy())
	require.NoError(t, err)
	require.Equal(t, node, got, "what is no pod stays as it is")
}

// podCache is a cache with one informer, that of client-go itself.
type podCache struct {
	cache.Cache
	informer toolscache.SharedIndexInformer
}

func (c podCache) GetInformer(context.Context, client.Object, ...cache.InformerGetOption) (cache.Informer, error) {
	return c.informer, nil
}

func TestRegisterFeedsTheLedger(t *testing.T) {
	ready := func(pod *corev1.Pod) {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	source := fcache.NewFakeControllerSource()
	defer source.Shutdown()
	source.Add(poolPod("first", "pool-uid", ready))
	source.Add(poolPod("foreign", "pool-uid", func(pod *corev1.Pod) { pod.OwnerReferences = nil }))
	informer := toolscache.NewSharedIndexInformer(source, &corev1.Pod{}, 0, nil)
	require.NoError(t, informer.SetTransform(Strip))
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { informer.RunWithContext(ctx) })
	defer work.Wait()
	defer cancel()

	changed := make(chan struct{}, 100)
	book := ledger.New(ledger.Hooks{Pool: func(ledger.Key) { changed <- struct{}{} }})
	pods := func() []string {
		names := []string{}
		for _, pod := range book.Snapshot(poolKey).Pods {
			names = append(names, fmt.Sprintf("%s ready=%v", pod.Name, pod.Ready))
		}
		slices.Sort(names)
		return names
	}
	until := func(want ...string) {
		t.Helper()
		for !slices.Equal(pods(), want) {
			select {
			case <-changed:
			case <-time.After(10 * time.Second):
				require.Equal(t, want, pods())
			}
		}
	}
	require.NoError(t, Register(t.Context(), podCache{informer: informer}, book))
	require.Equal(t, []string{"first ready=true"}, pods(), "when it returns, the ledger has every pod that the cache had")

	source.Add(poolPod("second", "pool-uid"))
	until("first ready=true", "second ready=false")
	source.Modify(poolPod("second", "pool-uid", ready))
	until("first ready=true", "second ready=true")
	source.Delete(poolPod("first", "pool-uid"))
	until("second ready=true")

	source.Add(poolPod("third", "pool-uid"))
	until("second ready=true", "third ready=false")
	source.Modify(poolPod("second", "pool-uid", func(pod *corev1.Pod) { pod.OwnerReferences = nil }))
	until("third ready=false")

	// The watch breaks and the end of the pod is learned of from a list.
	source.DeleteDropWatch(poolPod("third", "pool-uid"))
	source.ResetWatch()
	until()
}

// A pod that a Pool has lost to a Pool of the same name is not the first one's any more.
func TestAPodThatGoesToAnotherPoolLeavesTheFirst(t *testing.T) {
	before, after := poolPod("p", "old"), poolPod("p", "new")
	require.False(t, samePool(before, after))
	require.True(t, samePool(before, before.DeepCopy()))
	require.False(t, samePool(before, &corev1.Pod{}))
	require.True(t, samePool(&corev1.Pod{}, &corev1.Pod{}), "no Pool has either")
}
