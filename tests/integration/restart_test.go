package integration

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// whileDown kills the operator, does what it is to miss, and starts it anew.
func whileDown(t *testing.T, do func()) {
	t.Helper()
	operator.kill()
	defer func() { require.NoError(t, operator.start()) }()
	do()
}

func change[T client.Object](t *testing.T, obj T, do func(T)) {
	t.Helper()
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj))
	before := client.MergeFrom(obj.DeepCopyObject().(T))
	do(obj)
	require.NoError(t, api.Patch(t.Context(), obj, before))
}

// requireDisjoint fails when a pod stands in two of the allocations, or does not exist.
func requireDisjoint(t *testing.T, batches ...*v1alpha1.BatchSandbox) {
	t.Helper()
	owner := map[string]string{}
	for _, bs := range batches {
		for _, name := range held(t, bs) {
			require.NotEmpty(t, name, "%s is not complete", bs.Name)
			require.Empty(t, owner[name], "pod %s stands in the allocation of %s too", name, bs.Name)
			owner[name] = bs.Name
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: bs.Namespace, Name: name}}
			require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		}
	}
}

func TestAnOperatorThatIsKilledWhileItDeliversHandsOutNoPodTwice(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 60, 200)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 60 })
	watch, err := api.Watch(t.Context(), &v1alpha1.BatchSandboxList{}, client.InNamespace(ns))
	require.NoError(t, err)
	defer watch.Stop()
	batches := make([]*v1alpha1.BatchSandbox, 20)
	for i := range batches {
		batches[i] = pooled(ns, fmt.Sprintf("batch-%d", i), 5)
		require.NoError(t, api.Create(t.Context(), batches[i]))
	}
	for e := range watch.ResultChan() { // until some are delivered
		if bs, ok := e.Object.(*v1alpha1.BatchSandbox); ok && bs.Annotations[v1alpha1.AnnotationAllocStatus] != "" {
			break
		}
	}
	whileDown(t, func() {})
	for _, bs := range batches {
		until(t, bs, ready(5))
	}
	requireDisjoint(t, batches...)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 100 })
}

func TestWhatHappensWhileTheOperatorIsDown(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 2, 20)
	deleted, lost, garbled, whole := pooled(ns, "deleted", 2), pooled(ns, "lost", 2), pooled(ns, "garbled", 1), pooled(ns, "whole", 1)
	all := []*v1alpha1.BatchSandbox{deleted, lost, garbled, whole}
	for _, bs := range all {
		require.NoError(t, api.Create(t.Context(), bs))
	}
	for _, bs := range all {
		until(t, bs, ready(*bs.Spec.Replicas))
	}
	dirty, lostBefore, garbledBefore, wholeBefore := held(t, deleted), held(t, lost), held(t, garbled), held(t, whole)
	var before corev1.PodList
	whileDown(t, func() {
		require.NoError(t, api.Delete(t.Context(), deleted))
		require.NoError(t, api.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: lostBefore[0]}}))
		change(t, garbled, func(bs *v1alpha1.BatchSandbox) { bs.Annotations[v1alpha1.AnnotationAllocStatus] = `{"pods":` })
		require.NoError(t, api.List(t.Context(), &before, client.InNamespace(ns)))
	})

	// Its sandboxes do not come back dirty.
	gone(t, deleted)
	for _, name := range dirty {
		gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
	// A lost sandbox is replaced at its place.
	until(t, lost, func(bs *v1alpha1.BatchSandbox) bool { return ready(2)(bs) && held(t, bs)[0] != lostBefore[0] })
	require.Equal(t, lostBefore[1], held(t, lost)[1])
	// What cannot be read is set aside, and none that it might hold is handed out.
	until(t, garbled, reasonIs(v1alpha1.ReasonAllocationUnreadable))
	more := pooled(ns, "more", 3)
	require.NoError(t, api.Create(t.Context(), more))
	until(t, more, ready(3))
	for _, name := range append(held(t, more), held(t, lost)[0]) {
		require.False(t, slices.ContainsFunc(before.Items, func(p corev1.Pod) bool { return p.Name == name }), "pod %s may be the one of the other", name)
	}
	// Everything else goes on.
	until(t, whole, ready(1))
	require.Equal(t, wholeBefore, held(t, whole))

	change(t, garbled, func(bs *v1alpha1.BatchSandbox) {
		bs.Annotations[v1alpha1.AnnotationAllocStatus] = fmt.Sprintf(`{"pods":[%q]}`, garbledBefore[0])
	})
	until(t, garbled, ready(1))
	require.Equal(t, garbledBefore, held(t, garbled))
	requireDisjoint(t, lost, garbled, whole, more)
}

