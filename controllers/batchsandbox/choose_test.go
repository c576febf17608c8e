package batchsandbox

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

func TestChoose(t *testing.T) {
	// pool has so many pods that are ready and that start, of so many.
	pool := func(name string, ready, starting, pods, most int) candidate {
		return candidate{name: name, room: ledger.Room{Spare: ready, Coming: ready + starting, Pods: pods}, poolMax: most}
	}
	tests := map[string]struct {
		candidates []candidate
		least      int
		want       string
	}{
		"all now with the fewest left over":            {[]candidate{pool("a", 9, 0, 9, 9), pool("b", 5, 0, 5, 5), pool("c", 3, 0, 3, 99)}, 0, "b"},
		"all now goes before more later":               {[]candidate{pool("a", 3, 0, 3, 999), pool("b", 4, 0, 4, 4)}, 0, "b"},
		"of those that can grow the one with the most": {[]candidate{pool("a", 1, 0, 1, 99), pool("b", 3, 0, 3, 99), pool("c", 3, 0, 3, 3)}, 0, "b"},
		"pods that start need not be made":             {[]candidate{pool("a", 0, 0, 0, 99), pool("b", 0, 4, 4, 4)}, 0, "b"},
		"one with a long queue is later":               {[]candidate{pool("a", -20, 0, 5, 99), pool("b", 0, 0, 0, 10)}, 0, "b"},
		"where none can ever, the one that can most":   {[]candidate{pool("a", 1, 0, 1, 2), pool("b", 0, 0, 0, 3)}, 0, "b"},
		"two alike: the first by name":                 {[]candidate{pool("b", 4, 0, 4, 4), pool("a", 4, 0, 4, 4)}, 0, "a"},
		"one that does not fit is never chosen":        {[]candidate{{name: "a", lacks: "image x", room: ledger.Room{Spare: 4}}, pool("b", 0, 0, 0, 1)}, 0, "b"},
		"a pool whose pods fail makes no more":         {[]candidate{{name: "a", poolMax: 99, room: ledger.Room{Pods: 1, Failing: 1}}, pool("b", 0, 0, 0, 4)}, 0, "b"},
		"a pool that cannot make pods makes none":      {[]candidate{{name: "a", poolMax: 99, stuck: true}, pool("b", 0, 0, 0, 4)}, 0, "b"},
		"what a failing pool has ready is as good":     {[]candidate{{name: "a", poolMax: 9, room: ledger.Room{Spare: 4, Coming: 4, Pods: 5, Failing: 1}}, pool("b", 3, 0, 3, 9)}, 0, "a"},
		"a gang goes where so many at once can be":     {[]candidate{pool("a", 2, 0, 2, 2), pool("b", 0, 0, 3, 3)}, 3, "b"},
		"a gang that is too large, to the largest":     {[]candidate{pool("a", 1, 0, 1, 1), pool("b", 0, 0, 2, 2)}, 3, "b"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, why := choose(test.candidates, 4, test.least)
			require.Nil(t, why)
			require.Equal(t, test.want, got.name)
		})
	}
	_, why := choose([]candidate{{name: "b", lacks: "image x"}, {name: "a", lacks: "label gpu=yes"}}, 4, 0)
	require.Equal(t, v1alpha1.ReasonPoolNotFound, why.reason)
	require.Contains(t, why.message, "(a: label gpu=yes; b: image x)")
	_, why = choose(nil, 4, 0)
	require.Contains(t, why.message, "the namespace has no Pool")
}

