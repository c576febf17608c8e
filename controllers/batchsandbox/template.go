package batchsandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/slowstart"
	"github.com/opensandbox/operator/controllers/taskreport"
)

const (
	// createParallel bounds the pods of one BatchSandbox that are created at a time.
	createParallel = 64
	// cacheLag is after how long a created pod that the cache does not show is looked up.
	cacheLag = 30 * time.Second
)

func (r *Reconciler) reconcileTemplate(ctx context.Context, s *scope) (view, time.Duration, error) {
	if err := r.addTaskFinalizer(ctx, s); err != nil {
		return view{}, 0, err
	}
	pods, err := r.shardPods(ctx, s)
	if err != nil {
		return view{}, 0, err
	}
	if err := r.checkCreations(ctx, s, pods); err != nil {
		return r.viewTemplate(s, pods), 0, err
	}
	plan := planTemplate(planned(pods, s.memo), s.bs.DesiredReplicas(), taskreport.Released(s.bs), s.memo.failures, r.Clock.Now())
	for _, p := range plan.remove {
		if err := r.deletePod(ctx, s.bs.Namespace, p.name, p.uid); err != nil {
			return r.viewTemplate(s, pods), 0, err
		}
	}
	createErr := r.createShards(ctx, s, plan.create, pods)
	v := r.viewTemplate(s, pods)
	if createErr != nil {
		reason := v1alpha1.ReasonCreateFailed
		if apierrors.IsInvalid(createErr) || apierrors.IsBadRequest(createErr) || errors.Is(createErr, errTemplate) {
			reason = v1alpha1.ReasonTemplateInvalid
		}
		v.blocked = &blocked{reason, createErr.Error()}
		if apiwrite.NamespaceEnding(createErr) {
			createErr = nil
		}
	}
	later, err := r.writeEndpoints(ctx, s, pods)
	return v, soonest(plan.retryAfter, soonest(later, r.nextCheck(s))), errors.Join(createErr, err)
}

// errTemplate marks a template that no pod can be made from, or a shard patch that
// does not apply.
var errTemplate = errors.New("template cannot be used")

