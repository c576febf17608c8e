// Package pool reconciles Pools: it keeps each at its size, replaces pods that fail
// or are out of date, deletes those that are out of use, and lets a Pool go when
// every pod it has lent has come back. Decide, which is pure, says what to do; the
// rest of the package does it. Who holds which pod is the ledger's business.
package pool

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/wakequeue"
	"github.com/opensandbox/operator/controllers/wiring"
)

// wakeDelay lets the many changes of a burst share one pass: a snapshot of a pool
// takes its lock, which claims need too.
const wakeDelay = 20 * time.Millisecond

// conflictRetry is after how long to try again when an object was newer than the
// cache showed.
const conflictRetry = 100 * time.Millisecond

// Config is what a Reconciler works with.
type Config struct {
	// Client reads Pools from the cache and writes them.
	Client client.Client
	// APIReader reads pods from the API server.
	APIReader client.Reader
	// Refill creates and deletes pods, with a budget of its own, so that a hand-out
	// does not wait behind a refill.
	Refill client.Client
	// Ledger knows the pods.
	Ledger *ledger.Ledger
	// Recorder records events on Pools.
	Recorder events.EventRecorder
	// Clock tells the time.
	Clock clock.Clock
	// WaitOpen blocks until reconciling is allowed.
	WaitOpen func(context.Context) error
	// Fresh returns an error when another leader may have started, which may have
	// lent what this one takes for idle: nothing is deleted then.
	Fresh func() error
	// Executor returns what pods with a task executor get; nil adds nothing to pods.
	Executor func() *podtemplate.Executor
	// Ending says that a namespace ends together with the operator: its objects were
	// let go of, and nothing may take hold of them again.
	Ending func(namespace string) bool
}

// Reconciler reconciles Pools.
type Reconciler struct {
	Config

	states states
	wakes  wakequeue.Queue
}

// New returns a Reconciler, or an error that says what is missing.
func New(config Config) (*Reconciler, error) {
	if err := wiring.Check("pool reconciler", config); err != nil {
		return nil, err
	}
	return &Reconciler{Config: config}, nil
}

// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=pools,verbs=get;list;watch;update;patch
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=pools/status,verbs=get;update;patch
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=pools/finalizers,verbs=update
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// SetupWithManager adds the reconciler to the manager.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, opts controller.Options) error {
	pools := source.Kind(mgr.GetCache(), &v1alpha1.Pool{},
		&handler.TypedEnqueueRequestForObject[*v1alpha1.Pool]{}, changed())
	return ctrl.NewControllerManagedBy(mgr).
		Named("pool").
		WithOptions(opts).
		WatchesRawSource(pools).
		WatchesRawSource(&r.wakes).
		Complete(r)
}

// changed lets through what the reconciler acts on; its own status writes are not.
func changed() predicate.TypedPredicate[*v1alpha1.Pool] {
	return predicate.TypedFuncs[*v1alpha1.Pool]{
		UpdateFunc: func(e event.TypedUpdateEvent[*v1alpha1.Pool]) bool {
			before, after := e.ObjectOld, e.ObjectNew
			return before.UID != after.UID ||
				before.Generation != after.Generation ||
				before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
				hasFinalizer(before) != hasFinalizer(after)
		},
	}
}

// Wake asks for a pass over the pool. It does not block, and may be called before
// the controller has started. It is the ledger's Pool hook.
func (r *Reconciler) Wake(key ledger.Key) { r.wakes.WakeAfter(key, wakeDelay) }

// Reconcile makes one pass over a pool.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if err := r.WaitOpen(ctx); err != nil {
		return ctrl.Result{}, fmt.Errorf("waiting to lead: %w", err)
	}
	if r.Ending(req.Namespace) {
		return ctrl.Result{}, nil
	}
	cached := &v1alpha1.Pool{}
	switch err := r.Client.Get(ctx, req.NamespacedName, cached); {
	case apierrors.IsNotFound(err):
		r.forget(req.NamespacedName)
		return ctrl.Result{}, nil
	case err != nil:
		return ctrl.Result{}, fmt.Errorf("getting Pool %s: %w", req.NamespacedName, err)
	}
	st := r.states.of(req.NamespacedName, cached.UID)
	p := &pass{Reconciler: r, key: req.NamespacedName, pool: st.newest.Of(cached), state: st, now: r.Clock.Now()}
	wait, err := p.run(ctx)
	switch {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	case apierrors.IsNotFound(err):
		return ctrl.Result{}, nil // the Pool went meanwhile; the cache will say so
	case err != nil:
		return ctrl.Result{}, fmt.Errorf("reconciling Pool %s: %w", req.NamespacedName, err)
	}
	return ctrl.Result{RequeueAfter: wait}, nil
}

// forget takes in that there is no such Pool any more. What is left of its pods is
// the garbage collector's: their owner is gone.
func (r *Reconciler) forget(key ledger.Key) {
	r.Ledger.SetPool(key, "", "", false)
	r.states.drop(key)
	dropMetrics(key)
}
