package batchsandbox

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func gang(least int32) func(*v1alpha1.BatchSandbox) {
	return func(bs *v1alpha1.BatchSandbox) { bs.Spec.MinAvailable = least }
}

func younger(bs *v1alpha1.BatchSandbox) {
	bs.CreationTimestamp = metav1.NewTime(bs.CreationTimestamp.Add(time.Minute))
}

// setPoolMax changes how many pods the pool may have.
func (w *world) setPoolMax(most int32) {
	w.t.Helper()
	pool := &v1alpha1.Pool{}
	require.NoError(w.t, w.api.Get(w.t.Context(), poolKey, pool))
	pool.Spec.CapacitySpec.PoolMax = most
	require.NoError(w.t, w.api.Update(w.t.Context(), pool))
}

func TestAGangHoldsNothingBeforeItCanHoldItsLeast(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("gang", 4, gang(3)), named("small", 1, younger))
	w.setPoolMax(10)
	w.mustWait("gang")
	require.Equal(t, []string{"status gang"}, w.writes, "nothing is held, nothing is written but why")
	require.Empty(t, w.holds("gang"))
	require.Equal(t, v1alpha1.ReasonPoolExhausted, w.ready("gang").Reason)
	require.Contains(t, w.ready("gang").Message, "waiting until 3 of 4 sandboxes can be had at once")
	require.Equal(t, 4, w.Ledger.Snapshot(poolKey).Demand, "the pool is to grow for all of it")
	w.mustReconcile("small")
	require.Empty(t, w.holds("small"), "the gang is older")

	w.writes = nil
	w.observe("c")
	require.Contains(t, w.woken, client.ObjectKeyFromObject(w.get("gang")))
	w.mustReconcile("gang")
	require.Equal(t, []string{"patch gang", "status gang"}, w.writes)
	require.Equal(t, []string{"a", "b", "c"}, w.holds("gang"))
	require.True(t, w.get("gang").Status.MinAvailableReached)

	w.observe("d")
	w.clock.Step(time.Second)
	w.mustReconcile("gang")
	require.Equal(t, []string{"a", "b", "c", "d"}, w.holds("gang"), "the rest comes as it can be had")
	w.observe("e")
	w.clock.Step(time.Second)
	w.mustReconcile("small")
	require.Equal(t, []string{"e"}, w.holds("small"))
}

func TestAGangThatHasLostAllTakesWhatComes(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("gang", 2, gang(2)))
	w.setPoolMax(10)
	w.mustReconcile("gang")
	require.Equal(t, []string{"a", "b"}, w.holds("gang"))
	for _, name := range []string{"a", "b"} {
		w.Ledger.ObserveGone(poolKey, name, facts(name).UID)
	}
	w.clock.Step(time.Minute)
	w.mustReconcile("gang")
	require.Empty(t, w.holds("gang"))
	w.observe("c")
	w.clock.Step(time.Minute)
	w.mustReconcile("gang")
	require.Equal(t, []string{"c"}, w.holds("gang"))
}

func TestAGangOfWhichLessIsAskedForMeanwhile(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("gang", 3, gang(3)))
	w.setPoolMax(10)
	w.mustReconcile("gang")
	require.Empty(t, w.holds("gang"))
	w.scale("gang", 1)
	w.clock.Step(time.Minute)
	w.mustReconcile("gang")
	require.Equal(t, []string{"a"}, w.holds("gang"))
}

func TestAGangThatIsTooLargeForItsPoolIsInNobodysWay(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("gang", 4, gang(3)), named("small", 1, younger))
	w.setPoolMax(2)
	w.mustReconcile("gang")
	require.Empty(t, w.holds("gang"))
	require.Equal(t, v1alpha1.ReasonPoolTooSmall, w.ready("gang").Reason)
	require.Contains(t, w.ready("gang").Message, `3 sandboxes are to be had at once, and Pool "pool" may have no more than 2 pods`)
	require.Equal(t, []string{v1alpha1.ReasonPoolTooSmall}, w.events())
	pending := meta.FindStatusCondition(w.get("gang").Status.Conditions, v1alpha1.ConditionPoolAllocationPending)
	require.NotNil(t, pending)
	require.Equal(t, v1alpha1.ReasonPoolTooSmall, pending.Reason)
	w.mustReconcile("small")
	require.Equal(t, []string{"a"}, w.holds("small"))

	w.setPoolMax(4)
	w.observe("c")
	w.observe("d")
	w.clock.Step(time.Minute)
	w.mustReconcile("gang")
	require.Equal(t, []string{"b", "c", "d"}, w.holds("gang"))
}

