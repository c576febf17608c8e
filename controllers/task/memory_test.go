package task

import (
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// heap is what is in use and not garbage.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what had a finalizer goes the second time
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A task may have 400 KiB, and thousands may wait for their turn.
func TestAFollowerThatWaitsKeepsLittle(t *testing.T) {
	const shards = 300
	b := newBench(t, func(*bench, http.ResponseWriter, *http.Request) { t.Error("no turn was free") })
	b.takeAll(group{"ns", "bs", firstTry})
	b.bs.Spec.PoolRef, b.bs.Spec.Replicas = "", ptr.To(int32(shards))
	sandboxes := map[int32]sandbox{}
	for shard := range int32(shards) {
		patch := `{"spec":{"process":{"args":["` + strings.Repeat("x", 50<<10) + `"]}}}`
		b.bs.Spec.ShardTaskPatches = append(b.bs.Spec.ShardTaskPatches, v1alpha1.Patch{RawExtension: apiruntime.RawExtension{Raw: []byte(patch)}})
		sandboxes[shard] = sandbox{shard: shard, pod: "p", uid: "uid-p", ready: true}
	}
	before := heap()
	b.apply(b.bs, b.jobs.of(b.bs), sandboxes)
	waiting := func() int {
		b.slots.mu.Lock()
		defer b.slots.mu.Unlock()
		return len(b.slots.turns.waiting[group{"ns", "bs", firstTry}])
	}
	require.Eventually(t, func() bool { return waiting() == shards }, patience, poll)
	require.Less(t, (heap()-before)/shards, int64(8<<10), "bytes of each")
	runtime.KeepAlive(b.bs)
}
