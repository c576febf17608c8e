package pool

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// Input is all that a decision about a pool depends on.
type Input struct {
	// Pods and Demand are from one snapshot of the ledger.
	Pods   []ledger.PodState
	Demand int

	Spec     *v1alpha1.PoolSpec
	UID      types.UID
	Revision string
	Deleting bool

	Now    time.Time
	Memory Memory
}

// Memory is what earlier passes over the pool have left behind. It may be lost: a
// new leader starts with an empty one.
type Memory struct {
	// Created: when the API server took a pod that the cache has not shown yet, or
	// when it was last verified to exist, by name.
	Created map[string]time.Time
	// Deleted: when the API server last took the deletion of a retiring pod, by name.
	Deleted map[string]time.Time

	// CreateFailures counts the passes in a row whose creates failed. Nothing is
	// created before RetryAt.
	CreateFailures int
	RetryAt        time.Time
	// Accepted is the last revision whose pod the API server is known to take.
	Accepted string

	// Replaced counts the rounds in a row in which failing pods were replaced and no
	// pod stayed ready since; ReplacedAt is when the last one was, to the second.
	Replaced   int
	ReplacedAt time.Time
}

// Plan is what to do now. Names in Retire are idle pods; a claim may be quicker, and
// then one pod less is to be created.
type Plan struct {
	// Urgent: somebody waits for pods of the pool.
	Urgent bool
	// Target is how many pods the pool is to have beside those that are overdue.
	Target int
	// Overdue counts the idle pods that have taken too long to become ready and stay.
	Overdue int
	// Create is how many new pods to create.
	Create int
	// Repeat are names whose creation may or may not have been done.
	Repeat []string
	// Verify are names to look up at the API server: they were created long ago and
	// never seen, or may have been created and are not wanted any more.
	Verify []string
	// Retire are idle pods to take out of use and delete.
	Retire []string
	// Delete are retiring pods to delete.
	Delete []ledger.Pod
	// Probe: before pods are replaced by the new revision, find out by a dry run
	// whether the API server takes it.
	Probe bool
	// Replaced and ReplacedAt are the new values for Memory.
	Replaced   int
	ReplacedAt time.Time
	// Wait is after how long to decide anew although nothing happens; 0 is never.
	Wait time.Duration
}

const (
	// unseenPatience is how long the cache may take to show a created pod, or that a
	// deleted one is terminating, before the API server is asked.
	unseenPatience = 30 * time.Second
	// overdueAfter is the least age at which an idle pod that is not ready is overdue;
	// a pool whose pods usually take longer gives them overdueFactor times as long.
	overdueAfter  = time.Minute
	overdueFactor = 5
	// replaceDelay is the least age at which a failing pod is replaced; it doubles
	// from round to round up to maxReplaceDelay.
	replaceDelay    = time.Minute
	maxReplaceDelay = 10 * time.Minute
	// replacePercent of the idle pods may be replaced in one round because they fail.
	replacePercent = 25
)

// Decide says what to do with a pool now. It changes nothing of its input.
func Decide(in *Input) Plan {
	d := newDecision(in)
	d.plan.Urgent = in.Demand > 0
	d.deleteRetiring()
	if in.Deleting {
		d.retireAll()
		d.resolveCreating(true)
		return d.plan
	}
	d.plan.Target = size(&in.Spec.CapacitySpec, d.held, d.idleCount(), in.Demand)
	d.makeRoom()
	d.replaceFailing()
	surplus := d.total() - d.plan.Target
	d.resolveCreating(surplus > 0)
	switch {
	case surplus > 0:
		d.shrink(surplus)
	default:
		d.roll()
		d.grow()
	}
	d.plan.Overdue = d.overdueAlive()
	return d.plan
}

// decision is a plan in the making.
type decision struct {
	in   *Input
	plan Plan
	// held counts the live pods that are held, being recycled or set aside.
	held int
	// creating pods the cache has not shown yet.
	creating []*ledger.PodState
	// idle pods that stay, by what is decided so far. Those that have finished are
	// among them until they are overdue or replaced, so that pods that end at once do
	// not make a loop of creates and deletes.
	idle []*ledger.PodState
	// overdue are the idle pods that stay and have taken too long to become ready. They
	// are no part of the pool's size, so that others are made in their place; only
	// poolMax counts them.
	overdue []*ledger.PodState
	// exchanged counts the pods retired so far that were not ready.
	exchanged int
	// slow is how old an idle pod that is not ready may become; 0 until it was worked out.
	slow time.Duration
}

