package batchsandbox

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

func TestAPoolIsAskedOnlyForWhatFits(t *testing.T) {
	const longName, shortName = 63, 12
	held := func(ip string) []ledger.HeldPod {
		return []ledger.HeldPod{{Pod: ledger.Pod{Name: strings.Repeat("p", 70), IP: ip}, Shard: 0}}
	}
	tests := []struct {
		name     string
		poolName int
		replicas int32
		others   int // bytes of other annotations
		held     []ledger.HeldPod
		want     int
		tooLarge bool
	}{
		{name: "a small batch is asked for as it is", poolName: longName, replicas: 100, want: 100},
		{name: "nothing is missing", poolName: longName, replicas: 1, held: held("10.0.0.1"), want: 0},
		{name: "the largest batch of a short name fits", poolName: shortName, replicas: 5000 / 2, want: 5000 / 2},
		{name: "long names never fit", poolName: longName, replicas: 5000, tooLarge: true},
		{name: "addresses decide, so one is asked for", poolName: shortName, replicas: 5000, want: 1},
		{name: "addresses are known to be short", poolName: shortName, replicas: 5000, held: held("10.0.0.1"), want: 4999},
		{name: "addresses are known to be long", poolName: shortName, replicas: 5000, held: held("fd00:1234:5678:9abc:def0:1234:5678:9abc"), tooLarge: true},
		{name: "what others have written counts", poolName: shortName, replicas: 10, others: 262_000, tooLarge: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bs := &v1alpha1.BatchSandbox{
				ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"note": strings.Repeat("n", test.others)}},
				Spec:       v1alpha1.BatchSandboxSpec{PoolRef: strings.Repeat("p", test.poolName), Replicas: ptr.To(test.replicas)},
			}
			plan := planPooled(test.held, test.replicas, nil)
			to, _ := plan.change("pool", nil, nil)
			ask, blocked := fit(bs, bs.Spec.PoolRef, &plan, to.annotations)
			require.Equal(t, test.want, ask)
			require.Equal(t, test.tooLarge, blocked != nil)
			if blocked != nil {
				require.Equal(t, v1alpha1.ReasonAllocationTooLarge, blocked.reason)
			}
		})
	}
}
