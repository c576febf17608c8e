package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/controllers/podfeed"
)

// podView follows the pods with a label by a watch of its own, as each client has to that waits
// for pods.
type podView struct {
	// value of the label.
	value string
	end   context.CancelFunc
	work  sync.WaitGroup

	mu sync.Mutex // guards the rest
	// pods are those that are there, by name; started and idle count those that are so.
	pods          map[string]podState
	started, idle int
	// added counts all that ever came.
	added   int
	changed chan struct{} // closed and replaced at every change
}

// podState is what the watch has shown of a pod.
type podState struct {
	// started: it is ready, or was and has ended since.
	started bool
	// idle: it is ready and not on its way out.
	idle bool
}

// viewPods returns when the view shows all pods that are there. Its caller closes it.
func (b *bench) viewPods(ctx context.Context, label, value string) (*podView, error) {
	ctx, end := context.WithCancel(ctx)
	v := &podView{value: value, end: end, pods: map[string]podState{}, changed: make(chan struct{})}
	options := func(o metav1.ListOptions) []client.ListOption {
		return []client.ListOption{client.InNamespace(b.namespace), client.MatchingLabels{label: value}, &client.ListOptions{Raw: &o}}
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				list := &corev1.PodList{}
				return list, b.api.List(ctx, list, options(o)...)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return b.api.Watch(ctx, &corev1.PodList{}, options(o)...)
			},
		},
		ObjectType: &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    v.note,
			UpdateFunc: func(_, pod any) { v.note(pod) },
			DeleteFunc: v.forget,
		},
	})
	v.work.Go(func() { informer.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		v.close()
		return nil, fmt.Errorf("watching the pods with label %s=%s: %w", label, value, context.Cause(ctx))
	}
	return v, nil
}

func (v *podView) close() {
	v.end()
	v.work.Wait()
}

// count returns how many pods ever came.
func (v *podView) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.added
}

func (v *podView) note(object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	before, known := v.pods[pod.Name]
	if !known {
		v.added++
	}
	ready := podfeed.Ready(pod)
	v.set(pod.Name, podState{
		started: before.started || ready || pod.Status.Phase == corev1.PodSucceeded,
		idle:    ready && pod.DeletionTimestamp == nil,
	})
	v.tell()
}

func (v *podView) forget(object any) {
	name, err := cache.DeletionHandlingObjectToName(object)
	if err != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.set(name.Name, podState{})
	delete(v.pods, name.Name)
	v.tell()
}

// set changes the state of a pod and the counts. The lock is held.
func (v *podView) set(name string, now podState) {
	before := v.pods[name]
	v.pods[name] = now
	v.started += one(now.started) - one(before.started)
	v.idle += one(now.idle) - one(before.idle)
}

func one(is bool) int {
	if is {
		return 1
	}
	return 0
}

// tell wakes those who wait. The lock is held.
func (v *podView) tell() {
	close(v.changed)
	v.changed = make(chan struct{})
}

// until waits until what the view shows is as wanted. It is asked with the lock held.
func (v *podView) until(ctx context.Context, wanted func() bool) error {
	for {
		v.mu.Lock()
		reached, changed := wanted(), v.changed
		v.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for pods: %w", errors.Join(ctx.Err(), context.Cause(ctx)))
		}
	}
}

// untilStarted waits until so many pods have become ready.
func (v *podView) untilStarted(ctx context.Context, n int) error {
	return v.until(ctx, func() bool { return v.started >= n })
}

// untilGone waits until no pod is there any more.
func (v *podView) untilGone(ctx context.Context) error {
	return v.until(ctx, func() bool { return len(v.pods) == 0 })
}