func TestWhatAPoolLacks(t *testing.T) {
	spec := func(change func(*v1alpha1.PodTemplate)) *v1alpha1.PodTemplate {
		template := &v1alpha1.PodTemplate{}
		template.Spec.Containers = []corev1.Container{
			{Name: v1alpha1.ExecutorContainerName, Image: "executor"},
			{Name: "main", Image: "python:3", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
			}},
		}
		template.Spec.NodeSelector = map[string]string{"disk": "ssd"}
		template.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
		template.Spec.RuntimeClassName = ptr.To("gvisor")
		change(template)
		return template
	}
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"team": "a"}}, Spec: v1alpha1.PoolSpec{Template: spec(func(*v1alpha1.PodTemplate) {})}}
	plain := pool.DeepCopy()
	plain.Spec.Template = spec(func(s *v1alpha1.PodTemplate) { s.Spec.Containers = s.Spec.Containers[1:] })
	need := func(change func(*corev1.PodSpec)) func(*v1alpha1.BatchSandboxSpec) {
		return func(s *v1alpha1.BatchSandboxSpec) {
			s.Template = &v1alpha1.PodTemplate{}
			s.Template.Spec.Containers = []corev1.Container{{Name: "any", Image: "python:3"}}
			change(&s.Template.Spec)
		}
	}
	asks := func(list corev1.ResourceList) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) { s.Containers[0].Resources.Requests = list }
	}
	tests := map[string]struct {
		ask  func(*v1alpha1.BatchSandboxSpec)
		pool *v1alpha1.Pool
		want string
	}{
		"the same image":            {need(func(*corev1.PodSpec) {}), pool, ""},
		"another image":             {need(func(s *corev1.PodSpec) { s.Containers[0].Image = "node:22" }), pool, "image node:22"},
		"as much CPU":               {need(asks(corev1.ResourceList{"cpu": resource.MustParse("0.5")})), pool, ""},
		"more CPU":                  {need(asks(corev1.ResourceList{"cpu": resource.MustParse("1")})), pool, "1 of cpu"},
		"what the limit requests":   {need(asks(corev1.ResourceList{"memory": resource.MustParse("1Gi")})), pool, ""},
		"a GPU":                     {need(asks(corev1.ResourceList{"nvidia.com/gpu": resource.MustParse("1")})), pool, "1 of nvidia.com/gpu"},
		"its node selector":         {need(func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"disk": "ssd"} }), pool, ""},
		"another node selector":     {need(func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"zone": ""} }), pool, "nodeSelector zone="},
		"its toleration":            {need(func(s *corev1.PodSpec) { s.Tolerations = pool.Spec.Template.Spec.Tolerations }), pool, ""},
		"another toleration":        {need(func(s *corev1.PodSpec) { s.Tolerations = []corev1.Toleration{{Key: "spot"}} }), pool, "a toleration of spot"},
		"its runtime":               {need(func(s *corev1.PodSpec) { s.RuntimeClassName = ptr.To("gvisor") }), pool, ""},
		"another runtime":           {need(func(s *corev1.PodSpec) { s.RuntimeClassName = ptr.To("kata") }), pool, "runtimeClassName kata"},
		"its label":                 {func(s *v1alpha1.BatchSandboxSpec) { s.PoolSelector = map[string]string{"team": "a"} }, pool, ""},
		"another label":             {func(s *v1alpha1.BatchSandboxSpec) { s.PoolSelector = map[string]string{"team": "b"} }, pool, "label team=b"},
		"a label with no value":     {func(s *v1alpha1.BatchSandboxSpec) { s.PoolSelector = map[string]string{"gpu": ""} }, pool, "label gpu="},
		"tasks, and an executor":    {func(s *v1alpha1.BatchSandboxSpec) { s.TaskTemplate = &v1alpha1.TaskTemplate{} }, pool, ""},
		"tasks, and no executor":    {func(s *v1alpha1.BatchSandboxSpec) { s.TaskTemplate = &v1alpha1.TaskTemplate{} }, plain, "a task executor"},
		"a pool that is going":      {func(*v1alpha1.BatchSandboxSpec) {}, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{}}}, "it is being deleted"},
		"a pool without a template": {func(*v1alpha1.BatchSandboxSpec) {}, &v1alpha1.Pool{}, "a template that can be read"},
		"a template with no container": {func(s *v1alpha1.BatchSandboxSpec) {
			s.Template = &v1alpha1.PodTemplate{}
		}, pool, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bs := batch(1)
			test.ask(&bs.Spec)
			require.Equal(t, test.want, lacks(bs, test.pool, &podtemplate.Executor{}))
		})
	}
}

func choosing(bs *v1alpha1.BatchSandbox) {
	bs.Spec.PoolRef, bs.Spec.PoolSelector = v1alpha1.AnyPool, map[string]string{"team": "a"}
}

// label gives the pool of the world the label that choosing asks for.
func (w *world) label() {
	w.t.Helper()
	pool := &v1alpha1.Pool{}
	require.NoError(w.t, w.api.Get(w.t.Context(), poolKey, pool))
	pool.Labels = map[string]string{"team": "a"}
	pool.Spec.Template = &v1alpha1.PodTemplate{}
	require.NoError(w.t, w.api.Update(w.t.Context(), pool))
}

