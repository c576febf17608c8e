package batchsandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/refill"
	"github.com/opensandbox/operator/controllers/shardtask"
	"github.com/opensandbox/operator/controllers/wakequeue"
)

var poolKey = ledger.Key{Namespace: "ns", Name: "pool"}

// world is a Reconciler with an API server in memory, whose answers a test can spoil.
type world struct {
	*Reconciler
	Ledger   *ledger.Ledger
	t        testing.TB
	api      client.WithWatch // without what the test spoils
	clock    *clocktesting.FakeClock
	recorder *events.FakeRecorder
	mu       sync.Mutex // guards writes and freshFor
	// writes are the patches, creates and deletes that the reconciler sent, in order.
	writes []string
	// spoil, when set, stands between the reconciler and the API server for the next
	// write; do sends it.
	spoil func(write string, do func() error) error
	// fresh is why the lease is not, and freshFor how often it still is before that.
	fresh    error
	freshFor int
	// woken are the owners that the ledger has woken.
	woken []types.NamespacedName
	// late, when set, is what the cache shows of the one BatchSandbox, and latePods what
	// it shows of pods.
	late     *v1alpha1.BatchSandbox
	latePods *corev1.PodList
}

func newWorld(t testing.TB, objects ...client.Object) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(scheme))
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	w := &world{t: t, clock: clocktesting.NewFakeClock(now), recorder: events.NewFakeRecorder(100)}
	w.api = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.BatchSandbox{}, &corev1.Pod{}).
		WithIndex(&corev1.Pod{}, podfeed.IndexBatchSandbox, podfeed.IndexedBatchSandbox).
		Build()
	w.Ledger = ledger.New(ledger.Hooks{Owner: func(name types.NamespacedName) { w.woken = append(w.woken, name) }})
	w.connect(interceptor.NewClient(w.api, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if bs, ok := obj.(*v1alpha1.BatchSandbox); ok && w.late != nil {
				w.late.DeepCopyInto(bs)
				return nil
			}
			return c.Get(ctx, key, obj, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if pods, ok := list.(*corev1.PodList); ok && w.latePods != nil {
				w.latePods.DeepCopyInto(pods)
				return nil
			}
			return c.List(ctx, list, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return w.send("patch "+obj.GetName(), func() error { return c.Patch(ctx, obj, patch, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
			return w.send("status "+obj.GetName(), func() error { return c.SubResource(sub).Patch(ctx, obj, patch, opts...) })
		},
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			return w.send("create "+obj.GetName(), func() error {
				obj.SetUID(types.UID("uid-" + obj.GetName())) // as the API server does
				return c.Create(ctx, obj, opts...)
			})
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			return w.send("delete "+obj.GetName(), func() error { return c.Delete(ctx, obj, opts...) })
		},
	}))
	return w
}

// connect has the reconciler use that client.
func (w *world) connect(c client.Client) {
	w.t.Helper()
	var err error
	w.Reconciler, err = New(Config{
		Client: c, Refill: c, Live: w.api, Ledger: w.Ledger, Tasks: noTasks{}, Wakes: &wakequeue.Queue{},
		Executor: func() *podtemplate.Executor { return &podtemplate.Executor{} },
		Fresh: func() error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.freshFor > 0 {
				w.freshFor--
				return nil
			}
			return w.fresh
		},
		WaitOpen: func(context.Context) error { return nil },
		Ending:   func(string) bool { return false },
		Recorder: w.recorder,
		Clock:    w.clock,
	})
	require.NoError(w.t, err)
}

// noTasks stands for the task reconciler where no BatchSandbox has a task.
type noTasks struct{}

func (noTasks) Report(*v1alpha1.BatchSandbox) shardtask.Report { return shardtask.Report{} }
func (noTasks) Freed(*v1alpha1.BatchSandbox, []string)         {}
func (noTasks) Stop(*v1alpha1.BatchSandbox, string, types.UID, bool) shardtask.Stopping {
	return shardtask.Stopped
}

func (w *world) send(write string, do func() error) error {
	w.mu.Lock()
	w.writes = append(w.writes, write)
	w.mu.Unlock()
	if w.spoil != nil {
		return w.spoil(write, do)
	}
	return do()
}

// newPooledWorld has a pool with the named idle pods, and the batches.
func newPooledWorld(t testing.TB, pods []string, batches ...*v1alpha1.BatchSandbox) *world {
	t.Helper()
	w := newWorld(t, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pool", UID: "pool-uid"}})
	for _, bs := range batches {
		require.NoError(t, w.api.Create(t.Context(), bs))
	}
	w.Ledger.SetPool(poolKey, "pool-uid", "r1", true)
	for _, name := range pods {
		w.observe(name)
	}
	return w
}

// observe shows the pod to the ledger as ready, or as the options make it. It is made where there is none.
func (w *world) observe(name string, options ...func(*ledger.Pod)) {
	w.t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)}}
	if err := w.api.Create(w.t.Context(), pod); !apierrors.IsAlreadyExists(err) {
		require.NoError(w.t, err)
	}
	f := facts(name)
	for _, option := range options {
		option(&f)
	}
	w.Ledger.Observe(poolKey, f)
}

// facts are those of a ready pod.
func facts(name string) ledger.Pod {
	return ledger.Pod{Name: name, UID: types.UID("uid-" + name), PoolUID: "pool-uid", Revision: "r1", IP: "ip-" + name, Ready: true}
}

func named(name string, replicas int32, options ...func(*v1alpha1.BatchSandbox)) *v1alpha1.BatchSandbox {
	return batch(replicas, append(options, func(bs *v1alpha1.BatchSandbox) { bs.Name, bs.UID = name, types.UID("uid-"+name) })...)
}

func (w *world) reconcile(name string) (ctrl.Result, error) {
	return w.Reconcile(w.t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: name}})
}

func (w *world) mustReconcile(name string) ctrl.Result {
	w.t.Helper()
	result, err := w.reconcile(name)
	require.NoError(w.t, err)
	return result
}

// mustWait has the BatchSandbox wait for pods for so long that its status says so.
func (w *world) mustWait(name string) {
	w.t.Helper()
	w.mustReconcile(name)
	w.clock.Step(firstWait)
	w.mustReconcile(name)
}

