// Package allocation reads and writes the annotations that say which pool pods a
// BatchSandbox holds. It is pure: no client, no clock, no memory.
package allocation

import (
	"encoding/json"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// MaxAnnotationBytes bounds the keys and values of all annotations of an object
// together (apimachinery's TotalAnnotationSizeLimitB).
const MaxAnnotationBytes = 256 * 1024

// OwnerOf returns the BatchSandbox as the ledger names it.
func OwnerOf(bs *v1alpha1.BatchSandbox) ledger.Owner {
	return ledger.Owner{
		NamespacedName: types.NamespacedName{Namespace: bs.Namespace, Name: bs.Name},
		UID:            bs.UID,
		Created:        bs.CreationTimestamp.Time,
	}
}

// PoolOf returns the Pool that the BatchSandbox takes from.
func PoolOf(bs *v1alpha1.BatchSandbox) ledger.Key {
	return ledger.Key{Namespace: bs.Namespace, Name: bs.Spec.PoolRef}
}

// RecordOf reads the annotations of a pooled BatchSandbox. Without the operator's
// finalizer they are not the operator's and are ignored, and so where no pool is named yet:
// its name is written with the first claim. The error says which annotation cannot be read;
// the record is then marked as unreadable.
func RecordOf(bs *v1alpha1.BatchSandbox) (ledger.Record, error) {
	record := ledger.Record{Pool: PoolOf(bs), Owner: OwnerOf(bs)}
	if !slices.Contains(bs.Finalizers, v1alpha1.FinalizerPoolAllocation) || bs.Spec.PoolRef == v1alpha1.AnyPool {
		return record, nil
	}
	var status v1alpha1.AllocStatus
	var release v1alpha1.AllocRelease
	for _, annotation := range []struct { // in an order, so that the same one is named each time
		key  string
		into any
	}{{v1alpha1.AnnotationAllocStatus, &status}, {v1alpha1.AnnotationAllocRelease, &release}} {
		value, ok := bs.Annotations[annotation.key]
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(value), annotation.into); err != nil {
			record.Unreadable = true
			return record, fmt.Errorf("annotation %s cannot be read: %w", annotation.key, err)
		}
	}
	if len(status.Pods) > v1alpha1.MaxReplicas {
		record.Unreadable = true
		return record, fmt.Errorf("annotation %s names %d pods, more than the %d that a BatchSandbox may have",
			v1alpha1.AnnotationAllocStatus, len(status.Pods), v1alpha1.MaxReplicas)
	}
	record.Pods, record.Releasing = status.Pods, release.Pods
	record.Restarts = expandRestarts(status.Restarts, len(status.Pods))
	return record, nil
}

func expandRestarts(ranges []v1alpha1.RestartRange, shards int) []int32 {
	if len(ranges) == 0 {
		return nil
	}
	counts := make([]int32, shards)
	for _, r := range ranges {
		for i := max(0, int(r.From)); i <= int(r.To) && i < shards; i++ {
			counts[i] = r.Count
		}
	}
	return counts
}

// Annotations are the values that the operator keeps on a pooled BatchSandbox. An
// empty string stands for no annotation.
type Annotations struct {
	Status, Release, Endpoints string
}

// Map returns the annotations by key; absent ones are nil, as a merge patch wants them.
func (a Annotations) Map() map[string]*string {
	values := map[string]*string{}
	for key, value := range map[string]string{
		v1alpha1.AnnotationAllocStatus:  a.Status,
		v1alpha1.AnnotationAllocRelease: a.Release,
		v1alpha1.AnnotationEndpoints:    a.Endpoints,
	} {
		values[key] = nil
		if value != "" {
			values[key] = &value
		}
	}
	return values
}

// Of returns the annotations that an object has now.
func Of(bs *v1alpha1.BatchSandbox) Annotations {
	return Annotations{
		Status:    bs.Annotations[v1alpha1.AnnotationAllocStatus],
		Release:   bs.Annotations[v1alpha1.AnnotationAllocRelease],
		Endpoints: bs.Annotations[v1alpha1.AnnotationEndpoints],
	}
}

// Format writes the annotations for the held pods of a Pool, each at its shard, and the
// names that are being released.
func Format(pool string, held []ledger.HeldPod, releasing []string) Annotations {
	var a Annotations
	if len(held) > 0 {
		size := 0
		for _, h := range held {
			size = max(size, int(h.Shard)+1)
		}
		names, ips, bases := make([]string, size), make([]string, size), make([]int32, size)
		for _, h := range held {
			names[h.Shard], bases[h.Shard] = h.Name, h.Base
			if !h.Ended() {
				ips[h.Shard] = h.IP // that of a pod that has ended may be another's by now
			}
		}
		a.Status = marshal(v1alpha1.AllocStatus{Pods: names, PoolRef: pool, Restarts: compactRestarts(bases)})
		a.Endpoints = FormatEndpoints(ips)
	}
	if len(releasing) > 0 {
		a.Release = marshal(v1alpha1.AllocRelease{Pods: slices.Sorted(slices.Values(releasing))})
	}
	return a
}

// FormatEndpoints writes the pod IPs in shard order; the list ends at the last one
// that is filled. Without any it is empty.
func FormatEndpoints(ips []string) string {
	last := len(ips)
	for last > 0 && ips[last-1] == "" {
		last--
	}
	if last == 0 {
		return ""
	}
	return marshal(ips[:last])
}

func compactRestarts(counts []int32) []v1alpha1.RestartRange {
	var ranges []v1alpha1.RestartRange
	for i, count := range counts {
		if count == 0 {
			continue
		}
		shard := int32(i)
		if n := len(ranges); n > 0 && ranges[n-1].To == shard-1 && ranges[n-1].Count == count {
			ranges[n-1].To = shard
			continue
		}
		ranges = append(ranges, v1alpha1.RestartRange{From: shard, To: shard, Count: count})
	}
	return ranges
}

// marshal writes what is made of strings and numbers only.
func marshal(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers can always be marshalled
	}
	return string(data)
}

// SizeWith returns the bytes that all annotations of the object would take with
// these in place of its own.
func SizeWith(bs *v1alpha1.BatchSandbox, a Annotations) int {
	size := 0
	replaced := a.Map()
	for key, value := range bs.Annotations {
		if _, ok := replaced[key]; !ok {
			size += len(key) + len(value)
		}
	}
	for key, value := range replaced {
		if value != nil {
			size += len(key) + len(*value)
		}
	}
	return size
}