// shardPods returns the pods of the BatchSandbox that the cache shows, by name. They
// are the cache's own and must not be changed.
func (r *Reconciler) shardPods(ctx context.Context, s *scope) (map[string]*corev1.Pod, error) {
	var list corev1.PodList
	if err := r.Client.List(ctx, &list, client.InNamespace(s.bs.Namespace),
		client.MatchingFields{indexController: string(s.bs.UID)}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	pods := make(map[string]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[list.Items[i].Name] = &list.Items[i]
		delete(s.memo.creations, list.Items[i].Name)
	}
	return pods, nil
}

// planned returns the pods as the plan sees them, with those that the cache does
// not show yet.
func planned(pods map[string]*corev1.Pod, m *memo) []shardPod {
	var list []shardPod
	for name, pod := range pods {
		list = append(list, shardPod{
			name: name, uid: pod.UID, shard: shardOf(pod), created: pod.CreationTimestamp.Time,
			terminating: pod.DeletionTimestamp != nil, finished: podfeed.Finished(pod),
		})
	}
	for name, c := range m.creations {
		if c.confirmed {
			list = append(list, shardPod{name: name, shard: c.shard, created: c.sent, expected: true})
		}
	}
	return list
}

// shardOf returns the shard that the pod was made for, or -1.
func shardOf(pod *corev1.Pod) int32 {
	shard, err := strconv.ParseInt(pod.Labels[v1alpha1.LabelBatchSandboxPodIndex], 10, 32)
	if err != nil {
		return -1
	}
	return int32(shard)
}

// checkCreations looks up created pods that the cache should have shown long ago:
// one that was deleted in between never comes.
func (r *Reconciler) checkCreations(ctx context.Context, s *scope, pods map[string]*corev1.Pod) error {
	for name, c := range s.memo.creations {
		if !c.confirmed || pods[name] != nil || r.Clock.Since(c.sent) < cacheLag {
			continue
		}
		live := &metav1.PartialObjectMetadata{}
		live.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
		err := r.Live.Get(ctx, types.NamespacedName{Namespace: s.bs.Namespace, Name: name}, live)
		switch {
		case apierrors.IsNotFound(err):
			delete(s.memo.creations, name)
		case err != nil:
			return fmt.Errorf("looking for pod %s/%s: %w", s.bs.Namespace, name, err)
		default:
			c.sent = r.Clock.Now()
		}
	}
	return nil
}

// nextCheck returns when to look up the oldest created pod that the cache does not show.
func (r *Reconciler) nextCheck(s *scope) time.Duration {
	var next time.Duration
	for _, c := range s.memo.creations {
		if c.confirmed {
			next = soonest(next, max(time.Millisecond, cacheLag-r.Clock.Since(c.sent)))
		}
	}
	return next
}

// createShards creates pods for the shards with slow start. A creation of unknown
// outcome is repeated under the same name, so that it never makes two.
func (r *Reconciler) createShards(ctx context.Context, s *scope, shards []int32, pods map[string]*corev1.Pod) error {
	open := map[int32]string{}
	for name, c := range s.memo.creations {
		if !c.confirmed {
			open[c.shard] = name
		}
	}
	podsToCreate := make([]*corev1.Pod, len(shards))
	for i, shard := range shards {
		name := open[shard]
		if name == "" {
			name = podtemplate.ShardPodName(s.bs.Name, shard, true)
			if pods[name] != nil {
				name = podtemplate.ShardPodName(s.bs.Name, shard, false)
			}
		}
		pod, err := r.shardPod(s.bs, shard, name)
		if err != nil {
			return err
		}
		podsToCreate[i] = pod
	}
	var mu sync.Mutex // guards the memo's creations
	_, err := slowstart.Run(ctx, len(shards), createParallel, func(ctx context.Context, i int) error {
		err := r.createShard(ctx, s, &mu, shards[i], podsToCreate[i])
		if !errors.Is(err, errNameTaken) {
			return err
		}
		// A pod of somebody else, or of an earlier BatchSandbox of this name.
		pod, err := r.shardPod(s.bs, shards[i], podtemplate.ShardPodName(s.bs.Name, shards[i], false))
		if err != nil {
			return err
		}
		return r.createShard(ctx, s, &mu, shards[i], pod)
	})
	return err
}

func (r *Reconciler) shardPod(bs *v1alpha1.BatchSandbox, shard int32, name string) (*corev1.Pod, error) {
	pod, err := podtemplate.ForShard(bs, shard, name)
	if err == nil && r.Executor != nil {
		err = r.Executor().Complete(pod, podtemplate.ShardInjects(bs))
	}
	if err != nil {
		return nil, errors.Join(errTemplate, err)
	}
	return pod, nil
}

// createShard creates the pod of a shard and remembers it until the cache shows it.
func (r *Reconciler) createShard(ctx context.Context, s *scope, mu *sync.Mutex, shard int32, pod *corev1.Pod) error {
	c := &creation{shard: shard, sent: r.Clock.Now()}
	mu.Lock()
	s.memo.creations[pod.Name] = c
	mu.Unlock()
	err := r.createPod(ctx, pod, s.bs.UID)
	mu.Lock()
	defer mu.Unlock()
	switch {
	case err == nil:
		c.confirmed = true
	case apiwrite.Refused(err) || errors.Is(err, errNameTaken):
		delete(s.memo.creations, pod.Name)
	}
	return err
}

// errNameTaken says that another object's pod has the name.
var errNameTaken = errors.New("the name is taken by a pod of another owner")

func (r *Reconciler) createPod(ctx context.Context, pod *corev1.Pod, owner types.UID) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := r.Client.Create(ctx, pod)
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return fmt.Errorf("creating pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		return nil
	}
	live := &metav1.PartialObjectMetadata{}
	live.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(pod), live); err != nil {
		return fmt.Errorf("reading pod %s/%s, which exists already: %w", pod.Namespace, pod.Name, err)
	}
	if ref := metav1.GetControllerOf(live); ref == nil || ref.UID != owner || live.DeletionTimestamp != nil {
		return fmt.Errorf("creating pod %s/%s: %w", pod.Namespace, pod.Name, errNameTaken)
	}
	return nil
}