func (w *world) get(name string) *v1alpha1.BatchSandbox {
	w.t.Helper()
	bs := &v1alpha1.BatchSandbox{}
	require.NoError(w.t, w.api.Get(w.t.Context(), types.NamespacedName{Namespace: "ns", Name: name}, bs))
	return bs
}

// holds returns the pods that the annotations give to the batch.
func (w *world) holds(name string) []string {
	w.t.Helper()
	value, ok := w.get(name).Annotations[v1alpha1.AnnotationAllocStatus]
	if !ok {
		return nil
	}
	var status v1alpha1.AllocStatus
	require.NoError(w.t, json.Unmarshal([]byte(value), &status))
	return status.Pods
}

func (w *world) ready(name string) metav1.Condition {
	w.t.Helper()
	c := meta.FindStatusCondition(w.get(name).Status.Conditions, v1alpha1.ConditionReady)
	require.NotNil(w.t, c)
	return *c
}

func (w *world) podExists(name string) bool {
	w.t.Helper()
	err := w.api.Get(w.t.Context(), types.NamespacedName{Namespace: "ns", Name: name}, &corev1.Pod{})
	require.NoError(w.t, client.IgnoreNotFound(err))
	return err == nil
}

// events returns the reasons of the events since the last call.
func (w *world) events() []string {
	var reasons []string
	for {
		select {
		case e := <-w.recorder.Events:
			reasons = append(reasons, strings.Fields(e)[1])
		default:
			return reasons
		}
	}
}

// idle returns how many pods a new batch could have.
func (w *world) idle() int {
	other := ledger.Owner{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "other"}, UID: "other", Created: now.Add(time.Hour)}
	n := w.Ledger.SetDemand(poolKey, other, 100)
	w.Ledger.SetDemand(poolKey, other, 0)
	return n
}

var errTimeout = apierrors.NewTimeoutError("the request timed out", 1)

func refusal() error {
	return apierrors.NewInvalid(schema.GroupKind{Group: v1alpha1.GroupName, Kind: v1alpha1.KindBatchSandbox}, "batch", nil)
}

func TestAClaimIsOnePatchAndOneStatus(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b", "c"}, named("batch", 2))
	w.mustReconcile("batch")
	require.Equal(t, []string{"patch batch", "status batch"}, w.writes)
	bs := w.get("batch")
	require.Equal(t, []string{"a", "b"}, w.holds("batch"))
	require.Equal(t, `["ip-a","ip-b"]`, bs.Annotations[v1alpha1.AnnotationEndpoints])
	require.Contains(t, bs.Finalizers, v1alpha1.FinalizerPoolAllocation)
	require.Equal(t, int32(2), bs.Status.Ready)
	require.Equal(t, 1, w.idle())
	require.Empty(t, w.events(), "an event is a write too")

	w.mustReconcile("batch")
	require.Len(t, w.writes, 2, "nothing has changed")
}

func TestEachClaimReleaseAndRecyclingLeavesOneLine(t *testing.T) {
	var lines []string
	logger := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	w := newPooledWorld(t, []string{"a", "b", "c"}, named("batch", 3))
	step := func(change func(), want ...string) {
		t.Helper()
		lines = nil
		change()
		_, err := w.Reconcile(log.IntoContext(t.Context(), logger), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "batch"}})
		require.NoError(t, err)
		require.Len(t, lines, len(want), "%v", lines)
		for i := range want {
			require.Contains(t, lines[i], want[i])
			require.Contains(t, lines[i], `"pool"="pool"`)
			require.Contains(t, lines[i], `"duration"="`)
		}
	}
	step(func() {}, `"msg"="claimed sandboxes" "pool"="pool" "count"=3`)
	step(func() {})
	step(func() { w.scale("batch", 2) }, `"msg"="released sandboxes" "pool"="pool" "count"=1`, `"msg"="recycled sandboxes" "pool"="pool" "count"=1`)
	step(func() { require.NoError(t, w.api.Delete(t.Context(), w.get("batch"))) },
		`"msg"="released sandboxes" "pool"="pool" "count"=2`, `"msg"="recycled sandboxes" "pool"="pool" "count"=2`)
}

func TestOnlyReadyPodsAreHandedOut(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1))
	w.observe("running", func(p *ledger.Pod) { p.Ready = false })
	w.observe("ended", func(p *ledger.Pod) { p.Finished = true })
	w.observe("leaving", func(p *ledger.Pod) { p.Terminating = true })
	w.observe("evicted", func(p *ledger.Pod) { p.Evict = true })
	w.mustWait("batch")
	require.Empty(t, w.holds("batch"))
	require.Equal(t, v1alpha1.ReasonPoolExhausted, w.ready("batch").Reason)

	w.observe("running")
	w.clock.Step(time.Second)
	w.mustReconcile("batch")
	require.Equal(t, []string{"running"}, w.holds("batch"))
}

// When the API server is busy, pods come a little late to many, and to tell each of them that it
// waits would keep it busy.
func TestAShortWaitCostsNoWrite(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1))
	again := w.mustReconcile("batch").RequeueAfter
	require.Equal(t, firstWait, again)
	w.clock.Step(firstWait / 2)
	w.observe("a")
	w.mustReconcile("batch")
	require.Equal(t, []string{"patch batch", "status batch"}, w.writes)
	require.Empty(t, w.events())

	w = newPooledWorld(t, nil, named("batch", 1))
	w.clock.Step(w.mustReconcile("batch").RequeueAfter)
	w.mustReconcile("batch")
	require.Equal(t, []string{"status batch"}, w.writes)
	require.Equal(t, v1alpha1.ReasonPoolExhausted, w.ready("batch").Reason)
	require.Len(t, w.events(), 1)
	w.observe("a")
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonAllReady, w.ready("batch").Reason)
	require.Empty(t, w.events(), "the status says that it waits no more")
}

// A pool that is full has room for another pod only when this one goes.
func TestAPodThatComesBackIsUrgentWhereSomebodyWaits(t *testing.T) {
	for name, waits := range map[string]bool{"nobody waits": false, "somebody waits": true} {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a"}, named("batch", 1), named("other", 1))
			w.mustReconcile("batch")
			if waits {
				w.mustReconcile("other")
			}
			var urgent []bool
			w.pooled.releases.pods.client = interceptor.NewClient(w.api, interceptor.Funcs{
				Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
					urgent = append(urgent, refill.IsUrgent(ctx))
					return c.Delete(ctx, obj, opts...)
				},
			})
			require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
			w.mustReconcile("batch")
			require.Equal(t, []bool{waits}, urgent)
		})
	}
}