func TestTheChosenPoolIsWrittenWithTheClaim(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1, choosing))
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonPoolNotFound, w.ready("batch").Reason)
	require.Contains(t, w.ready("batch").Message, "pool: label team=a")
	require.Equal(t, []string{"status batch"}, w.writes)

	w.label()
	w.writes = nil
	w.clock.Step(time.Minute)
	w.mustReconcile("batch")
	require.Equal(t, []string{"patch batch", "status batch"}, w.writes)
	require.Equal(t, "pool", w.get("batch").Spec.PoolRef)
	require.Equal(t, []string{"a"}, w.holds("batch"))
	require.Contains(t, w.get("batch").Annotations[v1alpha1.AnnotationAllocStatus], `"poolRef":"pool"`)
	require.NoError(t, w.api.Delete(t.Context(), w.get("batch")))
	w.mustReconcile("batch")
	require.Empty(t, w.Ledger.Lookup(types.NamespacedName{Namespace: "ns", Name: "batch"}), "nothing is left of it")
}

func TestAnUnclearClaimOfAChosenPoolIsSettledThere(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("batch", 1, choosing))
	w.label()
	w.spoil = func(_ string, do func() error) error {
		_ = do()
		return errTimeout
	}
	_, err := w.reconcile("batch")
	require.Error(t, err)
	w.spoil = nil
	w.mustReconcile("batch")
	require.Equal(t, "pool", w.get("batch").Spec.PoolRef)
	require.Equal(t, []string{"a"}, w.holds("batch"))
	require.Zero(t, w.idle())
}

func TestADemandMovesToThePoolThatHasRoom(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1, choosing))
	w.label()
	other := w.addPool("other", 0)
	require.NotZero(t, w.mustReconcile("batch").RequeueAfter, "what came in between woke nobody")
	w.clock.Step(firstWait)
	require.Zero(t, w.mustReconcile("batch").RequeueAfter, "it is woken")
	demand := func(key ledger.Key) int { return w.Ledger.Snapshot(key).Demand }
	require.Equal(t, 1, demand(poolKey)+demand(other))
	require.Equal(t, v1alpha1.AnyPool, w.get("batch").Spec.PoolRef)
	require.Equal(t, 1, demand(other), "the first by name")

	w.woken = nil
	w.observe("x")
	require.Equal(t, []types.NamespacedName{{Namespace: "ns", Name: "batch"}}, w.woken)
	w.mustReconcile("batch")
	require.Equal(t, "pool", w.get("batch").Spec.PoolRef)
	require.Equal(t, []string{"x"}, w.holds("batch"))
	require.Zero(t, demand(other))
	w.woken = nil
	w.Ledger.Observe(other, facts("y"))
	require.Empty(t, w.woken, "it has its pool")
}

// addPool makes a Pool that has what choosing asks for, with idle pods of those names.
func (w *world) addPool(name string, most int32, pods ...string) ledger.Key {
	w.t.Helper()
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "pool-uid", Labels: map[string]string{"team": "a"}}}
	pool.Spec.Template, pool.Spec.CapacitySpec.PoolMax = &v1alpha1.PodTemplate{}, most
	require.NoError(w.t, w.api.Create(w.t.Context(), pool))
	key := ledger.Key{Namespace: "ns", Name: name}
	w.Ledger.SetPool(key, "pool-uid", "r1", true)
	for _, pod := range pods {
		w.Ledger.Observe(key, facts(pod))
	}
	return key
}

// namePool is what a user does who gives up waiting for the operator's choice.
func (w *world) namePool(batch, pool string) {
	w.t.Helper()
	bs := w.get(batch)
	bs.Spec.PoolRef = pool
	require.NoError(w.t, w.api.Update(w.t.Context(), bs))
}

func TestADemandDoesNotStayWhereAUserHasNamedAnotherPool(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1, choosing))
	w.label()
	w.mustReconcile("batch")
	require.Equal(t, 1, w.Ledger.Snapshot(poolKey).Demand)

	other := w.addPool("other", 5)
	w.namePool("batch", "other")
	w.mustReconcile("batch")
	require.Zero(t, w.Ledger.Snapshot(poolKey).Demand)
	require.Equal(t, 1, w.Ledger.Snapshot(other).Demand)
}

func TestAnUnclearClaimIsSettledWhereItWasMadeThoughAUserHasNamedAnotherPool(t *testing.T) {
	for what, finish := range map[string]func(*world){
		"and goes on": func(w *world) { w.mustReconcile("batch") },
		"and ends it": func(w *world) {
			require.NoError(w.t, w.api.Delete(w.t.Context(), w.get("batch")))
			w.mustReconcile("batch")
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newPooledWorld(t, []string{"a"}, named("batch", 1, choosing))
			w.label()
			w.spoil = func(string, func() error) error { return errTimeout }
			_, err := w.reconcile("batch")
			require.Error(t, err)
			w.spoil = nil
			w.addPool("other", 5)
			w.namePool("batch", "other")
			_, _ = w.reconcile("batch") // finds that its own write cannot be done any more
			finish(w)
			require.Empty(t, w.Ledger.Allocation(poolKey, "uid-batch").Held)
			require.Zero(t, w.Ledger.Snapshot(poolKey).Holders)
			require.Zero(t, w.Ledger.Snapshot(poolKey).Demand)
		})
	}
}

