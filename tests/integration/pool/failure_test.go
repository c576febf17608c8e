package pool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

func TestCreatesThatGetLostMakeNoPodTwice(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "lossy", imageGood, bounds(0, 0, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{}, v1alpha1.ReasonBufferFilled)

	// The cache is no help in finding out.
	release := op.holdPodWatch()
	defer release()
	op.lose(answerLost, requestLost, answerLost)
	edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(5, 5, 0, 10) })
	eventuallyPool(t, p, [4]int32{5, 0, 0, 5}, v1alpha1.ReasonFilling)
	eventually(t, func(c *assert.CollectT) {
		for _, pod := range op.book.Snapshot(client.ObjectKeyFromObject(p)).Pods {
			assert.True(c, pod.Confirmed)
		}
	})
	release()

	eventuallyPool(t, p, [4]int32{5, 0, 5, 5}, v1alpha1.ReasonBufferFilled)
	assert.Zero(t, op.count("DELETE", "pods"))
	assert.Len(t, cluster.listPods(t, namespace), 5)
	stays(t, func() bool { return len(cluster.listPods(t, namespace)) == 5 }, "no pod appears later")
}

func TestAPodThatOnlyAnAnnotationNamesIsNotDeleted(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "named", imageGood, bounds(1, 1, 0, 10))
	stranger := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "stranger", Namespace: namespace},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: imageGood}}},
	}
	create(t, p, stranger)
	eventuallyPool(t, p, [4]int32{1, 0, 1, 1}, v1alpha1.ReasonBufferFilled)

	// Somebody has written a pod's name into an allocation that was never the pool's.
	key := client.ObjectKeyFromObject(p)
	owner := ledger.Owner{NamespacedName: types.NamespacedName{Namespace: namespace, Name: "forger"}, UID: "forger"}
	op.book.Rebuild([]ledger.Record{{Pool: key, Owner: owner, Pods: []string{stranger.Name, "nobody"}}})
	op.book.BeginRelease(key, owner.UID, []string{stranger.Name, "nobody"})
	op.book.EndRelease(key, owner.UID, []string{stranger.Name, "nobody"})

	eventually(t, func(c *assert.CollectT) { assert.Len(c, op.book.Snapshot(key).Pods, 1) })
	assert.True(t, cluster.get(t, stranger), "the pod is there")
	assert.Nil(t, stranger.DeletionTimestamp)
	assert.Zero(t, op.count("DELETE", "pods"))
}

func TestAPodThatItsPoolNoLongerControlsIsReplacedAndLeftAlone(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "orphaner", imageGood, bounds(2, 2, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonBufferFilled)

	orphan := cluster.listPods(t, namespace)[0]
	edit(t, cluster, &orphan, func(pod *corev1.Pod) { pod.OwnerReferences = nil })

	eventually(t, func(c *assert.CollectT) { assert.Len(c, cluster.listPods(c, namespace), 3) })
	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonBufferFilled)
	assert.Zero(t, op.count("DELETE", "pods"))
}

func TestALeaderWhoseLeaseIsOldWritesNothing(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	shrinks := newPool(namespace, "shrinks", imageGood, bounds(3, 3, 0, 10))
	grows := newPool(namespace, "grows", imageGood, bounds(1, 1, 0, 10))
	create(t, shrinks, grows)
	eventuallyPool(t, shrinks, [4]int32{3, 0, 3, 3}, v1alpha1.ReasonBufferFilled)
	eventuallyPool(t, grows, [4]int32{1, 0, 1, 1}, v1alpha1.ReasonBufferFilled)

	stale := errors.New("the lease is old")
	op.deposed.Store(&stale)
	before := op.writes()
	edit(t, cluster, shrinks, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(0, 0, 0, 10) })
	edit(t, cluster, grows, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(4, 4, 0, 10) })
	fresh := newPool(namespace, "new", imageGood, bounds(1, 1, 0, 10))
	create(t, fresh)
	stays(t, func() bool { return op.writes() == before }, "no pod is made or deleted, no finalizer put on and no status written")

	op.deposed.Store(nil)
	eventuallyPool(t, shrinks, [4]int32{}, v1alpha1.ReasonBufferFilled)
	eventuallyPool(t, grows, [4]int32{4, 0, 4, 4}, v1alpha1.ReasonBufferFilled)
	eventuallyPool(t, fresh, [4]int32{1, 0, 1, 1}, v1alpha1.ReasonBufferFilled)
}

// The last leader may have written it, or anybody who may write a status.
func TestAStatusThatSomebodyElseHasWrittenIsPutRight(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	startPool(t, namespace)
	p := newPool(namespace, "rewritten", imageGood, bounds(2, 2, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonBufferFilled)

	before := p.DeepCopy()
	p.Status.Allocated, p.Status.Available = 1, 4
	require.NoError(t, cluster.client.Status().Patch(t.Context(), p, client.MergeFrom(before)))
	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonBufferFilled)
}

// withoutStatusFields returns a folder with the CRDs, those of Pools without some
// fields of the status: an older CRD than the operator's.
func withoutStatusFields(t *testing.T, fields ...string) string {
	t.Helper()
	folder := t.TempDir()
	files, err := filepath.Glob(filepath.Join(crdFolder, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		crd := map[string]any{}
		require.NoError(t, yaml.Unmarshal(raw, &crd))
		if kind, _, _ := unstructured.NestedString(crd, "spec", "names", "kind"); kind == v1alpha1.KindPool {
			versions, _, err := unstructured.NestedSlice(crd, "spec", "versions")
			require.NoError(t, err)
			for _, field := range fields {
				unstructured.RemoveNestedField(versions[0].(map[string]any),
					"schema", "openAPIV3Schema", "properties", "status", "properties", field)
			}
			require.NoError(t, unstructured.SetNestedSlice(crd, versions, "spec", "versions"))
		}
		raw, err = yaml.Marshal(crd)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, filepath.Base(file)), raw, 0o600))
	}
	return folder
}

func TestAStatusFieldThatTheCRDLacksMakesNoHotLoop(t *testing.T) {
	for name, fields := range map[string][]string{
		"a number":       {"updated"},
		"the conditions": {"conditions"},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := startAPIServer(withoutStatusFields(t, fields...))
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, server.env.Stop()) })
			namespace := server.newNamespace(t)
			server.startKubelet(t, namespace)
			op := server.startPool(t, namespace)
			p := newPool(namespace, "old", imageGood, bounds(2, 2, 0, 10))
			require.NoError(t, server.client.Create(t.Context(), p))
			eventually(t, func(c *assert.CollectT) {
				require.True(c, server.get(c, p))
				assert.Equal(c, int32(2), p.Status.Available)
			})

			// The last write may still be due; from then on there is none, whatever wakes the pool.
			require.Eventually(t, func() bool {
				before := op.count("PATCH", "pools/status")
				return !changes(op, before, 2*time.Second)
			}, patience, poll, "the status writes come to an end")
			writes := op.count("PATCH", "pools/status")
			stays(t, func() bool {
				op.wake(client.ObjectKeyFromObject(p))
				return op.count("PATCH", "pools/status") == writes
			}, "no status is written again and again")
		})
	}
}

// changes says whether more statuses are written within the time.
func changes(op *poolOperator, before int, within time.Duration) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		select {
		case <-deadline.C:
			return false
		case <-tick.C:
			if op.count("PATCH", "pools/status") != before {
				return true
			}
		}
	}
}
