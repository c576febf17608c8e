// Package ownnamespace lets go of what the operator holds in its own namespace when that
// namespace is being deleted.
package ownnamespace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/wiring"
)

const (
	// lookInterval is shorter than the 5 s that the namespace controller waits before
	// it deletes what is in a namespace: before Kubernetes 1.33 the operator's own
	// ServiceAccount and roles may be the first to go. It is a get, not a watch, because
	// a Role covers the one Namespace in which it is for a get only.
	lookInterval = 2 * time.Second
	// requestTimeout bounds one request.
	requestTimeout = 5 * time.Second
	// leaveTimeout bounds what is done after SIGTERM, within the pod's 30 s.
	leaveTimeout = 20 * time.Second
	// leavePause lets writes that reconcilers had under way land.
	leavePause = 500 * time.Millisecond
	// parallel bounds the patches under way.
	parallel = 32
	// listPage is how many objects one request of a list returns.
	listPage = 500
)

// ourFinalizers are the ones that only the operator takes off.
var ourFinalizers = []string{v1alpha1.FinalizerPoolAllocation, v1alpha1.FinalizerTaskCleanup}

// Config is what an OwnNamespace works with.
type Config struct {
	// Name of the namespace that the operator runs in.
	Name string
	// Live reads from the API server.
	Live client.Reader
	// Client writes. It must refuse to write with an old lease.
	Client client.Client
	// Fresh returns an error while this process may not be the leader.
	Fresh func() error
	Clock clock.WithTicker
}

// OwnNamespace lets go of the Pools and BatchSandboxes in the operator's own
// namespace when that is being deleted: once the operator's pod is gone, nobody would
// take their finalizers off, and the namespace would stay for ever. It does so while
// they are not even marked for deletion yet, since from Kubernetes 1.33 pods are
// deleted before everything else. No sandbox is handed on thereby: reconcilers leave
// the namespace alone from then on, and the API server takes no new pods in it.
//
// It is a Runnable of the manager, of the leader only. A nil OwnNamespace stands for
// an operator that runs in no namespace.
type OwnNamespace struct {
	Config

	ending atomic.Bool
	// unknown: the last try to read the namespace failed.
	unknown atomic.Bool
}

// New returns an OwnNamespace, or an error that says what is missing.
func New(config Config) (*OwnNamespace, error) {
	if err := wiring.Check("watch over the operator's own namespace", config); err != nil {
		return nil, err
	}
	return &OwnNamespace{Config: config}, nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*OwnNamespace) NeedLeaderElection() bool { return true }

// Start implements manager.Runnable.
func (o *OwnNamespace) Start(ctx context.Context) error {
	ticker := o.Clock.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		o.Look(ctx)
		if o.Ending(o.Name) {
			o.release(ctx)
		}
		select {
		case <-ticker.C():
		case <-ctx.Done():
			o.leave(context.WithoutCancel(ctx))
			return nil
		}
	}
}

// Ending says that the namespace is the operator's own and is being deleted: nothing
// may take hold of what is in it any more.
func (o *OwnNamespace) Ending(namespace string) bool {
	return o != nil && namespace == o.Name && o.ending.Load()
}

// Look finds out whether the namespace is being deleted.
func (o *OwnNamespace) Look(ctx context.Context) {
	if o == nil || o.ending.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	namespace := &corev1.Namespace{}
	err := o.Live.Get(ctx, client.ObjectKey{Name: o.Name}, namespace)
	if failed := client.IgnoreNotFound(err) != nil; o.unknown.Swap(failed) != failed && failed {
		log.FromContext(ctx).Error(err, "cannot see whether the operator's own namespace is being deleted", "namespace", o.Name)
	}
	if err == nil && namespace.DeletionTimestamp != nil {
		log.FromContext(ctx).Info("the operator's own namespace is being deleted: letting go of the Pools and BatchSandboxes in it", "namespace", o.Name)
		o.ending.Store(true)
	}
}

// leave is the last chance: the process is about to end. Reconcilers that had begun
// before the end of the namespace was noticed may still have put a finalizer on.
func (o *OwnNamespace) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	o.Look(ctx)
	for quiet := 0; o.Ending(o.Name) && o.Fresh() == nil && quiet < 2 && ctx.Err() == nil; {
		if o.release(ctx) {
			quiet++
		} else {
			quiet = 0
		}
		select {
		case <-o.Clock.After(leavePause):
		case <-ctx.Done():
		}
	}
}

// release takes the operator's finalizers off everything in the namespace. It says
// whether there was nothing left to be done.
func (o *OwnNamespace) release(ctx context.Context) (nothingLeft bool) {
	nothingLeft = true
	for _, kind := range []string{v1alpha1.KindBatchSandbox, v1alpha1.KindPool} {
		released, err := o.releaseKind(ctx, kind)
		if err != nil {
			log.FromContext(ctx).Error(err, "letting go of the operator's own namespace", "namespace", o.Name)
		}
		if released > 0 {
			log.FromContext(ctx).Info("took the finalizers off", "namespace", o.Name, "kind", kind, "objects", released)
		}
		nothingLeft = nothingLeft && err == nil && released == 0
	}
	return nothingLeft
}

func (o *OwnNamespace) releaseKind(ctx context.Context, kind string) (int, error) {
	held, err := o.list(ctx, kind)
	if err != nil {
		return 0, err
	}
	errs := make([]error, len(held))
	var released atomic.Int64
	workqueue.ParallelizeUntil(ctx, parallel, len(held), func(i int) {
		if errs[i] = o.releaseOne(ctx, &held[i]); errs[i] == nil {
			released.Add(1)
		}
	})
	return int(released.Load()), errors.Join(errs...)
}

// list returns the objects that have a finalizer of the operator.
func (o *OwnNamespace) list(ctx context.Context, kind string) ([]metav1.PartialObjectMetadata, error) {
	var held []metav1.PartialObjectMetadata
	for token := ""; ; {
		page := &metav1.PartialObjectMetadataList{}
		page.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind + "List"))
		if err := o.Live.List(ctx, page, client.InNamespace(o.Name), client.Limit(listPage), client.Continue(token)); err != nil {
			return nil, fmt.Errorf("listing objects of kind %s in namespace %s: %w", kind, o.Name, err)
		}
		for i := range page.Items {
			item := &page.Items[i]
			if slices.ContainsFunc(item.Finalizers, isOurs) {
				item.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
				held = append(held, *item)
			}
		}
		if token = page.Continue; token == "" {
			return held, nil
		}
	}
}

func (o *OwnNamespace) releaseOne(ctx context.Context, obj *metav1.PartialObjectMetadata) error {
	if err := o.Fresh(); err != nil {
		return fmt.Errorf("not taking the finalizers off %s %s/%s: %w", obj.Kind, obj.Namespace, obj.Name, err)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": obj.ResourceVersion,
		"finalizers":      slices.DeleteFunc(slices.Clone(obj.Finalizers), isOurs),
	}})
	if err != nil {
		return fmt.Errorf("building the patch of finalizers: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	name := obj.Kind + " " + obj.Namespace + "/" + obj.Name
	if err := o.Client.Patch(ctx, obj, client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("taking the finalizers off %s: %w", name, err)
	}
	return nil
}

func isOurs(finalizer string) bool { return slices.Contains(ourFinalizers, finalizer) }
