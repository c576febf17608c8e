package startup

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
)

var now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

var poolKey = ledger.Key{Namespace: "ns", Name: "pool"}

// lateCache shows what its client has, which may be less or older than what the API
// server has, and tells its handler of the pods it has at the start.
type lateCache struct {
	cache.Cache
	client client.WithWatch
}

func (c lateCache) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	err := c.client.Get(ctx, key, obj, opts...)
	if pod, ok := obj.(*corev1.Pod); ok && err == nil && !selected(*pod) {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, key.Name)
	}
	return err
}

func (c lateCache) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	err := c.client.List(ctx, list, opts...)
	if pods, ok := list.(*corev1.PodList); ok {
		pods.Items = slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return !selected(pod) })
	}
	return err
}

// selected says that the cache, which selects pods by the operator's label, has this one.
func selected(pod corev1.Pod) bool { return pod.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy }

func (c lateCache) GetInformer(context.Context, client.Object, ...cache.InformerGetOption) (cache.Informer, error) {
	return informer{client: c.client}, nil
}

type informer struct {
	cache.Informer
	client client.WithWatch
}

func (i informer) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	var pods corev1.PodList
	if err := i.client.List(context.Background(), &pods); err != nil {
		return nil, err
	}
	for n := range pods.Items {
		if selected(pods.Items[n]) {
			handler.OnAdd(&pods.Items[n], true)
		}
	}
	return registered{}, nil
}

type registered struct {
	toolscache.ResourceEventHandlerRegistration
}

func (registered) HasSynced() bool { return true }

// world is a Startup between an API server and a cache.
type world struct {
	*Startup
	t        *testing.T
	api      client.WithWatch
	cached   client.WithWatch
	recorder *events.FakeRecorder
	opened   atomic.Bool // the gate
	mu       sync.Mutex  // guards touched and labelled
	touched  []string
	labelled []string // pods of another controller
	// refuse answers the touches.
	refuse func(name string) error
}

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(scheme))
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	build := func() client.WithWatch {
		return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.BatchSandbox{}).Build()
	}
	w := &world{t: t, api: build(), cached: build(), recorder: events.NewFakeRecorder(100)}
	book := ledger.New(ledger.Hooks{})
	book.SetPool(poolKey, "pool-uid", "r1", true)
	var err error
	w.Startup, err = New(Config{
		Client: interceptor.NewClient(w.api, interceptor.Funcs{
			Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
				w.mu.Lock()
				defer w.mu.Unlock()
				if w.refuse != nil {
					if err := w.refuse(obj.GetName()); err != nil {
						return err
					}
				}
				if pod, ok := obj.(*metav1.PartialObjectMetadata); ok {
					return w.label(ctx, pod, patch)
				}
				if err := w.checkPreconditions(ctx, obj, patch); err != nil {
					return err
				}
				w.touched = append(w.touched, obj.GetName())
				answer := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: obj.GetNamespace(), Name: obj.GetName()}}
				if err := c.Patch(ctx, answer, patch, opts...); err != nil {
					return err
				}
				// As a decoder may do: what the answer does not have stays.
				raw, err := json.Marshal(answer)
				require.NoError(t, err)
				require.NoError(t, json.Unmarshal(raw, obj))
				return w.show(ctx, answer)
			},
			SubResourcePatch: func(ctx context.Context, c client.Client, sub string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
				if err := c.SubResource(sub).Patch(ctx, obj, patch, opts...); err != nil {
					return err
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.show(ctx, obj)
			},
		}),
		Live: w.api, Cache: lateCache{client: w.cached}, Ledger: book, Recorder: w.recorder, Clock: clock.RealClock{},
		Term: func() string { return "me/3" }, Prepare: func(context.Context) error { return nil },
		LookAtOwnNamespace: func(context.Context) {}, Open: func() { w.opened.Store(true) },
	})
	require.NoError(t, err)
	return w
}

