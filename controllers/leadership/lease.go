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

	mu sync.Mutex // guards the fields below
	// led: this process has held the lease.
	led bool
	// givingBack: the lease is being given back, or was.
	givingBack bool
	// renewed is when the last renewal was sent.
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
	if err := l.Interface.Create(ctx, record); err != nil {
		return err
	}
	l.note(sent, record)
	return nil
}

// Update implements resourcelock.Interface. It renews the lease, takes it or gives it
// back.
func (l *Lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity != l.Identity() {
		return l.giveBack(ctx, record)
	}
	if err := l.checkTerm(record); err != nil {
		return err
	}
	sent := l.clock.Now()
	if err := l.Interface.Update(ctx, record); err != nil {
		return err
	}
	l.note(sent, record)
	return nil
}

// giveBack releases the lease. From before it is sent the lease counts as lost: another
// candidate may take it before the answer is here. A lease that is too old is not given
// back, because it may be another's by now.
func (l *Lease) giveBack(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	l.mu.Lock()
	err := l.checkAge()
	l.givingBack = true
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("not giving it back: %w", err)
	}
	return l.Interface.Update(ctx, record)
}

// checkTerm refuses a second term. A process that was frozen while another one led and
// gave the lease back would take it anew and never learn of the other: its election code
// believes to have led all the time, and its ledger is of its first term.
func (l *Lease) checkTerm(record resourcelock.LeaderElectionRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.led && record.LeaderTransitions != l.transitions {
		return fmt.Errorf("lease %s was another's since this process led: it must start anew", l.Describe())
	}
	return nil
}

// note counts the lease from the moment the renewal was sent, which is at or before
// the moment from which another candidate counts it.
func (l *Lease) note(sent time.Time, record resourcelock.LeaderElectionRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.led, l.renewed, l.transitions = true, sent, record.LeaderTransitions
}

// Fresh returns an error when the lease was not renewed within the renew deadline, or is
// being given back, so that nothing may be written. A nil Lease, which stands for an operator
// without leader election, is always fresh.
func (l *Lease) Fresh() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.givingBack {
		return fmt.Errorf("lease %s is not held by this process any more", l.Describe())
	}
	return l.checkAge()
}

// checkAge is called with the lock held.
func (l *Lease) checkAge() error {
	if !l.led {
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