func TestNoPoolIsChosenForNoSandboxes(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1, choosing))
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonPoolNotFound, w.ready("batch").Reason)
	w.scale("batch", 0)
	w.clock.Step(time.Minute)
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonAllReady, w.ready("batch").Reason)
	w.label()
	w.scale("batch", 2)
	w.mustReconcile("batch")
	require.Equal(t, 2, w.Ledger.Snapshot(poolKey).Demand)
	w.scale("batch", 0)
	w.mustReconcile("batch")
	require.Zero(t, w.Ledger.Snapshot(poolKey).Demand)
	require.Equal(t, v1alpha1.AnyPool, w.get("batch").Spec.PoolRef)
}

func TestTheNameOfTheChosenPoolCountsInTheAllocation(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 5000, choosing))
	long := strings.Repeat("p", 63)
	w.addPool(long, 5000, "a")
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonAllocationTooLarge, w.ready("batch").Reason)
	require.Contains(t, w.ready("batch").Message, "of pool "+long)
	require.Empty(t, w.holds("batch"))
}

func TestAChosenPoolThatGoesIsLeft(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 2, choosing))
	w.label()
	w.mustReconcile("batch")
	require.Equal(t, 2, w.Ledger.Snapshot(poolKey).Demand)
	pool := &v1alpha1.Pool{}
	require.NoError(t, w.api.Get(t.Context(), poolKey, pool))
	require.NoError(t, w.api.Delete(t.Context(), pool))
	w.Ledger.SetPool(poolKey, "", "", false)
	w.observe("a") // it goes with its pool
	w.mustReconcile("batch")
	require.Equal(t, v1alpha1.ReasonPoolNotFound, w.ready("batch").Reason)
	require.Zero(t, w.Ledger.Snapshot(poolKey).Demand)
	require.Empty(t, w.holds("batch"))

	w.addPool("other", 5, "x", "y")
	w.mustReconcile("batch")
	require.Equal(t, "other", w.get("batch").Spec.PoolRef)
}

func TestAGangOfNoPoolThatExpiresWaitsNowhere(t *testing.T) {
	w := newPooledWorld(t, []string{"a"}, named("gang", 2, choosing, gang(2), func(bs *v1alpha1.BatchSandbox) {
		bs.Spec.TTLSeconds = ptr.To(int64(60))
	}), named("small", 1, younger))
	w.label()
	w.setPoolMax(5)
	w.mustReconcile("gang")
	w.mustReconcile("small")
	require.Empty(t, w.holds("small"), "the gang is older")
	w.clock.Step(time.Hour)
	w.mustReconcile("gang") // its time has ended
	w.woken = nil
	w.mustReconcile("gang") // it is gone
	require.Contains(t, w.woken, types.NamespacedName{Namespace: "ns", Name: "small"})
	w.mustReconcile("small")
	require.Equal(t, []string{"a"}, w.holds("small"))
}

func TestAPoolThatCannotMakePodsIsLeftForOneThatCan(t *testing.T) {
	w := newPooledWorld(t, nil, named("batch", 1, choosing))
	w.label()
	w.setPoolMax(5)
	w.addPool("spare", 5)
	w.mustReconcile("batch")
	require.Equal(t, 1, w.Ledger.Snapshot(poolKey).Demand, "the first by name")
	before, after := &v1alpha1.Pool{}, &v1alpha1.Pool{}
	require.NoError(t, w.api.Get(t.Context(), poolKey, before))
	before.DeepCopyInto(after)
	after.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonTemplateInvalid}}
	require.NoError(t, w.api.Update(t.Context(), after))
	require.True(t, fitMatters().Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after}), "that wakes it")
	require.False(t, fitMatters().Update(event.UpdateEvent{ObjectOld: after, ObjectNew: after}))
	w.mustReconcile("batch")
	require.Zero(t, w.Ledger.Snapshot(poolKey).Demand)
	require.Equal(t, 1, w.Ledger.Snapshot(ledger.Key{Namespace: "ns", Name: "spare"}).Demand)
}