// checkPreconditions does what the API server does and the fake one does not.
func (w *world) checkPreconditions(ctx context.Context, obj client.Object, patch client.Patch) error {
	raw, err := patch.Data(obj)
	if err != nil {
		return err
	}
	var sent metav1.PartialObjectMetadata
	if err := json.Unmarshal(raw, &sent); err != nil {
		return err
	}
	live := obj.DeepCopyObject().(client.Object)
	if err := w.api.Get(ctx, client.ObjectKeyFromObject(obj), live); err != nil {
		return err
	}
	if sent.ResourceVersion != "" && sent.ResourceVersion != live.GetResourceVersion() {
		return apierrors.NewConflict(schema.GroupResource{Resource: "batchsandboxes"}, obj.GetName(), errors.New("it has been modified"))
	}
	if sent.UID != "" && sent.UID != live.GetUID() {
		return apierrors.NewInvalid(schema.GroupKind{Group: v1alpha1.GroupName, Kind: v1alpha1.KindBatchSandbox}, obj.GetName(),
			field.ErrorList{field.Invalid(field.NewPath("metadata", "uid"), sent.UID, "field is immutable")})
	}
	return nil
}

// show brings the cache to what the API server has of the object.
func (w *world) show(ctx context.Context, obj client.Object) error {
	live := obj.DeepCopyObject().(client.Object)
	if err := w.api.Get(ctx, client.ObjectKeyFromObject(obj), live); err != nil {
		return client.IgnoreNotFound(w.cached.Delete(ctx, obj))
	}
	shown := live.DeepCopyObject().(client.Object)
	if err := w.cached.Get(ctx, client.ObjectKeyFromObject(obj), shown); err != nil {
		live.SetResourceVersion("")
		if err := w.cached.Create(ctx, live); err != nil {
			return err
		}
		return w.cached.Update(ctx, live) // its version is past the other's
	}
	live.SetResourceVersion(shown.GetResourceVersion())
	return w.cached.Update(ctx, live)
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, UID: types.UID("uid-" + name),
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelPoolRevision: "r1"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindPool, Name: "pool", UID: "pool-uid", Controller: ptr.To(true),
			}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1",
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func batch(name string, replicas int32, allocStatus string) *v1alpha1.BatchSandbox {
	bs := &v1alpha1.BatchSandbox{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
		Spec:       v1alpha1.BatchSandboxSpec{Replicas: ptr.To(replicas), PoolRef: "pool"},
	}
	if allocStatus != "" {
		bs.Finalizers = []string{v1alpha1.FinalizerPoolAllocation}
		bs.Annotations = map[string]string{v1alpha1.AnnotationAllocStatus: allocStatus}
	}
	return bs
}

func templated(name string) *v1alpha1.BatchSandbox {
	bs := batch(name, 1, "")
	bs.Spec.PoolRef, bs.Spec.Template = "", &v1alpha1.PodTemplate{}
	return bs
}

func (w *world) start() error { return w.Start(w.t.Context()) }

func (w *world) open() bool { return w.opened.Load() }

// claims returns the pods that a batch gets which is older than those that wait.
func (w *world) claims() []string {
	owner := ledger.Owner{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "new"}, UID: "new", Created: time.Time{}.Add(-time.Hour)}
	var names []string
	for _, g := range w.Ledger.Claim(poolKey, owner, []int32{0, 1, 2, 3, 4, 5, 6, 7}) {
		names = append(names, g.Pod.Name)
	}
	return names
}

func (w *world) held(name string) []string {
	var names []string
	for _, h := range w.Ledger.Allocation(poolKey, types.UID("uid-"+name)).Held {
		names = append(names, h.Name)
	}
	return names
}

func TestTheLedgerIsRebuiltBeforeTheGateOpens(t *testing.T) {
	releasing := batch("releasing", 0, "")
	releasing.Finalizers = []string{v1alpha1.FinalizerPoolAllocation}
	releasing.Annotations = map[string]string{v1alpha1.AnnotationAllocRelease: `{"pods":["d"]}`}
	w := newWorld(t, pod("a"), pod("b"), pod("c"), pod("d"), pod("e"),
		batch("complete", 2, `{"pods":["a","b"]}`), batch("part", 2, `{"pods":["c"]}`), releasing, batch("waiting", 1, ""), templated("templated"))
	require.False(t, w.open())
	require.NoError(t, w.start())
	require.True(t, w.open())
	require.ElementsMatch(t, []string{"a", "b"}, w.held("complete"))
	require.Equal(t, []string{"c"}, w.held("part"))
	require.Len(t, w.Ledger.Allocation(poolKey, "uid-releasing").Releasing, 1)
	require.Equal(t, []string{"e"}, w.claims(), "all that nobody holds")
	require.ElementsMatch(t, []string{"part", "waiting"}, w.touched, "those whose demand is not met")
	bs := &v1alpha1.BatchSandbox{}
	require.NoError(t, w.api.Get(t.Context(), types.NamespacedName{Namespace: "ns", Name: "part"}, bs))
	require.Equal(t, "me/3", bs.Annotations[v1alpha1.AnnotationAllocator])
}

