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
	"github.com/opensandbox/operator/controllers/apiwrite"
)

const (
	// writesAtOnce bounds the writes of a start that are under way.
	writesAtOnce = 32
	// rewritePause between two tries to write an object, and rewritePatience for all of them.
	rewritePause, rewritePatience = 200 * time.Millisecond, time.Minute
)

// rewrite is a change that a start makes to some of the BatchSandboxes.
type rewrite struct {
	// doing says what, for messages.
	doing string
	needs func(*v1alpha1.BatchSandbox) bool
	// send makes the change and returns what the API server answers.
	send func(context.Context, *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error)
	// mostConflicts is how often it may meet another write before the start goes on without; 0
	// is no bound.
	mostConflicts int
}

// all makes the change where it is needed, and counts how often. It returns the objects as they
// are afterwards, without those that are gone.
func (r *rewrite) all(ctx context.Context, s *Startup, sandboxes []*v1alpha1.BatchSandbox, count *int) ([]*v1alpha1.BatchSandbox, error) {
	after := slices.Clone(sandboxes)
	var mu sync.Mutex // guards after, count and failed
	var failed error
	workqueue.ParallelizeUntil(ctx, writesAtOnce, len(sandboxes), func(i int) {
		if !r.needs(sandboxes[i]) {
			return
		}
		bs, err := r.one(ctx, s, sandboxes[i])
		mu.Lock()
		defer mu.Unlock()
		after[i] = bs
		*count++
		if err != nil && failed == nil {
			failed = err
		}
	})
	if failed == nil {
		failed = ctx.Err()
	}
	return slices.DeleteFunc(after, func(bs *v1alpha1.BatchSandbox) bool { return bs == nil }), failed
}

// one makes the change to one object and returns it as it is afterwards, or nil when it is gone.
// One object that takes no write must not keep the operator from starting: then it is returned
// as it is.
func (r *rewrite) one(ctx context.Context, s *Startup, listed *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
	name, bs, conflicts := client.ObjectKeyFromObject(listed), listed, 0
	var last error
	err := wait.PollUntilContextTimeout(ctx, rewritePause, rewritePatience, true, func(ctx context.Context) (bool, error) {
		if last != nil { // read right before it is written again: others write it, too
			live := &v1alpha1.BatchSandbox{}
			err := s.Live.Get(ctx, name, live)
			switch {
			case apierrors.IsNotFound(err) || err == nil && live.UID != listed.UID:
				bs = nil
				return true, nil
			case err != nil:
				last = err
				return false, nil //nolint:nilerr // it is tried again
			}
			bs = live
			if apiwrite.Refused(last) || r.mostConflicts > 0 && conflicts >= r.mostConflicts {
				log.FromContext(ctx).Error(last, "going on without "+r.doing+" a BatchSandbox", "batchSandbox", name)
				return true, nil
			}
		}
		written, err := r.send(ctx, bs)
		if last = err; err == nil {
			bs = written
			return true, nil
		}
		if apierrors.IsConflict(err) {
			conflicts++
		}
		return false, nil
	})
	if err != nil {
		if last != nil {
			err = last
		}
		return nil, fmt.Errorf("%s BatchSandbox %s: %w", r.doing, name, err)
	}
	return bs, nil
}

// patch merges fields into the object, or into its status where that is among them, and returns
// what the API server answers.
func (s *Startup) patch(ctx context.Context, bs *v1alpha1.BatchSandbox, fields map[string]any) (*v1alpha1.BatchSandbox, error) {
	raw, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("building a patch of BatchSandbox %s/%s: %w", bs.Namespace, bs.Name, err)
	}
	// An empty object takes the answer: a decoder leaves standing what the answer lacks,
	// so that a copy of the listed object would keep annotations that are gone.
	answer := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: bs.Namespace, Name: bs.Name}}
	patch := client.RawPatch(types.MergePatchType, raw)
	if _, ok := fields["status"]; ok {
		err = s.Client.Status().Patch(ctx, answer, patch)
	} else {
		err = s.Client.Patch(ctx, answer, patch)
	}
	return answer, err
}
