package pool

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

func TestWhetherPodsCanBeRestartedInPlaceIsACondition(t *testing.T) {
	status := func(last *v1alpha1.PoolStatus, verdict *podtemplate.Verdict) *v1alpha1.PoolStatus {
		return nextStatus(last, &facts{snapshot: &ledger.Snapshot{}, verdict: verdict, now: metav1.Now()})
	}
	unknown := status(&v1alpha1.PoolStatus{}, nil)
	require.Nil(t, meta.FindStatusCondition(unknown.Conditions, v1alpha1.ConditionRestartable))

	can := status(unknown, &podtemplate.Verdict{})
	require.True(t, meta.IsStatusConditionTrue(can.Conditions, v1alpha1.ConditionRestartable))

	cannot := status(can, &podtemplate.Verdict{Reason: v1alpha1.ReasonVolume, Message: "volume v keeps what an owner leaves in it"})
	c := meta.FindStatusCondition(cannot.Conditions, v1alpha1.ConditionRestartable)
	require.Equal(t, metav1.ConditionFalse, c.Status)
	require.Equal(t, v1alpha1.ReasonVolume, c.Reason)
	require.Contains(t, c.Message, "volume v keeps")

	other := status(cannot, nil)
	require.Nil(t, meta.FindStatusCondition(other.Conditions, v1alpha1.ConditionRestartable), "another strategy")
}
