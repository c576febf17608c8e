package wakequeue

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

var key = types.NamespacedName{Namespace: "ns", Name: "warm"}

func TestWakesFromBeforeTheStartAreNotLost(t *testing.T) {
	wakes := &Queue{}
	wakes.Wake(key)
	wakes.Wake(key)
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer q.ShutDown()
	require.NoError(t, wakes.Start(t.Context(), q))
	got, _ := q.Get()
	assert.Equal(t, key, got.NamespacedName)
	q.Done(got)

	wakes.Wake(key)
	got, _ = q.Get()
	assert.Equal(t, key, got.NamespacedName)
	assert.Zero(t, q.Len(), "one item for many wakes")
}

// work is what a controller does with its queue, until that is shut down.
func work(q workqueue.TypedRateLimitingInterface[reconcile.Request], reconcile func()) {
	for {
		item, over := q.Get()
		if over {
			return
		}
		reconcile()
		q.Done(item)
	}
}

// A batch that fills is woken for each pod that becomes ready.
func TestManyWakesShareAReconcile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wakes := &Queue{}
		q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
		require.NoError(t, wakes.Start(t.Context(), q))
		begin := time.Now()
		var reconciled []time.Duration
		go work(q, func() { reconciled = append(reconciled, time.Since(begin)) })
		const pods, apart = 4800, 10 * time.Millisecond
		for range pods {
			wakes.WakeShared(key)
			time.Sleep(apart)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Less(t, len(reconciled), int(pods*apart/Share)+2, "instead of one for each pod")
		assert.Zero(t, reconciled[0], "the first is not kept waiting")
		last := (pods - 1) * apart
		assert.GreaterOrEqual(t, reconciled[len(reconciled)-1], last, "the last is not lost")
		assert.LessOrEqual(t, reconciled[len(reconciled)-1], last+Share)

		reconciled = nil
		rested := time.Since(begin)
		wakes.WakeShared(key)
		synctest.Wait()
		assert.Equal(t, []time.Duration{rested}, reconciled, "one that has rested is not kept waiting")

		for i := range 2 * manyNames {
			wakes.WakeShared(types.NamespacedName{Name: strconv.Itoa(i)})
			time.Sleep(time.Millisecond)
		}
		assert.LessOrEqual(t, len(wakes.shared), manyNames, "those that rest are forgotten")
		q.ShutDown()
	})
}

// A pod whose controller reference is taken away is one less for the object that it names.
func TestAPodThatIsTakenAwayWakesTheOneThatHadIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		owned := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{"of": "first"}}}
		moved, free := owned.DeepCopy(), owned.DeepCopy()
		moved.Labels["of"], free.Labels = "second", nil
		woken := func(before, after client.Object) []string {
			q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
			defer q.ShutDown()
			OnPods(func(pod client.Object) (types.NamespacedName, bool) {
				name := pod.GetLabels()["of"]
				return types.NamespacedName{Namespace: pod.GetNamespace(), Name: name}, name != ""
			}).Update(t.Context(), event.UpdateEvent{ObjectOld: before, ObjectNew: after}, q)
			time.Sleep(2 * Settle)
			synctest.Wait()
			var names []string
			for q.Len() > 0 {
				item, _ := q.Get()
				names = append(names, item.Name)
				q.Done(item)
			}
			return names
		}
		assert.Equal(t, []string{"first"}, woken(owned, owned))
		assert.Equal(t, []string{"first"}, woken(free, owned))
		assert.Equal(t, []string{"first"}, woken(owned, free))
		assert.ElementsMatch(t, []string{"first", "second"}, woken(owned, moved))
	})
}

// The queue of a controller keeps one entry for an object: what has it reconciled at once
// takes the entry that was to wait.
func TestAWakeIsNotLostBehindAReconcileThatCameEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wakes := &Queue{}
		q := priorityqueue.New[reconcile.Request]("test")
		require.NoError(t, wakes.Start(t.Context(), q))
		begin := time.Now()
		var reconciled []time.Duration
		go work(q, func() { reconciled = append(reconciled, time.Since(begin)) })
		wakes.WakeShared(key)
		time.Sleep(Share / 5)
		wakes.WakeShared(key) // to wait until Share has passed
		time.Sleep(Share / 5)
		q.Add(reconcile.Request{NamespacedName: key}) // the object itself has changed
		time.Sleep(Share / 5)
		wakes.WakeShared(key)
		time.Sleep(Share)
		synctest.Wait()
		assert.Equal(t, []time.Duration{0, 2 * Share / 5, Share}, reconciled)
		q.ShutDown()
	})
}
