package task

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/shardtask"
	"github.com/opensandbox/operator/controllers/taskvalues"
	"github.com/opensandbox/operator/controllers/wakequeue"
	"github.com/opensandbox/operator/controllers/wiring"
	executorclient "github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/token"
)

// Config is what a Reconciler works with.
type Config struct {
	// Client reads from the cache.
	Client client.Client
	// Live reads from the API server.
	Live   client.Reader
	Ledger *ledger.Ledger
	// Wakes is how others have the tasks of a BatchSandbox reconciled: the pods that it
	// holds have changed.
	Wakes *wakequeue.Queue
	// OwnSecrets are those that the operator may read for itself, and for no task.
	OwnSecrets []types.NamespacedName
	// Executors calls task executors.
	Executors *executorclient.Client
	// Dispatches is how many tasks are dispatched at a time, at most.
	Dispatches int
	// Signer returns the key of that id, or nil.
	Signer func(id string) *token.Signer
	// Fresh returns an error while another leader may be at work.
	Fresh func() error
	// WaitOpen returns when the ledger is rebuilt.
	WaitOpen func(context.Context) error
	// OnChange is told that what is known of a BatchSandbox's tasks has changed. It
	// must not block.
	OnChange func(types.NamespacedName)
	// OnSettled is told that no task of a BatchSandbox is followed any more: the last
	// one has ended. It must not block.
	OnSettled func(types.NamespacedName)
	Recorder  events.EventRecorder
	Clock     clock.Clock
}

// Reconciler has the tasks of BatchSandboxes run.
type Reconciler struct {
	Config
	jobs    jobs
	changes podChanges
	slots   *slots
	values  *taskvalues.Reader
	// ctx, which stop ends, ends what followers and stops do; work waits for them.
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

// New returns a Reconciler whose followers end with ctx, or an error that names what is
// missing.
func New(ctx context.Context, config Config) (*Reconciler, error) {
	if err := wiring.Check("task reconciler", config); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx) //nolint:gosec // G118: the owner that SetupWithManager adds calls stop
	return &Reconciler{Config: config, slots: newSlots(config.Dispatches), values: taskvalues.New(config.Live, config.OwnSecrets), ctx: ctx, stop: stop}, nil
}

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if err := r.WaitOpen(ctx); err != nil {
		return ctrl.Result{}, fmt.Errorf("waiting to lead: %w", err)
	}
	bs := &v1alpha1.BatchSandbox{}
	err := r.Client.Get(ctx, req.NamespacedName, bs)
	switch {
	case apierrors.IsNotFound(err):
		for _, pod := range r.jobs.drop(req.NamespacedName) {
			r.Executors.Forget(string(pod))
		}
		return ctrl.Result{}, nil
	case err != nil:
		return ctrl.Result{}, fmt.Errorf("reading BatchSandbox %s: %w", req, err)
	case bs.Spec.TaskTemplate == nil:
		return ctrl.Result{}, nil
	}
	j := r.jobs.of(bs)
	if bs.DeletionTimestamp != nil || !slices.Contains(bs.Finalizers, v1alpha1.FinalizerTaskCleanup) || !bs.Delivered() {
		return ctrl.Result{}, nil // no task may start whose stopping nobody waits for, nor one in a part of a gang
	}
	sandboxes, err := r.sandboxes(ctx, bs)
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("tasks of BatchSandbox %s: %w", req, err)
	}
	if r.apply(bs, j, sandboxes) { //nolint:contextcheck // followers outlive the reconcile: their context is the reconciler's
		r.OnChange(j.name)
	}
	return ctrl.Result{}, nil
}

// Report returns what is known of the tasks of a BatchSandbox.
func (r *Reconciler) Report(bs *v1alpha1.BatchSandbox) shardtask.Report {
	return r.jobs.of(bs).report(bs.DesiredReplicas())
}

