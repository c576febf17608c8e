package startup

import (
	"context"
	"errors"
	"testing"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// label patches a pod as the API server does, and has the cache show it.
func (w *world) label(ctx context.Context, pod *metav1.PartialObjectMetadata, patch client.Patch) error {
	live := &corev1.Pod{}
	if err := w.api.Get(ctx, client.ObjectKeyFromObject(pod), live); err != nil {
		return err
	}
	if err := w.checkPreconditions(ctx, live, patch); err != nil {
		return err
	}
	if err := w.api.Patch(ctx, live, patch); err != nil {
		return err
	}
	w.labelled = append(w.labelled, pod.Name)
	return w.show(ctx, live)
}

// foreign is a pod of the pool as OpenSandbox's controller makes them.
func foreign(name string) *corev1.Pod {
	p := pod(name)
	p.GenerateName = "pool-"
	p.Labels = map[string]string{v1alpha1.LabelPoolName: "pool", v1alpha1.LabelPoolRevision: "6f1ed002ab559585"}
	return p
}

// foreignShard is a pod of a template as that controller makes them.
func foreignShard(batch string) *corev1.Pod {
	p := foreign(batch + "-0")
	p.Labels = map[string]string{v1alpha1.LabelBatchSandboxPodIndex: "0"}
	p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name, p.OwnerReferences[0].UID = v1alpha1.KindBatchSandbox, batch, types.UID("uid-"+batch)
	return p
}

// former is a BatchSandbox as that controller leaves it.
func former(name string, replicas int32, status, release, released string) *v1alpha1.BatchSandbox {
	bs := batch(name, replicas, status)
	for key, value := range map[string]string{v1alpha1.AnnotationAllocRelease: release, v1alpha1.AnnotationAllocReleased: released} {
		if value != "" {
			bs.Annotations[key] = value
		}
	}
	return bs
}

// newWorldOf is a world with the pool of those pods.
func newWorldOf(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	return newWorld(t, append(objects, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pool", UID: "pool-uid"}})...)
}

func (w *world) labelsOf(name string) map[string]string {
	p := pod(name)
	require.NoError(w.t, w.api.Get(w.t.Context(), client.ObjectKeyFromObject(p), p))
	return p.Labels
}

func TestPodsOfAnotherControllerAreAdopted(t *testing.T) {
	w := newWorldOf(t, foreign("held"), foreign("idle"), foreignShard("shards"), templated("shards"),
		former("holder", 1, `{"pods":["held"],"poolRef":"pool","generation":1}`, "", ""))
	require.NoError(t, w.start())
	require.ElementsMatch(t, []string{"held", "idle", "shards-0"}, w.labelled, "each once")
	require.Equal(t, []string{"held"}, w.held("holder"), "whoever holds one goes on to")
	require.False(t, w.Ledger.Allocation(poolKey, "uid-holder").Held[0].Lost())
	require.Empty(t, w.claims(), "nobody knows what an idle one went through")
	require.Equal(t, takenOver, w.labelsOf("held")[v1alpha1.LabelPoolEvict], "it is deleted when it comes back")
	require.NotContains(t, w.labelsOf("shards-0"), v1alpha1.LabelPoolEvict)
	require.Equal(t, "shards", w.labelsOf("shards-0")[v1alpha1.LabelBatchSandboxName], "earlier versions set none")
	require.Equal(t, v1alpha1.ManagedBy, w.labelsOf("shards-0")[v1alpha1.LabelManagedBy])
}

func TestWhatIsNotAdopted(t *testing.T) {
	tests := map[string]struct {
		change func(*corev1.Pod)
		refuse error
	}{
		"a pod of an earlier Pool of the name":          {change: func(p *corev1.Pod) { p.OwnerReferences[0].UID = "earlier" }},
		"a pod of no Pool":                              {change: func(p *corev1.Pod) { p.OwnerReferences = nil }},
		"a pod of another kind's controller":            {change: func(p *corev1.Pod) { p.OwnerReferences[0].APIVersion = "apps/v1" }},
		"a pod of the operator that has lost its label": {change: func(p *corev1.Pod) { p.GenerateName = "" }},
		"a pod that a policy lets nobody change":        {refuse: apierrors.NewBadRequest("admission webhook says no")},
		"a pod that is gone":                            {refuse: apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "a")},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a := foreign("a")
			if test.change != nil {
				test.change(a)
			}
			w := newWorldOf(t, a, pod("b"))
			w.refuse = func(string) error { return test.refuse }
			require.NoError(t, w.start())
			require.True(t, w.open(), "it keeps nobody from starting")
			require.Empty(t, w.labelled)
			require.NotContains(t, w.claims(), "a")
		})
	}
}

func TestWithoutTheRoleTheLogNamesIt(t *testing.T) {
	w := newWorldOf(t, foreign("a"), foreign("b"))
	w.refuse = func(name string) error {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, name, errors.New("no"))
	}
	var lines []string
	logger := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	require.NoError(t, w.Start(log.IntoContext(t.Context(), logger)))
	require.True(t, w.open())
	require.Empty(t, w.claims())
	require.Len(t, lines, 2, "and the takeover's own")
	require.Contains(t, lines[0], `"clusterRole"="`+AdopterRole+`" "pods"=2`)
}

