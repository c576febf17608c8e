// Package leadership makes the leader the one writer: Lease knows whether this process
// leads, and Gate is where the reconcilers wait until a new leader has taken over.
package leadership

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"
)

// Lease is a leader election lock that remembers when it was last renewed.
type Lease struct {
	resourcelock.Interface
	clock    clock.PassiveClock
	deadline time.Duration

	mu          sync.Mutex // guards the fields below
	renewed     time.Time
	transitions int
}

// NewLease wraps a lock. deadline is the renew deadline of the leader election: a
// leader that has not renewed for so long must take it that another one may start.
func NewLease(lock resourcelock.Interface, deadline time.Duration, c clock.PassiveClock) *Lease {
	return &Lease{Interface: lock, clock: c, deadline: deadline}
}

// Create implements resourcelock.Interface.
func (l *Lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	sent := l.clock.Now()
	err := l.Interface.Create(ctx, record)
	l.note(sent, record, err)
	return err
}

// Update implements resourcelock.Interface.
func (l *Lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	sent := l.clock.Now()
	err := l.Interface.Update(ctx, record)
	l.note(sent, record, err)
	return err
}

// note counts the lease from the moment the renewal was sent, which is at or before
// the moment from which another candidate counts it.
func (l *Lease) note(sent time.Time, record resourcelock.LeaderElectionRecord, err error) {
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.transitions = record.LeaderTransitions
	if record.HolderIdentity == l.Identity() {
		l.renewed = sent
	} else {
		l.renewed = time.Time{}
	}
}

// Fresh returns an error when the lease was not renewed within the renew deadline,
// so that no allocation may be written. A nil Lease, which stands for an operator
// without leader election, is always fresh.
func (l *Lease) Fresh() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.renewed.IsZero() {
		return fmt.Errorf("lease %s is not held by this process", l.Describe())
	}
	if age := l.clock.Since(l.renewed); age >= l.deadline {
		return fmt.Errorf("lease %s was last renewed %s ago, more than the renew deadline of %s", l.Describe(), age, l.deadline)
	}
	return nil
}

// Term names this leader's term, "identity/transitions", as it is written to the
// annotation allocator.
func (l *Lease) Term() string {
	if l == nil {
		return "single/" + strconv.FormatInt(time.Now().UnixNano(), 36)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Identity() + "/" + strconv.Itoa(l.transitions)
}
