package batchsandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// templates brings BatchSandboxes that are made from a template to what they ask for.
type templates struct {
	client  client.Reader
	writer  *writer
	pods    pods
	creator creator
	tasks   Tasks
	clock   clock.PassiveClock
}

// reconcile returns what is to be seen of the BatchSandbox and when to come back.
func (t *templates) reconcile(ctx context.Context, o *object) (*view, time.Duration, error) {
	// The finalizer comes before the first task may start: a deletion then waits until the
	// tasks are stopped. A pooled BatchSandbox gets it with its allocation.
	if o.bs.Spec.TaskTemplate != nil {
		if wait, err := t.setTaskFinalizer(ctx, o, true); err != nil || wait > 0 {
			return nil, wait, err
		}
	}
	pods, err := t.list(ctx, o)
	if err != nil {
		return nil, 0, err
	}
	if err := t.creator.check(ctx, o, pods); err != nil {
		return viewTemplate(o, pods), 0, err
	}
	plan := planTemplate(planned(pods, &o.shards), o.bs.DesiredReplicas(), shardtask.Released(o.bs), o.shards.failures, t.clock.Now())
	if err := t.remove(ctx, o, plan.remove); err != nil {
		again, err := unlessUnfinished(err)
		return viewTemplate(o, pods), again, err
	}
	createErr := t.creator.create(ctx, o, plan.create, pods)
	v := viewTemplate(o, pods)
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
	var later time.Duration
	if v.gang == "" {
		later, err = t.writeEndpoints(ctx, o, pods)
	}
	return v, soonest(plan.retryAfter, soonest(later, t.creator.nextCheck(o))), errors.Join(createErr, err)
}

// list returns the pods of the BatchSandbox that the cache shows, by name. They are the
// cache's own and must not be changed.
func (t *templates) list(ctx context.Context, o *object) (map[string]*corev1.Pod, error) {
	list, err := t.controlledBy(ctx, o.owner.NamespacedName)
	if err != nil {
		return nil, err
	}
	pods := make(map[string]*corev1.Pod, len(list))
	for i := range list {
		if _, uid, _ := podfeed.BatchSandboxOf(&list[i]); uid == o.bs.UID {
			pods[list[i].Name] = &list[i]
			delete(o.shards.creations, list[i].Name)
		}
	}
	o.deleted.keep(len(list), func(i int) types.UID { return list[i].UID })
	return pods, nil
}

// controlledBy returns the pods that a BatchSandbox of that name controls, or has
// controlled. They are the cache's own.
func (t *templates) controlledBy(ctx context.Context, name types.NamespacedName) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := t.client.List(ctx, &list, client.InNamespace(name.Namespace),
		client.MatchingFields{podfeed.IndexBatchSandbox: name.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing the pods of BatchSandbox %s: %w", name, err)
	}
	return list.Items, nil
}

func (t *templates) remove(ctx context.Context, o *object, pods []shardPod) error {
	return inPass(ctx, t.clock, len(pods), func(i int) error {
		return t.pods.delete(ctx, types.NamespacedName{Namespace: o.bs.Namespace, Name: pods[i].name}, pods[i].uid, &o.deleted)
	})
}

// planned returns the pods as the plan sees them, with those that the cache does
// not show yet.
func planned(pods map[string]*corev1.Pod, m *shardMemo) []shardPod {
	var list []shardPod
	for name, pod := range pods {
		list = append(list, shardPod{
			name: name, uid: pod.UID, shard: shardOf(pod), created: pod.CreationTimestamp.Time,
			terminating: pod.DeletionTimestamp != nil, disrupted: podfeed.Disrupted(pod), ended: endedByItself(pod),
		})
	}
	for name, c := range m.creations {
		if c.confirmed {
			list = append(list, shardPod{name: name, shard: c.shard, created: c.sent, expected: true})
		}
	}
	return list
}

// endedByItself says that the containers of the pod finished by themselves and are not
// restarted.
func endedByItself(pod *corev1.Pod) bool {
	return podfeed.Finished(pod) && !podfeed.Disrupted(pod) && pod.DeletionTimestamp == nil
}

// shardOf returns the shard that the pod was made for, or -1.
func shardOf(pod *corev1.Pod) int32 {
	shard, err := strconv.ParseInt(pod.Labels[v1alpha1.LabelBatchSandboxPodIndex], 10, 32)
	if err != nil {
		return -1
	}
	return int32(shard)
}