func TestWhoseDemandIsNotMet(t *testing.T) {
	scaledDown := batch("batch", 1, `{"pods":["a","b"]}`)
	deleted := batch("batch", 1, `{"pods":["gone"]}`)
	deleted.DeletionTimestamp = &metav1.Time{Time: now}
	tests := map[string]struct {
		bs    *v1alpha1.BatchSandbox
		touch bool
	}{
		"it holds all":            {batch("batch", 2, `{"pods":["a","b"]}`), false},
		"it holds nothing":        {batch("batch", 1, ""), true},
		"it asks for nothing":     {batch("batch", 0, ""), false},
		"a shard is empty":        {batch("batch", 2, `{"pods":["","b"]}`), true},
		"one of its pods is gone": {batch("batch", 2, `{"pods":["a","gone"]}`), true},
		"a pod of a shard that is not asked for does not count": {batch("batch", 1, `{"pods":["","b"]}`), true},
		"it was scaled down":            {scaledDown, false},
		"it is being deleted":           {deleted, false},
		"its allocation cannot be read": {batch("batch", 1, `{`), true},
		"it makes its own pods":         {templated("batch"), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a"), pod("b"), test.bs)
			require.NoError(t, w.start())
			require.Equal(t, test.touch, len(w.touched) == 1, "touched: %v", w.touched)
		})
	}
}

// Whoever is reconciled first would otherwise take the pods that older ones wait for.
func TestThoseWhoWaitHaveTheirPlacesBeforeTheGateOpens(t *testing.T) {
	gang := batch("gang", 4, "")
	gang.Spec.MinAvailable = 3
	anyPool := batch("any", 1, "")
	anyPool.Spec.PoolRef = v1alpha1.AnyPool
	w := newWorld(t, pod("a"), pod("b"), pod("c"), gang, batch("part", 2, `{"pods":["c"]}`), batch("garbled", 9, `{`),
		batch("complete", 1, `{"pods":["d"]}`), pod("d"), templated("templated"), anyPool)
	require.NoError(t, w.start())
	require.Equal(t, 4+1, w.Ledger.Snapshot(poolKey).Demand, "that of the gang and of the part")
	younger := ledger.Owner{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "younger"}, UID: "younger", Created: now}
	require.Empty(t, w.Ledger.Claim(poolKey, younger, []int32{0}))
	require.Empty(t, w.Ledger.Claim(poolKey, ledger.Owner{NamespacedName: client.ObjectKeyFromObject(gang), UID: gang.UID}, []int32{0, 1, 2, 3}), "two are not three")
}

func TestAnUnreadableAllocationSetsAsideWhatItMayHold(t *testing.T) {
	w := newWorld(t, pod("a"), pod("b"), batch("garbled", 1, `{`), batch("other", 1, `{"pods":["b"]}`))
	require.NoError(t, w.start())
	require.Empty(t, w.claims())
	require.Equal(t, []string{"b"}, w.held("other"), "everything else goes on")
}

func TestAPodOfTwoAllocationsIsGivenToNeither(t *testing.T) {
	w := newWorld(t, pod("a"), batch("first", 1, `{"pods":["a"]}`), batch("second", 1, `{"pods":["a"]}`))
	require.NoError(t, w.start())
	require.Empty(t, w.held("first"))
	require.Empty(t, w.held("second"))
	require.Empty(t, w.claims())
	require.Len(t, w.recorder.Events, 2)
	require.Contains(t, <-w.recorder.Events, "DoubleAllocation")
}

func TestAPodThatIsGoneIsNotHandedOutAlthoughTheCacheShowsIt(t *testing.T) {
	w := newWorld(t, pod("a"), pod("b"))
	require.NoError(t, w.api.Delete(t.Context(), pod("a")))
	require.NoError(t, w.start())
	require.Equal(t, []string{"b"}, w.claims())
}