// sandboxes returns the pod of each shard that has one.
func (r *Reconciler) sandboxes(ctx context.Context, bs *v1alpha1.BatchSandbox) (map[int32]sandbox, error) {
	if bs.Spec.PoolRef != "" {
		return r.pooledSandboxes(ctx, bs)
	}
	var list corev1.PodList
	if err := r.Client.List(ctx, &list, client.InNamespace(bs.Namespace),
		client.MatchingFields{podfeed.IndexBatchSandbox: bs.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	oldest := map[int32]*corev1.Pod{}
	for i := range list.Items {
		pod := &list.Items[i]
		shard, err := strconv.ParseInt(pod.Labels[v1alpha1.LabelBatchSandboxPodIndex], 10, 32)
		_, owner, _ := podfeed.BatchSandboxOf(pod)
		if err != nil || owner != bs.UID || pod.DeletionTimestamp != nil || podfeed.Disrupted(pod) {
			continue
		}
		if before := oldest[int32(shard)]; before == nil || pod.CreationTimestamp.Before(&before.CreationTimestamp) {
			oldest[int32(shard)] = pod
		}
	}
	sandboxes := make(map[int32]sandbox, len(oldest))
	for shard, pod := range oldest {
		sandboxes[shard] = sandboxOf(pod, shard)
	}
	return sandboxes, nil
}

// pooledSandboxes returns the pods that both the object and the ledger give to the
// BatchSandbox: the ledger alone is ahead by what is not written yet, and the cached
// object may be behind by what was given up since.
func (r *Reconciler) pooledSandboxes(ctx context.Context, bs *v1alpha1.BatchSandbox) (map[int32]sandbox, error) {
	record, err := allocation.RecordOf(bs)
	if err != nil {
		return nil, nil //nolint:nilerr // the batchsandbox reconciler sets it aside and says so
	}
	sandboxes := map[int32]sandbox{}
	for _, h := range r.Ledger.Allocation(allocation.PoolOf(bs), bs.UID).Held {
		if h.Lost() || int(h.Shard) >= len(record.Pods) || record.Pods[h.Shard] != h.Name {
			continue
		}
		pod := &corev1.Pod{}
		err := r.Client.Get(ctx, types.NamespacedName{Namespace: bs.Namespace, Name: h.Name}, pod, client.UnsafeDisableDeepCopy)
		if client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("reading pod %s: %w", h.Name, err)
		}
		if err == nil && pod.UID == h.UID && !podfeed.Disrupted(pod) {
			sandboxes[h.Shard] = sandboxOf(pod, h.Shard)
		}
	}
	return sandboxes, nil
}

func sandboxOf(pod *corev1.Pod, shard int32) sandbox {
	return sandbox{
		shard: shard, pod: pod.Name, uid: pod.UID, ready: podfeed.Ready(pod),
		missing: missingOf(pod),
		ended:   podfeed.Finished(pod) && !podfeed.Disrupted(pod),
	}
}

// missingOf says why the operator can talk to no executor of the pod, or nothing.
func missingOf(pod *corev1.Pod) string {
	switch {
	case pod.Annotations[v1alpha1.AnnotationExecutorKey] == "":
		return "has no container " + v1alpha1.ExecutorContainerName + ": set spec.taskExecutor.enabled of its Pool, or write one into the template"
	case pod.Annotations[v1alpha1.AnnotationExecutorTLSKey] == "":
		return "was made by an earlier version of the operator, and this one cannot talk to its " + v1alpha1.ExecutorContainerName + ": create the BatchSandbox again"
	}
	return ""
}

// apply does what the plan says, and says whether the report may have changed.
func (r *Reconciler) apply(bs *v1alpha1.BatchSandbox, j *job, sandboxes map[int32]sandbox) bool {
	release := bs.Spec.TaskResourcePolicyWhenCompleted == v1alpha1.TaskResourceRelease
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.dropped {
		return false
	}
	j.ready = map[types.UID]bool{}
	there := map[types.UID]bool{}
	held, releasing := r.holdings(bs)
	for shard, s := range sandboxes {
		if held != nil && !held[s.uid] {
			delete(sandboxes, shard) // given up since they were looked up
			continue
		}
		j.ready[s.uid], there[s.uid] = s.ready, true
	}
	for uid, s := range j.stops {
		if s.outcome != shardtask.StillStopping && !there[uid] && !releasing[uid] {
			delete(j.stops, uid)
		}
	}
	p := decide(j.records, sandboxes, bs.DesiredReplicas(), release)
	if n := len(p.again); n > 0 {
		r.event(bs, v1alpha1.EventTaskRunsAgain, fmt.Sprintf("the sandboxes of %d shards (%s) were lost: their tasks run again in new ones", n, shardtask.FormatShards(p.again)))
	}
	for _, shard := range p.reset {
		if rec := j.records[shard]; rec != nil {
			r.Executors.Forget(string(rec.pod))
		}
		j.unfollow(shard)
		delete(j.records, shard)
	}
	for _, shard := range p.drop {
		delete(j.records, shard) // its follower ends by that; Stop waits for it
	}
	for _, s := range p.missing {
		j.records[s.shard] = &record{missing: s.missing, podName: s.pod}
	}
	for _, s := range p.ended {
		j.sandboxEnded(s)
	}
	for _, s := range p.follow {
		r.follow(j, s)
	}
	return len(p.reset)+len(p.ended)+len(p.follow)+len(p.drop) > 0
}

// holdings returns the pool pods that the BatchSandbox holds, nil where it is not
// pooled, and those that it has given up and that are not clean yet. A pod is given up
// in the ledger before its tasks are stopped, and stopping takes the job's lock: under
// that lock, what is held may be followed.
func (r *Reconciler) holdings(bs *v1alpha1.BatchSandbox) (held, releasing map[types.UID]bool) {
	if bs.Spec.PoolRef == "" {
		return nil, nil
	}
	all := r.Ledger.Allocation(allocation.PoolOf(bs), bs.UID)
	uids := func(pods []ledger.HeldPod) map[types.UID]bool {
		set := make(map[types.UID]bool, len(pods))
		for i := range pods {
			set[pods[i].UID] = true
		}
		return set
	}
	return uids(all.Held), uids(all.Releasing)
}

// follow begins to follow the executor of a sandbox. The job's lock is held.
func (r *Reconciler) follow(j *job, s sandbox) {
	if j.stops[s.uid] != nil {
		return // it is being given back
	}
	j.unfollow(s.shard)
	rec := &record{pod: s.uid, podName: s.pod, answered: r.Clock.Now()}
	var delay time.Duration
	if before := j.records[s.shard]; before != nil && before.pod == "" && before.ended() {
		rec.state, rec.failure, rec.stale = before.state, before.failure, true
		delay = rand.N(seededSpread) //nolint:gosec // to spread dials
	}
	j.records[s.shard] = rec
	ctx, cancel := context.WithCancel(r.ctx)
	goes := &following{pod: s.uid, cancel: cancel, done: make(chan struct{})}
	j.followers[s.shard] = goes
	r.work.Go(func() {
		defer func() {
			if j.left(s.shard, goes) {
				r.OnSettled(j.name)
			}
		}()
		defer close(goes.done)
		defer cancel()
		f := &follower{Reconciler: r, job: j, sandbox: s}
		f.run(ctx, delay)
	})
}

func (r *Reconciler) event(bs *v1alpha1.BatchSandbox, reason, message string) {
	r.Recorder.Eventf(bs, nil, corev1.EventTypeWarning, reason, "RunTask", "%s", message)
}

// tell records an event on the BatchSandbox of a job.
func (r *Reconciler) tell(j *job, reason, message string) {
	r.event(&v1alpha1.BatchSandbox{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindBatchSandbox},
		ObjectMeta: metav1.ObjectMeta{Namespace: j.name.Namespace, Name: j.name.Name, UID: j.uid},
	}, reason, message)
}
