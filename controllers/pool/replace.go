package pool

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// defaultUpdateMaxUnavailable of spec.updateStrategy.
var defaultUpdateMaxUnavailable = intstr.FromString(v1alpha1.DefaultUpdateMaxUnavailable)

// replaceFailing retires idle pods that cannot become ready, in rounds that come
// ever more rarely while nothing gets better. The kubelet keeps trying by itself
// meanwhile, so pods that have finished are replaced all at once, others a few at a
// time. The pods that take their places are in the target already.
func (d *decision) replaceFailing() {
	if d.recovered() {
		d.plan.Replaced, d.plan.ReplacedAt = 0, time.Time{}
	}
	var failing []ledger.PodState
	for _, pod := range d.idle {
		if replaceable(&pod) && d.due(d.replaceAt(&pod)) {
			failing = append(failing, pod)
		}
	}
	if len(failing) == 0 || !d.mayReplace() {
		return
	}
	slices.SortFunc(failing, oldestFirst)
	waiting := min(max(1, (len(d.idle)*replacePercent+99)/100), d.unproven())
	for _, pod := range failing {
		if !pod.Finished {
			if waiting == 0 {
				continue
			}
			waiting--
		}
		d.retire(&pod)
	}
	d.plan.Replaced, d.plan.ReplacedAt = d.plan.Replaced+1, d.in.Now
}

func oldestFirst(a, b ledger.PodState) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
}

// replaceable says that a new pod in its place may do better. One that waits for a
// node would do no better, and lose its place in the scheduler's queue.
func replaceable(pod *ledger.PodState) bool {
	return pod.Finished || (!pod.Ready && pod.Problem != "" && !unscheduled(pod.Problem))
}

func unscheduled(problem string) bool {
	return strings.HasPrefix(problem, corev1.PodReasonUnschedulable) ||
		strings.HasPrefix(problem, corev1.PodReasonSchedulingGated)
}

// replaceAt is when a failing pod may be replaced: not before its own age allows it,
// and not before the round after the last one.
func (d *decision) replaceAt(pod *ledger.PodState) time.Time {
	delay := replaceDelay
	for range d.plan.Replaced {
		if delay *= 2; delay >= maxReplaceDelay {
			delay = maxReplaceDelay
			break
		}
	}
	at := pod.Created.Add(delay)
	if next := d.plan.ReplacedAt.Add(delay); d.plan.Replaced > 0 && next.After(at) {
		at = next
	}
	return at
}

// recovered says that a pod made after the last round is ready and has stayed so.
func (d *decision) recovered() bool {
	if d.plan.Replaced == 0 {
		return false
	}
	return slices.ContainsFunc(d.in.Pods, func(pod ledger.PodState) bool {
		return pod.Ready && pod.Restarts == 0 && pod.PoolUID == d.in.UID &&
			!pod.Created.Before(d.plan.ReplacedAt) && d.in.Now.Sub(pod.Created) >= replaceDelay
	})
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
	unavailable := max(0, d.plan.Target-d.held-d.available())
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
	for _, pod := range slices.Concat(notReady[:budget], ready[:readyBudget]) {
		d.retire(&pod)
	}
}

// outdatedIdle returns the idle pods to be replaced by the current revision, the
// oldest first.
func (d *decision) outdatedIdle() (notReady, ready []ledger.PodState) {
	for _, pod := range d.idle {
		switch {
		case !d.outdated(&pod):
		case usable(&pod):
			ready = append(ready, pod)
		default:
			notReady = append(notReady, pod)
		}
	}
	slices.SortFunc(notReady, oldestFirst)
	slices.SortFunc(ready, oldestFirst)
	return notReady, ready
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

// unproven bounds how many pods may be replaced while creating pods has failed of
// late: one, to find out whether it still does.
func (d *decision) unproven() int {
	if d.in.Memory.CreateFailures > 0 {
		return 1
	}
	return len(d.in.Pods)
}

// accepted says that the API server is known to take pods of the current revision.
func (d *decision) accepted() bool {
	return d.in.Memory.Accepted == d.in.Revision ||
		slices.ContainsFunc(d.in.Pods, func(pod ledger.PodState) bool {
			return pod.Revision == d.in.Revision && pod.PoolUID == d.in.UID && pod.UID != ""
		})
}
