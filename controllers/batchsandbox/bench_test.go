package batchsandbox

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// The sizes at which costs are measured.
const (
	benchShards = 5000
)

// benchCache answers as the cache of the manager does, and writes nowhere.
type benchCache struct {
	client.Client
	bs *v1alpha1.BatchSandbox
}

func (c *benchCache) Get(_ context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	into, ok := obj.(*v1alpha1.BatchSandbox)
	if !ok || key.Name != c.bs.Name {
		return apierrors.NewNotFound(corev1.Resource("objects"), key.Name)
	}
	o := (&client.GetOptions{}).ApplyOptions(opts)
	if o.UnsafeDisableDeepCopy != nil && *o.UnsafeDisableDeepCopy {
		*into = *c.bs
	} else {
		c.bs.DeepCopyInto(into)
	}
	return nil
}

func (c *benchCache) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }
func (c *benchCache) Status() client.SubResourceWriter                                    { return benchStatus{} }
func (c *benchCache) Patch(_ context.Context, obj client.Object, _ client.Patch, _ ...client.PatchOption) error {
	obj.SetResourceVersion("2")
	return nil
}

type benchStatus struct{ client.SubResourceWriter }

func (benchStatus) Patch(context.Context, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
	return nil
}

// newBenchWorld has a pooled batch of 5,000 sandboxes.
func newBenchWorld(b *testing.B) (*world, *benchCache) {
	b.Helper()
	pods := make([]string, benchShards)
	for i := range pods {
		pods[i] = fmt.Sprintf("pool-%05d", i)
	}
	w := newPooledWorld(b, nil, named("batch", benchShards))
	for _, name := range pods {
		w.Ledger.Observe(poolKey, facts(name))
	}
	w.mustReconcile("batch")
	cache := &benchCache{bs: w.get("batch")}
	w.connect(cache)
	return w, cache
}

// BenchmarkUnchanged is a reconcile of 5,000 sandboxes that changes nothing.
func BenchmarkUnchanged(b *testing.B) {
	w, _ := newBenchWorld(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Reconcile(b.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "batch"}}); err != nil {
			b.Fatal(err)
		}
	}
	if len(w.writes) != 2 {
		b.Fatalf("writes: %v", w.writes)
	}
}

// BenchmarkAPodThatChanges is a reconcile after a change of one of the 5,000 pods.
func BenchmarkAPodThatChanges(b *testing.B) {
	w, _ := newBenchWorld(b)
	b.ReportAllocs()
	for n := int32(0); b.Loop(); n++ {
		p := facts("pool-00000")
		p.Problem = fmt.Sprint(n)
		w.Ledger.Observe(poolKey, p)
		if _, err := w.Reconcile(b.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "batch"}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStatusPatch builds the patch of a status of an object with 5,000 patches of
// the task and as many pods.
func BenchmarkStatusPatch(b *testing.B) {
	bs := named("batch", benchShards)
	bs.ResourceVersion = "1"
	bs.Annotations = map[string]string{v1alpha1.AnnotationAllocStatus: strings.Repeat(`"pool-00000",`, benchShards)}
	for i := range benchShards {
		bs.Spec.ShardTaskPatches = append(bs.Spec.ShardTaskPatches, v1alpha1.Patch{RawExtension: runtime.RawExtension{
			Raw: fmt.Appendf(nil, `{"spec":{"process":{"args":["%d"]}}}`, i)}})
	}
	want := bs.Status
	want.Ready = 1
	b.ReportAllocs()
	for b.Loop() {
		if _, err := statusPatch(bs, &want); err != nil {
			b.Fatal(err)
		}
	}
}