// Where thousands of pods come back at a time, their deletes may wait longer than a write may take.
func TestAPodWhoseTurnToGoHasNotComeIsNoFailure(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("batch", 2))
	w.mustReconcile("batch")
	require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
	w.spoil = func(write string, do func() error) error {
		if write == "delete a" {
			return fmt.Errorf("waiting: %w", refill.ErrNoTurn)
		}
		return do()
	}
	require.Equal(t, afterPass, w.mustReconcile("batch").RequeueAfter)
	require.Empty(t, w.idle(), "it is not clean yet")
	require.True(t, w.podExists("a"))
	require.False(t, w.podExists("b"))
	w.spoil = nil
	w.mustReconcile("batch")
	require.False(t, w.podExists("a"))
}

func TestAClaimOfUnknownOutcome(t *testing.T) {
	done := func(_ string, do func() error) error {
		if err := do(); err != nil {
			return err
		}
		return errTimeout
	}
	lost := func(string, func() error) error { return errTimeout }
	tests := map[string]struct {
		spoil func(string, func() error) error
		// meanwhile happens before it is repeated.
		meanwhile func(w *world)
		fails     bool // at the repetition
		holds     []string
		rival     []string // gets afterwards
	}{
		"it was done": {spoil: done, holds: []string{"a", "b"}},
		"it was lost": {spoil: lost, holds: []string{"a", "b"}},
		"it was done, and the object has changed since": {spoil: done, meanwhile: touched, holds: []string{"a", "b"}},
		// It might as well have been done and undone: nobody gets the pods any more.
		"it was lost, and the object has changed since": {spoil: lost, meanwhile: touched, fails: true},
		"the lease is old": {
			spoil: done, meanwhile: func(w *world) { w.fresh = errors.New("the lease is old") },
			fails: true, holds: []string{"a", "b"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a", "b"}, named("batch", 2), named("rival", 2))
			w.spoil = func(write string, do func() error) error {
				if write != "patch batch" {
					return do()
				}
				return test.spoil(write, do)
			}
			_, err := w.reconcile("batch")
			require.ErrorIs(t, err, errTimeout)
			require.Zero(t, w.idle(), "the pods may be the batch's")
			w.mustReconcile("rival")
			require.Empty(t, w.holds("rival"), "the pods may be the batch's")

			w.spoil = nil
			if test.meanwhile != nil {
				test.meanwhile(w)
			}
			_, err = w.reconcile("batch")
			require.Equal(t, test.fails, err != nil, "%v", err)
			require.Equal(t, test.holds, w.holds("batch"))
			w.fresh = nil
			w.clock.Step(time.Second)
			w.mustReconcile("rival")
			require.Equal(t, test.rival, w.holds("rival"))
		})
	}
}

// touched stands for a change by someone else, such as the next leader.
func touched(w *world) {
	bs := w.get("batch")
	before := client.MergeFrom(bs.DeepCopy())
	bs.Labels = map[string]string{"touched": bs.Labels["touched"] + "yes"}
	require.NoError(w.t, w.api.Patch(w.t.Context(), bs, before))
}

func TestARefusedClaimGivesThePodsBack(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.spoil = func(write string, do func() error) error {
		if write == "patch batch" {
			return refusal()
		}
		return do()
	}
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsInvalid(err), "%v", err)
	require.Equal(t, 1, w.idle())
	require.Equal(t, v1alpha1.ReasonAllocationRefused, w.ready("batch").Reason)
}

func TestAnOldLeaseWritesAndDeletesNothing(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("batch", 1))
	w.fresh = errors.New("the lease is old")
	_, err := w.reconcile("batch")
	require.ErrorIs(t, err, w.fresh)
	require.NotContains(t, w.writes, "patch batch")
	require.Equal(t, 2, w.idle())

	w.fresh = nil
	w.mustReconcile("batch")
	held := w.holds("batch")
	require.Len(t, held, 1)
	w.fresh = errors.New("the lease is old")
	require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
	_, err = w.reconcile("batch")
	require.ErrorIs(t, err, w.fresh)
	require.True(t, w.podExists(held[0]))
	require.Len(t, w.get("batch").Status.Conditions, 1, "nor is the status written: another leader may know better")

	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: "unseen-0", Labels: map[string]string{v1alpha1.LabelBatchSandboxName: "unseen"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindBatchSandbox, Name: "unseen", UID: "u", Controller: ptr.To(true)}},
	}}
	require.NoError(t, w.api.Create(t.Context(), pod))
	_, err = w.reconcile("unseen")
	require.ErrorIs(t, err, w.fresh)
	require.True(t, w.podExists("unseen-0"), "its owner may only be late in the cache")
}

func TestNothingIsWrittenOnceTheLeaseIsOld(t *testing.T) {
	past := metav1.NewTime(now.Add(-time.Minute))
	tests := map[string]func(t *testing.T) *world{
		"a claim": func(t *testing.T) *world { return newPooledWorld(t, []string{"a"}, named("batch", 1)) },
		"a status": func(t *testing.T) *world {
			w := newPooledWorld(t, nil, named("batch", 1))
			w.mustReconcile("batch")
			return w
		},
		"a release": func(t *testing.T) *world {
			w := newPooledWorld(t, []string{"a"}, named("batch", 1))
			w.mustReconcile("batch")
			w.scale("batch", 0)
			return w
		},
		"the deletion of a lost pod": func(t *testing.T) *world {
			w := newPooledWorld(t, []string{"a", "b"}, named("batch", 1))
			w.mustReconcile("batch")
			w.observe("a", func(p *ledger.Pod) { p.Finished, p.Disrupted = true, true })
			return w
		},
		"the deletion of a batch": func(t *testing.T) *world {
			w := newPooledWorld(t, []string{"a"}, named("batch", 1))
			w.mustReconcile("batch")
			require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
			return w
		},
		"an expiry": func(t *testing.T) *world {
			return newPooledWorld(t, nil, named("batch", 1, func(bs *v1alpha1.BatchSandbox) { bs.Spec.ExpireTime = &past }))
		},
		"a template pod": func(t *testing.T) *world { return newWorld(t, named("batch", 1, templated)) },
		"a finalizer": func(t *testing.T) *world {
			return newWorld(t, named("batch", 0, templated, func(bs *v1alpha1.BatchSandbox) { bs.Spec.TaskTemplate = &v1alpha1.TaskTemplate{} }))
		},
		"the deletion of a template pod": func(t *testing.T) *world {
			w := newWorld(t, named("batch", 1, templated))
			w.mustReconcile("batch")
			w.scale("batch", 0)
			return w
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			w := prepare(t)
			idle := w.idle()
			w.clock.Step(time.Second)
			w.writes, w.fresh, w.freshFor = nil, errors.New("the lease is old"), 1 // at the begin of the reconcile
			_, err := w.reconcile("batch")
			require.ErrorIs(t, err, w.fresh)
			require.Empty(t, w.writes)
			require.Equal(t, idle, w.idle(), "what was claimed is given back")
			w.fresh = nil
			for range 2 {
				_, err = w.reconcile("batch")
				require.NoError(t, err)
			}
			require.NotEmpty(t, w.writes)
		})
	}
}

