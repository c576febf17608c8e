package startup

import (
	"context"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// touchUnmet moves the resourceVersion of every BatchSandbox whose demand is not met.
// The last leader may still have an allocation patch to one of them on its way, and that
// patch has the version it had read as a precondition: after the touch it must fail. It
// returns the objects as they are afterwards, without those that are gone: with a late write of
// the last leader, if one has landed before.
//
// No resourceVersion: an object that is written all the time would always conflict. The
// API server repeats a patch without one by itself. The UID is a precondition: another
// object of the same name is refused as invalid.
func (s *Startup) touchUnmet(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox, done *takeover) ([]*v1alpha1.BatchSandbox, error) {
	touch := rewrite{doing: "touching", needs: s.unmet, send: func(ctx context.Context, bs *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
		return s.patch(ctx, bs, map[string]any{"metadata": map[string]any{
			"uid":         bs.UID,
			"annotations": map[string]string{v1alpha1.AnnotationAllocator: s.mark(bs)},
		}})
	}}
	return touch.all(ctx, s, sandboxes, &done.touched)
}

// unmet says that the last leader may have had a patch under way that allocates more
// pods to the BatchSandbox.
func (s *Startup) unmet(bs *v1alpha1.BatchSandbox) bool {
	if bs.Spec.PoolRef == "" || bs.DeletionTimestamp != nil {
		return false
	}
	record, err := allocation.RecordOf(bs)
	return err != nil || s.missing(bs, &record) > 0
}

// missing is how many pods the BatchSandbox lacks that has this record.
func (s *Startup) missing(bs *v1alpha1.BatchSandbox, record *ledger.Record) int {
	released := shardtask.Released(bs)
	held := len(released)
	for shard, name := range record.Pods {
		if name != "" && !released[int32(shard)] && s.Ledger.Usable(record.Pool, name) && int32(shard) < bs.DesiredReplicas() {
			held++
		}
	}
	return int(bs.DesiredReplicas()) - held
}

// mark is what the annotation is set to. Must differ from the value that was read: a patch that
// changes nothing does not move the resourceVersion. Should the object have this very
// value by now, then somebody has written it since it was read and so moved the version.
func (s *Startup) mark(read *v1alpha1.BatchSandbox) string {
	mark := s.Term()
	if read.Annotations[v1alpha1.AnnotationAllocator] == mark {
		mark += "/again"
	}
	return mark
}