// seenCache calls seen after a pod was read from it, before the reader has it.
type seenCache struct {
	lateCache
	seen func(pod string)
}

func (c seenCache) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	err := c.lateCache.Get(ctx, key, obj, opts...)
	if _, ok := obj.(*corev1.Pod); ok && err == nil {
		c.seen(key.Name)
	}
	return err
}

// The handler of the cache tells the ledger of a change while the start holds an older
// copy of the pod in its hands.
func TestAPodThatChangesWhileItIsLookedAtIsAsItIsNow(t *testing.T) {
	w := newWorld(t, pod("a"), pod("b"), pod("c"))
	var gone, unready bool
	w.Cache = seenCache{lateCache{client: w.cached}, func(name string) {
		switch {
		case name == "a" && !gone:
			gone = true
			require.NoError(t, w.api.Delete(t.Context(), pod("a")))
			require.NoError(t, w.cached.Delete(t.Context(), pod("a")))
			w.Ledger.ObserveGone(poolKey, "a", "uid-a")
		case name == "b" && !unready:
			unready = true
			changed := pod("b")
			changed.Status.Conditions = nil
			require.NoError(t, w.cached.Status().Update(t.Context(), changed))
			w.Ledger.Observe(poolKey, podfeed.Facts(changed, "pool-uid"))
		}
	}}
	require.NoError(t, w.start())
	require.True(t, gone && unready)
	require.Equal(t, []string{"c"}, w.claims())
}

// leave has the named pod leave while it is waited for: it is in the list, and neither
// the cache nor the API server has it as the pool's after that. A start that looks at
// it again and again ends.
func (w *world) leave(name string, cached bool, change func(*corev1.Pod)) (start func() error) {
	ctx, cancel := context.WithCancelCause(w.t.Context())
	looks, left := 0, false
	w.Live = interceptor.NewClient(w.api, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if err := c.List(ctx, list, opts...); err != nil {
				return err
			}
			pods, ok := list.(*metav1.PartialObjectMetadataList)
			if !ok || left || !slices.ContainsFunc(pods.Items, func(pod metav1.PartialObjectMetadata) bool { return pod.Name == name }) {
				return nil
			}
			left = true
			live := pod(name)
			require.NoError(w.t, w.api.Get(ctx, client.ObjectKeyFromObject(live), live))
			change(live)
			require.NoError(w.t, w.api.Update(ctx, live))
			if cached {
				return w.show(ctx, live)
			}
			return w.cached.Delete(ctx, pod(name))
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if looks++; key.Name == name && looks > 3 {
				cancel(errors.New("it is waited for in vain"))
			}
			return c.Get(ctx, key, obj, opts...)
		},
	})
	return func() error { return w.Start(ctx) }
}

func TestAPodThatLeavesItsPoolDuringTheStartIsWaitedForNoMoreAndNotHandedOut(t *testing.T) {
	hide := func(p *corev1.Pod) { delete(p.Labels, v1alpha1.LabelManagedBy) }
	orphan := func(p *corev1.Pod) { p.OwnerReferences = nil }
	move := func(p *corev1.Pod) { p.OwnerReferences[0].UID = "another-pool" }
	tests := map[string]struct {
		cached bool
		change func(*corev1.Pod)
	}{
		"it loses the label that the cache selects by":    {false, hide},
		"it is taken from its pool":                       {false, orphan},
		"the cache shows that it was taken from its pool": {true, orphan},
		"the cache shows that it is another pool's":       {true, move},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a"), pod("b"))
			start := w.leave("a", test.cached, test.change)
			require.NoError(t, start())
			require.True(t, w.open())
			require.Equal(t, []string{"b"}, w.claims())
		})
	}
}

