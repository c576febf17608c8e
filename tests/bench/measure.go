package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// sample is one measurement of a scenario.
type sample struct {
	// took is, for each object, in ascending order, the time from the start of the
	// first create until the watch showed it complete.
	took []time.Duration
	// cost is how many versions of an object the watch showed until then, on average;
	// of tasks, how many calls each took.
	cost float64
	seen []v1alpha1.BatchSandbox
}

// measure runs a scenario in pairs, the operator first in every other one. With an
// error comes what was measured until then.
func (b *bench) measure(ctx context.Context, s scenario, rounds int) (operator, floor []sample, err error) {
	for i := range rounds + 1 {
		var pair [2]sample
		order := []int{0, 1}
		if i%2 == 1 {
			order = []int{1, 0}
		}
		for _, side := range order {
			if side == 0 {
				pair[0], err = b.runOperator(ctx, s, i)
			} else {
				pair[1], err = s.floor(b, ctx, s, i)
			}
			if err != nil {
				return operator, floor, err
			}
		}
		if i == 0 {
			continue // it warms the connections up and tells the floor what to write
		}
		operator, floor = append(operator, pair[0]), append(floor, pair[1])
	}
	return operator, floor, nil
}

// runOperator creates the BatchSandboxes and leaves the rest to the operator.
func (b *bench) runOperator(ctx context.Context, s scenario, round int) (sample, error) {
	if err := b.untilAllIdle(ctx, s); err != nil {
		return sample{}, err
	}
	if s.tasks {
		if err := b.fleet.boot(); err != nil {
			return sample{}, err
		}
	}
	result, err := b.time(ctx, b.api, s, round, b.createOperator)
	if err != nil {
		return sample{}, fmt.Errorf("operator: %w", err)
	}
	if s.tasks {
		result.cost = float64(b.fleet.requests.Load()) / float64(s.objects*int(s.replicas))
	}
	b.payloads[s.name] = result.seen
	return result, errors.Join(b.empty(ctx, b.api, b.namespace), b.untilAllIdle(ctx, s))
}

// createOperator leaves all but the creation to the operator.
func (b *bench) createOperator(ctx context.Context, _ int, bs *v1alpha1.BatchSandbox) error {
	return b.api.Create(ctx, bs)
}

// untilAllIdle waits until nobody holds a pod of any pool of the scenario.
func (b *bench) untilAllIdle(ctx context.Context, s scenario) error {
	for _, p := range append([]poolSize{{name: s.pool}}, s.others...) {
		if err := b.untilIdle(ctx, p.name, roundPatience); err != nil {
			return err
		}
	}
	return nil
}

// runFloor does by hand the writes that the operator did in its last run.
func (b *bench) runFloor(ctx context.Context, s scenario, round int) (sample, error) {
	result, err := b.time(ctx, b.floor, s, round, func(ctx context.Context, i int, bs *v1alpha1.BatchSandbox) error {
		return b.writeFloor(ctx, bs, &b.payloads[s.name][i])
	})
	if err != nil {
		return sample{}, fmt.Errorf("floor: %w", err)
	}
	return result, b.empty(ctx, b.floor, b.namespace)
}

// writeFloor does the three writes of one BatchSandbox.
func (b *bench) writeFloor(ctx context.Context, bs, payload *v1alpha1.BatchSandbox) error {
	if err := b.floor.Create(ctx, bs); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": bs.ResourceVersion,
		"finalizers":      payload.Finalizers,
		"annotations":     payload.Annotations,
	}})
	if err != nil {
		return err
	}
	if err := b.floor.Patch(ctx, bs, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return err
	}
	before := bs.DeepCopy()
	bs.Status = payload.Status
	return b.floor.Status().Patch(ctx, bs, client.MergeFrom(before))
}

// time opens a watch, starts the writer of every object at once and returns when the
// watch has shown all of them complete.
func (b *bench) time(ctx context.Context, api client.WithWatch, s scenario, round int, write func(context.Context, int, *v1alpha1.BatchSandbox) error) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, roundPatience)
	defer cancel()
	objects, names := make([]*v1alpha1.BatchSandbox, s.objects), make([]string, s.objects)
	for i := range objects {
		names[i] = fmt.Sprintf("b%d-%d", round, i)
		objects[i] = &v1alpha1.BatchSandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: names[i]},
			Spec:       s.spec(i),
		}
	}
	c, w, err := b.collect(ctx, api, names...)
	if err != nil {
		return sample{}, err
	}
	errs := make([]error, s.objects)
	var writers sync.WaitGroup
	c.start = time.Now()
	for i, bs := range objects {
		writers.Go(func() {
			if errs[i] = write(ctx, i, bs); errs[i] != nil {
				cancel()
			}
		})
	}
	err = c.follow(ctx, w, api, b.namespace)
	writers.Wait() // a watch may be faster than the answer
	return c.sample(), errors.Join(err, errors.Join(errs...))
}

