package startup

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// mostConflicts is how often a conversion may meet another write. Whoever writes an object all the
// time must not keep the operator from starting.
const mostConflicts = 10

// convertAll has the BatchSandboxes of OpenSandbox's controller say what they hold as the
// operator says it, before anybody reads it: what one has given back stands in its
// alloc-status still, and may be another's by now. It returns the objects as they are
// afterwards, without those that are gone. What cannot be read or converted counts as it
// stands: of a pod that another BatchSandbox names too, neither is given it.
func (s *Startup) convertAll(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox, done *takeover) ([]*v1alpha1.BatchSandbox, error) {
	convert := rewrite{doing: "taking over", send: s.convert, mostConflicts: mostConflicts, needs: func(bs *v1alpha1.BatchSandbox) bool {
		former, err := s.formerOf(ctx, bs)
		return former != nil && err == nil
	}}
	return convert.all(ctx, s, sandboxes, &done.converted)
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

// convert writes what there is to write, the results first: once the annotations are converted,
// nothing tells any more which shards have ended. The resourceVersion is a precondition: that
// controller may still be writing.
func (s *Startup) convert(ctx context.Context, bs *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
	former, err := s.formerOf(ctx, bs)
	if former == nil || err != nil {
		return bs, nil //nolint:nilerr // left as it is, as in convertAll
	}
	metadata := func() map[string]any { return map[string]any{"uid": bs.UID, "resourceVersion": bs.ResourceVersion} }
	if status := resultsOf(bs, former.Ended); status != nil {
		if bs, err = s.patch(ctx, bs, map[string]any{"metadata": metadata(), "status": status}); err != nil {
			return nil, err
		}
	}
	fields := metadata()
	fields["annotations"] = former.Annotations(bs.Spec.PoolRef, func(pod string) int32 {
		cached := &corev1.Pod{}
		if err := s.Cache.Get(ctx, types.NamespacedName{Namespace: bs.Namespace, Name: pod}, cached); err != nil {
			return 0 // it is gone
		}
		return podfeed.Restarts(cached)
	})
	return s.patch(ctx, bs, map[string]any{"metadata": fields})
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
