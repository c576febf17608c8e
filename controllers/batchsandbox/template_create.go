package batchsandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

const (
	// createParallel bounds the pods of one BatchSandbox that are created at a time.
	createParallel = 64
	// cacheLag is after how long a created pod that the cache does not show is looked up.
	cacheLag = 30 * time.Second
)

// shardMemo is what is remembered of the template-mode pods of one BatchSandbox.
type shardMemo struct {
	mu sync.Mutex // guards creations while pods are created in parallel
	// creations are pods that were created and that the cache does not show yet, by name.
	creations map[string]*creation
	// failures count, by shard, the pods that the cluster has ended.
	failures map[int32]*failure
}

func newShardMemo() shardMemo {
	return shardMemo{creations: map[string]*creation{}, failures: map[int32]*failure{}}
}

// creation is a pod whose creation was sent.
type creation struct {
	shard int32
	// confirmed: the API server has answered that it was created.
	confirmed bool
	sent      time.Time
}

// creator creates the pods of shards. It remembers each until the cache shows it, so that
// a late cache never makes two pods of one shard.
type creator struct {
	pods     pods
	executor func() *podtemplate.Executor
	clock    clock.PassiveClock
}

// errTemplate marks a template that no pod can be made from, or a shard patch that
// does not apply.
var errTemplate = errors.New("template cannot be used")

// create creates pods for the shards with slow start. A creation of unclear outcome is
// repeated under the same name, so that it never makes two.
func (c *creator) create(ctx context.Context, o *object, shards []int32, there map[string]*corev1.Pod) error {
	open := map[int32]string{}
	for name, sent := range o.shards.creations {
		if !sent.confirmed {
			open[sent.shard] = name
		}
	}
	wanted := make([]*corev1.Pod, len(shards))
	for i, shard := range shards {
		name := open[shard]
		if name == "" {
			name = podtemplate.ShardPodName(o.bs.Name, shard, true)
			if there[name] != nil {
				name = podtemplate.ShardPodName(o.bs.Name, shard, false)
			}
		}
		pod, err := c.pod(o.bs, shard, name)
		if err != nil {
			return err
		}
		wanted[i] = pod
	}
	_, err := apiwrite.SlowStart(ctx, len(shards), createParallel, func(ctx context.Context, i int) error {
		err := c.createOne(ctx, o, shards[i], wanted[i])
		if !errors.Is(err, errNameTaken) {
			return err
		}
		// A pod of somebody else, or of an earlier BatchSandbox of this name.
		pod, err := c.pod(o.bs, shards[i], podtemplate.ShardPodName(o.bs.Name, shards[i], false))
		if err != nil {
			return err
		}
		return c.createOne(ctx, o, shards[i], pod)
	})
	return err
}

func (c *creator) pod(bs *v1alpha1.BatchSandbox, shard int32, name string) (*corev1.Pod, error) {
	pod, err := podtemplate.ForShard(bs, shard, name)
	if err == nil {
		err = c.executor().Complete(pod, podtemplate.ShardInjects(bs))
	}
	if err != nil {
		return nil, errors.Join(errTemplate, err)
	}
	return pod, nil
}

func (c *creator) createOne(ctx context.Context, o *object, shard int32, pod *corev1.Pod) error {
	sent := &creation{shard: shard, sent: c.clock.Now()}
	o.shards.mu.Lock()
	o.shards.creations[pod.Name] = sent
	o.shards.mu.Unlock()
	err := c.pods.create(ctx, pod, o.bs.UID)
	o.shards.mu.Lock()
	defer o.shards.mu.Unlock()
	switch {
	case err == nil:
		sent.confirmed = true
	case apiwrite.Refused(err) || errors.Is(err, errNameTaken):
		delete(o.shards.creations, pod.Name)
	}
	return err
}

// check looks up created pods that the cache should have shown long ago: one that was
// deleted in between never comes.
func (c *creator) check(ctx context.Context, o *object, there map[string]*corev1.Pod) error {
	for name, sent := range o.shards.creations {
		if !sent.confirmed || there[name] != nil || c.clock.Since(sent.sent) < cacheLag {
			continue
		}
		live, err := c.pods.look(ctx, types.NamespacedName{Namespace: o.bs.Namespace, Name: name})
		switch {
		case err != nil:
			return err
		case live == nil:
			delete(o.shards.creations, name)
		default:
			sent.sent = c.clock.Now()
		}
	}
	return nil
}

// nextCheck returns when to look up the oldest created pod that the cache does not show.
func (c *creator) nextCheck(o *object) time.Duration {
	var next time.Duration
	for _, sent := range o.shards.creations {
		if sent.confirmed {
			next = soonest(next, max(time.Millisecond, cacheLag-c.clock.Since(sent.sent)))
		}
	}
	return next
}
