package pool

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// size is how many pods a pool is to have that has so many held and idle ones and
// so much demand. Idle pods that are overdue are not among them: demand would wait for
// them. While the idle pods that demand leaves lie within the buffer's
// bounds, it is as many as there are: a pool at rest stays at rest.
func size(bounds *v1alpha1.CapacitySpec, held, idle, demand int) int {
	least, most := int(bounds.BufferMin), int(bounds.BufferMax)
	buffer := idle - demand
	if buffer < least || buffer > most {
		buffer = (least + most + 1) / 2
	}
	target := held + demand + buffer
	return max(int(bounds.PoolMin), min(target, int(bounds.PoolMax)))
}

// makeRoom retires as many overdue pods as the pool has live pods over poolMax, which
// may have been lowered. They are the first to go: they serve nobody.
func (d *decision) makeRoom() {
	over := min(d.overMax(), len(d.overdue))
	if over <= 0 {
		return
	}
	candidates := slices.Clone(d.overdue)
	slices.SortFunc(candidates, d.cheapestFirst)
	d.retire(candidates[:over])
}

// grow plans the pods that are missing, as far as poolMax and spec.scaleStrategy let it.
// Replacing an unready pod does not increase the number of unready pods, so as many as
// were taken out may be made in any case.
func (d *decision) grow() {
	missing := min(d.plan.Target-d.total(), -d.overMax())
	if missing <= 0 || !d.due(d.in.Memory.RetryAt) {
		return
	}
	if room, limited := d.growthRoom(); limited {
		missing = max(0, min(missing, max(room, d.exchanged)))
	}
	d.plan.Create = missing
}

// growthRoom is how many pods spec.scaleStrategy lets be created now.
func (d *decision) growthRoom() (int, bool) {
	limit := d.in.Spec.ScaleStrategy.MaxUnavailable
	if limit == nil {
		return 0, false
	}
	notReady := d.idleCount() - d.available()
	return max(1, scaled(limit, d.plan.Target)) - notReady, true
}

// shrink plans to retire idle pods: those that serve least first. Pods that the
// cache has not shown yet take their turn but cannot be retired before it does.
func (d *decision) shrink(surplus int) {
	candidates := slices.Concat(d.idle, d.creating)
	slices.SortFunc(candidates, d.cheapestFirst)
	candidates = candidates[:min(surplus, len(candidates))]
	d.retire(slices.DeleteFunc(candidates, func(pod *ledger.PodState) bool { return pod.State != ledger.Idle }))
}

// cheapestFirst orders pods by what their loss costs the pool: first those that are not
// ready, then those of an outdated revision, then the youngest.
func (d *decision) cheapestFirst(a, b *ledger.PodState) int {
	return cmp.Or(
		cmp.Compare(rank(a), rank(b)),
		compareBool(d.outdated(b), d.outdated(a)),
		compareBool(b.State == ledger.Creating, a.State == ledger.Creating), // the youngest of all
		b.Created.Compare(a.Created),
		cmp.Compare(a.Name, b.Name),
	)
}

func rank(pod *ledger.PodState) int {
	switch {
	case pod.Finished:
		return 0
	case pod.Ready:
		return 3
	case pod.Problem != "":
		return 1
	}
	return 2
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// retire plans the deletion of idle pods and takes them out of the account.
func (d *decision) retire(pods []*ledger.PodState) {
	if len(pods) == 0 {
		return
	}
	out := make(map[*ledger.PodState]bool, len(pods))
	for _, pod := range pods {
		out[pod] = true
		d.plan.Retire = append(d.plan.Retire, pod.Name)
		if !usable(pod) {
			d.exchanged++
		}
	}
	isOut := func(pod *ledger.PodState) bool { return out[pod] }
	d.idle = slices.DeleteFunc(d.idle, isOut)
	d.overdue = slices.DeleteFunc(d.overdue, isOut)
}

// scaled is the number, or the percentage of total, rounded up. What is neither
// (the CRD refuses it) counts as 0.
func scaled(value *intstr.IntOrString, total int) int {
	n, err := intstr.GetScaledValueFromIntOrPercent(value, total, true)
	if err != nil {
		return 0
	}
	return n
}
