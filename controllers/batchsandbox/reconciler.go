package batchsandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/taskreport"
)

// writeTimeout bounds one write to the API server. What came of a write that takes
// longer is unknown, and it is repeated until that is known.
const writeTimeout = 10 * time.Second

const (
	// pendingPatience is how long an allocation write is repeated before the status says so.
	pendingPatience = 30 * time.Second
	// conflictPause is how long the cache gets to show what another write has changed.
	conflictPause = 100 * time.Millisecond
)

// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=batchsandboxes,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=batchsandboxes/status,verbs=patch
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=batchsandboxes/finalizers,verbs=update
// +kubebuilder:rbac:groups=sandbox.opensandbox.io,resources=pools,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconciler brings BatchSandboxes to what their spec asks for.
type Reconciler struct {
	// Client reads from the cache and writes.
	Client client.Client
	// Live reads from the API server.
	Live   client.Reader
	Ledger *ledger.Ledger
	// Fresh returns an error while this process must not write allocations.
	Fresh func() error
	// WaitOpen returns when the ledger is rebuilt.
	WaitOpen func(context.Context) error
	// Ending says that a namespace ends together with the operator: its objects were
	// let go of, and nothing may take hold of them again. nil is never.
	Ending   func(namespace string) bool
	Recorder events.EventRecorder
	Clock    clock.Clock
	// Executor returns what pods with a task executor get; nil adds nothing to pods.
	Executor func() *podtemplate.Executor
	// Tasks runs the tasks; nil runs none.
	Tasks Tasks

	memory memory
	queue  wakes
}

// Tasks is the task reconciler. Its methods return at once; TasksChanged is to be
// called when they would answer something else.
type Tasks interface {
	// Report returns what is known of the tasks of a BatchSandbox.
	Report(bs *v1alpha1.BatchSandbox) taskreport.Report
	// Stop ends all tasks of a pod, restarts its containers in place where restart says
	// so and the pod allows it, and says how far that has come.
	Stop(bs *v1alpha1.BatchSandbox, pod string, uid types.UID, restart bool) taskreport.Stopping
	// Freed forgets that pods were stopped, before they may be claimed again.
	Freed(bs *v1alpha1.BatchSandbox, pods []string)
}

// scope is one BatchSandbox during one reconcile.
type scope struct {
	bs    *v1alpha1.BatchSandbox
	memo  *memo
	key   ledger.Key
	owner ledger.Owner
}

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if err := r.WaitOpen(ctx); err != nil {
		return ctrl.Result{}, err
	}
	if r.Ending != nil && r.Ending(req.Namespace) {
		return ctrl.Result{}, nil
	}
	if err := r.Fresh(); err != nil {
		// Another leader may know better: nothing of what it has done must be undone.
		return ctrl.Result{}, fmt.Errorf("BatchSandbox %s: %w", req, err)
	}
	bs := &v1alpha1.BatchSandbox{}
	err := r.Client.Get(ctx, req.NamespacedName, bs)
	if apierrors.IsNotFound(err) {
		return ctrl.Result{}, r.reconcileGone(ctx, req.NamespacedName, "")
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("reading BatchSandbox %s: %w", req, err)
	}
	m := r.memory.of(req.NamespacedName, bs.UID)
	bs, err = m.freshest(bs)
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("comparing versions of BatchSandbox %s: %w", req, err)
	}
	if err := r.reconcileGone(ctx, req.NamespacedName, bs.UID); err != nil {
		return ctrl.Result{}, err
	}
	s := &scope{bs: bs, memo: m, key: allocation.PoolOf(bs), owner: allocation.OwnerOf(bs)}
	if bs.DeletionTimestamp != nil {
		again, err := r.reconcileDelete(ctx, s)
		return ctrl.Result{RequeueAfter: again}, err
	}
	return r.reconcileNormal(ctx, s)
}

func (r *Reconciler) reconcileNormal(ctx context.Context, s *scope) (ctrl.Result, error) {
	expire := expireTime(s.bs)
	if expire != nil && !r.Clock.Now().Before(expire.Time) {
		return r.expire(ctx, s, expire.Time)
	}
	var seen view
	var again time.Duration
	var err error
	if s.bs.Spec.PoolRef != "" {
		seen, again, err = r.reconcilePooled(ctx, s)
	} else {
		seen, again, err = r.reconcileTemplate(ctx, s)
	}
	var later time.Duration
	var statusErr error
	if p := s.memo.pending; p == nil || r.Clock.Since(p.since) >= pendingPatience {
		// Before, it would move the resourceVersion, and the pending write could not be repeated.
		later, statusErr = r.writeStatus(ctx, s, seen)
	}
	result := ctrl.Result{RequeueAfter: soonest(again, later)}
	if expire != nil {
		result.RequeueAfter = soonest(result.RequeueAfter, max(time.Millisecond, expire.Sub(r.Clock.Now())))
	}
	if err := errors.Join(err, statusErr); err != nil {
		return ctrl.Result{}, fmt.Errorf("BatchSandbox %s: %w", s.owner, err)
	}
	return result, nil
}

// expire deletes this very version of the BatchSandbox: in a later one its time may
// have been moved.
func (r *Reconciler) expire(ctx context.Context, s *scope, at time.Time) (ctrl.Result, error) {
	err := r.Client.Delete(ctx, s.bs, client.Preconditions{UID: &s.bs.UID, ResourceVersion: &s.bs.ResourceVersion})
	switch {
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: r.lookAgain(ctx, s)}, nil
	case client.IgnoreNotFound(err) != nil:
		return ctrl.Result{}, fmt.Errorf("deleting expired BatchSandbox %s: %w", s.owner, err)
	case err == nil:
		r.event(s.bs, corev1.EventTypeNormal, "Expired", "Delete", "deleted because its time ended at %s", at.UTC().Format(time.RFC3339))
	}
	return ctrl.Result{}, nil
}

func (r *Reconciler) event(bs *v1alpha1.BatchSandbox, kind, reason, action, message string, args ...any) {
	r.Recorder.Eventf(bs, nil, kind, reason, action, message, args...)
}

// Wake has the BatchSandbox of that name reconciled soon. It does not block.
func (r *Reconciler) Wake(name types.NamespacedName) { r.queue.Wake(name) }

// TasksChanged has it reconciled when more is known of its tasks. It does not block.
func (r *Reconciler) TasksChanged(name types.NamespacedName) { r.queue.WakeAfter(name, taskSettle) }

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
