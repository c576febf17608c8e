package allocation

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// Former is what OpenSandbox's own controller has written on a pooled BatchSandbox. It takes
// no pod out of alloc-status again, nor out of alloc-release: what a BatchSandbox has given
// back stands there as before, and in alloc-released as well.
type Former struct {
	// Held are the pods that the BatchSandbox has not given up, by shard, and Releasing those
	// that it has given up and that were not taken back yet.
	Held, Releasing []string
	// Ended are the shards, in order, whose pods were given up or taken back.
	Ended []int32
}

// FormerOf reads the annotations of a pooled BatchSandbox where that controller has written
// them; otherwise it returns nil. Without the finalizer they are nobody's, as in RecordOf.
//
// A pod that mayBeIdle says would be handed out if nobody held it is not let go of, whatever
// alloc-released says: that controller's pods are none, and a user may have written it.
func FormerOf(bs *v1alpha1.BatchSandbox, mayBeIdle func(pod string) bool) (*Former, error) {
	if bs.Spec.PoolRef == "" || !slices.Contains(bs.Finalizers, v1alpha1.FinalizerPoolAllocation) {
		return nil, nil
	}
	var status struct {
		Pods       []string        `json:"pods"`
		Generation json.RawMessage `json:"generation"` // the operator writes none
	}
	var release, released v1alpha1.AllocRelease
	for key, into := range map[string]any{
		v1alpha1.AnnotationAllocStatus: &status, v1alpha1.AnnotationAllocRelease: &release, v1alpha1.AnnotationAllocReleased: &released,
	} {
		if value, ok := bs.Annotations[key]; ok {
			if err := json.Unmarshal([]byte(value), into); err != nil {
				return nil, fmt.Errorf("annotation %s cannot be read: %w", key, err)
			}
		}
	}
	if _, ok := bs.Annotations[v1alpha1.AnnotationAllocReleased]; !ok && status.Generation == nil {
		return nil, nil
	}
	former := &Former{Held: make([]string, len(status.Pods))}
	for shard, name := range status.Pods {
		switch {
		case slices.Contains(released.Pods, name) && !mayBeIdle(name):
		case slices.Contains(release.Pods, name):
			former.Releasing = append(former.Releasing, name)
		default:
			former.Held[shard] = name
			continue
		}
		former.Ended = append(former.Ended, int32(shard))
	}
	return former, nil
}

// Annotations say the same as the operator writes it. The restart counts are those that the
// pods have now: what there was before is not known, and counts before the hand-over do not
// matter.
func (f *Former) Annotations(pool string, restarts func(pod string) int32) map[string]*string {
	var held []ledger.HeldPod
	for shard, name := range f.Held {
		if name != "" {
			held = append(held, ledger.HeldPod{Pod: ledger.Pod{Name: name}, Shard: int32(shard), Base: restarts(name)})
		}
	}
	values := Format(pool, held, f.Releasing).Map()
	delete(values, v1alpha1.AnnotationEndpoints) // the reconciler knows the addresses
	values[v1alpha1.AnnotationAllocReleased] = nil
	return values
}
