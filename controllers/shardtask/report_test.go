package shardtask

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestShardsAreWrittenAsAJobWritesItsIndexes(t *testing.T) {
	for text, shards := range map[string][]int32{
		"":                nil,
		"0":               {0},
		"0-5,7":           {0, 1, 2, 3, 4, 5, 7},
		"3-4,6,8-10,4999": {3, 4, 6, 8, 9, 10, 4999},
	} {
		require.Equal(t, text, FormatShards(shards))
		require.Equal(t, shards, ParseShards(text))
	}
}

func TestWhatCannotBeAShardIsLeftOut(t *testing.T) {
	require.Equal(t, []int32{1, 2}, ParseShards("x,2,-4,1-2,5000,7-3,,99999999999"))
	require.Empty(t, ParseShards("0-4000000000"))
	require.Len(t, ParseShards("0-2000000000"), v1alpha1.MaxReplicas)
}

func TestOnlyAReleasePolicyReleases(t *testing.T) {
	bs := &v1alpha1.BatchSandbox{Status: v1alpha1.BatchSandboxStatus{SucceededShards: "0,2,9", FailedShards: "1"}}
	replicas := int32(4)
	bs.Spec.Replicas, bs.Spec.TaskTemplate = &replicas, &v1alpha1.TaskTemplate{}
	require.Empty(t, Released(bs))
	bs.Spec.TaskResourcePolicyWhenCompleted = v1alpha1.TaskResourceRelease
	require.Equal(t, map[int32]bool{0: true, 1: true, 2: true}, Released(bs))
}
