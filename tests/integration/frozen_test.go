package integration

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/internal/evidence"
)

// compete starts an operator that competes for the lease of the namespace, and ends it
// with the test.
func compete(t *testing.T, name, namespace string) *process {
	t.Helper()
	log, err := os.Create(filepath.Join(filepath.Dir(operator.log.Name()), name+".log"))
	require.NoError(t, err)
	evidence.File(t, log.Name())
	p := &process{binary: operator.binary, kubeconfig: operator.kubeconfig, name: name, namespace: namespace, flags: []string{"--leader-elect"}, log: log}
	require.NoError(t, p.start())
	t.Cleanup(p.kill)
	return p
}

// countPods watches a namespace until the test ends. The result tells the greatest
// number of pods that were there at a time and not on their way out.
func countPods(t *testing.T, ns string) (most func() int) {
	t.Helper()
	events, err := api.Watch(t.Context(), &corev1.PodList{}, client.InNamespace(ns))
	require.NoError(t, err)
	t.Cleanup(events.Stop)
	var mu sync.Mutex // guards greatest
	greatest := 0
	go func() {
		live := map[string]bool{}
		for e := range events.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			if e.Type == watch.Deleted || pod.DeletionTimestamp != nil {
				delete(live, pod.Name)
				continue
			}
			live[pod.Name] = true
			mu.Lock()
			greatest = max(greatest, len(live))
			mu.Unlock()
		}
	}()
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return greatest
	}
}

// A leader that is frozen for longer than its lease stands wakes up in the belief that it
// leads: its memory is old, and its election code finds out only seconds later.
func TestALeaderThatWasFrozenWritesNothingMore(t *testing.T) {
	operator.kill()
	t.Cleanup(func() { require.NoError(t, operator.start()) })
	ns, own := newNamespace(t), newNamespace(t)
	most := countPods(t, ns)
	first := compete(t, "first", own)
	pool := newPool(t, ns, 2, 16)
	before := pooled(ns, "before", 1)
	require.NoError(t, api.Create(t.Context(), before))
	until(t, before, ready(1))
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Allocated == 1 && p.Status.Available == 2 })
	second := compete(t, "second", own) // waits for the lease

	require.NoError(t, first.cmd.Process.Signal(syscall.SIGSTOP))
	// Had it not been frozen, it would have done all this. The second one does.
	change(t, pool, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.BufferMin, p.Spec.CapacitySpec.BufferMax = 10, 10 })
	during := pooled(ns, "during", 4)
	require.NoError(t, api.Create(t.Context(), during))
	until(t, during, ready(4))
	require.NoError(t, api.Delete(t.Context(), before))
	gone(t, before)
	numbers := func(total, allocated, available int32) func(*v1alpha1.Pool) bool {
		return func(p *v1alpha1.Pool) bool {
			return p.Status.Total == total && p.Status.Allocated == allocated && p.Status.Available == available
		}
	}
	until(t, pool, numbers(14, 4, 10))

	// It wakes up while the lease is the second one's, and finds something to do.
	second.kill()
	change(t, pool, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.BufferMin, p.Spec.CapacitySpec.BufferMax = 12, 12 })
	thawed := time.Now()
	require.NoError(t, first.cmd.Process.Signal(syscall.SIGCONT))
	require.Error(t, first.cmd.Wait(), "it ends when it finds out, and says so")
	require.Empty(t, requests(t, func(r *request) bool {
		return r.Verb != "get" && strings.HasPrefix(r.UserAgent, "first/") && r.RequestReceivedTimestamp.After(thawed) &&
			r.ResponseStatus.Code < 300 && r.ObjectRef.Resource != "events"
	}), "writes of the leader that was frozen")
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pool), pool))
	require.True(t, numbers(14, 4, 10)(pool), "the pool's status: %+v", pool.Status)

	compete(t, "third", own)
	until(t, pool, numbers(16, 4, 12))
	requireDisjoint(t, during)
	require.LessOrEqual(t, most(), 16, "poolMax")
}
