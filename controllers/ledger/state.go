package ledger

// State says what a pod is to its pool.
type State int

const (
	// Creating: its name is chosen and its creation may have been sent; the cache
	// has not shown it yet.
	Creating State = iota
	// Idle: nobody holds it and it is clean.
	Idle
	// Held by a BatchSandbox, or claimed for it by a write that is under way.
	Held
	// Releasing: given up by its holder, not clean yet.
	Releasing
	// Retiring: to be deleted; never handed out again.
	Retiring
	// SetAside: an allocation that cannot be read may name it.
	SetAside
)

// state is a State together with what belongs to it alone, so that a mix such as an
// idle pod with a holder cannot be built.
type state interface{ kind() State }

type (
	creating struct {
		// confirmed: the API server has answered that the pod was created.
		confirmed bool
	}
	idle struct{}
	held struct {
		holding
		shard int32
		// base is the restart count at hand-over.
		base int32
	}
	releasing struct {
		holding
		// clean: recycling has left the pod clean.
		clean bool
	}
	retiring struct{}
	setAside struct{}
)

// holding is what a held pod and one that is being released have in common: both have a
// holder, whose annotations name them.
type holding struct {
	holder *holder
	// gone: the pod no longer exists, and its holder has not let it go yet.
	gone bool
	// successor is another pod that has appeared under the name of one that is gone.
	successor *Pod
}

func (*creating) kind() State  { return Creating }
func (idle) kind() State       { return Idle }
func (*held) kind() State      { return Held }
func (*releasing) kind() State { return Releasing }
func (retiring) kind() State   { return Retiring }
func (setAside) kind() State   { return SetAside }

// entry is a pod in its pool.
type entry struct {
	Pod
	state state
	// seen: the cache has shown the pod at least once.
	seen bool
	// deleted: the API server has taken the pod's deletion, or the pod has left its
	// pool; the cache may show either later.
	deleted bool

	// queued says that the pod stands in one of the pool's queues of available pods,
	// with this ticket; an element of a queue with another ticket is stale.
	queued bool
	ticket int
	// index is the pod's place in pool.shown.
	index int
}

// holding returns the part of the state that concerns the pod's holder; nil where it has none.
func (e *entry) holding() *holding {
	switch s := e.state.(type) {
	case *held:
		return &s.holding
	case *releasing:
		return &s.holding
	}
	return nil
}

func (e *entry) gone() bool {
	l := e.holding()
	return l != nil && l.gone
}

func (e *entry) podState() PodState {
	s := PodState{Pod: e.Pod, State: e.state.kind(), Gone: e.gone(), Deleted: e.deleted}
	if c, ok := e.state.(*creating); ok {
		s.Confirmed = c.confirmed
	}
	return s
}

func (e *entry) heldPod() HeldPod {
	h := HeldPod{Pod: e.Pod, Seen: e.seen, Gone: e.gone(), Deleted: e.deleted}
	switch s := e.state.(type) {
	case *held:
		h.Shard, h.Base = s.shard, s.base
	case *releasing:
		h.Clean = s.clean
	}
	return h
}
