package batchsandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// many is more pods than one pass may try where every call fails.
const many = 100

// newLargeWorld has a pooled batch of many sandboxes that is being scaled to none.
func newLargeWorld(t *testing.T) *world {
	t.Helper()
	pods := make([]string, many)
	for i := range pods {
		pods[i] = fmt.Sprintf("pod-%d", i)
	}
	w := newPooledWorld(t, pods, named("batch", many))
	w.mustReconcile("batch")
	w.scale("batch", 0)
	w.writes = nil
	return w
}

func (w *world) scale(name string, replicas int32) {
	w.t.Helper()
	bs := w.get(name)
	bs.Spec.Replicas = &replicas
	require.NoError(w.t, w.api.Update(w.t.Context(), bs))
}

// deletes counts the deletions that were sent since the writes were forgotten.
func (w *world) deletes() int { return strings.Count(strings.Join(w.writes, ",")+",", "delete ") }

func TestAReleasePassStopsWhereTheAPIServerRefuses(t *testing.T) {
	w := newLargeWorld(t)
	w.spoil = func(write string, do func() error) error {
		if strings.HasPrefix(write, "delete") {
			return apierrors.NewServiceUnavailable(strings.Repeat("x", 100))
		}
		return do()
	}
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsServiceUnavailable(err), "%v", err)
	require.Less(t, w.deletes(), passFailures+passParallel)
	require.Less(t, len(err.Error()), 1000)

	w.spoil = nil
	w.mustReconcile("batch")
	require.Empty(t, w.get("batch").Annotations)
}

func TestAReleasePassThatTakesLongIsContinuedAfterOthers(t *testing.T) {
	for name, letGo := range map[string]func(w *world){
		"scaled down": func(*world) {},
		"deleted":     func(w *world) { require.NoError(w.t, w.api.Delete(w.t.Context(), w.get("batch"))) },
		"gone": func(w *world) {
			bs := w.get("batch")
			bs.Finalizers = nil
			require.NoError(w.t, w.api.Update(w.t.Context(), bs))
			require.NoError(w.t, w.api.Delete(w.t.Context(), bs))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLargeWorld(t)
			letGo(w)
			w.spoil = func(write string, do func() error) error {
				if strings.HasPrefix(write, "delete") {
					w.clock.Step(passBudget / 20)
				}
				return do()
			}
			require.Equal(t, afterPass, w.mustReconcile("batch").RequeueAfter)
			require.Positive(t, w.deletes())
			require.Less(t, w.deletes(), many)
			passes := 1
			for w.mustReconcile("batch").RequeueAfter == afterPass {
				passes++
			}
			require.LessOrEqual(t, passes, many)
			require.Equal(t, many, w.deletes(), "each pod once")
			var pods corev1.PodList
			require.NoError(t, w.api.List(t.Context(), &pods))
			require.Empty(t, pods.Items)
		})
	}
}

func TestOnePodThatCannotBeDeletedHoldsUpNoOther(t *testing.T) {
	w := newLargeWorld(t)
	w.spoil = func(write string, do func() error) error {
		if write == "delete pod-0" {
			return apierrors.NewForbidden(corev1.Resource("pods"), "pod-0", nil)
		}
		return do()
	}
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	require.JSONEq(t, `{"pods":["pod-0"]}`, w.get("batch").Annotations[v1alpha1.AnnotationAllocRelease])
}

func TestPodsThatCannotBeDeletedHoldUpTheOthersOnlyForAWhile(t *testing.T) {
	w := newLargeWorld(t)
	stuck := func(i int) bool { return i < 2*passFailures }
	w.spoil = func(write string, do func() error) error {
		var i int
		if _, err := fmt.Sscanf(write, "delete pod-%d", &i); err == nil && stuck(i) {
			return apierrors.NewForbidden(corev1.Resource("pods"), "stuck", nil)
		}
		return do()
	}
	var release v1alpha1.AllocRelease
	for range 1000 { // each pass begins elsewhere
		_, err := w.reconcile("batch")
		require.True(t, apierrors.IsForbidden(err), "%v", err)
		release = v1alpha1.AllocRelease{}
		require.NoError(t, json.Unmarshal([]byte(w.get("batch").Annotations[v1alpha1.AnnotationAllocRelease]), &release))
		if len(release.Pods) == 2*passFailures {
			return
		}
	}
	require.Len(t, release.Pods, 2*passFailures)
}

func TestNoPodIsDeletedTwice(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("batch", 2))
	w.mustReconcile("batch")
	w.scale("batch", 0)
	patches := 0
	w.spoil = func(write string, do func() error) error {
		if write != "patch batch" {
			return do()
		}
		if patches++; patches > 1 {
			return refusal() // of the one that takes them out of alloc-release
		}
		return do()
	}
	w.writes = nil
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsInvalid(err), "%v", err)
	w.Ledger.ObserveGone(poolKey, "a", "uid-a")
	_, err = w.reconcile("batch")
	require.True(t, apierrors.IsInvalid(err), "%v", err)
	require.Equal(t, 2, w.deletes(), "%v", w.writes)
}

func TestNoTemplatePodIsDeletedTwiceWhileTheCacheIsLate(t *testing.T) {
	w := newWorld(t, named("batch", 3, templated))
	w.mustReconcile("batch")
	var pods corev1.PodList
	require.NoError(t, w.api.List(t.Context(), &pods))
	require.Len(t, pods.Items, 3)
	w.latePods = pods.DeepCopy()
	w.scale("batch", 0)
	for range 3 {
		w.mustReconcile("batch")
	}
	require.Equal(t, 3, w.deletes(), "%v", w.writes)

	require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
	w.mustReconcile("batch")
	require.NoError(t, w.api.List(t.Context(), &pods, client.InNamespace("ns")))
	require.Empty(t, pods.Items)
}

func TestALostPodIsDeletedOnceWhileItCannotBeTakenOut(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.mustReconcile("batch")
	w.observe("a", func(p *ledger.Pod) { p.Finished, p.Disrupted = true, true })
	w.spoil = func(write string, do func() error) error {
		if write == "patch batch" {
			return apierrors.NewInternalError(errors.New("etcdserver: request is too large"))
		}
		return do()
	}
	w.writes = nil
	for range 3 {
		w.clock.Step(time.Second)
		w.mustReconcile("batch")
	}
	require.Equal(t, 1, w.deletes(), "%v", w.writes)
}
