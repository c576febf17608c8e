package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestAPoolIsChosenAndWrittenWithTheClaim(t *testing.T) {
	ns := newNamespace(t)
	bs := pooled(ns, "batch", 2)
	bs.Spec.PoolRef, bs.Spec.Template = v1alpha1.AnyPool, template()
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, reasonIs(v1alpha1.ReasonPoolNotFound))
	newPool(t, ns, 2, 5)
	until(t, bs, ready(2))
	require.Equal(t, "example-pool", bs.Spec.PoolRef)
	require.Len(t, held(t, bs), 2)

	before := client.MergeFrom(bs.DeepCopy())
	bs.Spec.PoolRef = v1alpha1.AnyPool
	require.ErrorContains(t, api.Patch(t.Context(), bs, before), "the name of the chosen Pool stands here in place of '*', for good; apply that name, or have your tool leave the field as it is")
	bs.Spec.PoolRef = "another"
	require.ErrorContains(t, api.Patch(t.Context(), bs, before), "spec.poolRef is immutable", "it is chosen once")
}

// What a GitOps tool does which applies server-side, as the user's guide says.
func TestAChosenPoolStaysWhenWhatAskedForItIsAppliedAgain(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, 5)
	asked := func(poolRef any) *unstructured.Unstructured {
		spec := map[string]any{"replicas": int64(1), "template": map[string]any{"spec": map[string]any{"containers": []any{
			map[string]any{"name": "sandbox-container", "image": "nginx:latest"}}}}}
		if poolRef != nil {
			spec["poolRef"] = poolRef
		}
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": v1alpha1.GroupVersion.String(), "kind": v1alpha1.KindBatchSandbox,
			"metadata": map[string]any{"namespace": ns, "name": "batch"}, "spec": spec,
		}}
	}
	apply := func(obj *unstructured.Unstructured) error {
		return api.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(obj), client.FieldOwner("gitops"))
	}
	require.NoError(t, apply(asked(v1alpha1.AnyPool)))
	bs := pooled(ns, "batch", 1)
	until(t, bs, ready(1))
	require.True(t, apierrors.IsConflict(apply(asked(v1alpha1.AnyPool))), "the field is the operator's now")
	require.NoError(t, apply(asked(nil)))
	require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
	require.Equal(t, "example-pool", bs.Spec.PoolRef)
}

func TestBadInputForAChosenPoolIsRefusedByTheAPIServer(t *testing.T) {
	ns := newNamespace(t)
	for name, test := range map[string]struct {
		change func(*v1alpha1.BatchSandboxSpec)
		want   string
	}{
		"nothing is asked for":          {func(s *v1alpha1.BatchSandboxSpec) { s.PoolRef = v1alpha1.AnyPool }, "needs spec.template or spec.poolSelector"},
		"labels for a pool by name":     {func(s *v1alpha1.BatchSandboxSpec) { s.PoolSelector = map[string]string{"a": "b"} }, "spec.poolSelector is for spec.poolRef '*' only"},
		"a template for a pool by name": {func(s *v1alpha1.BatchSandboxSpec) { s.Template = template() }, "exactly one of spec.poolRef and spec.template"},
		"patches for pods of a pool": {func(s *v1alpha1.BatchSandboxSpec) {
			s.PoolRef, s.Template, s.ShardPatches = v1alpha1.AnyPool, template(), []v1alpha1.Patch{{}}
		}, "spec.shardPatches"},
	} {
		bs := pooled(ns, "bad", 1)
		test.change(&bs.Spec)
		require.ErrorContains(t, api.Create(t.Context(), bs), test.want, name)
	}
}
