package startup

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/podfeed"
)

// AdopterRole is the ClusterRole that lets the operator label the pods that OpenSandbox's
// controller has left. It ships unbound: who binds it says that they are to be taken over.
const AdopterRole = "opensandbox-pod-adopter"

// takenOver is the value of the label that has adopted pods of pools deleted and not handed on.
const takenOver = "taken-over"

// adoptPods gives the pods that OpenSandbox's controller has left the label by which the pod
// cache selects, and returns when the cache shows them. A pod is adopted only where the Pool
// or BatchSandbox that controls it exists, by UID. Whoever holds one goes on to hold it. What a
// pod of a pool went through before is not known, so that it is never idle: it gets the
// eviction label as well, in the same patch, and is deleted now or when it comes back.
func (s *Startup) adoptPods(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox, done *takeover) error {
	pods, err := s.orphans(ctx, sandboxes)
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards done, forbidden and failed
	var forbidden, failed error
	workqueue.ParallelizeUntil(ctx, writesAtOnce, len(pods), func(i int) {
		adopted, err := s.adopt(ctx, &pods[i])
		mu.Lock()
		defer mu.Unlock()
		switch {
		case apierrors.IsForbidden(err):
			forbidden = err
		case err != nil:
			failed = err
		case adopted:
			done.adopted++
		}
	})
	if forbidden != nil {
		log.FromContext(ctx).Error(forbidden, "pods of another controller are not taken over: the operator sees them only where the ClusterRole is bound to it",
			"clusterRole", AdopterRole, "pods", len(pods), "adopted", done.adopted)
	}
	if failed == nil {
		failed = ctx.Err()
	}
	return failed
}

// orphans returns the pods that OpenSandbox's controller has made and the pod cache does not
// show, as far as their owners live. It gives every pod a generateName, which the operator
// never does; one of the operator's own that has lost its label is lost.
func (s *Startup) orphans(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox) ([]metav1.PartialObjectMetadata, error) {
	var pods []metav1.PartialObjectMetadata
	for _, selector := range []labels.Selector{hidden, hiddenShards} {
		if err := s.eachPod(ctx, client.MatchingLabelsSelector{Selector: selector}, func(pod *metav1.PartialObjectMetadata) error {
			if pod.GenerateName != "" {
				pods = append(pods, *pod)
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	if len(pods) == 0 {
		return nil, nil
	}
	owners := map[types.UID]types.NamespacedName{}
	pools := v1alpha1.GroupVersion.WithKind(v1alpha1.KindPool + "List")
	if err := s.eachMetadata(ctx, pools, client.MatchingLabels{}, func(pool *metav1.PartialObjectMetadata) error {
		owners[pool.UID] = client.ObjectKeyFromObject(pool)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, bs := range sandboxes {
		owners[bs.UID] = types.NamespacedName{Namespace: bs.Namespace, Name: bs.Name}
	}
	kept := pods[:0]
	for _, pod := range pods {
		name, uid, ok := podfeed.PoolOf(&pod)
		if !ok {
			name, uid, ok = podfeed.BatchSandboxOf(&pod)
		}
		if ok && owners[uid] == name {
			kept = append(kept, pod)
		}
	}
	return kept, nil
}

// adopt labels one pod and waits until the cache shows it. It says whether that was done: a
// pod that is gone, or that something refuses to have changed, is left as it is.
func (s *Startup) adopt(ctx context.Context, pod *metav1.PartialObjectMetadata) (bool, error) {
	added := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	if _, _, ok := podfeed.PoolOf(pod); ok {
		added[v1alpha1.LabelPoolEvict] = takenOver
	} else if name, _, ok := podfeed.BatchSandboxOf(pod); ok {
		added[v1alpha1.LabelBatchSandboxName] = name.Name // earlier versions set none
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID, "labels": added}})
	if err != nil {
		return false, fmt.Errorf("building the labels of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	var last error
	err = wait.PollUntilContextTimeout(ctx, rewritePause, rewritePatience, true, func(ctx context.Context) (bool, error) {
		answer := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
		answer.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
		last = s.Client.Patch(ctx, answer, client.RawPatch(types.MergePatchType, patch))
		return last == nil || apiwrite.Refused(last), nil
	})
	switch {
	case apierrors.IsNotFound(last) || apierrors.IsInvalid(last): // it is gone, or another has its name
		return false, nil
	case apierrors.IsForbidden(last):
		return false, last
	case apiwrite.Refused(last):
		log.FromContext(ctx).Error(last, "going on without a pod of another controller", "pod", client.ObjectKeyFromObject(pod))
		return false, nil
	case err != nil && last != nil:
		return false, fmt.Errorf("labelling pod %s/%s: %w", pod.Namespace, pod.Name, last)
	case err != nil:
		return false, err
	}
	return true, s.waitUntilShown(ctx, pod)
}

// waitUntilShown returns when the cache shows the pod, or it is gone or hidden again.
func (s *Startup) waitUntilShown(ctx context.Context, pod *metav1.PartialObjectMetadata) error {
	err := untilCaughtUp(ctx, func(ctx context.Context, lookLive bool) (bool, error) {
		cached := &corev1.Pod{}
		err := s.Cache.Get(ctx, client.ObjectKeyFromObject(pod), cached)
		switch {
		case err == nil && cached.UID == pod.UID:
			return true, nil
		case err != nil && !apierrors.IsNotFound(err):
			return false, err
		case !lookLive:
			return false, nil
		}
		live := &metav1.PartialObjectMetadata{}
		live.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
		gone, err := s.isGone(ctx, live, pod)
		return gone || err == nil && live.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy, err
	})
	if err != nil {
		return fmt.Errorf("waiting for the cache to show the adopted pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// hiddenShards selects the pods of templates that the pod cache does not.
var hiddenShards = func() labels.Selector {
	selector, err := labels.Parse(v1alpha1.LabelBatchSandboxPodIndex + "," + v1alpha1.LabelManagedBy + "!=" + v1alpha1.ManagedBy)
	utilruntime.Must(err)
	return selector
}()
