package pool

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// bench is a pass over a pool with a real ledger and an API server that answers creates
// of pods as it is told.
type bench struct {
	*pass
	clock    *clocktesting.FakeClock
	answer   error
	creates  int
	statuses int
}

func newBench(t testing.TB, spec *v1alpha1.PoolSpec, ready ...string) *bench {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(scheme))
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, UID: poolUID},
		Spec:       *spec,
	}
	pool.Spec.Template = &v1alpha1.PodTemplate{}
	b := &bench{clock: clocktesting.NewFakeClock(now)}
	api := interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).WithObjects(pool).WithStatusSubresource(pool).Build(), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			b.creates++
			if b.answer != nil {
				return b.answer
			}
			return c.Create(ctx, obj, opts...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, name string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
			b.statuses++
			return c.SubResource(name).Patch(ctx, obj, patch, opts...)
		},
	})
	require.NoError(t, api.Get(t.Context(), key, pool))
	book := ledger.New(ledger.Hooks{})
	book.SetPool(key, poolUID, currentRev, true)
	for _, name := range ready {
		book.Observe(key, ledger.Pod{Name: name, UID: types.UID("uid-" + name), PoolUID: poolUID, Revision: currentRev, Ready: true})
	}
	b.pass = &pass{
		Reconciler: &Reconciler{Config: Config{Client: api, APIReader: api, Refill: api, Ledger: book, Clock: b.clock, Recorder: events.NewFakeRecorder(10)}},
		key:        key, pool: pool, now: now,
		state: &state{uid: poolUID, revision: currentRev, memory: Memory{Created: map[string]time.Time{}, Deleted: map[string]time.Time{}}},
	}
	return b
}

func TestAPodThatAClaimWasQuickerToTakeNeedsNoSuccessor(t *testing.T) {
	b := newBench(t, capacity(2, 2, 0, 4), "a", "b")
	plan := &Plan{Retire: []string{"a", "b"}, Create: 2}
	owner := ledger.Owner{NamespacedName: types.NamespacedName{Namespace: key.Namespace, Name: "holder"}, UID: "holder"}
	require.Len(t, b.Ledger.Claim(key, owner, []int32{0}), 1)
	require.NoError(t, b.apply(t.Context(), plan))
	assert.Equal(t, 1, b.creates, "one pod was retired, so one takes its place")
}

func TestWhatBecomesOfTheNameOfACreate(t *testing.T) {
	cases := []struct {
		name   string
		answer error
		want   []ledger.State // of what the ledger knows
	}{
		{"a pod that was made is on its way", nil, []ledger.State{ledger.Creating}},
		{"a refused one is given up: it would count as a pod", answer(http.StatusForbidden, "exceeded quota"), nil},
		{"an invalid one as well", answer(http.StatusUnprocessableEntity, "invalid"), nil},
		{"an unclear one may exist", errors.New("timeout"), []ledger.State{ledger.Creating}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, capacity(2, 2, 0, 4))
			b.answer = c.answer
			b.createPods(t.Context(), nil, 1)
			var states []ledger.State
			for _, pod := range b.Ledger.Snapshot(key).Pods {
				states = append(states, pod.State)
				assert.Equal(t, c.answer == nil, pod.Confirmed)
			}
			assert.Equal(t, c.want, states)
			assert.Equal(t, 1, b.creates)
		})
	}
}

func TestAStatusIsWrittenAtOnceAndThenOnceASecond(t *testing.T) {
	b := newBench(t, capacity(2, 2, 0, 4))
	write := func(count int) {
		t.Helper()
		b.wait, b.pool = 0, b.state.newest.Of(b.pool) // as each pass begins
		snapshot := snapshotOf(0, pods(count))
		require.NoError(t, b.writeStatus(t.Context(), &snapshot, 0))
	}
	for n := range statusBurst {
		write(10 + n)
		assert.Equal(t, n+1, b.statuses, "the first changes")
		assert.Zero(t, b.wait)
	}
	b.clock.Step(statusInterval - time.Millisecond)
	write(2)
	assert.Equal(t, statusBurst, b.statuses, "too early")
	assert.Equal(t, time.Millisecond, b.wait, "it is due later")
	b.clock.Step(time.Millisecond)
	write(2)
	assert.Equal(t, statusBurst+1, b.statuses)
	b.clock.Step(time.Hour)
	write(2)
	assert.Equal(t, statusBurst+1, b.statuses, "nothing has changed")
	live := &v1alpha1.Pool{}
	require.NoError(t, b.Client.Get(t.Context(), key, live))
	assert.Equal(t, int32(2), live.Status.Available)
}

func TestAStatusIsNotWrittenOverANewerObject(t *testing.T) {
	b := newBench(t, capacity(2, 2, 0, 4))
	newer := b.pool.DeepCopy()
	newer.Labels = map[string]string{"somebody": "else"}
	require.NoError(t, b.Client.Update(t.Context(), newer))
	snapshot := snapshotOf(0, pods(1))
	err := b.writeStatus(t.Context(), &snapshot, 0)
	assert.True(t, apierrors.IsConflict(err), err)
	require.NoError(t, b.Client.Get(t.Context(), key, newer))
	assert.Empty(t, newer.Status)
}
