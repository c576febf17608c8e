package pool

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/leadership"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
	poolcontroller "github.com/opensandbox/operator/controllers/pool"
	"github.com/opensandbox/operator/controllers/wakequeue"
)

// poolOperator is a manager that runs the pool reconciler alone, for one namespace.
type poolOperator struct {
	*traffic
	book *ledger.Ledger
	// deposed is what the lease says; nil while this operator leads.
	deposed atomic.Pointer[error]
	// wake makes the reconciler pass over a pool.
	wake func(ledger.Key)
}

// startPool runs the pool reconciler for a namespace until the test ends.
func startPool(t *testing.T, namespace string) *poolOperator { return cluster.startPool(t, namespace) }

func (s *apiServer) startPool(t *testing.T, namespace string) *poolOperator {
	t.Helper()
	op := &poolOperator{traffic: newTraffic()}
	fresh := func() error {
		if err := op.deposed.Load(); err != nil {
			return *err
		}
		return nil
	}
	config := leadership.Fenced(op.through(s.config), fresh)
	mgr, err := ctrl.NewManager(config, managerOptions(namespace))
	require.NoError(t, err)
	refill, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	open := make(chan struct{})
	wakes := &wakequeue.Queue{}
	op.book = ledger.New(ledger.Hooks{Pool: wakes.WakeSoon})
	reconciler, err := poolcontroller.New(poolcontroller.Config{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Refill: refill, Ledger: op.book, Wakes: wakes,
		Recorder: mgr.GetEventRecorder("opensandbox"), Clock: clock.RealClock{},
		WaitOpen: func(ctx context.Context) error {
			select {
			case <-open:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		},
		Executor: func() *podtemplate.Executor { return nil },
		Ending:   func(string) bool { return false },
	})
	require.NoError(t, err)
	op.wake = wakes.WakeSoon
	skip := true // names must be unique in a process, which runs many managers here
	require.NoError(t, reconciler.SetupWithManager(mgr, controller.Options{MaxConcurrentReconciles: 4, SkipNameValidation: &skip}))
	require.NoError(t, mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		err := podfeed.Register(ctx, mgr.GetCache(), op.book)
		close(open)
		return err
	})))
	run(t, mgr)
	return op
}

func managerOptions(namespace string) ctrl.Options {
	return ctrl.Options{
		Scheme:  scheme,
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{
			DefaultNamespaces: map[string]cache.Config{namespace: {}},
			ByObject: map[client.Object]cache.ByObject{&corev1.Pod{}: {
				Label:     labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}),
				Transform: podfeed.Strip,
			}},
		},
	}
}

// run runs the manager until the test ends.
func run(t *testing.T, mgr manager.Manager) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var err error
	running.Go(func() { err = mgr.Start(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err != nil {
			t.Error("the manager ended with:", err)
		}
	})
}

// newPool returns a Pool whose pods run an image.
func newPool(namespace, name, image string, bounds v1alpha1.CapacitySpec) *v1alpha1.Pool {
	return &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: v1alpha1.PoolSpec{
			CapacitySpec: bounds,
			Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				Containers: []corev1.Container{{Name: "main", Image: image}},
			}}},
		},
	}
}

func bounds(bufferMin, bufferMax, poolMin, poolMax int32) v1alpha1.CapacitySpec {
	return v1alpha1.CapacitySpec{BufferMin: bufferMin, BufferMax: bufferMax, PoolMin: poolMin, PoolMax: poolMax}
}

// numbers returns TOTAL, ALLOCATED, AVAILABLE and UPDATED.
func numbers(p *v1alpha1.Pool) [4]int32 {
	return [4]int32{p.Status.Total, p.Status.Allocated, p.Status.Available, p.Status.Updated}
}

// condition returns a condition of the pool, or an empty one.
func condition(p *v1alpha1.Pool, kind string) metav1.Condition {
	if c := meta.FindStatusCondition(p.Status.Conditions, kind); c != nil {
		return *c
	}
	return metav1.Condition{}
}

// edit changes an object of the API server and reads it back.
func edit[T client.Object](t *testing.T, s *apiServer, obj T, fn func(T)) {
	t.Helper()
	require.True(t, s.get(t, obj))
	before := obj.DeepCopyObject().(T)
	fn(obj)
	require.NoError(t, s.client.Patch(t.Context(), obj, client.MergeFrom(before)))
}

// eventsOf returns the events about an object with the reason.
func (s *apiServer) eventsOf(t require.TestingT, obj client.Object, reason string) []eventsv1.Event {
	list := &eventsv1.EventList{}
	require.NoError(t, s.client.List(context.Background(), list, client.InNamespace(obj.GetNamespace())))
	var found []eventsv1.Event
	for _, e := range list.Items {
		if e.Regarding.UID == obj.GetUID() && e.Reason == reason {
			found = append(found, e)
		}
	}
	return found
}
