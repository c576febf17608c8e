package ledger

import (
	"cmp"
	"slices"
)

// holder is what one owner holds of a pool.
type holder struct {
	owner Owner
	// held and releasing are its pods, in no order.
	held, releasing []*entry
	// unreadable: its annotations could not be read, so it may hold more.
	unreadable bool
	// shown is what Allocation returned last; nil when something has changed since.
	shown *Allocation
}

func (h *holder) empty() bool { return len(h.held) == 0 && len(h.releasing) == 0 && !h.unreadable }

// holds returns the state of a pod that the holder holds; nil for any other pod.
func (h *holder) holds(e *entry) *held {
	if e == nil {
		return nil
	}
	if s, ok := e.state.(*held); ok && s.holder == h {
		return s
	}
	return nil
}

// releases returns the state of a pod that the holder has given up; nil for any other pod.
func (h *holder) releases(e *entry) *releasing {
	if e == nil {
		return nil
	}
	if s, ok := e.state.(*releasing); ok && s.holder == h {
		return s
	}
	return nil
}

// prune takes the pods out of the lists that the holder no longer has. It is called
// once for all the pods of a call: a list is gone through once, not once for each pod.
func (h *holder) prune() {
	h.held = slices.DeleteFunc(h.held, func(e *entry) bool { return h.holds(e) == nil })
	h.releasing = slices.DeleteFunc(h.releasing, func(e *entry) bool { return h.releases(e) == nil })
	h.shown = nil
}

// allocation returns what is held. It is made anew only after a change, since every
// reconcile of the owner reads it.
func (h *holder) allocation() Allocation {
	if h.shown != nil {
		return *h.shown
	}
	h.shown = &Allocation{Held: heldPods(h.held), Releasing: heldPods(h.releasing), Unreadable: h.unreadable}
	return *h.shown
}

// heldPods returns the pods by shard and name. The entries are sorted, and not the
// values, which are large; they stay sorted for the next time.
func heldPods(entries []*entry) []HeldPod {
	shard := func(e *entry) int32 {
		if s, ok := e.state.(*held); ok {
			return s.shard
		}
		return 0
	}
	slices.SortFunc(entries, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(shard(a), shard(b)), cmp.Compare(a.Name, b.Name))
	})
	pods := make([]HeldPod, len(entries))
	for i, e := range entries {
		pods[i] = e.heldPod()
	}
	return pods
}