func TestAConflictWithAVersionThatHasNotMovedIsNotTheEnd(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	var first func() error
	w.spoil = func(write string, do func() error) error {
		if write == "patch batch" && first == nil {
			first = do // it is on its way, and the answer is that to another sending
			return apierrors.NewConflict(schema.GroupResource{}, "batch", nil)
		}
		return do()
	}
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsConflict(err), "%v", err)
	require.Zero(t, w.idle(), "the claim can still be written")
	require.NoError(t, first())
	w.mustReconcile("batch")
	require.Equal(t, []string{"a"}, w.holds("batch"))
	require.Equal(t, int32(1), w.get("batch").Status.Allocated)
}

func TestAClaimThatIsUndoneDoesNotWakeItsOwnerAtOnce(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 2))
	w.spoil = func(write string, do func() error) error {
		if write == "patch batch" {
			return refusal()
		}
		return do()
	}
	w.woken = nil
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsInvalid(err), "%v", err)
	require.Empty(t, w.woken, "it would claim and give back for ever")
}

func TestAStatusOfALargeObjectIsWrittenLessOften(t *testing.T) {
	for name, test := range map[string]struct {
		bytes int
		waits time.Duration
	}{
		"a small one": {100, topUpInterval},
		"a large one": {200_000, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a"}, named("batch", 2, func(bs *v1alpha1.BatchSandbox) {
				bs.Annotations = map[string]string{"note": strings.Repeat("x", test.bytes)}
			}))
			w.mustReconcile("batch")
			w.writes = nil
			w.observe("a", func(p *ledger.Pod) { p.Restarts = 1 })
			again := w.mustReconcile("batch").RequeueAfter
			require.Empty(t, w.writes, "only a number has changed")
			require.InDelta(t, test.waits, again, float64(50*time.Millisecond))
			w.clock.Step(again)
			w.mustReconcile("batch")
			require.Equal(t, int32(1), w.get("batch").Status.Restarted)
		})
	}
}

func TestAStatusDoesNotOverwriteALaterVersion(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.spoil = func(write string, do func() error) error {
		if write == "status batch" {
			touched(w)
		}
		return do()
	}
	require.Equal(t, conflictPause, w.mustReconcile("batch").RequeueAfter)
	require.Empty(t, w.get("batch").Status.Conditions)
	w.spoil = nil
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonAllReady, w.ready("batch").Reason)
}

func TestAConflictIsNoLoopWhileTheCacheIsLate(t *testing.T) {
	w := newWorld(t, named("batch", 0))
	w.late = w.get("batch")
	touched(w)
	require.Equal(t, conflictPause, w.mustReconcile("batch").RequeueAfter)
	require.Zero(t, w.mustReconcile("batch").RequeueAfter)
	require.Equal(t, []string{"status batch", "status batch"}, w.writes)
	require.Equal(t, v1alpha1.ReasonAllReady, w.ready("batch").Reason)
}

func TestAClaimThatStaysUnclearIsShownAndFenced(t *testing.T) {
	for name, done := range map[string]bool{"it was done": true, "it was lost": false} {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a", "b"}, named("batch", 2))
			w.spoil = func(write string, do func() error) error {
				switch {
				case write != "patch batch":
					return do()
				case done:
					_ = do() // the second time it is refused
				}
				return errTimeout
			}
			for range 2 {
				_, err := w.reconcile("batch")
				require.ErrorIs(t, err, errTimeout)
				require.NotContains(t, w.writes, "status batch")
				w.clock.Step(unclearPatience / 2)
			}
			_, err := w.reconcile("batch")
			require.ErrorIs(t, err, errTimeout)
			require.Contains(t, w.writes, "status batch")
			require.Equal(t, v1alpha1.ReasonAllocationRefused, w.ready("batch").Reason)
			require.Zero(t, w.get("batch").Status.Allocated, "nothing was handed over")
			if done {
				require.Zero(t, w.idle(), "the pods are the batch's")
			} else {
				require.Equal(t, 2, w.idle(), "the claim can no longer land")
				for range 2 { // and so with the next claim
					_, err := w.reconcile("batch")
					require.ErrorIs(t, err, errTimeout)
					w.clock.Step(unclearPatience)
				}
				require.Equal(t, 2, w.idle())
			}
			w.spoil = nil
			w.mustReconcile("batch")
			require.Equal(t, []string{"a", "b"}, w.holds("batch"))
		})
	}
}

func TestAFenceOfWhichNothingIsHeardCostsNoPod(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("batch", 2), named("rival", 2))
	w.spoil = func(write string, do func() error) error {
		switch write {
		case "patch batch":
			return errTimeout
		case "status batch":
			_ = do()
			return errTimeout
		}
		return do()
	}
	_, err := w.reconcile("batch")
	require.ErrorIs(t, err, errTimeout)
	w.clock.Step(unclearPatience)
	_, err = w.reconcile("batch")
	require.ErrorIs(t, err, errTimeout)
	require.Zero(t, w.idle(), "the claim may be written")
	w.spoil = nil
	_, err = w.reconcile("batch")
	require.Error(t, err, "it was not, and can no longer be")
	require.Equal(t, 2, w.idle())
}