// Only a pod whose UID is known can be deleted.
func TestAHeldPodThatIsHiddenFromTheCacheIsLost(t *testing.T) {
	a := pod("a")
	a.Labels[v1alpha1.LabelPoolName] = "pool"
	hide := func(p *corev1.Pod) { delete(p.Labels, v1alpha1.LabelManagedBy) }
	tests := map[string]func(w *world) (start func() error){
		"during the start": func(w *world) func() error { return w.leave("a", false, hide) },
		"before the start": func(w *world) func() error {
			live := pod("a")
			require.NoError(w.t, w.api.Get(w.t.Context(), client.ObjectKeyFromObject(live), live))
			hide(live)
			require.NoError(w.t, w.api.Update(w.t.Context(), live))
			require.NoError(w.t, w.cached.Delete(w.t.Context(), live))
			return w.start
		},
		"before the start, and the cache does not know yet": func(w *world) func() error {
			live := pod("a")
			require.NoError(w.t, w.api.Get(w.t.Context(), client.ObjectKeyFromObject(live), live))
			hide(live)
			require.NoError(w.t, w.api.Update(w.t.Context(), live))
			return w.start
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, a.DeepCopy(), pod("b"), batch("holder", 1, `{"pods":["a"]}`))
			start := prepare(w)
			require.NoError(t, start())
			held := w.Ledger.Allocation(poolKey, "uid-holder").Held
			require.Len(t, held, 1)
			require.True(t, held[0].Lost())
			require.Equal(t, a.UID, held[0].UID)
			require.Equal(t, []string{"holder"}, w.touched, "it gets another one")
			require.Equal(t, []string{"b"}, w.claims())
		})
	}
}

func TestTheGateStaysClosedUntilTheCacheHasCaughtUp(t *testing.T) {
	tests := map[string]struct {
		make func(w *world) client.Object // what the cache does not show
		must func(w *world)
	}{
		"a pod that the cache shows as it was": {
			func(w *world) client.Object {
				live := pod("a")
				require.NoError(w.t, w.api.Get(w.t.Context(), client.ObjectKeyFromObject(live), live))
				live.Labels[v1alpha1.LabelPoolEvict] = "" // it is not to be handed out any more
				require.NoError(w.t, w.api.Update(w.t.Context(), live))
				return live
			},
			func(w *world) { require.Empty(w.t, w.claims()) },
		},
		"an allocation that the cache does not show": {
			func(w *world) client.Object {
				live := batch("batch", 1, "")
				require.NoError(w.t, w.api.Get(w.t.Context(), client.ObjectKeyFromObject(live), live))
				live.Finalizers = []string{v1alpha1.FinalizerPoolAllocation}
				live.Annotations = map[string]string{v1alpha1.AnnotationAllocStatus: `{"pods":["a"]}`}
				require.NoError(w.t, w.api.Update(w.t.Context(), live))
				return live
			},
			func(w *world) { require.Equal(w.t, []string{"a"}, w.held("batch")) },
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a"), batch("batch", 1, ""))
			late := test.make(w)
			ended := make(chan error, 1)
			go func() { ended <- w.start() }()
			require.Never(t, w.open, 300*time.Millisecond, 10*time.Millisecond)
			require.NoError(t, w.show(t.Context(), late))
			require.NoError(t, <-ended)
			test.must(w)
		})
	}
}

// The last leader goes on until the touch: between the first look at the pods and the
// touch it makes one and allocates it.
func TestAPodThatTheLastLeaderHasMadeAndAllocatedSinceTheFirstLookIsNotLost(t *testing.T) {
	w := newWorld(t, pod("a"), batch("batch", 2, `{"pods":["a"]}`))
	touched := make(chan struct{})
	w.refuse = func(string) error {
		late := pod("late")
		require.NoError(t, w.api.Create(context.Background(), late))
		live := batch("batch", 2, "")
		require.NoError(t, w.api.Get(context.Background(), client.ObjectKeyFromObject(live), live))
		live.Annotations[v1alpha1.AnnotationAllocStatus] = `{"pods":["a","late"]}`
		require.NoError(t, w.api.Update(context.Background(), live))
		close(touched)
		return w.show(context.Background(), live)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.start() }()
	<-touched
	require.Never(t, w.open, 300*time.Millisecond, 10*time.Millisecond, "the cache does not show the pod yet")
	require.NoError(t, w.show(t.Context(), pod("late")))
	require.NoError(t, <-ended)
	held := w.Ledger.Allocation(poolKey, "uid-batch").Held
	require.Len(t, held, 2)
	for _, h := range held {
		require.False(t, h.Lost(), h.Name)
	}
}