func newDecision(in *Input) *decision {
	d := &decision{in: in, idle: make([]*ledger.PodState, 0, len(in.Pods))}
	d.plan.Replaced, d.plan.ReplacedAt = in.Memory.Replaced, in.Memory.ReplacedAt
	if d.recovered() {
		d.plan.Replaced, d.plan.ReplacedAt = 0, time.Time{}
	}
	for i := range in.Pods {
		pod := &in.Pods[i]
		switch pod.State {
		case ledger.Retiring:
		case ledger.Creating:
			d.creating = append(d.creating, pod)
		case ledger.Idle:
			d.addIdle(pod)
		default:
			if pod.Live() {
				d.held++
			}
		}
	}
	return d
}

func (d *decision) addIdle(pod *ledger.PodState) {
	switch {
	case pod.Terminating || pod.Gone || pod.Deleted:
	case pod.Evict || pod.PoolUID != d.in.UID:
		d.plan.Retire = append(d.plan.Retire, pod.Name)
	case !d.in.Deleting && d.isOverdue(pod):
		d.overdue = append(d.overdue, pod)
	default:
		d.idle = append(d.idle, pod)
	}
}

// idleCount counts the pods that nobody holds, also those under way, without those that
// are overdue.
func (d *decision) idleCount() int { return len(d.idle) + len(d.creating) }

// total counts the pods that make up the pool's size.
func (d *decision) total() int { return d.held + d.idleCount() }

// overdueAlive counts the overdue pods without those that have finished.
func (d *decision) overdueAlive() int {
	n := 0
	for _, pod := range d.overdue {
		if !pod.Finished {
			n++
		}
	}
	return n
}

// overMax is by how many live pods the pool is over poolMax; negative is the room left.
func (d *decision) overMax() int {
	return d.total() + d.overdueAlive() - int(d.in.Spec.CapacitySpec.PoolMax)
}

// available counts the idle pods that are ready.
func (d *decision) available() int {
	n := 0
	for _, pod := range d.idle {
		if usable(pod) {
			n++
		}
	}
	return n
}

// usable says that an idle pod can be handed out.
func usable(pod *ledger.PodState) bool { return pod.Ready && !pod.Finished }

func (d *decision) outdated(pod *ledger.PodState) bool { return pod.Revision != d.in.Revision }

// wait asks for another decision after the given time.
func (d *decision) wait(after time.Duration) {
	after = max(after, time.Millisecond)
	if d.plan.Wait == 0 || after < d.plan.Wait {
		d.plan.Wait = after
	}
}

// due says whether the time has come, and asks to be called then if not.
func (d *decision) due(at time.Time) bool {
	if left := at.Sub(d.in.Now); left > 0 {
		d.wait(left)
		return false
	}
	return true
}

// deleteRetiring plans the deletion of pods that are out of use already. After a
// delete that the API server took, the cache has some time to show it.
func (d *decision) deleteRetiring() {
	for i := range d.in.Pods {
		pod := &d.in.Pods[i]
		if pod.State != ledger.Retiring || pod.Terminating {
			continue
		}
		if sent, ok := d.in.Memory.Deleted[pod.Name]; ok && !d.due(sent.Add(unseenPatience)) {
			continue
		}
		d.plan.Delete = append(d.plan.Delete, pod.Pod)
	}
}

func (d *decision) retireAll() { d.retire(slices.Concat(d.idle, d.overdue)) }

// resolveCreating settles the pods of which it is not known whether they exist.
// An unconfirmed create is repeated while the pod is wanted, else looked up.
func (d *decision) resolveCreating(unwanted bool) {
	for _, pod := range d.creating {
		switch {
		case pod.Confirmed:
			if d.due(d.in.Memory.Created[pod.Name].Add(unseenPatience)) {
				d.plan.Verify = append(d.plan.Verify, pod.Name)
			}
		case unwanted:
			d.plan.Verify = append(d.plan.Verify, pod.Name)
		case d.due(d.in.Memory.RetryAt):
			d.plan.Repeat = append(d.plan.Repeat, pod.Name)
		}
	}
}