// writeEndpoints patches the annotation when the pods' addresses changed: at once
// when every sandbox has one, otherwise not more often than the object's size allows.
func (r *Reconciler) writeEndpoints(ctx context.Context, s *scope, pods map[string]*corev1.Pod) (time.Duration, error) {
	replicas := s.bs.DesiredReplicas()
	released := taskreport.Released(s.bs)
	ips := make([]string, replicas)
	filled := int32(0)
	for _, pod := range pods {
		shard := shardOf(pod)
		if shard < 0 || shard >= replicas || released[shard] || pod.DeletionTimestamp != nil || podfeed.Finished(pod) || pod.Status.PodIP == "" {
			continue
		}
		if ips[shard] == "" {
			filled++
		}
		ips[shard] = pod.Status.PodIP
	}
	value, err := allocation.FormatEndpoints(ips)
	if err != nil || value == s.bs.Annotations[v1alpha1.AnnotationEndpoints] {
		return 0, err
	}
	if wait := r.tooSoon(s); wait > 0 && int(filled)+len(released) < int(replicas) {
		return wait, nil
	}
	annotation := map[string]*string{v1alpha1.AnnotationEndpoints: nil}
	if value != "" {
		annotation[v1alpha1.AnnotationEndpoints] = &value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotation}})
	if err != nil {
		return 0, fmt.Errorf("building the endpoints patch: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	answer := s.bs.DeepCopy()
	if err := r.Client.Patch(ctx, answer, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return 0, client.IgnoreNotFound(fmt.Errorf("writing the endpoints: %w", err))
	}
	s.memo.latest, s.memo.allocationWritten, s.bs = answer, r.Clock.Now(), answer.DeepCopy()
	return 0, nil
}

// viewTemplate returns what is to be seen of a template-mode BatchSandbox.
func (r *Reconciler) viewTemplate(s *scope, pods map[string]*corev1.Pod) view {
	var v view
	released := taskreport.Released(s.bs)
	for _, pod := range pods {
		if shard := shardOf(pod); pod.DeletionTimestamp != nil || shard < 0 || shard >= s.bs.DesiredReplicas() || released[shard] {
			continue
		}
		if problem := podfeed.Problem(pod); problem != "" && v.problem == "" {
			v.problem = fmt.Sprintf("sandbox %s: %s", pod.Name, problem)
		}
		if podfeed.Finished(pod) {
			continue
		}
		v.total++
		if pod.Spec.NodeName != "" {
			v.allocated++
		}
		if podfeed.Ready(pod) {
			v.ready++
		}
		if podfeed.Restarts(pod) > 0 {
			v.restarted++
		}
	}
	for name, c := range s.memo.creations {
		if c.confirmed && pods[name] == nil {
			v.total++
		}
	}
	return v
}

// deletePodsOf deletes the template-mode pods of a BatchSandbox that is gone or going.
func (r *Reconciler) deletePodsOf(ctx context.Context, name types.NamespacedName) error {
	var list corev1.PodList
	if err := r.Client.List(ctx, &list, client.InNamespace(name.Namespace),
		client.MatchingLabels{v1alpha1.LabelBatchSandboxName: name.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing the pods of BatchSandbox %s: %w", name, err)
	}
	var errs []error
	for i := range list.Items {
		pod := &list.Items[i]
		ref := metav1.GetControllerOf(pod)
		if ref == nil || ref.Kind != v1alpha1.KindBatchSandbox || ref.Name != name.Name || pod.DeletionTimestamp != nil {
			continue
		}
		errs = append(errs, r.deletePod(ctx, pod.Namespace, pod.Name, pod.UID))
	}
	return errors.Join(errs...)
}
