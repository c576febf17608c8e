package integration

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// withOtherCRDs has the API server serve both kinds with no rules of this operator while do
// runs, as with another controller's CRDs, and puts the operator's in their place afterwards.
func withOtherCRDs(t *testing.T, do func()) {
	t.Helper()
	var restore []func()
	for _, plural := range []string{"batchsandboxes", "pools"} {
		crd := &unstructured.Unstructured{}
		crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
		crd.SetName(plural + "." + v1alpha1.GroupName)
		set := func(versions []any) {
			require.NoError(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
				if err := api.Get(context.Background(), client.ObjectKeyFromObject(crd), crd); err != nil {
					return err
				}
				if err := unstructured.SetNestedSlice(crd.Object, versions, "spec", "versions"); err != nil {
					return err
				}
				return api.Update(context.Background(), crd)
			}))
		}
		require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(crd), crd))
		own, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
		require.NoError(t, err)
		keepsAll := map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}
		set([]any{map[string]any{
			"name": "v1alpha1", "served": true, "storage": true,
			"schema":       map[string]any{"openAPIV3Schema": keepsAll},
			"subresources": map[string]any{"status": map[string]any{}},
		}})
		restore = append(restore, func() { set(own) })
	}
	// The API server needs a moment to follow.
	serves := func(unknown bool) {
		require.Eventually(t, func() bool {
			for _, kind := range []string{v1alpha1.KindBatchSandbox, v1alpha1.KindPool} {
				probe := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
					"replicas": int64(0), "poolRef": "none", "template": map[string]any{"spec": map[string]any{}}, "ofAnotherVersion": true,
					"capacitySpec": map[string]any{"bufferMin": int64(0), "bufferMax": int64(0), "poolMin": int64(0), "poolMax": int64(0)},
				}}}
				if kind == v1alpha1.KindBatchSandbox {
					unstructured.RemoveNestedField(probe.Object, "spec", "template")
				}
				probe.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
				probe.SetNamespace(operatorNamespace)
				probe.SetGenerateName("probe-")
				if err := api.Create(t.Context(), probe, client.DryRunAll); err != nil {
					return false
				}
				if _, kept, _ := unstructured.NestedBool(probe.Object, "spec", "ofAnotherVersion"); kept != unknown {
					return false
				}
			}
			return true
		}, patience, poll)
	}
	defer func() {
		for _, f := range restore {
			f()
		}
		serves(false)
	}()
	serves(true)
	do()
}

// leftBehind creates the objects of the fixture in a namespace and brings them to the state
// in which they stand there.
func leftBehind(t *testing.T, ns string) {
	t.Helper()
	raw, err := os.ReadFile("testdata/opensandbox.yaml")
	require.NoError(t, err)
	var fixture struct{ Items []map[string]any }
	require.NoError(t, yaml.Unmarshal(raw, &fixture))
	uids := map[string]types.UID{}
	ips := []string{}
	for _, object := range fixture.Items {
		obj := &unstructured.Unstructured{Object: object}
		obj.SetNamespace(ns)
		owners := obj.GetOwnerReferences()
		for i := range owners {
			owners[i].UID = uids[owners[i].Name]
		}
		obj.SetOwnerReferences(owners)
		if annotations := obj.GetAnnotations(); annotations != nil {
			annotations[v1alpha1.AnnotationEndpoints] = strings.NewReplacer(ips...).Replace(annotations[v1alpha1.AnnotationEndpoints])
			obj.SetAnnotations(annotations)
		}
		status := obj.Object["status"]
		require.NoError(t, api.Create(t.Context(), obj), obj.GetName())
		uids[obj.GetName()] = obj.GetUID()
		if status != nil {
			obj.Object["status"] = status
			require.NoError(t, api.Status().Update(t.Context(), obj), obj.GetName())
		}
		if obj.GetKind() == "Pod" {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: obj.GetName()}}
			until(t, pod, func(pod *corev1.Pod) bool { return pod.Status.PodIP != "" })
			ips = append(ips, pod.Name, pod.Status.PodIP)
		}
	}
}

func podUIDs(t *testing.T, ns string) map[string]types.UID {
	t.Helper()
	var pods corev1.PodList
	require.NoError(t, api.List(t.Context(), &pods, client.InNamespace(ns)))
	uids := map[string]types.UID{}
	for i := range pods.Items {
		uids[pods.Items[i].Name] = pods.Items[i].UID
	}
	return uids
}

func annotated(t *testing.T, bs *v1alpha1.BatchSandbox, key string) []string {
	t.Helper()
	if bs.Annotations[key] == "" {
		return nil
	}
	var list []string
	require.NoError(t, json.Unmarshal([]byte(bs.Annotations[key]), &list))
	return list
}