// writeEndpoints patches the annotation when the pods' addresses changed: at once
// when every sandbox has one, otherwise not more often than the object's size allows.
func (t *templates) writeEndpoints(ctx context.Context, o *object, pods map[string]*corev1.Pod) (time.Duration, error) {
	replicas, released := o.bs.DesiredReplicas(), shardtask.Released(o.bs)
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
	value := allocation.FormatEndpoints(ips)
	if value == o.bs.Annotations[v1alpha1.AnnotationEndpoints] {
		return 0, nil
	}
	if wait := o.tooSoon(t.clock.Now()); wait > 0 && int(filled)+len(released) < int(replicas) {
		return wait, nil
	}
	annotation := map[string]*string{v1alpha1.AnnotationEndpoints: nil}
	if value != "" {
		annotation[v1alpha1.AnnotationEndpoints] = &value
	}
	wait, err := t.patch(ctx, o, map[string]any{"annotations": annotation})
	if err == nil && wait == 0 {
		o.allocationWritten = t.clock.Now()
	}
	return wait, err
}

// setTaskFinalizer gives the object the finalizer, or takes it away. It returns when to
// come back where the object had changed.
func (t *templates) setTaskFinalizer(ctx context.Context, o *object, wanted bool) (time.Duration, error) {
	finalizers := setFinalizer(o.bs.Finalizers, v1alpha1.FinalizerTaskCleanup, wanted)
	if slices.Equal(finalizers, o.bs.Finalizers) {
		return 0, nil
	}
	return t.patch(ctx, o, map[string]any{"finalizers": finalizers})
}

// patch patches the metadata. It returns when to come back where the object had changed.
func (t *templates) patch(ctx context.Context, o *object, fields map[string]any) (time.Duration, error) {
	switch result, err := t.writer.send(ctx, o, metadataPatch(o.bs, fields)); {
	case result == overtaken:
		return t.writer.lookAgain(ctx, o), nil
	case err != nil:
		return 0, fmt.Errorf("writing the metadata: %w", err)
	}
	return 0, nil
}

// viewTemplate returns what is to be seen of a BatchSandbox with these pods.
func viewTemplate(o *object, pods map[string]*corev1.Pod) *view {
	v := &view{}
	released := shardtask.Released(o.bs)
	for _, pod := range pods {
		if shard := shardOf(pod); pod.DeletionTimestamp != nil || shard < 0 || shard >= o.bs.DesiredReplicas() || released[shard] {
			continue
		}
		if problem := podfeed.Problem(pod); problem != "" && !endedByItself(pod) {
			v.troubled(pod.Name, problem)
		}
		if podfeed.Disrupted(pod) {
			continue
		}
		v.total++
		if endedByItself(pod) {
			v.ended++
		}
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
	for name, c := range o.shards.creations {
		if c.confirmed && pods[name] == nil {
			v.total++
		}
	}
	hideUntilDelivered(o.bs, v)
	return v
}

// reconcileDelete stops the tasks of the BatchSandbox, deletes its pods and lets it go.
// It returns what is to be seen while the deletion waits, and when to come back.
func (t *templates) reconcileDelete(ctx context.Context, o *object) (waiting *view, again time.Duration, err error) {
	if !slices.Contains(o.bs.Finalizers, v1alpha1.FinalizerTaskCleanup) {
		again, err = t.gone(ctx, o.owner.NamespacedName, &o.deleted)
		return nil, again, err
	}
	pods, err := t.list(ctx, o)
	if err != nil {
		return nil, 0, err
	}
	stopping := 0
	for _, pod := range pods {
		if pod.DeletionTimestamp == nil && !podfeed.Finished(pod) &&
			t.tasks.Stop(o.bs, pod.Name, pod.UID, false) == shardtask.StillStopping {
			stopping++
		}
	}
	if stopping > 0 {
		v := viewTemplate(o, pods)
		v.deleting = waitsFor(stopping, nil)
		return v, 0, nil
	}
	if again, err := t.gone(ctx, o.owner.NamespacedName, &o.deleted); err != nil || again > 0 {
		return nil, again, err
	}
	again, err = t.setTaskFinalizer(ctx, o, false)
	return nil, again, err
}

// gone deletes the pods of a BatchSandbox that is gone or going. It returns when to go on.
func (t *templates) gone(ctx context.Context, name types.NamespacedName, done *deletions) (time.Duration, error) {
	pods, err := t.controlledBy(ctx, name)
	if err != nil {
		return 0, err
	}
	pods = slices.DeleteFunc(pods, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	return unlessUnfinished(inPass(ctx, t.clock, len(pods), func(i int) error {
		return t.pods.delete(ctx, client.ObjectKeyFromObject(&pods[i]), pods[i].UID, done)
	}))
}