// Whatever an annotation said that cannot be read any more, the pods that it may have
// named come back to nobody: not to the pool, and not to the BatchSandbox.
func TestAnAllocationThatIsMendedByDeletingItHandsNoPodOn(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 2, 20)
	garbled := pooled(ns, "garbled", 1)
	require.NoError(t, api.Create(t.Context(), garbled))
	until(t, garbled, ready(1))
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 })
	dirty := held(t, garbled)[0]
	var before corev1.PodList
	whileDown(t, func() {
		change(t, garbled, func(bs *v1alpha1.BatchSandbox) { bs.Annotations[v1alpha1.AnnotationAllocStatus] = "{" })
		require.NoError(t, api.List(t.Context(), &before, client.InNamespace(ns)))
	})
	until(t, garbled, reasonIs(v1alpha1.ReasonAllocationUnreadable))

	change(t, garbled, func(bs *v1alpha1.BatchSandbox) { delete(bs.Annotations, v1alpha1.AnnotationAllocStatus) })
	until(t, garbled, func(bs *v1alpha1.BatchSandbox) bool {
		return ready(1)(bs) && len(held(t, bs)) == 1 && held(t, bs)[0] != dirty
	})
	for i := range before.Items {
		gone(t, &before.Items[i])
	}
}

// A tenant that writes its waiting BatchSandbox all the time holds up nobody.
func TestABusyObjectDoesNotKeepTheOperatorFromStarting(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, 1)
	busy := pooled(ns, "busy", 1)
	busy.Spec.PoolRef = "missing"
	require.NoError(t, api.Create(t.Context(), busy))
	until(t, busy, reasonIs(v1alpha1.ReasonPoolNotFound))
	ctx, cancel := context.WithCancel(t.Context())
	var tenants sync.WaitGroup
	for tenant := range 8 { // so that a version lives for some milliseconds
		tenants.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"tenant-%d":"%d"}}}`, tenant, n)
				_ = api.Patch(ctx, pooled(ns, "busy", 1), client.RawPatch(types.MergePatchType, patch))
			}
		})
	}
	whileDown(t, func() {
		require.NoError(t, api.Create(t.Context(), pooled(ns, "other", 1)))
	})
	until(t, pooled(ns, "other", 1), ready(1))
	cancel()
	tenants.Wait()
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(busy), busy))
	require.NotEmpty(t, busy.Annotations[v1alpha1.AnnotationAllocator], "it was touched")
}

// What a leader's touch relies on.
func TestAPatchMovesTheVersionOfNoOtherUIDAndOnlyWithAChange(t *testing.T) {
	bs := pooled(newNamespace(t), "batch", 1)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, reasonIs(v1alpha1.ReasonPoolNotFound))
	patch := func(uid types.UID) error {
		return api.Patch(t.Context(), bs, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"uid":%q,"annotations":{"a":"b"}}}`, uid)))
	}
	whileDown(t, func() { // so that nobody else moves it
		require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
		before := bs.ResourceVersion
		require.NoError(t, patch(bs.UID))
		moved := bs.ResourceVersion
		require.NotEqual(t, before, moved)
		require.NoError(t, patch(bs.UID))
		require.Equal(t, moved, bs.ResourceVersion, "a patch that changes nothing")
		err := patch("another")
		require.True(t, apierrors.IsInvalid(err), err)
		require.ErrorContains(t, err, "metadata.uid")
	})
}
