package startup

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
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
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// convertAll has the BatchSandboxes of OpenSandbox's controller say what they hold as the
// operator says it, before anybody reads it: what one has given back stands in its
// alloc-status still, and may be another's by now. It returns the objects as they are
// afterwards, without those that are gone.
func (s *Startup) convertAll(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox, done *takeover) ([]*v1alpha1.BatchSandbox, error) {
	after := slices.Clone(sandboxes)
	var mu sync.Mutex // guards after, done and failed
	var failed error
	workqueue.ParallelizeUntil(ctx, touchParallel, len(sandboxes), func(i int) {
		if former, err := s.formerOf(ctx, sandboxes[i]); former == nil || err != nil {
			return // as for what cannot be read: of a pod that another one names too, neither is given it
		}
		bs, err := s.convert(ctx, sandboxes[i])
		mu.Lock()
		defer mu.Unlock()
		after[i] = bs
		done.converted++
		if err != nil {
			failed = err
		}
	})
	if failed == nil {
		failed = ctx.Err()
	}
	return slices.DeleteFunc(after, func(bs *v1alpha1.BatchSandbox) bool { return bs == nil }), failed
}

// mostConflicts is how often a conversion may meet another write. Whoever writes an object all the
// time must not keep the operator from starting.
const mostConflicts = 10

// convert returns the object as it is afterwards, or nil when it is gone. The resourceVersion is
// a precondition: that controller may still be writing. What is not converted in the end counts as
// it stands: of a pod that another BatchSandbox names too, neither is given it.
func (s *Startup) convert(ctx context.Context, listed *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
	name, bs, conflicts := client.ObjectKeyFromObject(listed), listed, 0
	var last error
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		if last != nil {
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
			if apiwrite.Refused(last) || conflicts >= mostConflicts {
				log.FromContext(ctx).Error(last, "going on with what another controller has written", "batchSandbox", name)
				return true, nil
			}
		}
		converted, err := s.sendConversion(ctx, bs)
		if last = err; err == nil {
			bs = converted
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
		return nil, fmt.Errorf("taking over BatchSandbox %s: %w", name, err)
	}
	return bs, nil
}

// formerOf reads what another controller has written. Its pods in the cache have the eviction
// label, so that they are never idle.
func (s *Startup) formerOf(ctx context.Context, bs *v1alpha1.BatchSandbox) (*allocation.Former, error) {
	return allocation.FormerOf(bs, func(name string) bool {
		pod := &corev1.Pod{}
		err := s.Cache.Get(ctx, types.NamespacedName{Namespace: bs.Namespace, Name: name}, pod)
		_, evicted := pod.Labels[v1alpha1.LabelPoolEvict]
		return !apierrors.IsNotFound(err) && !evicted
	})
}

// sendConversion writes what there is to write, the results first: once the annotations are
// converted, nothing tells any more which shards have ended.
func (s *Startup) sendConversion(ctx context.Context, bs *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
	former, err := s.formerOf(ctx, bs)
	if former == nil || err != nil {
		return bs, nil //nolint:nilerr // left as it is, as in convertAll
	}
	if status := resultsOf(bs, former.Ended); status != nil {
		if bs, err = s.sendPatch(ctx, bs, map[string]any{}, status); err != nil {
			return nil, err
		}
	}
	annotations := former.Annotations(bs.Spec.PoolRef, func(pod string) int32 {
		cached := &corev1.Pod{}
		if err := s.Cache.Get(ctx, types.NamespacedName{Namespace: bs.Namespace, Name: pod}, cached); err != nil {
			return 0 // it is gone
		}
		return podfeed.Restarts(cached)
	})
	return s.sendPatch(ctx, bs, map[string]any{"annotations": annotations}, nil)
}

// resultsOf returns what the status is to say of the shards that have ended, or nil where it
// says so already. That controller counts results and does not say whose they are: where
// some have failed, all count as failed. Without it, all of them would run again.
func resultsOf(bs *v1alpha1.BatchSandbox, ended []int32) map[string]any {
	if bs.Spec.TaskTemplate == nil || bs.Spec.TaskResourcePolicyWhenCompleted != v1alpha1.TaskResourceRelease {
		return nil
	}
	known := shardtask.Released(bs)
	ended = slices.DeleteFunc(slices.Clone(ended), func(shard int32) bool { return known[shard] || shard >= bs.DesiredReplicas() })
	if len(ended) == 0 {
		return nil
	}
	field, told := "succeededShards", bs.Status.SucceededShards
	if bs.Status.TaskFailed > 0 {
		field, told = "failedShards", bs.Status.FailedShards
	}
	all := append(shardtask.ParseShards(told), ended...)
	slices.Sort(all)
	return map[string]any{field: shardtask.FormatShards(all)}
}

// sendPatch patches that very version of the object, or of its status where that is among the
// fields, and returns what the API server answers.
func (s *Startup) sendPatch(ctx context.Context, bs *v1alpha1.BatchSandbox, metadata, status map[string]any) (*v1alpha1.BatchSandbox, error) {
	metadata["uid"], metadata["resourceVersion"] = bs.UID, bs.ResourceVersion
	fields := map[string]any{"metadata": metadata}
	if status != nil {
		fields["status"] = status
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("building a patch of BatchSandbox %s/%s: %w", bs.Namespace, bs.Name, err)
	}
	// An empty object takes the answer, as in touch.
	answer := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: bs.Namespace, Name: bs.Name}}
	patch := client.RawPatch(types.MergePatchType, raw)
	if status != nil {
		err = s.Client.Status().Patch(ctx, answer, patch)
	} else {
		err = s.Client.Patch(ctx, answer, patch)
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}
