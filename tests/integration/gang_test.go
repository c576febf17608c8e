package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestAGangGetsAllOfItOrNothing(t *testing.T) {
	ns := newNamespace(t)
	pool := newPool(t, ns, 2, 3)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 2 })
	gang := pooled(ns, "gang", 5)
	gang.Spec.MinAvailable = 4
	require.NoError(t, api.Create(t.Context(), gang))
	until(t, gang, reasonIs(v1alpha1.ReasonPoolTooSmall))
	small := pooled(ns, "small", 1)
	require.NoError(t, api.Create(t.Context(), small))
	until(t, small, ready(1)) // a gang that can never be served is in nobody's way
	require.Empty(t, held(t, gang))

	change(t, pool, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.PoolMax = 4 })
	until(t, gang, reasonIs(v1alpha1.ReasonPoolExhausted)) // one is held by the small one
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Available == 3 })
	require.Empty(t, held(t, gang))

	change(t, pool, func(p *v1alpha1.Pool) { p.Spec.CapacitySpec.PoolMax = 5 })
	until(t, gang, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.MinAvailableReached })
	require.Len(t, held(t, gang), 4)
	change(t, gang, func(bs *v1alpha1.BatchSandbox) { bs.Spec.Replicas = ptr.To(int32(2)) })
	until(t, gang, ready(2)) // less than minAvailable may be asked for later
}
