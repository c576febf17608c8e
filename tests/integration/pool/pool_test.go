package pool

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

func create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, obj := range objects {
		require.NoError(t, cluster.client.Create(t.Context(), obj))
	}
}

// eventuallyPool waits until the pool's numbers and its Ready condition are these.
func eventuallyPool(t *testing.T, p *v1alpha1.Pool, want [4]int32, reason string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		require.True(c, cluster.get(c, p))
		assert.Equal(c, want, numbers(p), "total, allocated, available, updated")
		ready := condition(p, v1alpha1.ConditionReady)
		assert.Equal(c, reason, ready.Reason, ready.Message)
		assert.Equal(c, p.Generation, p.Status.ObservedGeneration)
	})
}

// claim holds n pods of the pool for a BatchSandbox that exists in the ledger only.
func (op *poolOperator) claim(t *testing.T, p *v1alpha1.Pool, n int) (ledger.Owner, []string) {
	t.Helper()
	owner := ledger.Owner{
		NamespacedName: types.NamespacedName{Namespace: p.Namespace, Name: "holder"},
		UID:            "holder", Created: time.Now(),
	}
	shards := make([]int32, n)
	for i := range shards {
		shards[i] = int32(i)
	}
	var names []string
	for _, grant := range op.book.Claim(client.ObjectKeyFromObject(p), owner, shards) {
		names = append(names, grant.Pod.Name)
	}
	return owner, names
}

func TestPoolFillsItsBufferAndItsMinimum(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	startPool(t, namespace)
	buffer := newPool(namespace, "buffer", imageGood, bounds(2, 10, 5, 20))
	minimum := newPool(namespace, "minimum", imageGood, bounds(0, 2, 4, 20))
	create(t, buffer, minimum)

	eventuallyPool(t, buffer, [4]int32{6, 0, 6, 6}, v1alpha1.ReasonBufferFilled)
	eventuallyPool(t, minimum, [4]int32{4, 0, 4, 4}, v1alpha1.ReasonBufferFilled)

	assert.Contains(t, buffer.Finalizers, v1alpha1.FinalizerPoolAllocation)
	assert.NotEmpty(t, buffer.Status.Revision)
	for _, pod := range cluster.listPods(t, namespace) {
		owner := metav1.GetControllerOf(&pod)
		require.NotNil(t, owner)
		assert.Equal(t, pod.Labels[v1alpha1.LabelPoolName], owner.Name)
		assert.Equal(t, v1alpha1.ManagedBy, pod.Labels[v1alpha1.LabelManagedBy])
	}
}

func TestPoolOf500IsExactly500CreatesHoweverLateTheCacheIs(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	first := newPool(namespace, "first", imageGood, bounds(1, 1, 0, 1))
	create(t, first)
	eventuallyPool(t, first, [4]int32{1, 0, 1, 1}, v1alpha1.ReasonBufferFilled)

	release := op.holdPodWatch()
	defer release()
	p := newPool(namespace, "large", imageGood, bounds(500, 500, 0, 600))
	create(t, p)
	eventually(t, func(c *assert.CollectT) { assert.Len(c, cluster.listPods(c, namespace), 501) })
	// More passes, for which the cache still shows none of them.
	for i := range 3 {
		edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.PoolMax = int32(601 + i) })
		eventuallyPool(t, p, [4]int32{500, 0, 0, 500}, v1alpha1.ReasonFilling)
	}
	release()

	eventuallyPool(t, p, [4]int32{500, 0, 500, 500}, v1alpha1.ReasonBufferFilled)
	assert.Equal(t, 501, op.count("POST", "pods"), "creates sent")
	assert.Zero(t, op.count("DELETE", "pods"), "deletes sent")
	assert.Len(t, cluster.listPods(t, namespace), 501)
}

func TestPoolWhoseImageCannotBePulledSaysSoAndIsCalm(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "stuck", imageMissing, bounds(2, 2, 0, 10))
	create(t, p)

	eventually(t, func(c *assert.CollectT) {
		require.True(c, cluster.get(c, p))
		ready := condition(p, v1alpha1.ConditionReady)
		assert.Equal(c, metav1.ConditionFalse, ready.Status)
		assert.Equal(c, v1alpha1.ReasonPodsCannotStart, ready.Reason)
		assert.Regexp(c, `^2 of 2 idle pods cannot start; stuck-\w+: ErrImagePull: container main: "missing:1" not found$`, ready.Message)
	})
	eventually(t, func(c *assert.CollectT) {
		assert.Len(c, cluster.eventsOf(c, p, v1alpha1.ReasonPodsCannotStart), 1)
	})

	writes := op.count("PATCH", "pools/status")
	stays(t, func() bool {
		return op.count("POST", "pods") == 2 && op.count("DELETE", "pods") == 0 && op.count("PATCH", "pools/status") == writes
	}, "no pod is created or deleted and no status written")

	// The mended template heals it at once.
	edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.Template.Spec.Containers[0].Image = imageGood })
	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonBufferFilled)
}

