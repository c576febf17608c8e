package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func memory(quantity string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(quantity)}
}

func listPods(t *testing.T, ns string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	require.NoError(t, api.List(context.Background(), &list, client.InNamespace(ns)))
	return list.Items
}

func podUIDs(t *testing.T, ns string) map[types.UID]bool {
	t.Helper()
	uids := map[types.UID]bool{}
	for _, pod := range listPods(t, ns) {
		uids[pod.UID] = true
	}
	return uids
}

func untilPods(t *testing.T, ns string, condition func([]corev1.Pod) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		var list corev1.PodList
		return api.List(context.Background(), &list, client.InNamespace(ns)) == nil && condition(list.Items)
	}, patience, poll)
}

func untilEvent(t *testing.T, ns, object, reason string) {
	t.Helper()
	require.Eventually(t, func() bool {
		var list eventsv1.EventList
		if api.List(context.Background(), &list, client.InNamespace(ns)) != nil {
			return false
		}
		for i := range list.Items {
			if list.Items[i].Regarding.Name == object && list.Items[i].Reason == reason {
				return true
			}
		}
		return false
	}, patience, poll, "no event %s of %s", reason, object)
}

// handOuts watches who holds which pod, and complains of a pod that has had two holders.
type handOuts struct {
	mu      sync.Mutex // guards both
	holder  map[string]types.UID
	trouble []string
}

func watchHandOuts(t *testing.T, ns string) *handOuts {
	t.Helper()
	l := &handOuts{holder: map[string]types.UID{}}
	w, err := api.Watch(t.Context(), &v1alpha1.BatchSandboxList{}, client.InNamespace(ns))
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() {
		w.Stop()
		<-done
	})
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			if bs, ok := e.Object.(*v1alpha1.BatchSandbox); ok && e.Type != watch.Deleted {
				l.note(bs)
			}
		}
	}()
	return l
}

func (l *handOuts) note(bs *v1alpha1.BatchSandbox) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pods, err := readHeld(bs)
	if err != nil {
		l.trouble = append(l.trouble, fmt.Sprintf("BatchSandbox %s: %s", bs.Name, err))
	}
	for _, pod := range pods {
		if pod == "" {
			continue
		}
		if other := l.holder[pod]; other != "" && other != bs.UID {
			l.trouble = append(l.trouble, fmt.Sprintf("pod %s was handed to %s and to %s (%s)", pod, other, bs.UID, bs.Name))
		}
		l.holder[pod] = bs.UID
	}
}

func (l *handOuts) check(t *testing.T, atLeast int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	assert.Empty(t, l.trouble)
	assert.GreaterOrEqual(t, len(l.holder), atLeast, "the watch saw the hand-outs")
}

func TestAPoolNeverHandsAPodOutTwice(t *testing.T) {
	const rounds, batches, size = 2, 4, 2
	t.Parallel()
	ns := newNamespace(t)
	startPool(t, ns, shell("sleep 3600"), v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 2, PoolMax: 6})
	seen := watchHandOuts(t, ns)
	// Each round asks for more than the pool has, and gives back while others wait.
	for round := range rounds {
		var all []*v1alpha1.BatchSandbox
		for i := range batches {
			bs := pooled(ns, fmt.Sprintf("batch-%d-%d", round, i), size)
			require.NoError(t, api.Create(t.Context(), bs))
			all = append(all, bs)
		}
		for _, bs := range all {
			until(t, bs, ready)
			require.Len(t, endpointsOf(t, bs), size)
			require.NoError(t, api.Delete(t.Context(), bs))
		}
	}
	seen.check(t, rounds*batches*size)
}

func TestDeletedBatchesReturnTheirSandboxesToThePool(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	pool := startPool(t, ns, webServer(), v1alpha1.CapacitySpec{BufferMin: 2, BufferMax: 10, PoolMin: 5, PoolMax: 20})
	cells := row(t, kubectl(t, "", "get", "pools", "--namespace", ns))
	require.Equal(t, []string{"example-pool", "0"}, []string{cells["NAME"], cells["ALLOCATED"]})

	bs := pooled(ns, "pooled", 3)
	start(t, bs)
	for _, ip := range endpointsOf(t, bs) {
		require.Equal(t, http.StatusOK, getPage(t, ip, "/"))
	}
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 3 })
	cells = row(t, kubectl(t, "", "get", "batchsandboxes", "--namespace", ns))
	for _, column := range []string{"DESIRED", "TOTAL", "ALLOCATED", "READY"} {
		require.Equal(t, "3", cells[column], "column %s", column)
	}
	require.Contains(t, kubectl(t, "", "describe", "pool", pool.Name, "--namespace", ns), v1alpha1.ReasonBufferFilled)

	used := heldBy(t, bs)
	require.NoError(t, api.Delete(t.Context(), bs))
	untilGone(t, bs)
	until(t, pool, func(p *v1alpha1.Pool) bool {
		return p.Status.Allocated == 0 && p.Status.Total >= 5 && p.Status.Available >= 5
	})
	for _, name := range used {
		untilGone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
}

func TestANoopPoolTakesTheSamePodsBack(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}, Spec: v1alpha1.PoolSpec{
		Template: shell("sleep 3600"), CapacitySpec: v1alpha1.CapacitySpec{BufferMin: 0, BufferMax: 2, PoolMin: 2, PoolMax: 2},
		RecycleStrategy: v1alpha1.RecycleStrategy{Type: v1alpha1.RecycleNoop}}}
	require.NoError(t, api.Create(t.Context(), pool))
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 })
	before := podUIDs(t, ns)
	bs := pooled(ns, "batch", 2)
	start(t, bs)
	require.NoError(t, api.Delete(t.Context(), bs))
	untilGone(t, bs)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 && p.Status.Allocated == 0 })
	require.Equal(t, before, podUIDs(t, ns))
}

func TestADirtySandboxNeverComesBack(t *testing.T) {
	const size = 4
	t.Parallel()
	ns := newNamespace(t)
	pool := startPool(t, ns, webServer(), v1alpha1.CapacitySpec{BufferMin: 0, BufferMax: size, PoolMin: size, PoolMax: size})
	first := pooled(ns, "first", size)
	start(t, first)
	endpoints := endpointsOf(t, first)
	for i, pod := range heldBy(t, first) {
		inSandbox(t, ns, pod, "sh", "-c", "echo secret >/usr/share/nginx/html/dirty")
		require.Equal(t, http.StatusOK, getPage(t, endpoints[i], "/dirty"), "the test sees what it wrote")
	}
	// Two come back by scaling down, two by deletion, while another batch waits for all.
	second := pooled(ns, "second", size)
	require.NoError(t, api.Create(t.Context(), second))
	first.Spec.Replicas = ptr.To(int32(2))
	require.NoError(t, updated(t, first))
	until(t, second, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Ready == 2 })
	require.NoError(t, api.Delete(t.Context(), first))
	until(t, second, ready)
	for _, ip := range endpointsOf(t, second) {
		require.Equal(t, http.StatusNotFound, getPage(t, ip, "/dirty"))
	}
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Total == size && p.Status.Allocated == size })
}

// updated writes the spec, over whatever the operator has written meanwhile.
func updated(t *testing.T, bs *v1alpha1.BatchSandbox) error {
	t.Helper()
	live := bs.DeepCopy()
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(bs), live); err != nil {
		return err
	}
	changed := live.DeepCopy()
	changed.Spec = bs.Spec
	return api.Patch(t.Context(), changed, client.MergeFrom(live))
}
