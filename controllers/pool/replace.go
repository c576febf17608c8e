package pool

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
)

// defaultUpdateMaxUnavailable of spec.updateStrategy.
var defaultUpdateMaxUnavailable = intstr.FromString(v1alpha1.DefaultUpdateMaxUnavailable)

// isOverdue says that an idle pod has taken too long to become ready, and asks to be
// called when it will have. A pod that waits for a node never is: another one would
// wait as well, and a cluster that grows on demand would grow for both.
func (d *decision) isOverdue(pod *ledger.PodState) bool {
	if usable(pod) || podfeed.WaitsForNode(pod.Problem) {
		return false
	}
	// Not since it was made: a pod that has waited long for its node, or was ready until a
	// moment ago, would be overdue at once, and the pool would make others for all of them.
	since := pod.Created
	if pod.StartingSince.After(since) {
		since = pod.StartingSince
	}
	if !d.due(since.Add(overdueAfter)) {
		return false
	}
	allowed := d.allowedAge()
	if d.plan.Replaced > 0 && !pod.Created.Before(d.plan.ReplacedAt) {
		// It was made in place of one that failed, and fails too. Without the delay, a
		// pool whose pods can never start would soon have poolMax of them.
		allowed = max(allowed, d.delay())
	}
	return d.due(since.Add(allowed))
}

// allowedAge is how old an idle pod that is not ready may become before it is overdue.
func (d *decision) allowedAge() time.Duration {
	if d.slow == 0 {
		d.slow = max(overdueAfter, overdueFactor*usualStart(d.in.Pods))
	}
	return d.slow
}