func TestEvictedPodLeavesThePoolUnlessItIsHeld(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "evict", imageGood, bounds(2, 2, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonBufferFilled)
	_, held := op.claim(t, p, 1)
	require.Len(t, held, 1)
	eventuallyPool(t, p, [4]int32{3, 1, 2, 3}, v1alpha1.ReasonBufferFilled)

	pods := cluster.listPods(t, namespace)
	for i := range pods {
		edit(t, cluster, &pods[i], func(pod *corev1.Pod) { pod.Labels[v1alpha1.LabelPoolEvict] = "" })
	}

	eventually(t, func(c *assert.CollectT) {
		var old []string
		left := cluster.listPods(c, namespace)
		for i := range left {
			if slices.ContainsFunc(pods, func(pod corev1.Pod) bool { return pod.UID == left[i].UID }) {
				old = append(old, left[i].Name)
			}
		}
		assert.Equal(c, held, old, "pods that are left of the evicted ones")
	})
	eventuallyPool(t, p, [4]int32{3, 1, 2, 3}, v1alpha1.ReasonBufferFilled)
}

func TestTemplateChangeRollsIdlePodsAndLeavesHeldOnes(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "roll", imageGood, bounds(2, 8, 0, 20))
	one := intstr.FromInt32(1)
	p.Spec.UpdateStrategy.MaxUnavailable = &one
	create(t, p)
	eventuallyPool(t, p, [4]int32{5, 0, 5, 5}, v1alpha1.ReasonBufferFilled)
	_, held := op.claim(t, p, 1)
	eventuallyPool(t, p, [4]int32{5, 1, 4, 5}, v1alpha1.ReasonBufferFilled)
	revision := p.Status.Revision

	edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.Template.Spec.Containers[0].Image = imageBetter })

	eventuallyPool(t, p, [4]int32{5, 1, 4, 4}, v1alpha1.ReasonBufferFilled)
	assert.NotEqual(t, revision, p.Status.Revision)
	images := map[string][]string{}
	for _, pod := range cluster.listPods(t, namespace) {
		image := pod.Spec.Containers[0].Image
		images[image] = append(images[image], pod.Name)
	}
	assert.Equal(t, held, images[imageGood], "the held pod stays")
	assert.Len(t, images[imageBetter], 4)
	assert.Equal(t, 5+4+1, op.count("POST", "pods"), "five pods, four new ones and one dry run")
}

func TestRefusedTemplateIsToldInTheAPIServersWordsAndNotTriedInAHotLoop(t *testing.T) {
	namespace := newNamespace(t)
	op := startPool(t, namespace)
	p := newPool(namespace, "bad", "", bounds(5, 5, 0, 10))
	begin := time.Now()
	create(t, p)

	eventuallyPool(t, p, [4]int32{}, v1alpha1.ReasonTemplateInvalid)
	ready := condition(p, v1alpha1.ConditionReady)
	assert.Equal(t, `Pod "bad-*" is invalid: spec.containers[0].image: Required value`, ready.Message)
	eventually(t, func(c *assert.CollectT) {
		assert.Len(c, cluster.eventsOf(c, p, v1alpha1.ReasonTemplateInvalid), 1)
	})
	// One try each after 0, 1, 2, 4, ... seconds: n tries take 2^(n-1)-1 seconds at least.
	stays(t, func() bool {
		tries := max(1, op.count("POST", "pods"))
		return time.Since(begin) >= time.Duration(1<<(tries-1)-1)*time.Second
	}, "no hot loop of creates")
	assert.LessOrEqual(t, op.count("PATCH", "pools/status"), 2, "status writes")

	startKubelet(t, namespace)
	edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.Template.Spec.Containers[0].Image = imageGood })
	eventuallyPool(t, p, [4]int32{5, 0, 5, 5}, v1alpha1.ReasonBufferFilled)
}

