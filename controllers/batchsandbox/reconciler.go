package batchsandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/shardtask"
	"github.com/opensandbox/operator/controllers/wakequeue"
	"github.com/opensandbox/operator/controllers/wiring"
)

// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=batchsandboxes,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=batchsandboxes/status,verbs=patch
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=batchsandboxes/finalizers,verbs=update
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=pools,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Config is what a Reconciler works with.
type Config struct {
	// Client reads from the cache and writes.
	Client client.Client
	// Refill deletes pods that come back to a pool, after what hands others out.
	Refill client.Client
	// Live reads from the API server.
	Live   client.Reader
	Ledger *ledger.Ledger
	// Tasks runs the tasks.
	Tasks Tasks
	// Wakes is how others have BatchSandboxes reconciled.
	Wakes *wakequeue.Queue
	// Executor returns what pods with a task executor get.
	Executor func() *podtemplate.Executor
	// Fresh returns an error while this process must not write.
	Fresh func() error
	// WaitOpen returns when the ledger is rebuilt.
	WaitOpen func(context.Context) error
	// Ending says that a namespace ends together with the operator: its objects were
	// let go of, and nothing may take hold of them again.
	Ending   func(namespace string) bool
	Recorder events.EventRecorder
	Clock    clock.Clock
}

// Tasks is the task reconciler. Its methods return at once; it wakes the BatchSandbox
// when they would answer something else.
type Tasks interface {
	// Report returns what is known of the tasks of a BatchSandbox.
	Report(bs *v1alpha1.BatchSandbox) shardtask.Report
	// Stop ends all tasks of a pod, restarts its containers in place where restart says
	// so and the pod allows it, and says how far that has come.
	Stop(bs *v1alpha1.BatchSandbox, pod string, uid types.UID, restart bool) shardtask.Stopping
	// Freed forgets that pods were stopped, before they may be claimed again.
	Freed(bs *v1alpha1.BatchSandbox, pods []string)
}

// Reconciler brings BatchSandboxes to what their spec asks for.
type Reconciler struct {
	config    Config
	memory    memory
	writer    *writer
	claims    *claims
	pooled    *pooled
	templates *templates
	statuses  *statuses
	events    announcer
}

// New returns a Reconciler, or an error that names what is missing.
func New(c Config) (*Reconciler, error) {
	if err := wiring.Check("batchsandbox reconciler", c); err != nil {
		return nil, err
	}
	announcer := announcer{c.Recorder}
	writer := &writer{client: c.Client, live: c.Live, fresh: c.Fresh}
	pods := pods{client: c.Client, live: c.Live, fresh: c.Fresh}
	recycled := pods
	recycled.client = c.Refill
	claims := &claims{ledger: c.Ledger, writer: writer, tasks: c.Tasks, clock: c.Clock}
	releases := &releases{ledger: c.Ledger, client: c.Client, claims: claims, pods: recycled, tasks: c.Tasks, clock: c.Clock}
	return &Reconciler{
		config:   c,
		writer:   writer,
		claims:   claims,
		events:   announcer,
		pooled:   &pooled{ledger: c.Ledger, client: c.Client, claims: claims, releases: releases, events: announcer, clock: c.Clock, executor: c.Executor},
		statuses: &statuses{writer: writer, tasks: c.Tasks, events: announcer, clock: c.Clock},
		templates: &templates{
			client: c.Client, writer: writer, pods: pods, tasks: c.Tasks, clock: c.Clock,
			creator: creator{pods: pods, executor: c.Executor, clock: c.Clock},
		},
	}, nil
}

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if err := r.config.WaitOpen(ctx); err != nil {
		return ctrl.Result{}, err
	}
	if r.config.Ending(req.Namespace) {
		return ctrl.Result{}, nil
	}
	if err := r.config.Fresh(); err != nil {
		// Another leader may know better: nothing of what it has done must be undone.
		return ctrl.Result{}, fmt.Errorf("BatchSandbox %s: %w", req, err)
	}
	again, err := r.reconcile(ctx, req.NamespacedName)
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("BatchSandbox %s: %w", req, err)
	}
	return ctrl.Result{RequeueAfter: again}, nil
}

// reconcile returns when to come back.
func (r *Reconciler) reconcile(ctx context.Context, name types.NamespacedName) (time.Duration, error) {
	cached := &v1alpha1.BatchSandbox{}
	err := r.config.Client.Get(ctx, name, cached, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		r.memory.forget(name)
		again, err := r.templates.gone(ctx, name, &deletions{})
		later, err2 := r.pooled.gone(ctx, name, "")
		return soonest(again, later), errors.Join(err, err2)
	}
	if err != nil {
		return 0, fmt.Errorf("reading it: %w", err)
	}
	o := objectOf(r.memory.of(name, cached.UID), cached)
	if again, err := r.pooled.gone(ctx, name, o.bs.UID); err != nil || again > 0 {
		return again, err
	}
	if o.bs.DeletionTimestamp != nil {
		return r.reconcileDelete(ctx, o)
	}
	return r.reconcileNormal(ctx, o)
}

func (r *Reconciler) reconcileNormal(ctx context.Context, o *object) (time.Duration, error) {
	expire := expireTime(o.bs)
	if expire != nil && !r.config.Clock.Now().Before(expire.Time) {
		return r.expire(ctx, o, expire.Time)
	}
	seen, again, err := r.half(o).reconcile(ctx, o)
	if seen != nil && r.claims.mayMove(o) {
		sent, later, statusErr := r.statuses.write(ctx, o, seen)
		r.claims.noteStatus(o, sent)
		again, err = soonest(again, later), errors.Join(err, statusErr)
	}
	if expire != nil {
		again = soonest(again, max(time.Millisecond, expire.Sub(r.config.Clock.Now())))
	}
	return again, err
}

func (r *Reconciler) reconcileDelete(ctx context.Context, o *object) (time.Duration, error) {
	waiting, again, err := r.half(o).reconcileDelete(ctx, o)
	if waiting == nil {
		return again, err
	}
	_, later, statusErr := r.statuses.write(ctx, o, waiting)
	return soonest(again, later), errors.Join(err, statusErr)
}

// half is one of the two ways to get sandboxes: from a pool or from a template.
type half interface {
	// reconcile returns what is to be seen of the BatchSandbox, nil where it could not
	// look, and when to come back.
	reconcile(ctx context.Context, o *object) (*view, time.Duration, error)
	// reconcileDelete lets the BatchSandbox go when nothing of it is left. Until then it
	// returns what is to be seen of it, and when to come back.
	reconcileDelete(ctx context.Context, o *object) (*view, time.Duration, error)
}

func (r *Reconciler) half(o *object) half {
	if o.bs.Spec.PoolRef != "" {
		return r.pooled
	}
	return r.templates
}

// expire deletes this very version of the BatchSandbox: in a later one its time may
// have been moved.
func (r *Reconciler) expire(ctx context.Context, o *object, at time.Time) (time.Duration, error) {
	switch result, err := r.writer.delete(ctx, o); {
	case result == overtaken:
		return r.writer.lookAgain(ctx, o), nil
	case err != nil:
		return 0, fmt.Errorf("deleting it, since its time has ended: %w", err)
	}
	r.events.expired(o.bs, at)
	return 0, nil
}

// soonest returns the smaller of two delays, where 0 stands for none.
func soonest(a, b time.Duration) time.Duration {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}