// usualStart is how long the pods usually took to become ready, 0 where none did: the
// median of a sample, since a few may have become ready for a second time. Pods that
// have restarted are left out for the same reason.
func usualStart(pods []ledger.PodState) time.Duration {
	const sample = 1000
	var took []time.Duration
	for i := 0; i < len(pods); i += 1 + len(pods)/sample {
		if pod := &pods[i]; pod.Ready && pod.Restarts == 0 && !pod.Created.IsZero() && !pod.ReadySince.IsZero() {
			took = append(took, pod.ReadySince.Sub(pod.Created))
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// replaceFailing retires idle pods that cannot become ready, or have ended, a part at a
// time, in rounds that come ever more rarely while nothing gets better: the kubelet
// keeps trying by itself meanwhile. The pods that take their places are in the target
// already. Overdue pods go before the others: where poolMax leaves no room, others are
// made only when they have gone.
func (d *decision) replaceFailing() {
	part := max(1, ((len(d.idle)+len(d.overdue))*replacePercent+99)/100)
	var late, failing []*ledger.PodState
	for _, pod := range d.overdue {
		if d.due(d.nextRound()) {
			late = append(late, pod)
		}
	}
	for _, pod := range d.idle {
		if replaceable(pod) && d.due(d.replaceAt(pod)) {
			failing = append(failing, pod)
		}
	}
	if len(late)+len(failing) == 0 || !d.mayReplace() {
		return
	}
	slices.SortFunc(late, oldestFirst)
	slices.SortFunc(failing, oldestFirst)
	out := slices.Concat(late, failing)
	out = out[:min(part, d.unproven(), len(out))]
	if len(out) == 0 {
		return
	}
	d.retire(out)
	// To the second, as the API server tells when a pod was created: a pod that is made
	// now must not seem to be older than this round.
	d.plan.Replaced, d.plan.ReplacedAt = d.plan.Replaced+1, d.in.Now.Truncate(time.Second)
}

func oldestFirst(a, b *ledger.PodState) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
}

// replaceable says that a new pod in its place may do better. One that waits for a
// node would do no better, and lose its place in the scheduler's queue.
func replaceable(pod *ledger.PodState) bool {
	return pod.Finished || (!pod.Ready && pod.Problem != "" && !podfeed.WaitsForNode(pod.Problem))
}

// delay is the time from the last round to the next, and the least age of a failing pod
// that is replaced.
func (d *decision) delay() time.Duration {
	delay := replaceDelay
	for range d.plan.Replaced {
		if delay *= 2; delay >= maxReplaceDelay {
			return maxReplaceDelay
		}
	}
	return delay
}

// nextRound is when pods may be replaced again; the first round may be at once.
func (d *decision) nextRound() time.Time {
	if d.plan.Replaced == 0 {
		return time.Time{}
	}
	return d.plan.ReplacedAt.Add(d.delay())
}

// replaceAt is when a failing pod may be replaced: not before the next round, and, as
// long as it has not ended, not before its own age allows it.
func (d *decision) replaceAt(pod *ledger.PodState) time.Time {
	at := d.nextRound()
	if grown := pod.Created.Add(d.delay()); !pod.Finished && grown.After(at) {
		return grown
	}
	return at
}

// recovered says that a pod made after the last round is ready and has stayed so.
func (d *decision) recovered() bool {
	if d.plan.Replaced == 0 {
		return false
	}
	for i := range d.in.Pods {
		pod := &d.in.Pods[i]
		if pod.Ready && pod.Restarts == 0 && pod.PoolUID == d.in.UID &&
			!pod.Created.Before(d.plan.ReplacedAt) && d.in.Now.Sub(pod.Created) >= replaceDelay {
			return true
		}
	}
	return false
}

// roll replaces idle pods of an outdated revision. Those that are not ready serve
// nobody and go at once; ready ones go as far as spec.updateStrategy lets idle pods
// be missing, as demand can spare them, and as their successors can be made.
func (d *decision) roll() {
	notReady, ready := d.outdatedIdle()
	limit := d.updateLimit()
	if limit == 0 || len(notReady)+len(ready) == 0 || !d.mayReplace() {
		return
	}
	budget := min(len(notReady), d.unproven())
	// Overdue pods of the current revision are not ready, so they use the limit up: a
	// template whose pods never become ready must not take the ready ones away.
	unavailable := max(0, d.plan.Target-d.held-d.available()) + len(d.overdue) - d.outdatedOverdue()
	readyBudget := min(limit-unavailable, d.available()-d.in.Demand, d.unproven()-budget)
	if room, limited := d.growthRoom(); limited {
		missing := d.plan.Target - d.total()
		readyBudget = min(readyBudget, room-missing)
	}
	readyBudget = max(0, min(readyBudget, len(ready)))
	if budget+readyBudget == 0 {
		return
	}
	if !d.accepted() {
		d.plan.Probe = true
		return
	}
	d.retire(slices.Concat(notReady[:budget], ready[:readyBudget]))
}

// outdatedIdle returns the idle pods to be replaced by the current revision, the
// oldest first.
func (d *decision) outdatedIdle() (notReady, ready []*ledger.PodState) {
	for _, pod := range slices.Concat(d.overdue, d.idle) {
		switch {
		case !d.outdated(pod):
		case usable(pod):
			ready = append(ready, pod)
		default:
			notReady = append(notReady, pod)
		}
	}
	slices.SortFunc(notReady, oldestFirst)
	slices.SortFunc(ready, oldestFirst)
	return notReady, ready
}

func (d *decision) outdatedOverdue() int {
	n := 0
	for _, pod := range d.overdue {
		if d.outdated(pod) {
			n++
		}
	}
	return n
}

// updateLimit is how many idle pods may be missing or not ready during an update.
func (d *decision) updateLimit() int {
	limit := d.in.Spec.UpdateStrategy.MaxUnavailable
	if limit == nil {
		limit = &defaultUpdateMaxUnavailable
	}
	return max(0, scaled(limit, d.plan.Target-d.held))
}

// mayReplace says that new pods can be made, as far as is known: pods that cannot be
// replaced are better than none.
func (d *decision) mayReplace() bool { return d.due(d.in.Memory.RetryAt) }

// unproven bounds how many more pods may be replaced while creating pods has failed of
// late: one in all, to find out whether it still does.
func (d *decision) unproven() int {
	if d.in.Memory.CreateFailures > 0 {
		return max(0, 1-d.exchanged)
	}
	return len(d.in.Pods)
}

// accepted says that the API server is known to take pods of the current revision.
func (d *decision) accepted() bool {
	if d.in.Memory.Accepted == d.in.Revision {
		return true
	}
	for i := range d.in.Pods {
		if pod := &d.in.Pods[i]; !d.outdated(pod) && pod.PoolUID == d.in.UID && pod.UID != "" {
			return true
		}
	}
	return false
}