func TestAFenceThatMovesNothingIsNone(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.spoil = func(write string, _ func() error) error {
		if write == "patch batch" {
			return errTimeout
		}
		return nil // the API server has left out all that was new
	}
	_, err := w.reconcile("batch")
	require.ErrorIs(t, err, errTimeout)
	w.clock.Step(unclearPatience)
	_, err = w.reconcile("batch")
	require.ErrorIs(t, err, errTimeout)
	require.Contains(t, w.writes, "status batch")
	require.Zero(t, w.idle(), "the claim can still land")
}

func TestAFullObjectIsToldByEventsOnce(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1))
	full := apierrors.NewInternalError(errors.New("etcdserver: request is too large"))
	w.spoil = func(write string, do func() error) error {
		if write == "status batch" {
			return full
		}
		return do()
	}
	for range 5 {
		w.mustReconcile("batch")
		w.clock.Step(time.Minute)
	}
	require.Equal(t, []string{"status batch"}, w.writes)
	require.Equal(t, []string{v1alpha1.ReasonPoolExhausted}, w.events())
	touched(w)
	w.mustReconcile("batch")
	require.Len(t, w.writes, 2, "another version may have room")
	require.Empty(t, w.events())
	w.spoil = nil
	touched(w)
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonPoolExhausted, w.ready("batch").Reason)
}

func TestAnObjectTooLargeForEtcdKeepsNothingBack(t *testing.T) {
	for name, first := range map[string]error{"at once": nil, "after a sending of unknown outcome": errTimeout} {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a", "b"}, named("batch", 2))
			answer := first
			w.spoil = func(write string, do func() error) error {
				if write != "patch batch" {
					return do()
				}
				if err := answer; err != nil {
					answer = nil
					return err
				}
				return apierrors.NewInternalError(errors.New("etcdserver: request is too large"))
			}
			if first != nil {
				_, err := w.reconcile("batch")
				require.ErrorIs(t, err, first)
			}
			_, err := w.reconcile("batch")
			if first == nil {
				require.NoError(t, err, "a retry would not help")
			}
			require.Equal(t, 2, w.idle())
			w.mustReconcile("batch")
			require.Equal(t, v1alpha1.ReasonAllocationTooLarge, w.ready("batch").Reason)
			require.Contains(t, w.ready("batch").Message, "spec.replicas: ")
		})
	}
}

func TestABatchThatIsDeletedWaitsForNothing(t *testing.T) {
	for name, gone := range map[string]bool{"it is being deleted": false, "somebody took its finalizers": true} {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a"}, named("batch", 3))
			w.mustReconcile("batch")
			w.observe("b")
			require.Zero(t, w.idle(), "the batch comes first")
			w.spoil = func(write string, do func() error) error {
				if write == "delete a" {
					return errTimeout
				}
				return do()
			}
			bs := w.get("batch")
			require.NoError(t, w.api.Delete(t.Context(), bs))
			if gone {
				require.NoError(t, w.api.Patch(t.Context(), bs, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
			}
			_, err := w.reconcile("batch")
			require.ErrorIs(t, err, errTimeout)
			require.Equal(t, 1, w.idle())
		})
	}
}

func TestALostPodIsReplacedAtItsShardInOneWrite(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b", "c"}, named("batch", 2))
	w.mustReconcile("batch")
	w.Ledger.ObserveGone(poolKey, "a", "uid-a")
	w.writes = nil
	w.clock.Step(time.Second)
	w.mustReconcile("batch")
	require.Equal(t, []string{"c", "b"}, w.holds("batch"))
	require.Equal(t, `["ip-c","ip-b"]`, w.get("batch").Annotations[v1alpha1.AnnotationEndpoints])
	require.Equal(t, 1, strings.Count(strings.Join(w.writes, ","), "patch batch"))
	require.Contains(t, w.events(), "SandboxLost")
}

func TestFewerReplicasGiveUpTheHighestShards(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b", "c"}, named("batch", 3))
	w.mustReconcile("batch")
	bs := w.get("batch")
	*bs.Spec.Replicas = 1
	require.NoError(t, w.api.Update(t.Context(), bs))
	w.spoil = func(write string, do func() error) error {
		if write == "delete c" {
			return apierrors.NewServiceUnavailable("no")
		}
		return do()
	}
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsServiceUnavailable(err), "%v", err)
	require.Equal(t, []string{"a"}, w.holds("batch"))
	bs = w.get("batch")
	require.Equal(t, `["ip-a"]`, bs.Annotations[v1alpha1.AnnotationEndpoints])
	require.JSONEq(t, `{"pods":["c"]}`, bs.Annotations[v1alpha1.AnnotationAllocRelease], "what is not clean yet")
	require.True(t, w.podExists("c"))

	w.spoil = nil
	w.mustReconcile("batch")
	require.NotContains(t, w.get("batch").Annotations, v1alpha1.AnnotationAllocRelease)
	require.False(t, w.podExists("b"))
	require.False(t, w.podExists("c"))
	require.Zero(t, w.idle())
}

func TestADeletedBatchLetsGoWhenItsPodsAreDeleted(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.mustReconcile("batch")
	require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
	w.spoil = func(write string, do func() error) error {
		if write == "delete a" {
			return apierrors.NewServiceUnavailable("no")
		}
		return do()
	}
	_, err := w.reconcile("batch")
	require.True(t, apierrors.IsServiceUnavailable(err), "%v", err)
	require.Equal(t, []string{"a"}, w.holds("batch"), "a new leader must find it")

	w.spoil = nil
	w.mustReconcile("batch")
	require.True(t, apierrors.IsNotFound(w.api.Get(t.Context(), types.NamespacedName{Namespace: "ns", Name: "batch"}, &v1alpha1.BatchSandbox{})))
	require.False(t, w.podExists("a"))
	require.Empty(t, w.Ledger.Lookup(types.NamespacedName{Namespace: "ns", Name: "batch"}))
}

func TestAPodOfANoopPoolIsIdleOnlyWhenItsReleaseIsWritten(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	pool := &v1alpha1.Pool{}
	require.NoError(t, w.api.Get(t.Context(), poolKey, pool))
	pool.Spec.RecycleStrategy.Type = v1alpha1.RecycleNoop
	require.NoError(t, w.api.Update(t.Context(), pool))
	w.mustReconcile("batch")
	require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
	w.spoil = func(string, func() error) error { return errTimeout }
	_, err := w.reconcile("batch")
	require.ErrorIs(t, err, errTimeout)
	require.Zero(t, w.idle(), "the object still names it")
	w.spoil = nil
	w.mustReconcile("batch")
	require.Equal(t, 1, w.idle())
	require.True(t, w.podExists("a"))
}

