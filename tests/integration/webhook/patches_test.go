package webhook

import (
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// More patches than replicas are a mistake when a BatchSandbox is created. Afterwards
// the patches cannot be changed, so a rule against them would forbid to scale down: also
// before the first status, while no operator is there, as in these tests.
func TestABatchWithPatchesIsScaledDownBeforeItsFirstStatus(t *testing.T) {
	for field, rest := range map[string]string{
		"shardPatches":     "template: " + good,
		"shardTaskPatches": "poolRef: pool, taskTemplate: {spec: {process: {command: [sh]}}}",
	} {
		t.Run(field, func(t *testing.T) {
			ns := newNamespace(t)
			_, err := create(t, ns, v1alpha1.KindBatchSandbox, "{spec: {replicas: 1, "+field+": [{}, {}], "+rest+"}}")
			require.True(t, apierrors.IsInvalid(err), "%v", err)
			require.ErrorContains(t, err, "spec."+field+" must not be longer than spec.replicas")

			bs, err := create(t, ns, v1alpha1.KindBatchSandbox, "{spec: {replicas: 2, "+field+": [{}, {}], "+rest+"}}")
			require.NoError(t, err)
			require.NoError(t, api.Patch(t.Context(), bs, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"replicas":0}}`))))
		})
	}
}