func TestAPodThatTheLastLeaderHasTakenBackAndDeletedSinceTheFirstLookIsNotIdle(t *testing.T) {
	w := newWorld(t, pod("a"), batch("batch", 2, `{"pods":["a"]}`))
	w.refuse = func(string) error {
		require.NoError(t, w.api.Delete(context.Background(), pod("a")))
		live := batch("batch", 2, "")
		require.NoError(t, w.api.Get(context.Background(), client.ObjectKeyFromObject(live), live))
		live.Annotations = nil
		require.NoError(t, w.api.Update(context.Background(), live))
		return w.show(context.Background(), live)
	}
	require.NoError(t, w.start())
	require.Empty(t, w.claims(), "the cache still shows the pod")
}

// To look at all pods takes most of the time of a start.
func TestPodsAreLookedAtAgainOnlyAfterALateWrite(t *testing.T) {
	looks := func(lateWrite bool) int {
		w := newWorld(t, pod("a"), batch("batch", 2, `{"pods":["a"]}`))
		n := 0
		w.Live = interceptor.NewClient(w.api, interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if list.GetObjectKind().GroupVersionKind().Kind == "PodList" {
					n++
				}
				return c.List(ctx, list, opts...)
			},
		})
		w.refuse = func(string) error {
			if !lateWrite {
				return nil
			}
			live := batch("batch", 2, "")
			require.NoError(t, w.api.Get(context.Background(), client.ObjectKeyFromObject(live), live))
			live.Annotations[v1alpha1.AnnotationAllocStatus] = "{}"
			require.NoError(t, w.api.Update(context.Background(), live))
			return w.show(context.Background(), live)
		}
		require.NoError(t, w.start())
		return n
	}
	require.Equal(t, looks(false)+1, looks(true))
}

func TestATakeoverLeavesOneLineInTheLog(t *testing.T) {
	w := newWorld(t, pod("a"), batch("whole", 1, `{"pods":["a"]}`), batch("waiting", 1, ""), batch("garbled", 1, "{"), templated("templated"))
	var lines []string
	logger := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	require.NoError(t, w.Start(log.IntoContext(t.Context(), logger)))
	lines = slices.DeleteFunc(lines, func(line string) bool { return !strings.Contains(line, `"level"=0`) })
	require.Len(t, lines, 1)
	require.Regexp(t, `"msg"="took over" "term"="me/3" "duration"="[0-9.]+m?s" "batchSandboxes"=4 "pooled"=3 "unreadable"=1 "touched"=2 "doubleAllocations"=0`, lines[0])
}

func TestTheOwnNamespaceIsLookedAtBeforeTheGateOpens(t *testing.T) {
	w := newWorld(t, pod("a"))
	looked := false
	w.LookAtOwnNamespace = func(context.Context) { looked = !w.open() }
	require.NoError(t, w.start())
	require.True(t, looked)
}

func TestATouch(t *testing.T) {
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: "batchsandboxes"}, "batch")
	refused := apierrors.NewInvalid(schema.GroupKind{Kind: v1alpha1.KindBatchSandbox}, "batch", nil)
	unavailable := apierrors.NewServiceUnavailable("no")
	tests := map[string]struct {
		// answers to the touches of "batch", one after the other; nil is done.
		answers []error
		deleted bool // at the first touch
		touched bool
	}{
		"it is repeated until it is done":                             {answers: []error{unavailable, unavailable, nil}, touched: true},
		"one that is deleted meanwhile is left out":                   {answers: []error{gone}, deleted: true},
		"one that takes no write does not keep a leader from leading": {answers: []error{refused}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a"), batch("batch", 2, `{"pods":["a"]}`), batch("other", 1, ""))
			answers := test.answers
			w.refuse = func(name string) error {
				if name != "batch" || len(answers) == 0 {
					return nil
				}
				if test.deleted {
					for _, c := range []client.Client{w.api, w.cached} {
						bs := batch("batch", 2, "")
						require.NoError(t, c.Get(context.Background(), client.ObjectKeyFromObject(bs), bs))
						bs.Finalizers = nil
						require.NoError(t, c.Update(context.Background(), bs))
						require.NoError(t, c.Delete(context.Background(), bs))
					}
				}
				err := answers[0]
				answers = answers[1:]
				return err
			}
			require.NoError(t, w.start())
			require.Empty(t, answers, "answers that nobody asked for")
			require.Contains(t, w.touched, "other")
			require.Equal(t, test.touched, strings.Contains(strings.Join(w.touched, ","), "batch"))
			if !test.deleted {
				require.Equal(t, []string{"a"}, w.held("batch"))
			}
		})
	}
}

