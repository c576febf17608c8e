// Package pool reconciles Pools: it keeps each at its size, replaces pods that fail
// or are out of date, deletes those that are out of use, and lets a Pool go when
// every pod it has handed out has come back. Decide, which is pure, says what to do; the
// rest of the package does it. Who holds which pod is the ledger's business.
package pool

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/wakequeue"
	"github.com/opensandbox/operator/controllers/wiring"
)

// A pass that failed is tried again after firstRetry, then twice as long each time, up to
// lastRetry.
const firstRetry, lastRetry = 5 * time.Millisecond, 30 * time.Second

// conflictRetry is after how long to try again when an object was newer than the
// cache showed.
const conflictRetry = 100 * time.Millisecond

// Config is what a Reconciler works with.
type Config struct {
	// Client reads Pools from the cache and writes them. Like Refill, it must refuse to
	// write with an old lease: another leader may have started, which may have handed out what
	// this one takes for idle, or filled the pool.
	Client client.Client
	// APIReader reads pods from the API server.
	APIReader client.Reader
	// Refill creates and deletes pods, with a budget of its own, so that a hand-out
	// does not wait behind a refill.
	Refill client.Client
	// Ledger knows the pods.
	Ledger *ledger.Ledger
	// Wakes has pools reconciled whose pods or demand have changed. It is fed by the
	// ledger: many changes of a burst are to share one pass, since a snapshot of a pool
	// takes its lock, which claims need too.
	Wakes *wakequeue.Queue
	// Recorder records events on Pools.
	Recorder events.EventRecorder
	// Clock tells the time.
	Clock clock.Clock
	// WaitOpen blocks until reconciling is allowed.
	WaitOpen func(context.Context) error
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
//
// You might expect that changes of the status are left out, since the reconciler makes
// them itself. But somebody else may have written it, such as another leader, and
// nothing else would wake the pool to put it right. A pass after each write of its own is
// what that costs.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, opts controller.Options) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("pool").
		WithOptions(withRetries(opts)).
		For(&v1alpha1.Pool{}).
		WatchesRawSource(r.Wakes).
		Complete(r)
}

// withRetries sets how failed passes are tried again: left to itself, a controller waits
// for up to 1,000 s.
func withRetries(opts controller.Options) controller.Options {
	opts.RateLimiter = workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry)
	return opts
}

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
