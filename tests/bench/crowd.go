package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// heldShare of the pods of a crowd are held, by a BatchSandbox each.
const heldShare = 10

// crowd is so many pods in pools in a namespace of their own, some of them held.
type crowd struct {
	*bench
	// sizes are the pools' as they are, by name.
	sizes map[string]int32
	held  int
}

func newCrowd(ctx context.Context, b *bench) (*crowd, error) {
	own := *b
	var err error
	if own.namespace, err = b.namespaceNamed(ctx, "bench-crowd-"); err != nil {
		return nil, err
	}
	return &crowd{bench: &own, sizes: map[string]int32{}}, nil
}

// pods are all that the crowd has.
func (c *crowd) pods() (n int) {
	for _, size := range c.sizes {
		n += int(size)
	}
	return n
}

// spread returns the sizes of the pools that hold so many pods: of poolSize pods each, or
// more where there are as many pools as there may be.
func spread(pods, poolSize, pools int) map[string]int32 {
	number := max(1, min(pools, pods/poolSize))
	sizes := map[string]int32{}
	for i := range number {
		size := pods / number
		if i < pods%number {
			size++
		}
		sizes[fmt.Sprint("crowd-", i)] = int32(size)
	}
	return sizes
}

// grow makes the pools as large as that and returns how long they took to fill. Pools of other
// names stay as they are.
func (c *crowd) grow(ctx context.Context, sizes map[string]int32) (time.Duration, error) {
	start := time.Now()
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		if err := c.size(ctx, name, sizes[name]); err != nil {
			return 0, fmt.Errorf("sizing pool %s: %w", name, err)
		}
		c.sizes[name] = sizes[name]
	}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		if err := c.untilFull(ctx, name); err != nil {
			return 0, fmt.Errorf("filling pool %s: %w", name, err)
		}
	}
	return time.Since(start), nil
}

// size makes the pool of that size, or one that is there.
func (c *crowd) size(ctx context.Context, name string, size int32) error {
	pool := c.pool(poolSize{name: name, size: size})
	if c.sizes[name] == 0 {
		return c.api.Create(ctx, pool)
	}
	patch := fmt.Appendf(nil, `{"spec":{"capacitySpec":{"bufferMax":%d,"poolMin":%d,"poolMax":%d}}}`, size, size, size)
	return c.api.Patch(ctx, pool, client.RawPatch(types.MergePatchType, patch))
}

// crowdPatience is how long a pool may take to fill, or the crowd to go: much longer than a slow
// machine needs.
const crowdPatience = 3 * time.Hour

// untilFull waits until every pod of the pool is ready, whoever holds it.
func (b *bench) untilFull(ctx context.Context, name string) error {
	pool := &v1alpha1.Pool{}
	err := wait.PollUntilContextTimeout(ctx, time.Second, crowdPatience, true, func(ctx context.Context) (bool, error) {
		err := b.api.Get(ctx, client.ObjectKey{Namespace: b.namespace, Name: name}, pool)
		most, status := pool.Spec.CapacitySpec.PoolMax, &pool.Status
		return err == nil && status.ObservedGeneration == pool.Generation && status.Total == most && status.Available+status.Allocated == most, err
	})
	if err != nil {
		return fmt.Errorf("%w; last seen: %+v", err, pool.Status)
	}
	return nil
}

// hold has so many BatchSandboxes hold a sandbox each, spread over the pools.
func (c *crowd) hold(ctx context.Context, number int) error {
	pools := slices.Sorted(maps.Keys(c.sizes))
	pools = slices.DeleteFunc(pools, func(name string) bool { return !strings.HasPrefix(name, "crowd-") })
	missing := max(0, number-c.held)
	errs := make([]error, missing)
	workqueue.ParallelizeUntil(ctx, 32, missing, func(i int) {
		n := c.held + i
		bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "held-" + strconv.Itoa(n)}}
		bs.Spec.Replicas, bs.Spec.PoolRef = ptr.To[int32](1), pools[n%len(pools)]
		errs[i] = c.api.Create(ctx, bs)
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("making BatchSandboxes: %w", err)
	}
	c.held += missing
	return c.untilAllComplete(ctx)
}

// untilAllComplete waits until every BatchSandbox of the namespace is delivered.
func (b *bench) untilAllComplete(ctx context.Context) error {
	return wait.PollUntilContextTimeout(ctx, time.Second, crowdPatience, true, func(ctx context.Context) (bool, error) {
		var list v1alpha1.BatchSandboxList
		err := b.api.List(ctx, &list, client.InNamespace(b.namespace))
		return err == nil && !slices.ContainsFunc(list.Items, func(bs v1alpha1.BatchSandbox) bool { return !isComplete(&bs) }), err
	})
}

// giveBack deletes all BatchSandboxes and waits until they are gone.
func (c *crowd) giveBack(ctx context.Context) error {
	if err := c.api.DeleteAllOf(ctx, &v1alpha1.BatchSandbox{}, client.InNamespace(c.namespace)); err != nil {
		return fmt.Errorf("deleting BatchSandboxes: %w", err)
	}
	return c.untilNone(ctx, client.InNamespace(c.namespace))
}

// untilNone waits until no BatchSandbox is left that the options select.
func (b *bench) untilNone(ctx context.Context, options ...client.ListOption) error {
	return wait.PollUntilContextTimeout(ctx, time.Second, crowdPatience, true, func(ctx context.Context) (bool, error) {
		var list v1alpha1.BatchSandboxList
		err := b.api.List(ctx, &list, append(options, client.Limit(1))...)
		return err == nil && len(list.Items) == 0, err
	})
}

// holdings are the pods of the BatchSandboxes of the crowd, by the names of these, with the pods'
// UIDs.
func (c *crowd) holdings(ctx context.Context) (map[string]string, error) {
	var sandboxes v1alpha1.BatchSandboxList
	if err := c.api.List(ctx, &sandboxes, client.InNamespace(c.namespace)); err != nil {
		return nil, fmt.Errorf("listing BatchSandboxes: %w", err)
	}
	var pods metav1.PartialObjectMetadataList
	pods.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	if err := c.api.List(ctx, &pods, client.InNamespace(c.namespace)); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	known := map[string]types.UID{}
	for i := range pods.Items {
		known[pods.Items[i].Name] = pods.Items[i].UID
	}
	holdings := map[string]string{}
	for i := range sandboxes.Items {
		bs := &sandboxes.Items[i]
		var status v1alpha1.AllocStatus
		if err := json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationAllocStatus]), &status); err != nil {
			return nil, fmt.Errorf("reading what BatchSandbox %s holds: %w", bs.Name, err)
		}
		for _, name := range status.Pods {
			holdings[bs.Name] += fmt.Sprintf("%s %s; ", name, known[name])
		}
	}
	return holdings, nil
}
