package e2e

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// firstHeld waits until the BatchSandbox holds anything and returns how many pods that are.
// It sees every version, so that a part of a gang is not missed.
func firstHeld(t *testing.T, bs *v1alpha1.BatchSandbox) func() int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	w, err := api.Watch(ctx, &v1alpha1.BatchSandboxList{}, client.InNamespace(bs.Namespace), client.MatchingFields{"metadata.name": bs.Name})
	require.NoError(t, err)
	t.Cleanup(w.Stop)
	return func() int {
		for e := range w.ResultChan() {
			if seen, ok := e.Object.(*v1alpha1.BatchSandbox); ok && len(heldBy(t, seen)) > 0 {
				return len(heldBy(t, seen))
			}
		}
		require.Fail(t, "it has never held anything", "%s", dump{bs})
		return 0
	}
}

func TestAGangGetsAllAtOnceWhenThePoolHasGrown(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	pool := startPool(t, ns, shell("sleep 3600"), v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 3})
	gang := pooled(ns, "gang", 5)
	gang.Spec.MinAvailable = 4
	held := firstHeld(t, gang)
	require.NoError(t, api.Create(t.Context(), gang))
	until(t, gang, func(bs *v1alpha1.BatchSandbox) bool {
		return hasCondition(v1alpha1.ConditionReady, v1alpha1.ReasonPoolTooSmall)(bs.Status.Conditions)
	})
	require.Contains(t, dump{gang.Status.Conditions}.String(), "4 sandboxes are to be had at once")

	before := client.MergeFrom(pool.DeepCopy())
	pool.Spec.CapacitySpec.PoolMax, pool.Spec.ScaleStrategy.MaxUnavailable = 6, ptr.To(intstr.FromInt32(1))
	require.NoError(t, api.Patch(t.Context(), pool, before))
	require.GreaterOrEqual(t, held(), 4, "the pool grew one by one")
	until(t, gang, ready)
	require.Len(t, endpointsOf(t, gang), 5)
	require.True(t, gang.Status.MinAvailableReached)
}

func TestNoTaskOfAGangFromATemplateStartsBeforeItsLeastAreReady(t *testing.T) {
	const gate = "e2e.opensandbox.io/wait"
	t.Parallel()
	ns := newNamespace(t)
	gang := fromTemplate(ns, "gang", 2, shell("sleep 3600"))
	gang.Spec.MinAvailable, gang.Spec.TaskTemplate = 2, script("touch /tmp/ran")
	gang.Spec.ShardPatches = []v1alpha1.Patch{
		{RawExtension: runtime.RawExtension{Raw: []byte(`{}`)}},
		{RawExtension: runtime.RawExtension{Raw: []byte(`{"spec":{"schedulingGates":[{"name":"` + gate + `"}]}}`)}},
	}
	require.NoError(t, api.Create(t.Context(), gang))
	until(t, gang, func(bs *v1alpha1.BatchSandbox) bool {
		return bs.Status.Allocated == 1 && hasCondition(v1alpha1.ConditionReady, v1alpha1.ReasonPodsUnschedulable)(bs.Status.Conditions)
	})
	first := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "gang-0"}}
	until(t, first, func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	})
	require.Equal(t, "no\n", inSandbox(t, ns, "gang-0", "sh", "-c", "[ -e /tmp/ran ] && echo yes || echo no"))
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(gang), gang))
	require.Equal(t, v1alpha1.PhasePending, gang.Status.Phase, "somebody may still bring it a node")
	require.Zero(t, gang.Status.Ready)
	require.Equal(t, int32(2), gang.Status.TaskPending)
	require.Empty(t, gang.Annotations[v1alpha1.AnnotationEndpoints])

	second := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "gang-1"}}
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(second), second))
	before := client.MergeFrom(second.DeepCopy())
	second.Spec.SchedulingGates = nil
	require.NoError(t, api.Patch(t.Context(), second, before))
	until(t, gang, func(bs *v1alpha1.BatchSandbox) bool { return ready(bs) && bs.Status.TaskSucceed == 2 })
	require.Len(t, endpointsOf(t, gang), 2)
}

func TestAPoolIsChosenByWhatIsNeeded(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	newPool := func(name string, template *v1alpha1.PodTemplate, labels map[string]string) {
		t.Helper()
		pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels},
			Spec: v1alpha1.PoolSpec{Template: template, CapacitySpec: v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMax: 2}}}
		require.NoError(t, api.Create(t.Context(), pool))
		until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 1 })
	}
	large := shell("sleep 3600")
	large.Spec.Containers[0].Resources.Requests = memory("16Mi")
	newPool("small", shell("sleep 3600"), nil)
	newPool("large", large, nil)
	newPool("labelled", shell("sleep 3600"), map[string]string{"team": "a"})
	newPool("web", webServer(), nil)

	needs := func(image string, requests corev1.ResourceList) *v1alpha1.PodTemplate {
		template := &v1alpha1.PodTemplate{}
		template.Spec.Containers = []corev1.Container{{Name: "any", Image: image}}
		template.Spec.Containers[0].Resources.Requests = requests
		return template
	}
	for want, ask := range map[string]func(*v1alpha1.BatchSandboxSpec){
		"web":      func(s *v1alpha1.BatchSandboxSpec) { s.Template = needs("nginx:latest", nil) },
		"large":    func(s *v1alpha1.BatchSandboxSpec) { s.Template = needs("busybox:latest", memory("10Mi")) },
		"labelled": func(s *v1alpha1.BatchSandboxSpec) { s.PoolSelector = map[string]string{"team": "a"} },
	} {
		bs := pooled(ns, "wants-"+want, 1)
		bs.Spec.PoolRef = v1alpha1.AnyPool
		ask(&bs.Spec)
		start(t, bs)
		require.Equal(t, want, bs.Spec.PoolRef)
		require.Len(t, heldBy(t, bs), 1)
	}

	none := pooled(ns, "none", 1)
	none.Spec.PoolRef, none.Spec.Template = v1alpha1.AnyPool, needs("ubuntu:latest", nil)
	require.NoError(t, api.Create(t.Context(), none))
	until(t, none, func(bs *v1alpha1.BatchSandbox) bool {
		return hasCondition(v1alpha1.ConditionReady, v1alpha1.ReasonPoolNotFound)(bs.Status.Conditions)
	})
	require.Contains(t, dump{none.Status.Conditions}.String(), "web: image ubuntu:latest")
	ubuntu := shell("sleep 3600")
	ubuntu.Spec.Containers[0].Image = "ubuntu:latest"
	newPool("late", ubuntu, nil)
	until(t, none, ready)
	require.Equal(t, "late", none.Spec.PoolRef)
}