func TestABatchWhoseFinalizerWasTakenAwayLeavesNoDirtyPod(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.mustReconcile("batch")
	bs := w.get("batch")
	bs.Finalizers = nil
	require.NoError(t, w.api.Update(t.Context(), bs))
	require.NoError(t, w.api.Delete(t.Context(), bs))
	w.mustReconcile("batch")
	require.False(t, w.podExists("a"))
	require.Zero(t, w.idle())
}

func TestRestartsCountFromTheHandOver(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1))
	w.observe("a", func(p *ledger.Pod) { p.Restarts = 2 })
	w.mustReconcile("batch")
	require.JSONEq(t, `{"pods":["a"],"poolRef":"pool","restarts":[{"from":0,"to":0,"count":2}]}`, w.get("batch").Annotations[v1alpha1.AnnotationAllocStatus])
	require.Zero(t, w.get("batch").Status.Restarted)

	w.observe("a", func(p *ledger.Pod) { p.Restarts = 3 }) // out of memory, say
	for range 3 {
		w.clock.Step(time.Second)
		w.mustReconcile("batch")
	}
	require.Equal(t, int32(1), w.get("batch").Status.Restarted)
	require.True(t, meta.IsStatusConditionTrue(w.get("batch").Status.Conditions, v1alpha1.ConditionSandboxesRestarted))
	require.Equal(t, []string{"SandboxesRestarted"}, w.events(), "once")
}

func TestWhatABatchWaitsFor(t *testing.T) {
	tests := map[string]struct {
		change func(w *world)
		reason string
	}{
		"the pool is exhausted": {func(*world) {}, v1alpha1.ReasonPoolExhausted},
		"there is no pool": {func(w *world) {
			require.NoError(w.t, w.api.Delete(w.t.Context(), &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pool"}}))
			w.Ledger.SetPool(poolKey, "", "", false)
		}, v1alpha1.ReasonPoolNotFound},
		"the pool is being deleted": {func(w *world) {
			pool := &v1alpha1.Pool{}
			require.NoError(w.t, w.api.Get(w.t.Context(), poolKey, pool))
			pool.Finalizers = []string{v1alpha1.FinalizerPoolAllocation}
			require.NoError(w.t, w.api.Update(w.t.Context(), pool))
			require.NoError(w.t, w.api.Delete(w.t.Context(), pool))
			w.Ledger.SetPool(poolKey, "pool-uid", "r1", false)
		}, v1alpha1.ReasonPoolDeleting},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a"}, named("batch", 2))
			w.mustReconcile("batch")
			require.Equal(t, []string{"a"}, w.holds("batch"), "a part is delivered")
			w.events()
			test.change(w)
			w.clock.Step(time.Second)
			w.mustReconcile("batch")
			require.Equal(t, test.reason, w.ready("batch").Reason)
			n := len(w.writes)
			for range 3 {
				w.clock.Step(time.Minute)
				w.mustReconcile("batch")
			}
			require.Len(t, w.writes, n, "waiting costs no writes")
			require.LessOrEqual(t, len(w.events()), 1)
		})
	}
}

func TestABatchThatFillsIsWrittenInSteps(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 3))
	w.mustReconcile("batch")
	w.observe("b")
	again := w.mustReconcile("batch").RequeueAfter
	require.Equal(t, []string{"a"}, w.holds("batch"), "a part of the rest, too soon")
	require.Positive(t, again)
	require.LessOrEqual(t, again, topUpInterval)
	w.observe("c")
	w.mustReconcile("batch")
	require.Equal(t, []string{"a", "b", "c"}, w.holds("batch"), "at once when it becomes complete")
}

func TestAnAllocationThatCannotBeReadIsSetAside(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b"}, named("batch", 1, unreadable))
	w.Ledger.Rebuild([]ledger.Record{{Pool: poolKey, Owner: ledger.Owner{
		NamespacedName: types.NamespacedName{Namespace: "ns", Name: "batch"}, UID: "uid-batch"}, Unreadable: true}})
	require.Zero(t, w.idle(), "it may name them")
	w.mustReconcile("batch")
	require.Equal(t, []string{"status batch"}, w.writes)
	require.Equal(t, v1alpha1.ReasonAllocationUnreadable, w.ready("batch").Reason)
	require.Contains(t, w.ready("batch").Message, v1alpha1.AnnotationAllocStatus)
	require.Equal(t, []string{v1alpha1.ReasonAllocationUnreadable}, w.events())

	bs := w.get("batch")
	bs.Annotations[v1alpha1.AnnotationAllocStatus] = `{"pods":["b"]}`
	require.NoError(t, w.api.Update(t.Context(), bs))
	w.clock.Step(time.Second)
	w.mustReconcile("batch")
	require.Equal(t, []string{"b"}, w.holds("batch"), "mended")
	require.Zero(t, w.idle(), "a may be one of those that it had before")
	require.Equal(t, v1alpha1.ReasonAllReady, w.ready("batch").Reason)
}

func unreadable(bs *v1alpha1.BatchSandbox) {
	bs.Finalizers = []string{v1alpha1.FinalizerPoolAllocation}
	bs.Annotations = map[string]string{v1alpha1.AnnotationAllocStatus: "{"}
}

func TestAnAnnotationThatSomeoneElseChangedIsWrittenBack(t *testing.T) {
	for value, want := range map[string][]string{
		`{`:                    {"AllocationRestored"},
		`{"pods":["nothing"]}`: {"AllocationRestored"},
		`{"pods":["b"]}`:       {"AllocationRestored", "DoubleAllocation"},
	} {
		t.Run(value, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a", "b"}, named("batch", 1), named("rival", 1))
			w.mustReconcile("batch")
			w.mustReconcile("rival")
			before := doubleAllocations(t)
			bs := w.get("batch")
			bs.Annotations[v1alpha1.AnnotationAllocStatus] = value
			require.NoError(t, w.api.Update(t.Context(), bs))
			w.mustReconcile("batch")
			require.Equal(t, []string{"a"}, w.holds("batch"))
			require.Equal(t, []string{"b"}, w.holds("rival"))
			require.Equal(t, want, w.events())
			require.InDelta(t, float64(len(want)-1), doubleAllocations(t)-before, 0, "metric")
		})
	}
}

