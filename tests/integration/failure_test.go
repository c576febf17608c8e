package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// message returns the message of the condition, or nothing.
func message(bs *v1alpha1.BatchSandbox, kind string) string {
	if c := meta.FindStatusCondition(bs.Status.Conditions, kind); c != nil {
		return c.Message
	}
	return ""
}

func eventsOf(t *testing.T, obj client.Object, reason string) int {
	t.Helper()
	var list eventsv1.EventList
	require.NoError(t, api.List(t.Context(), &list, client.InNamespace(obj.GetNamespace())))
	n := 0
	for i := range list.Items {
		if list.Items[i].Regarding.UID == obj.GetUID() && list.Items[i].Reason == reason {
			n++
		}
	}
	return n
}

func changeStatus(t *testing.T, ns, name string, do func(*corev1.PodStatus)) {
	t.Helper()
	pod := &corev1.Pod{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, pod))
	before := client.MergeFrom(pod.DeepCopy())
	do(&pod.Status)
	require.NoError(t, api.Status().Patch(t.Context(), pod, before))
}

func TestAHundredBatchesAtOnceCostThreeWritesEach(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 100, 300)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 100 })
	batches := make([]*v1alpha1.BatchSandbox, 100)
	created := make(chan error)
	for i := range batches {
		batches[i] = pooled(ns, fmt.Sprintf("batch-%d", i), 1)
		go func() { created <- api.Create(t.Context(), batches[i]) }()
	}
	for range batches {
		require.NoError(t, <-created)
	}
	for _, bs := range batches {
		until(t, bs, ready(1))
	}
	requireDisjoint(t, batches...)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 100 })
	require.Equal(t, 3*100, writes(t, ns, "batchsandboxes"), "one that waits in line has a fourth, which says so")

	for _, bs := range batches {
		require.NoError(t, api.Delete(t.Context(), bs))
	}
	for _, bs := range batches {
		gone(t, bs)
	}
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 0 && p.Status.Available == 100 })
	require.Equal(t, (3+2)*100, writes(t, ns, "batchsandboxes"), "a deletion, and one write that lets it go")
	require.Empty(t, requests(t, func(r *request) bool {
		return r.ObjectRef.Namespace == ns && r.Verb == "get" && strings.HasPrefix(r.UserAgent, operator.name)
	}), "the operator knows from its cache what there is")
}

func TestATemplateThatTheAPIServerRefuses(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, 2)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "refused"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(3)), Template: template()}}
	bs.Spec.Template.Spec.Containers[0].Image = ""
	before := writes(t, ns, "pods", "create")
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, reasonIs(v1alpha1.ReasonTemplateInvalid))
	require.Contains(t, message(bs, v1alpha1.ConditionReady), "spec.containers[0].image: Required value")
	require.Equal(t, v1alpha1.PhaseFailed, bs.Status.Phase)

	// Others are served meanwhile.
	other := pooled(ns, "other", 1)
	require.NoError(t, api.Create(t.Context(), other))
	until(t, other, ready(1))
	require.Eventually(t, func() bool { return eventsOf(t, bs, v1alpha1.ReasonTemplateInvalid) == 1 }, patience, poll)
	// The delay doubles from 5 ms on: 20 tries take more than an hour.
	require.Less(t, writes(t, ns, "pods", "create")-before, 20, "no hot loop of creates")
	require.LessOrEqual(t, writes(t, ns, "batchsandboxes"), 3+2, "no hot loop of status writes")
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
}

func TestATemplatePodWhoseImageCannotBePulledIsNotRecreated(t *testing.T) {
	ns := newNamespace(t)
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "stuck"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(1)), Template: template()}}
	bs.Spec.Template.Spec.Containers[0].Image = imageMissing
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, reasonIs(v1alpha1.ReasonPodsFailing))
	require.Contains(t, message(bs, v1alpha1.ConditionReady), "sandbox stuck-0: ErrImagePull: container sandbox-container: no such image")
	require.Equal(t, v1alpha1.PhaseFailed, bs.Status.Phase)
	// Whatever wakes it, the pod stays.
	change(t, bs, func(bs *v1alpha1.BatchSandbox) { bs.Spec.Replicas = ptr.To(int32(2)) })
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Replicas == 2 })
	require.Equal(t, 2, writes(t, ns, "pods", "create"))
	require.Zero(t, writes(t, ns, "pods", "delete"))
}

