package leadership

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
)

const (
	stands   = 15 * time.Second
	patience = 30 * time.Second
)

// waiting is a candidate that waits for the lease of "other".
type waiting struct {
	*Lease
	clock  *clocktesting.FakeClock
	other  resourcelock.Interface
	answer chan *resourcelock.LeaderElectionRecord
}

func lockOf(api *fake.Clientset, identity string) *resourcelock.LeaseLock {
	return &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: "ns", Name: "lease"}, Client: api.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
	}
}

func leaseOf(api *fake.Clientset, identity string, c clock.WithDelayedExecution) *Lease {
	return NewLease(lockOf(api, identity), api, types.NamespacedName{Namespace: "ns", Name: "lease"}, deadline, c)
}

// renew has the holder write the lease.
func (w *waiting) renew(t *testing.T, holder string) {
	t.Helper()
	record := resourcelock.LeaderElectionRecord{HolderIdentity: holder, LeaseDurationSeconds: int(stands / time.Second), RenewTime: metav1.NewTime(w.clock.Now())}
	_, _, err := w.other.Get(t.Context())
	require.NoError(t, err)
	require.NoError(t, w.other.Update(t.Context(), record))
}

// waits returns when the candidate waits for the lease to fall silent.
func (w *waiting) waits(t *testing.T) {
	t.Helper()
	require.Eventually(t, w.clock.HasWaiters, patience, time.Millisecond)
	require.Empty(t, w.answer, "it has taken a lease that is held")
}

func (w *waiting) holder(t *testing.T) string {
	t.Helper()
	select {
	case record := <-w.answer:
		require.NotNil(t, record, "it has given up")
		return record.HolderIdentity
	case <-time.After(patience):
		require.Fail(t, "it still waits")
		return ""
	}
}

func newWaiting(ctx context.Context, t *testing.T) *waiting {
	t.Helper()
	api := fake.NewClientset()
	w := &waiting{clock: clocktesting.NewFakeClock(now), other: lockOf(api, "other"), answer: make(chan *resourcelock.LeaderElectionRecord, 1)}
	require.NoError(t, w.other.Create(t.Context(), resourcelock.LeaderElectionRecord{
		HolderIdentity: "other", LeaseDurationSeconds: int(stands / time.Second), RenewTime: metav1.NewTime(now),
	}))
	w.Lease = leaseOf(api, "me", w.clock)
	go func() {
		record, _, _ := w.Get(ctx)
		w.answer <- record
	}()
	w.waits(t)
	return w
}

func TestACandidateTakesALeaseThatIsGivenBackAtOnce(t *testing.T) {
	w := newWaiting(t.Context(), t)
	w.renew(t, "")
	require.Empty(t, w.holder(t))
}

func TestACandidateTakesALeaseThatIsNotRenewed(t *testing.T) {
	w := newWaiting(t.Context(), t)
	w.clock.Step(stands)
	require.Empty(t, w.holder(t))
}

func TestACandidateWaitsWhileTheLeaseIsRenewed(t *testing.T) {
	w := newWaiting(t.Context(), t)
	for range 3 {
		w.clock.Step(stands - time.Second)
		w.renew(t, "other")
		w.clock.Step(time.Second) // the watch may show the renewal before this or after
		w.waits(t)
	}
	w.renew(t, "third")
	w.waits(t)
	require.Eventually(t, func() bool {
		w.clock.Step(stands) // again where the watch has shown the third only after the last step
		return len(w.answer) > 0
	}, patience, 10*time.Millisecond)
	require.Empty(t, w.holder(t))
}

func TestACandidateThatIsToEndWaitsNoLonger(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	w := newWaiting(ctx, t)
	stop()
	require.Nil(t, <-w.answer)
}

func TestALeaderReadsItsLeaseAtOnce(t *testing.T) {
	api := fake.NewClientset()
	mine := leaseOf(api, "me", clock.RealClock{})
	require.NoError(t, mine.Create(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: "me"}))
	record, _, err := mine.Get(t.Context())
	require.NoError(t, err)
	require.Equal(t, "me", record.HolderIdentity)
}

// The election code of client-go, which would look at the lease once in an hour.
func TestTakingOverWaitsForNoRetryPeriod(t *testing.T) {
	api := fake.NewClientset()
	lead := func(ctx context.Context, identity string) (began, ended chan struct{}) {
		began, ended = make(chan struct{}), make(chan struct{})
		config := leaderelection.LeaderElectionConfig{
			Lock: leaseOf(api, identity, clock.RealClock{}), ReleaseOnCancel: true,
			LeaseDuration: 3 * time.Hour, RenewDeadline: 2 * time.Hour, RetryPeriod: time.Hour,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) { close(began) }, OnStoppedLeading: func() {}},
		}
		go func() {
			leaderelection.RunOrDie(ctx, config)
			close(ended)
		}()
		return began, ended
	}
	ctx, stop := context.WithCancel(t.Context())
	first, firstEnded := lead(ctx, "first")
	<-first
	second, _ := lead(t.Context(), "second")
	require.Never(t, func() bool { return closed(second) }, 100*time.Millisecond, 10*time.Millisecond)
	givenBack := time.Now()
	stop()
	<-firstEnded
	require.Eventually(t, func() bool { return closed(second) }, patience, time.Millisecond)
	lease, err := api.CoordinationV1().Leases("ns").Get(t.Context(), "lease", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "second", *lease.Spec.HolderIdentity)
	require.True(t, lease.Spec.AcquireTime.After(givenBack), "not when it began to wait")
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
