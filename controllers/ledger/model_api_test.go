package ledger

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// object is a BatchSandbox in the API server of the model.
type object struct {
	name      string
	uid       types.UID
	created   int
	rv        int
	replicas  int
	deleting  bool
	finalizer bool
	// minAvailable is how many sandboxes it takes at once, at least, until that is delivered.
	minAvailable int
	delivered    bool
	// alloc and release are alloc-status and alloc-release. While corrupt, nobody can
	// read them; they keep what the owner really has.
	alloc, release []string
	corrupt        bool
}

func (o object) names() []string {
	return slices.DeleteFunc(slices.Concat(o.alloc, o.release), func(s string) bool { return s == "" })
}

// least is how many sandboxes it takes at once, at least.
func (o object) least() int {
	if o.delivered {
		return 0
	}
	return min(o.minAvailable, o.replicas)
}

func (o object) owner() Owner {
	return Owner{
		NamespacedName: types.NamespacedName{Namespace: "ns", Name: o.name}, UID: o.uid,
		Created: epoch.Add(time.Duration(o.created) * time.Second),
	}
}

func (o object) record() Record {
	if o.corrupt {
		return Record{Pool: poolKey, Owner: o.owner(), Unreadable: true}
	}
	return Record{Pool: poolKey, Owner: o.owner(), Pods: o.alloc, Releasing: o.release}
}

// machine is a pod in the API server. Dirty is who has used it since it was clean.
type machine struct {
	Pod
	dirty types.UID
}

type podEvent struct {
	pod     Pod
	deleted bool
}

type boxEvent struct {
	object  object
	deleted bool
}

// write is a request on its way to the API server.
type write struct {
	box            string
	rv             int
	alloc, release []string
	endpoints      []types.UID // the pods whose addresses go with alloc
	touch          bool        // only moves the resourceVersion
	unfinalize     bool        // only removes the finalizer
	create         string      // a pod of this name
	remove         types.UID   // the pod with this UID
}

type answer int

const (
	done     answer = iota
	refused         // a 4xx that says it was not done
	timeout         // nothing is known
	conflict        // another resourceVersion
	notFound
)

// server is the API server of the model, with everybody who uses it but the operator.
type server struct {
	dice func(label string, n int) int
	fail func(format string, args ...any)
	calm bool // no write fails any more

	boxes   map[string]*object
	pods    map[string]*machine
	podLog  []podEvent
	boxLog  []boxEvent
	flight  []write // sent, answered by a timeout, and still able to land
	unnamed map[types.UID]bool
	counter int

	revision string
	cap      int
	handsOut bool
}

func newServer(dice func(string, int) int, fail func(string, ...any)) *server {
	return &server{
		dice: dice, fail: fail, boxes: map[string]*object{}, pods: map[string]*machine{}, unnamed: map[types.UID]bool{},
		revision: "r1", cap: 3, handsOut: true,
	}
}

func (s *server) next() int { s.counter++; return s.counter }

func (s *server) podNames() []string { return slices.Sorted(maps.Keys(s.pods)) }
func (s *server) boxNames() []string { return slices.Sorted(maps.Keys(s.boxes)) }

// send hands a write to the API server over a network that fails in every way.
func (s *server) send(w write) answer {
	fate := 0
	if !s.calm {
		fate = s.dice("fate of a write", 8)
	}
	switch fate {
	case 4:
		return refused
	case 5: // lost
		return timeout
	case 6:
		s.land(w)
		return timeout
	case 7:
		s.flight = append(s.flight, w)
		return timeout
	}
	return s.land(w)
}

// landOne lets one of the late writes arrive, or be lost.
func (s *server) landOne() {
	if len(s.flight) == 0 {
		return
	}
	i := s.dice("late write", len(s.flight))
	w := s.flight[i]
	s.flight = slices.Delete(s.flight, i, i+1)
	if s.dice("lost on the way", 4) > 0 {
		s.land(w)
	}
}

func (s *server) land(w write) answer {
	switch {
	case w.create != "":
		if s.pods[w.create] == nil {
			s.createPod(w.create)
		}
		return done
	case w.remove != "":
		for _, name := range s.podNames() {
			if p := s.pods[name]; p.UID == w.remove && !p.Terminating {
				p.Terminating = true
				s.showPod(p)
			}
		}
		return done
	}
	o := s.boxes[w.box]
	if o == nil {
		return notFound
	}
	if o.rv != w.rv {
		return conflict
	}
	switch {
	case w.touch:
	case w.unfinalize:
		o.finalizer = false
	default:
		s.allocate(o, w)
	}
	s.changed(o)
	return done
}