func TestAnAnnotationOfAnOlderOperatorIsCompletedWithoutAnEvent(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.mustReconcile("batch")
	bs := w.get("batch")
	bs.Annotations[v1alpha1.AnnotationAllocStatus] = `{"pods":["a"]}`
	require.NoError(t, w.api.Update(t.Context(), bs))
	w.mustReconcile("batch")
	require.JSONEq(t, `{"pods":["a"],"poolRef":"pool"}`, w.get("batch").Annotations[v1alpha1.AnnotationAllocStatus])
	require.Empty(t, w.events(), "nobody else has changed it")
}

func doubleAllocations(t *testing.T) float64 {
	t.Helper()
	families, err := metrics.Registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "opensandbox_double_allocations_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("there is no such metric")
	return 0
}

func TestAnAllocationThatDoesNotFitClaimsNothing(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1, func(bs *v1alpha1.BatchSandbox) {
		bs.Annotations = map[string]string{"note": strings.Repeat("x", 256*1024-50)}
	}))
	w.mustReconcile("batch")
	require.Equal(t, []string{"status batch"}, w.writes)
	require.Equal(t, v1alpha1.ReasonAllocationTooLarge, w.ready("batch").Reason)
	require.Equal(t, 1, w.idle())
}

func TestAStatusFieldThatTheCRDLacksIsNotWrittenAgain(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1))
	w.connect(interceptor.NewClient(w.api, interceptor.Funcs{
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
			w.writes = append(w.writes, "status")
			if err := c.SubResource(sub).Patch(ctx, obj, patch, opts...); err != nil {
				return err
			}
			bs := obj.(*v1alpha1.BatchSandbox)
			bs.Status.Phase = "" // it would have been pruned
			return c.SubResource(sub).Update(ctx, bs)
		},
	}))
	for range 5 {
		w.clock.Step(time.Minute)
		w.mustReconcile("batch")
	}
	require.Equal(t, []string{"status"}, w.writes)
	require.Empty(t, w.get("batch").Status.Phase)
}

func TestAnExpiryThatWasMovedMeanwhileHolds(t *testing.T) {
	past := metav1.NewTime(now.Add(-time.Minute))
	w := newPooledWorld(t, []string{"a"}, named("batch", 1, func(bs *v1alpha1.BatchSandbox) { bs.Spec.ExpireTime = &past }))
	w.spoil = func(_ string, do func() error) error {
		touched(w)
		return do()
	}
	require.Equal(t, conflictPause, w.mustReconcile("batch").RequeueAfter)
	require.Equal(t, []string{"delete batch"}, w.writes)
	require.Equal(t, "yes", w.get("batch").Labels["touched"])
	require.Empty(t, w.events())
}

func TestAnExpiredBatchIsDeletedWithAnEvent(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1, func(bs *v1alpha1.BatchSandbox) {
		bs.Spec.ExpireTime = &metav1.Time{Time: now.Add(time.Minute)}
	}))
	require.LessOrEqual(t, w.mustReconcile("batch").RequeueAfter, time.Minute, "it comes back by itself")
	require.Equal(t, []string{"a"}, w.holds("batch"))
	w.clock.Step(time.Minute)
	w.mustReconcile("batch")
	require.NotNil(t, w.get("batch").DeletionTimestamp)
	require.Equal(t, []string{"Expired"}, w.events())
	w.mustReconcile("batch")
	require.False(t, w.podExists("a"))
}

func hasEnded(p *ledger.Pod) { p.Finished, p.Ready, p.Problem = true, false, "PodSucceeded" }

func TestASandboxThatHasEndedKeepsItsShardAndItsPod(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b", "c"}, named("batch", 2))
	w.mustReconcile("batch")
	w.clock.Step(time.Second)
	w.observe("b", hasEnded)
	w.mustReconcile("batch")
	require.Equal(t, []string{"a", "b"}, w.holds("batch"))
	require.Equal(t, `["ip-a"]`, w.get("batch").Annotations[v1alpha1.AnnotationEndpoints], "the address may be another's by now")
	status := w.get("batch").Status
	require.Equal(t, []int32{2, 2, 1, 1}, []int32{status.Replicas, status.Allocated, status.Ready, status.Ended})
	c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionSandboxesEnded)
	require.NotNil(t, c)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Equal(t, v1alpha1.ReasonContainersEnded, c.Reason)
	require.Equal(t, v1alpha1.ReasonContainersEnded, w.ready("batch").Reason)
	require.Equal(t, []string{v1alpha1.ConditionSandboxesEnded}, w.events(), "once")
	n := len(w.writes)
	for range 3 {
		w.clock.Step(time.Minute)
		w.mustReconcile("batch")
	}
	require.Len(t, w.writes, n, "and that is all")
	require.Empty(t, w.events())

	w.observe("b", hasEnded, func(p *ledger.Pod) { p.Disrupted = true })
	w.mustReconcile("batch")
	require.Equal(t, []string{"a", "c"}, w.holds("batch"), "one that was evicted is lost")
	require.Zero(t, w.get("batch").Status.Ended)
}

func TestASandboxThatHasEndedIsLetGoOf(t *testing.T) {
	tests := map[string]func(w *world, bs *v1alpha1.BatchSandbox) error{
		"by scale-down": func(w *world, bs *v1alpha1.BatchSandbox) error {
			*bs.Spec.Replicas = 0
			return w.api.Update(w.t.Context(), bs)
		},
		"by deletion": func(w *world, bs *v1alpha1.BatchSandbox) error { return w.api.Delete(w.t.Context(), bs) },
	}
	for name, letGo := range tests {
		t.Run(name, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a"}, named("batch", 1))
			pool := &v1alpha1.Pool{}
			require.NoError(t, w.api.Get(t.Context(), poolKey, pool))
			pool.Spec.RecycleStrategy.Type = v1alpha1.RecycleNoop
			require.NoError(t, w.api.Update(t.Context(), pool))
			w.mustReconcile("batch")
			w.observe("a", hasEnded)
			w.clock.Step(time.Second)
			w.mustReconcile("batch")
			require.True(t, w.podExists("a"))
			require.NoError(t, letGo(w, w.get("batch")))
			w.mustReconcile("batch")
			require.False(t, w.podExists("a"), "nothing can run in it any more, so no pool wants it back")
			require.Zero(t, w.idle())
		})
	}
}