func TestRefusedTemplateOfAFilledPoolCostsNoPod(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "good", imageGood, bounds(2, 8, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{5, 0, 5, 5}, v1alpha1.ReasonBufferFilled)

	edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.Template.Spec.Containers[0].Image = "" })
	eventuallyPool(t, p, [4]int32{5, 0, 5, 0}, v1alpha1.ReasonTemplateInvalid)
	stays(t, func() bool { return op.count("DELETE", "pods") == 0 }, "no pod is deleted")
	assert.Len(t, cluster.listPods(t, namespace), 5)

	edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.Template.Spec.Containers[0].Image = imageGood })
	eventuallyPool(t, p, [4]int32{5, 0, 5, 5}, v1alpha1.ReasonBufferFilled)
	assert.Zero(t, op.count("DELETE", "pods"), "going back to the old template replaces nothing")
}

func TestFullQuotaIsShownAndGrowthGoesOnWhenThereIsRoom(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "pods", Namespace: namespace}}
	quota.Spec.Hard = corev1.ResourceList{corev1.ResourcePods: quantity("2")}
	create(t, quota)
	// There is no quota controller: the first count is written by hand.
	quota.Status.Hard = quota.Spec.Hard
	quota.Status.Used = corev1.ResourceList{corev1.ResourcePods: quantity("0")}
	require.NoError(t, cluster.client.Status().Update(t.Context(), quota))
	p := newPool(namespace, "quota", imageGood, bounds(5, 5, 0, 10))
	create(t, p)

	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonCreateFailed)
	assert.Contains(t, condition(p, v1alpha1.ConditionReady).Message, "exceeded quota: pods")
	stays(t, func() bool { return op.count("POST", "pods") < 20 }, "no hot loop of creates")

	edit(t, cluster, quota, func(q *corev1.ResourceQuota) { q.Spec.Hard[corev1.ResourcePods] = quantity("9") })
	require.True(t, cluster.get(t, quota))
	quota.Status.Hard = quota.Spec.Hard
	require.NoError(t, cluster.client.Status().Update(t.Context(), quota))
	eventuallyPool(t, p, [4]int32{5, 0, 5, 5}, v1alpha1.ReasonBufferFilled)
}

func TestDeletedPoolWaitsForWhatItHasHandedOut(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "lender", imageGood, bounds(3, 3, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{3, 0, 3, 3}, v1alpha1.ReasonBufferFilled)
	owner, held := op.claim(t, p, 2)
	require.Len(t, held, 2)
	eventuallyPool(t, p, [4]int32{5, 2, 3, 5}, v1alpha1.ReasonBufferFilled)

	require.NoError(t, cluster.client.Delete(t.Context(), p))

	eventuallyPool(t, p, [4]int32{2, 2, 0, 2}, v1alpha1.ReasonPoolDeleting)
	deleting := condition(p, v1alpha1.ConditionDeleting)
	assert.Equal(t, v1alpha1.ReasonWaitingForSandboxes, deleting.Reason)
	assert.Equal(t, "waiting for 2 sandboxes of 1 BatchSandboxes to come back", deleting.Message)
	assert.ElementsMatch(t, held, names(cluster.listPods(t, namespace)), "idle pods are gone, held ones stay")
	key := client.ObjectKeyFromObject(p)
	late := ledger.Owner{UID: "late"}
	assert.Zero(t, op.book.SetDemand(key, late, 1), "it hands out nothing more")
	op.book.SetDemand(key, late, 0)
	eventually(t, func(c *assert.CollectT) {
		assert.Len(c, cluster.eventsOf(c, p, v1alpha1.ReasonWaitingForSandboxes), 1)
	})

	op.book.BeginRelease(key, owner.UID, held)
	op.book.MarkClean(key, owner.UID, held[0]) // it goes with the others even so
	op.book.EndRelease(key, owner.UID, held)
	eventually(t, func(c *assert.CollectT) {
		assert.False(c, cluster.get(c, p.DeepCopy()), "the Pool is gone")
		assert.Empty(c, cluster.listPods(c, namespace))
	})
}

