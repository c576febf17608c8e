package startup

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// touchParallel bounds the touches under way.
const touchParallel = 32

// touchUnmet moves the resourceVersion of every BatchSandbox whose demand is not met.
// The last leader may still have an allocation patch to one of them on its way, and that
// patch has the version it had read as a precondition: after the touch it must fail. It
// returns the objects as they are afterwards, without those that are gone.
func (s *Startup) touchUnmet(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox, done *takeover) ([]*v1alpha1.BatchSandbox, error) {
	after := slices.Clone(sandboxes)
	var mu sync.Mutex // guards after, done and failed
	var failed error
	workqueue.ParallelizeUntil(ctx, touchParallel, len(sandboxes), func(i int) {
		if !s.unmet(sandboxes[i]) {
			return
		}
		bs, err := s.touch(ctx, sandboxes[i])
		mu.Lock()
		defer mu.Unlock()
		after[i] = bs
		done.touched++
		if err != nil && failed == nil {
			failed = err
		}
	})
	if failed == nil {
		failed = ctx.Err()
	}
	return slices.DeleteFunc(after, func(bs *v1alpha1.BatchSandbox) bool { return bs == nil }), failed
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

// touch writes the annotation allocator. It returns the object as it is afterwards, with
// a late write of the last leader if one has landed before, or nil when it is gone.
//
// No resourceVersion: an object that is written all the time would always conflict. The
// API server repeats a patch without one by itself. The UID is a precondition: another
// object of the same name is refused as invalid.
func (s *Startup) touch(ctx context.Context, bs *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":         bs.UID,
		"annotations": map[string]string{v1alpha1.AnnotationAllocator: s.mark(bs)},
	}})
	if err != nil {
		return nil, fmt.Errorf("building the touch of BatchSandbox %s/%s: %w", bs.Namespace, bs.Name, err)
	}
	var touched *v1alpha1.BatchSandbox
	var last error
	err = wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		// An empty object takes the answer: a decoder leaves standing what the answer lacks,
		// so that a copy of the listed object would keep annotations that are gone.
		written := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: bs.Namespace, Name: bs.Name}}
		if last = s.Client.Patch(ctx, written, client.RawPatch(types.MergePatchType, patch)); last == nil {
			touched = written
			return true, nil
		}
		live := &v1alpha1.BatchSandbox{}
		err := s.Live.Get(ctx, client.ObjectKeyFromObject(bs), live)
		switch {
		case apierrors.IsNotFound(err) || err == nil && live.UID != bs.UID:
			return true, nil
		case err != nil:
			last = err
		case apiwrite.Refused(last):
			// One object that takes no write must not keep the operator from starting.
			log.FromContext(ctx).Error(last, "going on without touching a BatchSandbox", "batchSandbox", client.ObjectKeyFromObject(bs))
			touched = live
			return true, nil
		}
		return false, nil
	})
	if err != nil {
		if last != nil {
			err = last
		}
		return nil, fmt.Errorf("touching BatchSandbox %s/%s: %w", bs.Namespace, bs.Name, err)
	}
	return touched, nil
}

// mark is what the annotation is set to. Must differ from the listed value: a patch that
// changes nothing does not move the resourceVersion. Should the object have this very
// value by now, then somebody has written it since the list and so moved the version.
func (s *Startup) mark(listed *v1alpha1.BatchSandbox) string {
	mark := s.Term()
	if listed.Annotations[v1alpha1.AnnotationAllocator] == mark {
		mark += "/again"
	}
	return mark
}