func TestWhatWasTakenBackIsNobodysAnyMore(t *testing.T) {
	const first, both = `{"pods":["handed"]}`, `{"pods":["handed","dirty"]}`
	w := newWorldOf(t, foreign("handed"), foreign("dirty"), foreign("asked"),
		former("ended", 2, `{"pods":["handed","dirty"],"poolRef":"pool","generation":1}`, both, both),
		former("second", 1, `{"pods":["handed"],"poolRef":"pool","generation":1}`, "", ""),
		former("asking", 1, `{"pods":["asked"],"poolRef":"pool","generation":1}`, `{"pods":["asked"]}`, ""))
	require.NoError(t, w.start())
	require.Equal(t, []string{"handed"}, w.held("second"), first)
	require.Empty(t, w.held("ended"))
	require.Len(t, w.Ledger.Allocation(poolKey, "uid-asking").Releasing, 1)
	require.Empty(t, w.recorder.Events, "no pod stands in two allocations")
	require.Empty(t, w.claims())
	ended := batch("ended", 2, "")
	require.NoError(t, w.api.Get(t.Context(), client.ObjectKeyFromObject(ended), ended))
	require.NotContains(t, ended.Annotations, v1alpha1.AnnotationAllocReleased)
	require.NotContains(t, ended.Annotations, v1alpha1.AnnotationAllocStatus)
}

// Nobody gets rid of a sandbox, so that it goes to the next, by an annotation.
func TestASandboxOfThisOperatorIsNotTakenBackByAnAnnotation(t *testing.T) {
	w := newWorldOf(t, pod("a"), former("holder", 1, `{"pods":["a"],"poolRef":"pool"}`, "", `{"pods":["a"]}`))
	require.NoError(t, w.start())
	require.Equal(t, []string{"a"}, w.held("holder"))
	require.Empty(t, w.claims())
}

func TestWhatHasEndedDoesNotRunAgain(t *testing.T) {
	tests := map[string]struct {
		change            func(bs *v1alpha1.BatchSandbox)
		succeeded, failed string
	}{
		"all have succeeded":                         {succeeded: "0-1"},
		"it is not known which have failed":          {change: func(bs *v1alpha1.BatchSandbox) { bs.Status.TaskFailed = 1 }, failed: "0-1"},
		"one is known already":                       {change: func(bs *v1alpha1.BatchSandbox) { bs.Status.FailedShards = "1" }, succeeded: "0", failed: "1"},
		"with Retain the sandbox is the product":     {change: func(bs *v1alpha1.BatchSandbox) { bs.Spec.TaskResourcePolicyWhenCompleted = v1alpha1.TaskResourceRetain }},
		"without tasks a sandbox is only given back": {change: func(bs *v1alpha1.BatchSandbox) { bs.Spec.TaskTemplate = nil }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			const both = `{"pods":["a","b"]}`
			bs := former("ended", 2, `{"pods":["a","b"],"poolRef":"pool","generation":1}`, both, both)
			bs.Spec.TaskTemplate, bs.Spec.TaskResourcePolicyWhenCompleted = &v1alpha1.TaskTemplate{}, v1alpha1.TaskResourceRelease
			if test.change != nil {
				test.change(bs)
			}
			w := newWorldOf(t, bs)
			require.NoError(t, w.start())
			require.NoError(t, w.api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
			require.Equal(t, test.succeeded, bs.Status.SucceededShards)
			require.Equal(t, test.failed, bs.Status.FailedShards)
		})
	}
}

// That controller may still be writing.
func TestAConversionThatMeetsAnotherWriteIsMadeAnew(t *testing.T) {
	w := newWorldOf(t, foreign("a"), foreign("b"), former("holder", 2, `{"pods":["a"],"poolRef":"pool","generation":1}`, "", ""))
	wrote := false
	w.refuse = func(name string) error {
		if name != "holder" || wrote {
			return nil
		}
		wrote = true
		bs := batch("holder", 2, "")
		require.NoError(t, w.api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
		bs.Annotations[v1alpha1.AnnotationAllocStatus] = `{"pods":["a","b"],"poolRef":"pool","generation":1}`
		require.NoError(t, w.api.Update(t.Context(), bs))
		return w.show(t.Context(), bs)
	}
	require.NoError(t, w.start())
	require.True(t, wrote)
	require.Equal(t, []string{"a", "b"}, w.held("holder"))
}

func TestAnObjectThatIsWrittenAllTheTimeKeepsNoLeaderFromStarting(t *testing.T) {
	w := newWorldOf(t, foreign("a"), former("holder", 1, `{"pods":["a"],"poolRef":"pool","generation":1}`, "", ""))
	w.refuse = func(name string) error {
		if name != "holder" {
			return nil
		}
		return apierrors.NewConflict(schema.GroupResource{Resource: "batchsandboxes"}, name, errors.New("it has been modified"))
	}
	require.NoError(t, w.start())
	require.Equal(t, []string{"a"}, w.held("holder"))
}