// allocate lands an allocation and looks at what it hands out.
func (s *server) allocate(o *object, w write) {
	if o.deleting {
		s.fail("a write for %s allocates although it is being deleted", o.name)
	}
	if got := filled(w.alloc); got > 0 {
		if got < o.least() {
			s.fail("%s is given %d sandboxes, and takes no fewer than %d at once", o.uid, got, o.least())
		}
		o.delivered = true
	}
	before := o.names()
	for _, name := range w.alloc {
		p := s.pods[name]
		if p == nil || slices.Contains(o.alloc, name) {
			continue
		}
		if p.dirty != "" && !slices.Contains(before, name) {
			s.fail("%s was given %s, dirty of %s", o.uid, name, p.dirty)
		}
		if slices.Contains(w.endpoints, p.UID) {
			p.dirty = o.uid
		}
	}
	o.alloc, o.release, o.finalizer = w.alloc, w.release, true
}

// filled counts the shards that have a pod.
func filled(alloc []string) int {
	n := 0
	for _, name := range alloc {
		if name != "" {
			n++
		}
	}
	return n
}

// changed gives the object a new version, or ends it.
func (s *server) changed(o *object) {
	o.rv = s.next()
	gone := o.deleting && !o.finalizer
	if gone {
		delete(s.boxes, o.name)
	}
	s.boxLog = append(s.boxLog, boxEvent{*o, gone})
}

func (s *server) createPod(name string) {
	p := &machine{Pod: Pod{
		Name: name, UID: types.UID(fmt.Sprint("pod-", s.next())), PoolUID: "pool-uid",
		Revision: s.revision, Created: epoch.Add(time.Duration(s.counter) * time.Second),
	}}
	s.pods[name] = p
	s.showPod(p)
}

func (s *server) showPod(p *machine) { s.podLog = append(s.podLog, podEvent{pod: p.Pod}) }

func (s *server) removePod(p *machine) {
	delete(s.pods, p.Name)
	s.podLog = append(s.podLog, podEvent{pod: p.Pod, deleted: true})
}

// kubelet brings a pod one step further and says whether there was one to take.
func (s *server) kubelet(p *machine) bool {
	switch {
	case p.Terminating:
		s.removePod(p)
	case !p.Ready && !p.Finished:
		p.Ready = true
		s.showPod(p)
	default:
		return false
	}
	return true
}

// harm does something bad to a pod.
func (s *server) harm(p *machine) {
	switch s.dice("harm", 5) {
	case 0:
		s.removePod(p)
		return
	case 1:
		p.Terminating = true
	case 2:
		p.Finished, p.Ready = true, false
		p.Disrupted = s.dice("the cluster did it", 2) == 0
	case 3:
		p.Ready = false
	case 4:
		p.Restarts++
	}
	s.showPod(p)
}

// replace puts another pod in the place of one, under its name.
func (s *server) replace(p *machine) {
	if s.dice("the cache sees the end of the first", 2) == 0 {
		s.removePod(p)
	}
	s.createPod(p.Name)
}

// user does something to the BatchSandbox of that name.
func (s *server) user(name string) {
	o := s.boxes[name]
	if o == nil {
		o = &object{name: name, uid: types.UID(fmt.Sprint(name, "-", s.next())), created: s.counter, replicas: s.dice("replicas", 4)}
		if s.dice("a gang", 2) == 0 {
			o.minAvailable = s.dice("minAvailable", o.replicas+1)
		}
		s.boxes[name] = o
		s.changed(o)
		return
	}
	switch {
	case o.deleting:
		return
	case s.dice("delete", 3) == 0:
		o.deleting = true
	default:
		o.replicas = s.dice("replicas", 4)
	}
	s.changed(o)
}

// mend makes unreadable annotations readable again: it puts them back as they were, or
// deletes them, and with them the last that anybody knew of the pods.
func (s *server) mend() {
	for _, name := range s.boxNames() {
		o := s.boxes[name]
		if !o.corrupt {
			continue
		}
		if s.dice("by deleting it", 2) == 0 {
			for _, pod := range o.names() {
				if p := s.pods[pod]; p != nil {
					s.unnamed[p.UID] = true
				}
			}
			o.alloc, o.release = nil, nil
		}
		o.corrupt = false
		s.changed(o)
		return
	}
}

// namedByNobody says that pods are there that an annotation named which was deleted. A
// leader that starts now could not know: what is deleted while nobody leads, or
// before the leader has deleted the pods, is not in its power.
func (s *server) namedByNobody() bool {
	for _, p := range s.pods {
		if s.unnamed[p.UID] && !p.Terminating {
			return true
		}
	}
	return false
}

// spoil makes the annotations of a BatchSandbox unreadable.
func (s *server) spoil(name string) {
	o := s.boxes[name]
	for _, other := range s.boxes {
		if other.corrupt {
			return
		}
	}
	if o != nil && o.finalizer {
		o.corrupt = true
		s.changed(o)
	}
}