func TestDeletedPoolThatHasHandedOutNothingGoesAtOnce(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	startPool(t, namespace)
	p := newPool(namespace, "idle", imageGood, bounds(3, 3, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{3, 0, 3, 3}, v1alpha1.ReasonBufferFilled)
	require.NoError(t, cluster.client.Delete(t.Context(), p))
	eventually(t, func(c *assert.CollectT) {
		assert.False(c, cluster.get(c, p.DeepCopy()), "the Pool is gone")
		assert.Empty(c, cluster.listPods(c, namespace))
	})

	// And another one of the same name starts anew.
	again := newPool(namespace, "idle", imageGood, bounds(2, 2, 0, 10))
	create(t, again)
	eventuallyPool(t, again, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonBufferFilled)
}

func TestLostAndFinishedIdlePodsAreReplaced(t *testing.T) {
	namespace := newNamespace(t)
	node := startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "lossy", imageGood, bounds(3, 3, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{3, 0, 3, 3}, v1alpha1.ReasonBufferFilled)
	pods := cluster.listPods(t, namespace)
	require.NoError(t, cluster.client.Delete(t.Context(), &pods[0]))
	eventually(t, func(c *assert.CollectT) { assert.Equal(c, 4, op.count("POST", "pods")) })
	eventuallyPool(t, p, [4]int32{3, 0, 3, 3}, v1alpha1.ReasonBufferFilled)

	// The first that ends is replaced at once.
	ends := func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodFailed; setReady(pod, false) }
	node.change(t, &pods[1], ends)
	eventually(t, func(c *assert.CollectT) { assert.Equal(c, 5, op.count("POST", "pods")) })
	eventuallyPool(t, p, [4]int32{3, 0, 3, 3}, v1alpha1.ReasonBufferFilled)

	// The next is kept for a while, so that pods which end at once are no loop.
	node.change(t, &pods[2], ends)
	eventuallyPool(t, p, [4]int32{2, 0, 2, 2}, v1alpha1.ReasonPodsCannotStart)
	stays(t, func() bool { return op.count("POST", "pods") == 5 }, "it is not replaced at once")
}

// slowPool returns a pool of five pods that were all made in one second, as the API server has it:
// they take too long from the same moment on. On a busy machine that takes a few tries.
func slowPool(t *testing.T, namespace string) *v1alpha1.Pool {
	t.Helper()
	for try := 0; ; try++ {
		p := newPool(namespace, fmt.Sprint("stuck-", try), imageSlow, bounds(2, 8, 0, 30))
		create(t, p)
		eventuallyPool(t, p, [4]int32{5, 0, 0, 5}, v1alpha1.ReasonFilling)
		seconds := map[time.Time]bool{}
		for _, pod := range cluster.listPods(t, namespace) {
			seconds[pod.CreationTimestamp.Time] = true
		}
		if len(seconds) == 1 {
			return p
		}
		require.NoError(t, cluster.client.Delete(t.Context(), p))
		eventually(t, func(c *assert.CollectT) {
			assert.False(c, cluster.get(c, p))
			assert.Empty(c, cluster.listPods(c, namespace), "its pods")
		})
	}
}

func TestDemandDoesNotWaitForPodsThatNeverBecomeReady(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := slowPool(t, namespace)
	made, deleted := op.count("POST", "pods"), op.count("DELETE", "pods")
	key := client.ObjectKeyFromObject(p)
	owner := ledger.Owner{NamespacedName: types.NamespacedName{Namespace: namespace, Name: "waits"}, UID: "waits", Created: time.Now()}
	require.Zero(t, op.book.SetDemand(key, owner, 3))
	stays(t, func() bool { return op.count("POST", "pods") == made }, "the idle pods may still become ready")

	// A minute later: 3 for the demand and 5 for the buffer, beside those 5, of which a quarter goes.
	eventuallyPool(t, p, [4]int32{11, 0, 0, 11}, v1alpha1.ReasonFilling)
	assert.Contains(t, condition(p, v1alpha1.ConditionReady).Message, "3 of them take too long and are replaced")
	assert.Equal(t, made+8, op.count("POST", "pods"), "creates")
	assert.Equal(t, deleted+2, op.count("DELETE", "pods"), "deletes")
}

func TestStatusOfABusyPoolIsWrittenOnceASecondAfterABurst(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	op := startPool(t, namespace)
	p := newPool(namespace, "busy", imageGood, bounds(100, 100, 0, 200))
	begin := time.Now()
	create(t, p)
	eventuallyPool(t, p, [4]int32{100, 0, 100, 100}, v1alpha1.ReasonBufferFilled)
	for range 60 { // each is one more generation to show
		edit(t, cluster, p, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.PoolMax++ })
	}
	const burst = 5
	assert.LessOrEqual(t, op.count("PATCH", "pools/status"), int(time.Since(begin)/time.Second)+burst)
}

func names(pods []corev1.Pod) []string {
	set := map[string]bool{}
	for i := range pods {
		set[pods[i].Name] = true
	}
	return slices.Sorted(maps.Keys(set))
}
