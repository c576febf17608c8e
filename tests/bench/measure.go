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
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// sample is one measurement of a scenario.
type sample struct {
	// took is, for each object, in ascending order, the time from the start of the
	// first create until the watch showed it complete.
	took []time.Duration
	// writes is how many versions of an object the watch showed until then, on average.
	writes float64
	seen   []v1alpha1.BatchSandbox
}

// measure runs a scenario in pairs, the operator first in every other one.
func (b *bench) measure(ctx context.Context, s scenario, rounds int) ([]row, error) {
	var operator, floor []sample
	for i := range rounds + 1 {
		var pair [2]sample
		order := []int{0, 1}
		if i%2 == 1 {
			order = []int{1, 0}
		}
		for _, side := range order {
			var err error
			if side == 0 {
				pair[0], err = b.runOperator(ctx, s, i)
			} else {
				pair[1], err = b.runFloor(ctx, s, i)
			}
			if err != nil {
				return nil, err
			}
		}
		if i == 0 {
			continue // it warms the connections up and tells the floor what to write
		}
		operator, floor = append(operator, pair[0]), append(floor, pair[1])
	}
	return rowsOf(s, operator, floor), nil
}

// runOperator creates the BatchSandboxes and leaves the rest to the operator.
func (b *bench) runOperator(ctx context.Context, s scenario, round int) (sample, error) {
	if err := b.untilIdle(ctx, s.pool, roundPatience); err != nil {
		return sample{}, err
	}
	result, err := b.time(ctx, b.api, s, round, func(ctx context.Context, _ int, bs *v1alpha1.BatchSandbox) error {
		return b.api.Create(ctx, bs)
	})
	if err != nil {
		return sample{}, fmt.Errorf("operator: %w", err)
	}
	b.payloads[s.name] = result.seen
	return result, errors.Join(b.empty(ctx, b.api), b.untilIdle(ctx, s.pool, roundPatience))
}

// runFloor does by hand the writes that the operator did in its last run.
func (b *bench) runFloor(ctx context.Context, s scenario, round int) (sample, error) {
	result, err := b.time(ctx, b.floor, s, round, func(ctx context.Context, i int, bs *v1alpha1.BatchSandbox) error {
		payload := &b.payloads[s.name][i]
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
	})
	if err != nil {
		return sample{}, fmt.Errorf("floor: %w", err)
	}
	return result, b.empty(ctx, b.floor)
}

// time opens a watch, starts the writer of every object at once and returns when the
// watch has shown all of them complete.
func (b *bench) time(ctx context.Context, api client.WithWatch, s scenario, round int, write func(context.Context, int, *v1alpha1.BatchSandbox) error) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, roundPatience)
	defer cancel()
	w, err := api.Watch(ctx, &v1alpha1.BatchSandboxList{}, client.InNamespace(b.namespace))
	if err != nil {
		return sample{}, fmt.Errorf("watching: %w", err)
	}
	defer w.Stop()
	objects := make([]*v1alpha1.BatchSandbox, s.objects)
	for i := range objects {
		objects[i] = &v1alpha1.BatchSandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: fmt.Sprintf("b%d-%d", round, i)},
			Spec:       v1alpha1.BatchSandboxSpec{Replicas: &s.replicas, PoolRef: s.pool},
		}
	}
	errs := make([]error, s.objects)
	var writers sync.WaitGroup
	start := time.Now()
	for i, bs := range objects {
		writers.Go(func() {
			if errs[i] = write(ctx, i, bs); errs[i] != nil {
				cancel()
			}
		})
	}
	result, err := collect(ctx, w, s, start)
	writers.Wait()
	return result, errors.Join(append(errs, err)...)
}

// collect reads the watch until every object of the scenario is complete.
func collect(ctx context.Context, w watch.Interface, s scenario, start time.Time) (sample, error) {
	var result sample
	events := 0
	complete := map[string]bool{}
	for len(complete) < s.objects {
		select {
		case <-ctx.Done():
			return result, fmt.Errorf("%d of %d are complete: %w", len(complete), s.objects, context.Cause(ctx))
		case e, open := <-w.ResultChan():
			bs, ok := e.Object.(*v1alpha1.BatchSandbox)
			if !open || !ok || e.Type == watch.Deleted {
				return result, fmt.Errorf("unexpected event of the watch: %v %+v", e.Type, e.Object)
			}
			events++
			if complete[bs.Name] || !isComplete(bs) {
				continue
			}
			complete[bs.Name] = true
			result.took = append(result.took, time.Since(start))
			result.seen = append(result.seen, *bs)
		}
	}
	slices.Sort(result.took)
	result.writes = float64(events) / float64(s.objects)
	return result, nil
}

// isComplete says that every sandbox is ready and has an endpoint.
func isComplete(bs *v1alpha1.BatchSandbox) bool {
	if bs.Status.Ready != bs.DesiredReplicas() {
		return false
	}
	var endpoints []string
	if json.Unmarshal([]byte(bs.Annotations[v1alpha1.AnnotationEndpoints]), &endpoints) != nil {
		return false
	}
	return len(endpoints) == int(bs.DesiredReplicas()) && !slices.Contains(endpoints, "")
}

// empty deletes all objects of a side and waits until they are gone. A Floor has
// nobody but us to take its finalizer away.
func (b *bench) empty(ctx context.Context, api client.WithWatch) error {
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		var list v1alpha1.BatchSandboxList
		if err := api.List(ctx, &list, client.InNamespace(b.namespace)); err != nil {
			return false, fmt.Errorf("listing: %w", err)
		}
		for i := range list.Items {
			bs := &list.Items[i]
			if bs.DeletionTimestamp == nil {
				if err := api.Delete(ctx, bs); client.IgnoreNotFound(err) != nil {
					return false, fmt.Errorf("deleting: %w", err)
				}
			}
			if api == b.floor {
				err := api.Patch(ctx, bs, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)))
				if client.IgnoreNotFound(err) != nil {
					return false, fmt.Errorf("taking the finalizer away: %w", err)
				}
			}
		}
		return len(list.Items) == 0, nil
	})
}
