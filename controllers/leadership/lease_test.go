package leadership

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	clocktesting "k8s.io/utils/clock/testing"
)

const deadline = 10 * time.Second

var now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// lock is a lock of process "me". A renewal takes as long as it says and ends as it says.
type lock struct {
	resourcelock.Interface
	clock *clocktesting.FakeClock
	takes time.Duration
	err   error
	// under is called while a write is under way.
	under func()
	sent  []resourcelock.LeaderElectionRecord
}

func (l *lock) Identity() string { return "me" }
func (l *lock) Describe() string { return "ns/lease" }
func (l *lock) Create(_ context.Context, record resourcelock.LeaderElectionRecord) error {
	l.sent = append(l.sent, record)
	if l.under != nil {
		l.under()
	}
	l.clock.Step(l.takes)
	return l.err
}
func (l *lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.Create(ctx, record)
}

func TestFresh(t *testing.T) {
	mine := resourcelock.LeaderElectionRecord{HolderIdentity: "me", LeaderTransitions: 3}
	released := resourcelock.LeaderElectionRecord{LeaderTransitions: 3}
	tests := map[string]struct {
		do    func(t *testing.T, lease *Lease, lock *lock)
		stale string // why it must not write; empty: it may
	}{
		"a process that never led": {func(*testing.T, *Lease, *lock) {}, "not held by this process"},
		"it has just taken a lease that did not exist": {func(t *testing.T, lease *Lease, _ *lock) {
			require.NoError(t, lease.Create(t.Context(), mine))
		}, ""},
		"it has just renewed": {func(t *testing.T, lease *Lease, _ *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
		}, ""},
		"short of the deadline": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.clock.Step(deadline - time.Nanosecond)
		}, ""},
		"frozen until the deadline": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.clock.Step(deadline)
		}, "last renewed 10s ago"},
		"it counts from when the renewal was sent, not from when it was answered": {func(t *testing.T, lease *Lease, lock *lock) {
			lock.takes = deadline
			require.NoError(t, lease.Update(t.Context(), mine))
		}, "last renewed 10s ago"},
		"a renewal that failed does not count": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.clock.Step(deadline)
			lock.err = errors.New("no answer")
			require.Error(t, lease.Update(t.Context(), mine))
		}, "last renewed 10s ago"},
		"a renewal that failed takes nothing away": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.err = errors.New("no answer")
			require.Error(t, lease.Update(t.Context(), mine))
		}, ""},
		"a creation that failed does not count": {func(t *testing.T, lease *Lease, lock *lock) {
			lock.err = errors.New("exists")
			require.Error(t, lease.Create(t.Context(), mine))
		}, "not held by this process"},
		"it has given the lease back": {func(t *testing.T, lease *Lease, _ *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			require.NoError(t, lease.Update(t.Context(), released))
		}, "not held by this process"},
		"it has begun to give the lease back": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.under = func() { require.ErrorContains(t, lease.Fresh(), "not held by this process") }
			require.NoError(t, lease.Update(t.Context(), released))
		}, "not held by this process"},
		"it does not know whether the lease was given back": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.err = errors.New("no answer")
			require.Error(t, lease.Update(t.Context(), released))
		}, "not held by this process"},
		"it gives the lease back again after a conflict": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.err = errors.New("conflict")
			require.Error(t, lease.Update(t.Context(), released))
			lock.err = nil
			require.NoError(t, lease.Update(t.Context(), released))
		}, "not held by this process"},
		"an old lease is not given back: it may be another's": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.clock.Step(deadline)
			require.Error(t, lease.Update(t.Context(), released))
			require.Len(t, lock.sent, 1)
		}, "not held by this process"},
		"another one has led while it was frozen": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.clock.Step(2 * deadline)
			second := mine
			second.LeaderTransitions += 2
			require.ErrorContains(t, lease.Update(t.Context(), second), "must start anew")
			require.Len(t, lock.sent, 1)
		}, "last renewed 20s ago"},
		"it goes on when it renews after a freeze": {func(t *testing.T, lease *Lease, lock *lock) {
			require.NoError(t, lease.Update(t.Context(), mine))
			lock.clock.Step(deadline)
			require.NoError(t, lease.Update(t.Context(), mine))
		}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			lock := &lock{clock: clocktesting.NewFakeClock(now)}
			lease := NewLease(lock, nil, types.NamespacedName{}, deadline, lock.clock)
			test.do(t, lease, lock)
			err := lease.Fresh()
			if test.stale == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.stale)
			require.ErrorContains(t, err, "ns/lease")
		})
	}
}

func TestTerm(t *testing.T) {
	lock := &lock{clock: clocktesting.NewFakeClock(now)}
	lease := NewLease(lock, nil, types.NamespacedName{}, deadline, lock.clock)
	require.NoError(t, lease.Update(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: "me", LeaderTransitions: 3}))
	require.Equal(t, "me/3", lease.Term())
}

func TestWithoutLeaderElection(t *testing.T) {
	var lease *Lease
	require.NoError(t, lease.Fresh())
	require.NotEmpty(t, lease.Term())
}

func TestGate(t *testing.T) {
	gate := NewGate()
	ended, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the process ends")
	cancel(why)
	require.ErrorIs(t, gate.Wait(ended), why, "closed")
	passed := make(chan error)
	go func() { passed <- gate.Wait(t.Context()) }()
	gate.Open()
	require.NoError(t, <-passed)
	require.NoError(t, gate.Wait(t.Context()), "it stays open")
}
