package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// byHandParallel is how many requests are under way at a time when pods are made by hand: as many
// as the operator sends for one BatchSandbox or Pool.
const byHandParallel = 64

// wayOfPool is a Pool that has to hold so many idle pods.
func (b *bench) wayOfPool() way {
	pool := func(pods int) *v1alpha1.Pool {
		p := b.pool(poolSize{name: "zero", size: int32(pods)})
		p.Spec.CapacitySpec.BufferMin = int32(pods)
		return p
	}
	return b.object("a pool", v1alpha1.LabelPoolName, func(pods int) client.Object { return pool(pods) })
}

// wayOfReplicaSet is a ReplicaSet of as many pods, by Kubernetes' own controller.
func (b *bench) wayOfReplicaSet() way {
	return b.object("a ReplicaSet", floorLabel, func(pods int) client.Object {
		labels := map[string]string{floorLabel: "zero"}
		return &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "zero"},
			Spec: appsv1.ReplicaSetSpec{
				Replicas: ptr.To(int32(pods)), Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: b.podSpec()},
			},
		}
	})
}

// wayOfJob is a Job that runs all of its pods at a time. Its pods may restart in no other way than
// OnFailure, which costs nothing here.
func (b *bench) wayOfJob() way {
	return b.object("a Job", floorLabel, func(pods int) client.Object {
		spec := b.podSpec()
		spec.RestartPolicy = corev1.RestartPolicyOnFailure
		return &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "zero"},
			Spec: batchv1.JobSpec{
				Parallelism: ptr.To(int32(pods)), Completions: ptr.To(int32(pods)), CompletionMode: ptr.To(batchv1.NonIndexedCompletion),
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{floorLabel: "zero"}}, Spec: spec,
				},
			},
		}
	})
}

// object is the way of an object named zero whose controller makes the pods and deletes them with
// it.
func (b *bench) object(name, label string, of func(pods int) client.Object) way {
	return way{
		name: name, label: label, value: "zero",
		create: func(ctx context.Context, pods int) error { return b.api.Create(ctx, of(pods)) },
		remove: func(ctx context.Context, pods int) error { return b.api.Delete(ctx, of(pods), inBackground) },
		settle: func(ctx context.Context, pods int) error { return b.untilNoMore(ctx, of(pods)) },
	}
}

// wayOfDemand is a BatchSandbox that takes all pods that an empty pool may have.
func (b *bench) wayOfDemand() way {
	pool := func(pods int) *v1alpha1.Pool {
		p := b.pool(poolSize{name: "demand", recycle: v1alpha1.RecycleDelete})
		p.Spec.CapacitySpec.PoolMax = int32(pods)
		return p
	}
	w := b.batchSandbox(v1alpha1.LabelPoolName, "demand", func(spec *v1alpha1.BatchSandboxSpec) { spec.PoolRef = "demand" })
	w.prepare = func(ctx context.Context, pods int) error { return b.api.Create(ctx, pool(pods)) }
	gone := w.settle
	w.settle = func(ctx context.Context, pods int) error {
		if err := gone(ctx, pods); err != nil {
			return err
		}
		return errors.Join(b.api.Delete(ctx, pool(pods)), b.untilNoMore(ctx, pool(pods)))
	}
	return w
}

// wayOfTemplate is a BatchSandbox that has its pods made from a template.
func (b *bench) wayOfTemplate() way {
	return b.batchSandbox(v1alpha1.LabelBatchSandboxName, "zero", func(spec *v1alpha1.BatchSandboxSpec) {
		spec.Template = &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: b.podSpec()}}
	})
}

// batchSandbox is the way of a BatchSandbox named zero.
func (b *bench) batchSandbox(label, value string, source func(*v1alpha1.BatchSandboxSpec)) way {
	of := func(pods int) *v1alpha1.BatchSandbox {
		bs := &v1alpha1.BatchSandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "zero"},
			Spec:       v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(pods))},
		}
		source(&bs.Spec)
		return bs
	}
	w := b.object("the operator", label, func(pods int) client.Object { return of(pods) })
	w.value, w.says = value, true
	w.create = func(ctx context.Context, pods int) error {
		_, err := b.deliver(ctx, of(pods))
		return err
	}
	return w
}

// wayByHand creates each pod and deletes each pod: what a client would do without any controller.
// One deletion of the whole collection would be one request, but the API server goes through it pod
// by pod.
func (b *bench) wayByHand() way {
	each := func(ctx context.Context, pods int, do func(context.Context, *corev1.Pod) error) error {
		errs := make([]error, pods)
		workqueue.ParallelizeUntil(ctx, byHandParallel, pods, func(i int) {
			errs[i] = do(ctx, b.plainPod(floorLabel, "by-hand", fmt.Sprintf("by-hand-%d", i)))
		})
		// One error says enough.
		if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
			return errs[i]
		}
		return nil
	}
	return way{
		name: "by hand", label: floorLabel, value: "by-hand",
		create: func(ctx context.Context, pods int) error {
			return each(ctx, pods, func(ctx context.Context, pod *corev1.Pod) error { return b.api.Create(ctx, pod) })
		},
		remove: func(ctx context.Context, pods int) error {
			return each(ctx, pods, func(ctx context.Context, pod *corev1.Pod) error { return b.api.Delete(ctx, pod) })
		},
	}
}

// deliver creates a BatchSandbox and returns it as a watch shows it complete.
func (b *bench) deliver(ctx context.Context, bs *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
	c, w, err := b.collect(ctx, b.api, bs.Name)
	if err != nil {
		return nil, err
	}
	if err := b.api.Create(ctx, bs); err != nil {
		w.Stop()
		return nil, err
	}
	if err := c.follow(ctx, w, b.api, b.namespace); err != nil {
		return nil, err
	}
	return &c.seen[0], nil
}

// untilNoMore waits until the API server has an object no more.
func (b *bench) untilNoMore(ctx context.Context, object client.Object) error {
	key := client.ObjectKeyFromObject(object)
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		err := b.api.Get(ctx, key, object)
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
}