// Whoever holds sandboxes of OpenSandbox's controller goes on to hold them, nobody gets one
// that may be dirty, and everything can be deleted.
func TestWhatOpenSandboxsControllerLeavesIsTakenOver(t *testing.T) {
	ns := newNamespace(t)
	before := map[string]types.UID{}
	whileDown(t, func() {
		withOtherCRDs(t, func() {
			leftBehind(t, ns)
			changeStatus(t, ns, "example-pool-handed", func(s *corev1.PodStatus) {
				s.ContainerStatuses = []corev1.ContainerStatus{{Name: "sandbox-container", RestartCount: 3}}
			})
			require.NoError(t, api.Delete(t.Context(), pooled(ns, "going", 1)))
		})
		before = podUIDs(t, ns)
	})
	batch := func(name string) *v1alpha1.BatchSandbox { return pooled(ns, name, 0) }
	server := batch("0d6f1b1e-6a8e-4f9e-9a55-0c5a2b0f7f11")
	keeps := map[*v1alpha1.BatchSandbox][]string{
		batch("plain"):  {"example-pool-held1"},
		batch("second"): {"example-pool-handed"},
		server:          {"example-pool-server"},
	}
	for bs, pods := range keeps {
		until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
			return ready(1)(bs) && reasonIs(v1alpha1.ReasonAllReady)(bs) && !strings.Contains(bs.Annotations[v1alpha1.AnnotationAllocStatus], "generation")
		})
		require.Equal(t, pods, held(t, bs), bs.Name)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pods[0]}}
		require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		require.Equal(t, before[pods[0]], pod.UID, "the same pod")
		require.Equal(t, []string{pod.Status.PodIP}, annotated(t, bs, v1alpha1.AnnotationEndpoints), bs.Name)
		require.Zero(t, bs.Status.Restarted, "restarts before the hand-over do not count")
		require.Zero(t, eventsOf(t, bs, v1alpha1.EventAllocationRestored), "nobody has edited anything")
		require.Zero(t, eventsOf(t, bs, v1alpha1.EventSandboxLost))
	}
	templated := batch("templated")
	until(t, templated, func(bs *v1alpha1.BatchSandbox) bool { return ready(2)(bs) && reasonIs(v1alpha1.ReasonAllReady)(bs) })
	tasked := batch("tasked")
	until(t, tasked, func(bs *v1alpha1.BatchSandbox) bool {
		completed := meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionTasksCompleted)
		return ready(1)(bs) && completed != nil && completed.Reason == v1alpha1.ReasonExecutorMissing
	})
	now := podUIDs(t, ns)
	for _, name := range []string{"templated-0", "templated-1", "tasked-0"} {
		require.Equal(t, before[name], now[name], "%s is kept", name)
	}

	// What may be dirty comes back to nobody, although the pool would keep it as it is.
	for _, name := range []string{"example-pool-idle1", "example-pool-dirty", "example-pool-asked", "example-pool-going", "example-pool-early"} {
		gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
	gone(t, batch("going"))
	giving, early, waiting := batch("giving-back"), batch("early"), batch("waiting")
	for bs, n := range map[*v1alpha1.BatchSandbox]int32{giving: 2, early: 1, waiting: 3} {
		until(t, bs, ready(n))
		for _, name := range held(t, bs) {
			if name != "example-pool-held2" {
				require.NotContains(t, before, name, "%s is a new pod", name)
			}
		}
	}
	require.Equal(t, "example-pool-held2", held(t, giving)[1], "at its shard")

	// A batch that has ended does not run again.
	ended := batch("ended")
	until(t, ended, func(bs *v1alpha1.BatchSandbox) bool {
		return bs.Status.SucceededShards == "0-1" && !slices.Contains(bs.Finalizers, v1alpha1.FinalizerPoolAllocation)
	})
	until(t, ended, ready(0))
	require.Empty(t, held(t, ended))
	require.EqualValues(t, 2, ended.Status.TaskSucceed)
	require.Len(t, ended.Status.Conditions, 2, "those of the other controller would stand there for ever")
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}}
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 && p.Status.Allocated == 9 })

	// It costs one write of each pod, once.
	patches := writes(t, ns, "pods", "patch") - writesBy(t, ns, "pods", "status")
	whileDown(t, func() {})
	until(t, waiting, ready(3))
	require.Equal(t, patches, writes(t, ns, "pods", "patch")-writesBy(t, ns, "pods", "status"))

	for _, bs := range []*v1alpha1.BatchSandbox{batch("plain"), batch("second"), server, giving, early, waiting, ended, templated, tasked} {
		require.NoError(t, api.Delete(t.Context(), bs))
		gone(t, bs)
	}
	for name := range before {
		gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
	require.NoError(t, api.Delete(t.Context(), pool))
	gone(t, pool)
}

// writesBy counts the patches of a subresource.
func writesBy(t *testing.T, ns, resource, subresource string) int {
	t.Helper()
	return len(requests(t, func(r *request) bool {
		return r.ObjectRef.Namespace == ns && r.ObjectRef.Resource == resource && r.ObjectRef.Subresource == subresource && r.Verb == "patch"
	}))
}