func TestManySandboxesThatEndAreNotAWriteEach(t *testing.T) {
	w := newPooledWorld(t, []string{"a", "b", "c"}, named("batch", 3))
	w.mustReconcile("batch")
	w.clock.Step(time.Second)
	w.observe("a", hasEnded)
	w.mustReconcile("batch")
	w.writes = nil
	w.observe("b", hasEnded)
	again := w.mustReconcile("batch").RequeueAfter
	require.Empty(t, w.writes)
	require.Positive(t, again)
	w.observe("c", hasEnded)
	w.clock.Step(again)
	w.mustReconcile("batch")
	require.Equal(t, []string{"patch batch", "status batch"}, w.writes)
	require.NotContains(t, w.get("batch").Annotations, v1alpha1.AnnotationEndpoints)
}

func TestATemplateSandboxThatHasEndedIsNotStartedAgain(t *testing.T) {
	w := newWorld(t, named("batch", 1, templated))
	w.mustReconcile("batch")
	end := func(change func(*corev1.PodStatus)) {
		pod := &corev1.Pod{}
		require.NoError(t, w.api.Get(t.Context(), types.NamespacedName{Namespace: "ns", Name: "batch-0"}, pod))
		pod.Status = corev1.PodStatus{Phase: corev1.PodSucceeded, PodIP: "10.0.0.1"}
		change(&pod.Status)
		require.NoError(t, w.api.Status().Update(t.Context(), pod))
	}
	end(func(*corev1.PodStatus) {})
	w.writes = nil
	for range 3 {
		w.clock.Step(time.Minute)
		w.mustReconcile("batch")
	}
	require.Equal(t, []string{"status batch"}, w.writes)
	status := w.get("batch").Status
	require.Equal(t, []int32{1, 0, 1}, []int32{status.Replicas, status.Ready, status.Ended})
	require.Equal(t, v1alpha1.PhaseFailed, status.Phase)
	require.True(t, meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionSandboxesEnded))

	end(func(s *corev1.PodStatus) { s.Phase, s.Reason = corev1.PodFailed, "Evicted" })
	w.writes = nil
	w.clock.Step(time.Minute)
	w.mustReconcile("batch")
	require.Equal(t, "delete batch-0", w.writes[0], "one that was evicted is lost")
	require.Contains(t, w.writes[1], "create batch-0")
	require.Zero(t, w.get("batch").Status.Ended)
}

func templated(bs *v1alpha1.BatchSandbox) {
	bs.Spec.PoolRef = ""
	bs.Spec.Template = &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "nginx"}}}}}
}

func TestATemplateThatIsRefusedIsShownInTheAPIServersWords(t *testing.T) {
	w := newWorld(t, named("batch", 1, templated))
	w.spoil = func(write string, do func() error) error {
		if strings.HasPrefix(write, "create") {
			return apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "batch-0", nil)
		}
		return do()
	}
	for range 3 {
		_, err := w.reconcile("batch")
		require.True(t, apierrors.IsInvalid(err), "%v", err)
		w.clock.Step(time.Second)
	}
	require.Equal(t, v1alpha1.ReasonTemplateInvalid, w.ready("batch").Reason)
	require.Contains(t, w.ready("batch").Message, `Pod "batch-0" is invalid`)
	require.Equal(t, v1alpha1.PhaseFailed, w.get("batch").Status.Phase)
	require.Equal(t, 1, strings.Count(strings.Join(w.writes, ","), "status"), "%v", w.writes)
	require.Equal(t, []string{v1alpha1.ReasonTemplateInvalid}, w.events())

	w.spoil = nil
	w.mustReconcile("batch")
	require.True(t, w.podExists("batch-0"))
}

func TestACreationOfUnknownOutcomeMakesOnePod(t *testing.T) {
	for name, done := range map[string]bool{"it was done": true, "it was lost": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, named("batch", 1, templated))
			w.spoil = func(write string, do func() error) error {
				if !strings.HasPrefix(write, "create") {
					return do()
				}
				if done {
					if err := do(); err != nil {
						return fmt.Errorf("creating: %w", err)
					}
				}
				return errTimeout
			}
			_, err := w.reconcile("batch")
			require.ErrorIs(t, err, errTimeout)
			w.spoil = nil
			w.mustReconcile("batch")
			var pods corev1.PodList
			require.NoError(t, w.api.List(t.Context(), &pods))
			require.Len(t, pods.Items, 1)
		})
	}
}

func TestATakenNameHoldsUpNoShard(t *testing.T) {
	w := newWorld(t, named("batch", 2, templated), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "batch-0", UID: "somebody's"}})
	w.mustReconcile("batch")
	var pods corev1.PodList
	require.NoError(t, w.api.List(t.Context(), &pods, client.MatchingLabels{v1alpha1.LabelBatchSandboxName: "batch"}))
	require.Len(t, pods.Items, 2)
	require.Regexp(t, "^batch-0-.+", pods.Items[0].Name)
	require.Equal(t, "batch-1", pods.Items[1].Name)
}

func TestATerminatingPodIsNotTakenForTheOneToBeCreated(t *testing.T) {
	bs := named("batch", 1, templated)
	leaving, err := podtemplate.ForShard(bs, 0, "batch-0")
	require.NoError(t, err)
	leaving.Finalizers = []string{"example.com/slow"}
	w := newWorld(t, bs, leaving)
	require.NoError(t, w.api.Delete(t.Context(), leaving))
	w.latePods = &corev1.PodList{} // the cache does not show it yet
	w.mustReconcile("batch")
	w.latePods = nil
	var pods corev1.PodList
	require.NoError(t, w.api.List(t.Context(), &pods))
	require.Len(t, pods.Items, 2, "%v", w.writes)
}

func TestACreatedPodThatTheCacheNeverShowsIsLookedUp(t *testing.T) {
	w := newWorld(t, named("batch", 1, templated))
	w.spoil = func(write string, do func() error) error {
		if strings.HasPrefix(write, "create") {
			return nil // created, and deleted by somebody before the cache has seen it
		}
		return do()
	}
	w.clock.Step(w.mustReconcile("batch").RequeueAfter) // for the status
	w.spoil = nil
	again := w.mustReconcile("batch").RequeueAfter
	require.Positive(t, again)
	require.LessOrEqual(t, again, cacheLag)
	w.clock.Step(again)
	w.mustReconcile("batch")
	require.True(t, w.podExists("batch-0"))
}
