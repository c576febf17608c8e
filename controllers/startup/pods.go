package startup

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/pager"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
)

// waitForPods returns when the ledger has taken in every pool pod as the API server
// has it now, or newer, and hands none out that is gone: an older copy may show a pod as
// idle and ready that the last leader has handed out and deleted since.
func (s *Startup) waitForPods(ctx context.Context) error {
	listed := map[types.UID]bool{}
	shown := client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	err := s.eachPod(ctx, shown, func(pod *metav1.PartialObjectMetadata) error {
		listed[pod.UID] = true
		return s.waitForPod(ctx, pod)
	})
	if err != nil {
		return err
	}
	return s.markGonePods(ctx, listed)
}

// eachPod calls fn with every pod that the API server has and the selector fits.
func (s *Startup) eachPod(ctx context.Context, selector client.ListOption, fn func(*metav1.PartialObjectMetadata) error) error {
	return s.eachMetadata(ctx, corev1.SchemeGroupVersion.WithKind("PodList"), selector, fn)
}

func (s *Startup) eachMetadata(ctx context.Context, kind schema.GroupVersionKind, selector client.ListOption, fn func(*metav1.PartialObjectMetadata) error) error {
	return each(ctx, s, func() client.ObjectList {
		page := &metav1.PartialObjectMetadataList{}
		page.SetGroupVersionKind(kind)
		return page
	}, selector, fn)
}

// each calls fn with every object of such a list that the API server has and the selector fits.
// While fn is at work, the next pages are on their way.
func each[T any](ctx context.Context, s *Startup, newPage func() client.ObjectList, selector client.ListOption, fn func(*T) error) error {
	for _, namespace := range s.namespaces() {
		pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			page := newPage()
			err := s.Live.List(ctx, page, client.InNamespace(namespace), client.Limit(o.Limit), client.Continue(o.Continue), selector)
			return page, err
		})
		if err := pages.EachListItem(ctx, metav1.ListOptions{}, func(item runtime.Object) error {
			object, ok := any(item).(*T)
			if !ok {
				return fmt.Errorf("%T is not what was asked for", item)
			}
			return fn(object)
		}); err != nil {
			return fmt.Errorf("listing %T of namespace %q: %w", newPage(), namespace, err)
		}
	}
	return nil
}

// waitForPod returns when the cache is at or past the listed pod and the ledger knows.
func (s *Startup) waitForPod(ctx context.Context, pod *metav1.PartialObjectMetadata) error {
	key, poolUID, ok := podfeed.PoolOf(pod)
	if !ok {
		return nil
	}
	err := untilCaughtUp(ctx, func(ctx context.Context, lookLive bool) (bool, error) {
		cached := &corev1.Pod{}
		err := s.Cache.Get(ctx, client.ObjectKeyFromObject(pod), cached, client.UnsafeDisableDeepCopy)
		switch {
		case err == nil && cached.UID == pod.UID:
			order, err := resourceversion.CompareResourceVersion(cached.ResourceVersion, pod.ResourceVersion)
			if err != nil || order < 0 {
				return false, err
			}
			// The handler may lag behind the cache that feeds it.
			if !controlledBy(cached, key, poolUID) {
				s.Ledger.MarkDeleted(key, pod.Name, pod.UID)
				return true, nil
			}
			s.Ledger.Observe(key, podfeed.Facts(cached, poolUID))
			return s.isCached(ctx, cached, key)
		case err != nil && !apierrors.IsNotFound(err):
			return false, err
		case !lookLive:
			return false, nil
		}
		left, err := s.hasLeft(ctx, pod, key, poolUID)
		if left {
			s.Ledger.MarkDeleted(key, pod.Name, pod.UID)
		}
		return left, err
	})
	if err != nil {
		return fmt.Errorf("waiting for the cache to show pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// isCached says that the cache still shows the pod as it was observed. Otherwise the
// handler may have told the ledger of the change before the older copy was observed, and
// does not tell it again: a pod that is gone would be handed out.
func (s *Startup) isCached(ctx context.Context, observed *corev1.Pod, key ledger.Key) (bool, error) {
	now := &corev1.Pod{}
	err := s.Cache.Get(ctx, client.ObjectKeyFromObject(observed), now, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) || err == nil && now.UID != observed.UID {
		s.Ledger.ObserveGone(key, observed.Name, observed.UID)
		return true, nil
	}
	return err == nil && now.ResourceVersion == observed.ResourceVersion, err
}

// markGonePods marks the pods that the cache still shows although they have left.
func (s *Startup) markGonePods(ctx context.Context, listed map[types.UID]bool) error {
	var cached corev1.PodList
	if err := s.Cache.List(ctx, &cached, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing the cached pods: %w", err)
	}
	for i := range cached.Items {
		pod := &cached.Items[i]
		key, poolUID, ok := podfeed.PoolOf(pod)
		if !ok || listed[pod.UID] {
			continue
		}
		left, err := s.hasLeft(ctx, pod, key, poolUID)
		if err != nil {
			return fmt.Errorf("reading pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		if left {
			s.Ledger.MarkDeleted(key, pod.Name, pod.UID)
		}
	}
	return nil
}

// hasLeft says that the pod is gone, is hidden from the cache, which selects by a label,
// or was taken from its Pool. The event that tells the ledger so may still be on its way.
func (s *Startup) hasLeft(ctx context.Context, pod client.Object, key ledger.Key, poolUID types.UID) (bool, error) {
	live := &metav1.PartialObjectMetadata{}
	live.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	if gone, err := s.isGone(ctx, live, pod); gone || err != nil {
		return gone, err
	}
	return live.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy || !controlledBy(live, key, poolUID), nil
}

func controlledBy(pod client.Object, key ledger.Key, poolUID types.UID) bool {
	poolKey, uid, ok := podfeed.PoolOf(pod)
	return ok && poolKey == key && uid == poolUID
}

// loseHidden tells the ledger of the pods that the records name and the cache does not
// show because they have lost its label, and that they are lost: known by their UID,
// they are deleted and replaced, as they are when it happens later.
func (s *Startup) loseHidden(ctx context.Context, records []ledger.Record) error {
	named := map[types.NamespacedName]ledger.Key{}
	for _, r := range records {
		for _, name := range slices.Concat(r.Pods, r.Releasing) {
			named[types.NamespacedName{Namespace: r.Pool.Namespace, Name: name}] = r.Pool
		}
	}
	return s.eachPod(ctx, client.MatchingLabelsSelector{Selector: hidden}, func(pod *metav1.PartialObjectMetadata) error {
		key, poolUID, ok := podfeed.PoolOf(pod)
		if ok && named[client.ObjectKeyFromObject(pod)] == key {
			s.Ledger.Observe(key, ledger.Pod{Name: pod.Name, UID: pod.UID, PoolUID: poolUID, Terminating: pod.DeletionTimestamp != nil})
			s.Ledger.ObserveGone(key, pod.Name, pod.UID)
		}
		return nil
	})
}

// hidden selects the pods of pools that the pod cache does not.
var hidden = func() labels.Selector {
	selector, err := labels.Parse(v1alpha1.LabelPoolName + "," + v1alpha1.LabelManagedBy + "!=" + v1alpha1.ManagedBy)
	utilruntime.Must(err)
	return selector
}()