// A tenant may write the object as often as it likes.
func TestAnObjectThatIsWrittenAllTheTimeIsTouched(t *testing.T) {
	w := newWorld(t, pod("a"), pod("b"), batch("batch", 2, `{"pods":["a"]}`))
	writes := 0
	w.refuse = func(string) error {
		live := batch("batch", 2, "")
		require.NoError(t, w.api.Get(context.Background(), client.ObjectKeyFromObject(live), live))
		writes++
		live.Annotations["tenant"] = strconv.Itoa(writes)
		if writes == 1 { // and a late write of the last leader
			live.Annotations[v1alpha1.AnnotationAllocStatus] = `{"pods":["a","b"]}`
		}
		require.NoError(t, w.api.Update(context.Background(), live))
		return w.show(context.Background(), live)
	}
	require.NoError(t, w.start())
	require.Equal(t, []string{"batch"}, w.touched)
	require.ElementsMatch(t, []string{"a", "b"}, w.held("batch"), "the answer counts, not the list")
}

func TestWhatTheLastLeaderHasTakenAwaySinceTheListIsNotHeld(t *testing.T) {
	w := newWorld(t, pod("a"), pod("b"), batch("batch", 3, `{"pods":["a","b"]}`))
	w.refuse = func(string) error {
		live := batch("batch", 3, "")
		require.NoError(t, w.api.Get(context.Background(), client.ObjectKeyFromObject(live), live))
		live.Annotations = map[string]string{v1alpha1.AnnotationAllocRelease: `{"pods":["a"]}`}
		require.NoError(t, w.api.Update(context.Background(), live))
		return w.show(context.Background(), live)
	}
	require.NoError(t, w.start())
	require.Empty(t, w.held("batch"))
	require.Len(t, w.Ledger.Allocation(poolKey, "uid-batch").Releasing, 1)
}

func TestATouchMovesTheVersionAlwaysAndNeverThatOfAnotherObject(t *testing.T) {
	marked := batch("marked", 1, "")
	marked.Annotations = map[string]string{v1alpha1.AnnotationAllocator: "me/3"}
	again := batch("again", 1, "")
	w := newWorld(t, marked, again)
	w.refuse = func(name string) error {
		if name != "again" || again.UID == "another" {
			return nil
		}
		require.NoError(t, w.api.Delete(context.Background(), again))
		again = batch("again", 1, "")
		again.UID = "another"
		return w.api.Create(context.Background(), again)
	}
	require.NoError(t, w.start())
	require.Equal(t, []string{"marked"}, w.touched)
	require.NoError(t, w.api.Get(t.Context(), client.ObjectKeyFromObject(marked), marked))
	require.NotEqual(t, "me/3", marked.Annotations[v1alpha1.AnnotationAllocator], "a patch that changes nothing moves no version")
	require.Empty(t, w.Ledger.Lookup(client.ObjectKeyFromObject(again)), "the one that was listed is gone")
	require.NoError(t, w.api.Get(t.Context(), client.ObjectKeyFromObject(again), again))
	require.Empty(t, again.Annotations)
}

func TestAnEndingProcessOpensNoGate(t *testing.T) {
	w := newWorld(t, pod("a"), batch("batch", 1, ""))
	w.refuse = func(string) error { return apierrors.NewServiceUnavailable("no") }
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Start(ctx) }()
	cancel(errors.New("the process ends"))
	require.Error(t, <-ended)
	require.False(t, w.open())
}

func TestWatchedNamespacesAreListedOneByOne(t *testing.T) {
	elsewhere := batch("elsewhere", 1, "")
	elsewhere.Namespace = "elsewhere"
	w := newWorld(t, pod("a"), batch("batch", 1, ""), elsewhere)
	w.Namespaces = []string{"ns"}
	require.NoError(t, w.start())
	require.Equal(t, []string{"batch"}, w.touched)
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	_, err := New(Config{Open: func() {}})
	require.ErrorContains(t, err, "Client, Live, Cache, Ledger, Recorder, Clock, Term, Prepare, LookAtOwnNamespace missing")
}