func TestAGangFromATemplateIsShownFromItsLeastOn(t *testing.T) {
	w := newWorld(t, named("gang", 3, gang(2), func(bs *v1alpha1.BatchSandbox) {
		bs.Spec.PoolRef = ""
		bs.Spec.Template = &v1alpha1.PodTemplate{}
		bs.Spec.Template.Spec.Containers = []corev1.Container{{Name: "main", Image: "image"}}
	}))
	become := func(name string, ready corev1.ConditionStatus) {
		pod := &corev1.Pod{}
		require.NoError(t, w.api.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: name}, pod))
		pod.Status.PodIP = "ip-" + name
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
		require.NoError(t, w.api.Status().Update(t.Context(), pod))
		w.clock.Step(time.Minute)
		w.mustReconcile("gang")
	}
	w.mustReconcile("gang")
	require.True(t, w.podExists("gang-0") && w.podExists("gang-1") && w.podExists("gang-2"), "all pods are made at once")

	become("gang-0", corev1.ConditionTrue)
	require.Zero(t, w.get("gang").Status.Ready)
	require.Empty(t, w.get("gang").Annotations[v1alpha1.AnnotationEndpoints])
	require.Contains(t, w.ready("gang").Message, "waiting until 2 sandboxes are ready at once (spec.minAvailable); 1 are")

	become("gang-1", corev1.ConditionTrue)
	require.Equal(t, int32(2), w.get("gang").Status.Ready)
	require.Equal(t, `["ip-gang-0","ip-gang-1"]`, w.get("gang").Annotations[v1alpha1.AnnotationEndpoints])

	become("gang-1", corev1.ConditionFalse)
	require.Equal(t, int32(1), w.get("gang").Status.Ready, "it was delivered")
	require.NotEmpty(t, w.get("gang").Annotations[v1alpha1.AnnotationEndpoints])
}

// The operator ends between the write of the endpoints and that of the status.
func TestAGangThatWasDeliveredIsKnownByItsEndpoints(t *testing.T) {
	bs := batch(3, gang(2))
	require.Equal(t, 2, bs.LeastAtOnce())
	bs.Annotations = map[string]string{v1alpha1.AnnotationEndpoints: `["10.0.0.1"]`}
	require.Zero(t, bs.LeastAtOnce())
	bs.Status = statusOf(bs, &view{}, now)
	bs.Annotations = nil
	require.Zero(t, bs.LeastAtOnce(), "the status says it from now on")
}

// edit is a change by somebody else.
func (w *world) edit(name string) {
	w.t.Helper()
	bs := w.get(name)
	bs.Labels = map[string]string{"edited": w.clock.Now().String()}
	require.NoError(w.t, w.api.Update(w.t.Context(), bs))
}

func TestAGangWhoseObjectIsEditedMeanwhileKeepsItsPlace(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("gang", 2, gang(2)), named("small", 1, younger))
	w.setPoolMax(10)
	w.spoil = func(string, func() error) error {
		w.edit("gang")
		return apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("batchsandboxes").GroupResource(), "gang", errors.New("it was edited"))
	}
	_, err := w.reconcile("gang")
	require.Error(t, err, "it is planned anew")
	w.spoil = nil
	w.mustReconcile("small")
	require.Empty(t, w.holds("small"))
	require.NotContains(t, w.woken, client.ObjectKeyFromObject(w.get("gang")), "or it would claim and give back for ever")
	w.mustReconcile("gang")
	require.Equal(t, []string{"a", "b"}, w.holds("gang"))

	w.observe("c")
	w.clock.Step(time.Minute)
	w.mustReconcile("small")
	require.Equal(t, []string{"c"}, w.holds("small"))
}
