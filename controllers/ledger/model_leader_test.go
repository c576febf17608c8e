package ledger

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// start is a new leader: list, catch up with the pods, touch, catch up once more where a late write
// has landed since the list, restore.
func start(s *server, m mistake, restarts bool) *operator {
	o := &operator{
		server: s, mistake: m, restarts: restarts, cached: map[string]object{}, queue: map[string]bool{},
		pending: map[string]*pending{}, creating: map[string]bool{}, removed: map[types.UID]bool{},
		asked: map[types.UID]demand{},
	}
	o.ledger = New(Hooks{
		Pool:  func(Key) { o.poolQueued = true },
		Owner: func(n types.NamespacedName) { o.queue[n.Name] = true },
	})
	o.deliverPods(s.dice("age of the pod cache", len(s.podLog)+1))
	var listed []object
	for _, name := range s.boxNames() {
		listed = append(listed, *s.boxes[name])
	}
	s.perhapsLandOne("something lands before the first look")
	o.lookAtPods()
	now := listed
	if m != "no touch" {
		now = o.touchWaiting(listed)
	}
	if !slices.EqualFunc(listed, now, sameAllocation) {
		o.lookAtPods()
	}
	var records []Record
	for _, b := range now {
		record := b.record()
		if m == "alloc-release is not restored" {
			record = Record{Pool: poolKey, Owner: b.owner(), Pods: b.alloc}
		}
		records = append(records, record)
	}
	boxes := len(s.boxLog)
	s.perhapsLandOne("something lands meanwhile")
	o.deliverBoxes(boxes)
	if conflicts := o.ledger.Rebuild(records); len(conflicts) > 0 {
		s.fail("conflicts at the start: %v", conflicts)
	}
	o.ledger.CompleteRebuild()
	o.noteDemand(now)
	for name := range o.cached {
		o.queue[name] = true
	}
	for _, r := range records {
		o.queue[r.Owner.Name] = true
	}
	o.poolQueued = true
	return o
}

// noteDemand gives those who wait their places.
func (o *operator) noteDemand(listed []object) {
	for _, b := range listed {
		missing := b.replicas
		for shard, pod := range b.alloc {
			if pod != "" && shard < b.replicas && o.ledger.Usable(poolKey, pod) {
				missing--
			}
		}
		if b.deleting || b.corrupt || missing <= 0 {
			continue
		}
		o.ledger.SetGangDemand(poolKey, b.owner(), missing, b.least())
		o.asked[b.uid] = demand{b.owner(), missing}
	}
}

// lookAtPods has the pod cache catch up.
func (o *operator) lookAtPods() {
	if o.mistake != "the pod cache is older than the list" {
		o.deliverPods(len(o.podLog) - o.podPos)
	}
}

func sameAllocation(a, b object) bool {
	return a.uid == b.uid && slices.Equal(a.alloc, b.alloc) && slices.Equal(a.release, b.release)
}

// touchWaiting moves the resourceVersion of every BatchSandbox whose demand is not met, by the
// list. It returns the objects as they are afterwards, as far as it has seen them.
func (o *operator) touchWaiting(listed []object) []object {
	var after []object
	for _, b := range listed {
		filled := 0
		for shard, pod := range b.alloc {
			lives := o.ledger.Usable(poolKey, pod) || o.mistake == "the touch does not look whether the pods live"
			if pod != "" && shard < b.replicas && lives {
				filled++
			}
		}
		if b.deleting || b.corrupt || filled >= b.replicas {
			after = append(after, b)
			continue
		}
		w := write{box: b.name, rv: b.rv, touch: true}
		for a := timeout; a == timeout || a == refused; a = o.send(w) {
			o.perhapsLandOne("something lands before the touch")
		}
		if live := o.boxes[b.name]; live != nil && live.uid == b.uid {
			after = append(after, *live)
		}
	}
	return after
}

func (s *server) perhapsLandOne(label string) {
	if s.dice(label, 2) == 0 {
		s.landOne()
	}
}

func (o *operator) deliverPods(n int) {
	for ; n > 0 && o.podPos < len(o.podLog); n-- {
		e := o.podLog[o.podPos]
		o.podPos++
		if e.deleted {
			o.ledger.ObserveGone(poolKey, e.pod.Name, e.pod.UID)
		} else {
			o.ledger.Observe(poolKey, e.pod)
		}
	}
}

func (o *operator) deliverBoxes(n int) {
	for ; n > 0 && o.boxPos < len(o.boxLog); n-- {
		e := o.boxLog[o.boxPos]
		o.boxPos++
		o.queue[e.object.name] = true
		o.cached[e.object.name] = e.object
		if e.deleted {
			delete(o.cached, e.object.name)
		}
	}
}

// reconcilePool sends at most one write for the pool.
func (o *operator) reconcilePool() {
	o.poolQueued = false
	o.ledger.SetPool(poolKey, "pool-uid", o.revision, o.handsOut)
	for _, name := range slices.Sorted(maps.Keys(o.creating)) {
		o.create(name)
		return
	}
	pods, live := slices.Clone(o.ledger.Snapshot(poolKey).Pods), 0
	slices.SortFunc(pods, func(a, b PodState) int { return a.Created.Compare(b.Created) })
	var idle string
	for _, p := range pods {
		if p.Live() {
			live++
		}
		switch {
		case p.State == Idle && p.Finished:
			o.ledger.Retire(poolKey, []string{p.Name})
			return
		case p.State == Idle && p.Live():
			idle = p.Name
		case p.State == Retiring && !p.Terminating && !o.removed[p.UID]:
			o.remove(p.UID)
			o.poolQueued = true
			return
		}
	}
	switch {
	case live < o.cap:
		name := fmt.Sprint("p", o.next())
		o.creating[name] = false
		o.ledger.BeginCreate(poolKey, []string{name})
		o.create(name)
	case live > o.cap && idle != "":
		o.ledger.Retire(poolKey, []string{idle})
	}
}

func (o *operator) create(name string) {
	o.poolQueued = true
	switch o.send(write{create: name}) {
	case done:
		uid := types.UID("")
		if p := o.pods[name]; p != nil {
			uid = p.UID
		}
		o.ledger.ConfirmCreate(poolKey, name, uid)
		delete(o.creating, name)
	case refused:
		if !o.creating[name] {
			o.ledger.AbortCreate(poolKey, name)
			delete(o.creating, name)
		}
	case timeout:
		o.creating[name] = true
	}
}
