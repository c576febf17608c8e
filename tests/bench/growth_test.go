package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/opensandbox/operator/tests/bench/results"
)

func TestEachFloorHasItsRowsAndTheOperatorIsComparedInEach(t *testing.T) {
	const ms = time.Millisecond
	g := growth{name: "10 pods", ways: []way{{name: "operator", says: true}, {name: "by hand"}, {name: "a Job"}}}
	table := results.Table{Keys: []string{"grown", "until", "floor"}, Columns: comparedColumns}
	g.addRows(&table, [][]grown{
		{{said: 30 * ms, ready: 20 * ms, gone: 10 * ms}, {said: 60 * ms, ready: 40 * ms, gone: 20 * ms}},
		{{said: 1 * ms, ready: 10 * ms, gone: 10 * ms}, {said: 1 * ms, ready: 10 * ms, gone: 10 * ms}},
		{{said: 1 * ms, ready: 20 * ms, gone: 40 * ms}, {said: 1 * ms, ready: 20 * ms, gone: 40 * ms}},
	})
	ratios, err := table.Column("ratio")
	require.NoError(t, err)
	require.InDeltaSlice(t, []float64{4.5, 3, 1.5, 2.25, 1.5, 0.375}, ratios, 1e-9)
	require.Equal(t, []string{"10 pods", "delivered", "by hand"}, table.Rows[0].Keys, "a floor says nothing: its pods are looked at")
	require.Equal(t, []string{"10 pods", "pods gone", "a Job"}, table.Rows[5].Keys)

	g.ways[0].says = false
	table.Rows = nil
	g.addRows(&table, [][]grown{{{ready: ms, gone: ms}}, {{ready: ms, gone: ms}}, {{ready: ms, gone: ms}}})
	require.Len(t, table.Rows, 4, "nobody says that a pool is full")
}

func TestAViewCountsPodsByWhatTheyBecame(t *testing.T) {
	v := &podView{pods: map[string]podState{}, changed: make(chan struct{})}
	pod := func(name string, ready corev1.ConditionStatus) *corev1.Pod {
		p := &corev1.Pod{}
		p.Namespace, p.Name = "ns", name
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
		return p
	}
	v.note(pod("a", corev1.ConditionFalse))
	require.Equal(t, []int{1, 0, 0}, []int{len(v.pods), v.started, v.idle})
	require.NoError(t, v.until(t.Context(), func() bool { return len(v.pods) == 1 }))

	reached := make(chan error)
	go func() { reached <- v.untilStarted(t.Context(), 2) }()
	v.note(pod("a", corev1.ConditionTrue))
	ended := pod("b", corev1.ConditionFalse)
	ended.Status.Phase = corev1.PodSucceeded
	v.note(ended)
	require.NoError(t, <-reached)
	require.Equal(t, 1, v.idle, "one that has ended is not idle")

	going := pod("a", corev1.ConditionTrue)
	going.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	v.note(going)
	require.Equal(t, []int{2, 2, 0}, []int{len(v.pods), v.started, v.idle})
	v.forget(going)
	v.forget(cache.DeletedFinalStateUnknown{Key: "ns/b", Obj: ended})
	require.NoError(t, v.untilGone(t.Context()))
	require.Equal(t, []int{0, 0, 2}, []int{v.started, v.idle, v.count()})
}