// collector follows the objects of those names. Others may be there too.
type collector struct {
	start    time.Time
	names    sets.Set[string]
	complete map[string]bool
	// delivered, where there is one, is called with each object when it is complete.
	delivered func(*v1alpha1.BatchSandbox, time.Duration)
	// version is the last that was seen; empty when the API server has it no more.
	version string
	events  int
	took    []time.Duration
	seen    []v1alpha1.BatchSandbox
}

// collect returns a collector and a watch from now on, before the objects are created.
func (b *bench) collect(ctx context.Context, api client.WithWatch, names ...string) (*collector, watch.Interface, error) {
	var before v1alpha1.BatchSandboxList
	if err := api.List(ctx, &before, client.InNamespace(b.namespace), client.Limit(1)); err != nil {
		return nil, nil, fmt.Errorf("listing: %w", err)
	}
	c := &collector{names: sets.New(names...), complete: map[string]bool{}, version: before.ResourceVersion}
	w, err := c.open(ctx, api, b.namespace)
	return c, w, err
}

// open opens a watch from the last version seen on, as informers do: without a
// version, it would be served by etcd itself.
func (c *collector) open(ctx context.Context, api client.WithWatch, namespace string) (watch.Interface, error) {
	w, err := api.Watch(ctx, &v1alpha1.BatchSandboxList{}, client.InNamespace(namespace),
		&client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: c.version}})
	if err != nil {
		return nil, fmt.Errorf("watching: %w", err)
	}
	return w, nil
}

// follow reads the watch until every object is complete. The API server drops a watch that is
// slow to read, as on a machine that is very busy: another one goes on where it ended.
func (c *collector) follow(ctx context.Context, w watch.Interface, api client.WithWatch, namespace string) (err error) {
	for !c.read(w) {
		w.Stop()
		if w, err = c.open(ctx, api, namespace); err != nil {
			return err
		}
	}
	w.Stop()
	return nil
}

// read reads the watch until every object is complete; false says that it closed before.
func (c *collector) read(w watch.Interface) bool {
	for e := range w.ResultChan() {
		bs, ok := e.Object.(*v1alpha1.BatchSandbox)
		if !ok {
			c.version = ""
			return false
		}
		c.version = bs.ResourceVersion
		if !c.names.Has(bs.Name) {
			continue
		}
		c.events++
		if c.complete[bs.Name] || !isComplete(bs) {
			continue
		}
		c.complete[bs.Name] = true
		c.took, c.seen = append(c.took, time.Since(c.start)), append(c.seen, *bs)
		if c.delivered != nil {
			c.delivered(bs, c.took[len(c.took)-1])
		}
		if len(c.complete) == c.names.Len() {
			return true
		}
	}
	return false
}

func (c *collector) sample() sample {
	return sample{took: slices.Sorted(slices.Values(c.took)), seen: c.seen, cost: float64(c.events) / float64(c.names.Len())}
}

// isComplete says that every sandbox is ready and has an endpoint, and that every task
// has succeeded.
func isComplete(bs *v1alpha1.BatchSandbox) bool {
	if bs.Status.Ready != bs.DesiredReplicas() || bs.Spec.TaskTemplate != nil && bs.Status.TaskSucceed != bs.DesiredReplicas() {
		return false
	}
	var endpoints []string
	if json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationEndpoints]), &endpoints) != nil {
		return false
	}
	return len(endpoints) == int(bs.DesiredReplicas()) && !slices.Contains(endpoints, "")
}

// empty deletes all objects of a side and waits until they are gone; an empty
// namespace stands for all.
func (b *bench) empty(ctx context.Context, api client.WithWatch, namespace string) error {
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		var list v1alpha1.BatchSandboxList
		if err := api.List(ctx, &list, client.InNamespace(namespace)); err != nil {
			return false, fmt.Errorf("listing: %w", err)
		}
		errs := make([]error, len(list.Items))
		workqueue.ParallelizeUntil(ctx, 32, len(list.Items), func(i int) {
			errs[i] = b.remove(ctx, api, &list.Items[i])
		})
		// One error says enough.
		if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
			return false, errs[i]
		}
		return len(list.Items) == 0, nil
	})
}

// remove deletes an object. A Floor has nobody but us to take its finalizer away.
func (b *bench) remove(ctx context.Context, api client.WithWatch, bs *v1alpha1.BatchSandbox) error {
	if bs.DeletionTimestamp == nil {
		if err := api.Delete(ctx, bs); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting: %w", err)
		}
	}
	if api != b.floor {
		return nil
	}
	err := api.Patch(ctx, bs, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("taking the finalizer away: %w", err)
	}
	return nil
}
