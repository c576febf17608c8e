// Package leadership makes the leader the one writer: Lease knows whether this process
// leads, and Gate is where the reconcilers wait until a new leader has taken over.
package leadership

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"
)

// Lease is a leader election lock that remembers when it was last renewed.
type Lease struct {
	resourcelock.Interface
	clock    clock.WithDelayedExecution
	deadline time.Duration
	standby  standby

	mu sync.Mutex // guards the fields below
	// led: this process has held the lease.
	led bool
	// givingBack: the lease is being given back, or was.
	givingBack bool
	// renewed is when the last renewal was sent.
	renewed     time.Time
	transitions int
	// acquired is when this process took the lease.
	acquired time.Time
}

// NewLease wraps a lock, of the Lease of that name, which the client watches. deadline is the
// renew deadline of the leader election: a leader that has not renewed for so long must take it
// that another one may start.
func NewLease(lock resourcelock.Interface, client kubernetes.Interface, name types.NamespacedName, deadline time.Duration, c clock.WithDelayedExecution) *Lease {
	return &Lease{
		Interface: lock, clock: c, deadline: deadline,
		standby: standby{client: client, namespace: name.Namespace, name: name.Name, clock: c},
	}
}

// Get implements resourcelock.Interface. In a process that has never led it returns when the lease
// may be taken: when nobody holds it, or when its holder has been silent for as long as it stands. Of
// such a one it says that nobody holds it, because the election code would wait as long again.
func (l *Lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	var silent *resourcelock.LeaderElectionRecord
	for {
		record, raw, err := l.Interface.Get(ctx)
		if err != nil || record.HolderIdentity == "" || l.hasLed() {
			return record, raw, err
		}
		if equality.Semantic.DeepEqual(record, silent) {
			record.HolderIdentity = ""
			return record, raw, nil
		}
		if silent, err = l.standby.untilSilent(ctx, record); err != nil {
			return nil, nil, err
		}
	}
}

func (l *Lease) hasLed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.led
}

// Create implements resourcelock.Interface.
func (l *Lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.send(ctx, record, l.Interface.Create)
}

// send sends a renewal, or takes the lease. The election code gives the time at which it began to
// look at the lease; while Get has waited, that time has passed.
func (l *Lease) send(ctx context.Context, record resourcelock.LeaderElectionRecord, write func(context.Context, resourcelock.LeaderElectionRecord) error) error {
	sent := l.clock.Now()
	record.RenewTime, record.AcquireTime = metav1.NewTime(sent), metav1.NewTime(l.acquiredAt(sent))
	if err := write(ctx, record); err != nil {
		return err
	}
	l.note(sent, record)
	return nil
}

// acquiredAt is when this process took the lease, which it does now unless it has led.
func (l *Lease) acquiredAt(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.led {
		l.acquired = now
	}
	return l.acquired
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
	return l.send(ctx, record, l.Interface.Update)
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
