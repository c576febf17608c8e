package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
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
	require.ErrorContains(t, api.Patch(t.Context(), bs, before), "spec.poolRef is immutable", "it is chosen once")
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