func TestWhatHappensToAHeldPod(t *testing.T) {
	oom := corev1.ContainerStatus{Name: "sandbox-container", RestartCount: 1, LastTerminationState: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"},
	}}
	tests := map[string]struct {
		happens  func(t *testing.T, pod *corev1.Pod)
		replaced bool
	}{
		"a container out of memory is reported": {
			happens: func(t *testing.T, pod *corev1.Pod) {
				changeStatus(t, pod.Namespace, pod.Name, func(s *corev1.PodStatus) { s.ContainerStatuses = []corev1.ContainerStatus{oom} })
			},
		},
		"evicted by its node, it is replaced": {
			happens: func(t *testing.T, pod *corev1.Pod) {
				changeStatus(t, pod.Namespace, pod.Name, func(s *corev1.PodStatus) { s.Phase, s.Reason = corev1.PodFailed, "Evicted" })
			},
			replaced: true,
		},
		"lost with its node, it is replaced": {
			happens: func(t *testing.T, pod *corev1.Pod) {
				require.NoError(t, api.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
			},
			replaced: true,
		},
		"taken from its pool, it is replaced and does not linger": {
			happens: func(t *testing.T, pod *corev1.Pod) {
				change(t, pod, func(p *corev1.Pod) { p.OwnerReferences = nil })
			},
			replaced: true,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			pool := newPool(t, ns, 1, 5)
			bs := pooled(ns, "batch", 2)
			require.NoError(t, api.Create(t.Context(), bs))
			until(t, bs, ready(2))
			before := held(t, bs)
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: before[0]}}
			test.happens(t, pod)
			if !test.replaced {
				until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Restarted == 1 })
				require.True(t, meta.IsStatusConditionTrue(bs.Status.Conditions, v1alpha1.ConditionSandboxesRestarted))
				require.Eventually(t, func() bool { return eventsOf(t, bs, v1alpha1.ConditionSandboxesRestarted) == 1 }, patience, poll)
				require.Equal(t, before, held(t, bs), "it is the same sandbox")
				return
			}
			until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return ready(2)(bs) && held(t, bs)[0] != before[0] })
			require.Equal(t, before[1], held(t, bs)[1])
			gone(t, pod)
			until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 2 && p.Status.Available == 1 })
		})
	}
}

func TestADeletedPoolWaitsForItsSandboxes(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 1, 5)
	bs := pooled(ns, "batch", 1)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, ready(1))
	require.NoError(t, api.Delete(t.Context(), pool))
	until(t, pool, func(p *v1alpha1.Pool) bool {
		return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionDeleting)
	})
	late := pooled(ns, "late", 1)
	require.NoError(t, api.Create(t.Context(), late))
	until(t, late, reasonIs(v1alpha1.ReasonPoolDeleting))
	until(t, bs, ready(1))
	require.NoError(t, api.Delete(t.Context(), bs))
	gone(t, bs)
	gone(t, pool)
	until(t, late, reasonIs(v1alpha1.ReasonPoolNotFound))
}

// withoutStatusField takes a field of the status of BatchSandboxes out of the CRD
// until the test ends, as if the installed CRD were older than the operator.
func withoutStatusField(t *testing.T, ns, field string) {
	t.Helper()
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	crd.SetName("batchsandboxes." + v1alpha1.GroupName)
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(crd), crd))
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	require.NoError(t, err)
	// The API server's own controllers write the object too.
	set := func(versions []any) error {
		ctx := context.Background() // at the end, the test's own has ended
		return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			if err := api.Get(ctx, client.ObjectKeyFromObject(crd), crd); err != nil {
				return err
			}
			if err := unstructured.SetNestedSlice(crd.Object, versions, "spec", "versions"); err != nil {
				return err
			}
			return api.Update(ctx, crd)
		})
	}
	t.Cleanup(func() { require.NoError(t, set(versions)) })
	older := runtime.DeepCopyJSONValue(versions).([]any)
	unstructured.RemoveNestedField(older[0].(map[string]any), "schema", "openAPIV3Schema", "properties", "status", "properties", field)
	require.NoError(t, set(older))
	require.Eventually(t, func() bool {
		probe := pooled(ns, "probe", 0)
		probe.GenerateName, probe.Name = "probe-", ""
		require.NoError(t, api.Create(t.Context(), probe))
		before := client.MergeFrom(probe.DeepCopy())
		probe.Status.Phase = v1alpha1.PhaseFailed
		require.NoError(t, api.Status().Patch(t.Context(), probe, before))
		return probe.Status.Phase == ""
	}, patience, poll)
}

func TestAStatusFieldThatTheCRDLacksMakesNoHotLoop(t *testing.T) {
	withoutStatusField(t, newNamespace(t), "phase")
	ns := newNamespace(t)
	pool := newPool(t, ns, 2, 5)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 })
	bs := pooled(ns, "batch", 1)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Ready == 1 })
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 1 && p.Status.Available == 2 })
	const wakes = 10
	for i := range wakes {
		change(t, bs, func(bs *v1alpha1.BatchSandbox) { bs.Labels = map[string]string{"woken": strings.Repeat("x", i+1)} })
	}
	change(t, bs, func(bs *v1alpha1.BatchSandbox) { bs.Spec.Replicas = ptr.To(int32(2)) })
	until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Ready == 2 })
	require.Empty(t, bs.Status.Phase, "the CRD lacks it")
	require.LessOrEqual(t, writes(t, ns, "batchsandboxes"), 3+wakes+3, "a delivery, each change and another delivery")
}

// An object may be so big that it can be created and not be given its sandboxes: etcd
// takes 1.5 MiB.
func TestABatchTooLargeForEtcdKeepsNothingFromOthers(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 2, 2)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 })
	big := pooled(ns, "big", 2)
	for padding := 1536<<10 - 512; ; padding -= 64 {
		big.Spec.TaskTemplate = &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{
			Command: []string{"true"}, Args: []string{strings.Repeat("x", padding)},
		}}}
		err := api.Create(t.Context(), big)
		if err == nil {
			break
		}
		require.ErrorContains(t, err, "request is too large")
	}
	require.Eventually(t, func() bool { return eventsOf(t, big, v1alpha1.ReasonAllocationTooLarge) > 0 }, patience, poll)
	other := pooled(ns, "other", 2)
	require.NoError(t, api.Create(t.Context(), other))
	until(t, other, ready(2))
	require.NoError(t, api.Delete(t.Context(), big))
	gone(t, big)
	require.Zero(t, writes(t, ns, "pods", "delete"), "it never had any")
}
