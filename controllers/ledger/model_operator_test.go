package ledger

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// mistake is a way to get the protocol wrong; the model makes it on purpose to show
// that it would be found.
type mistake string

// pending is a write that was sent and whose end is not known yet.
type pending struct {
	write
	uid       types.UID
	ambiguous bool // an earlier sending may still land
	overtaken bool // somebody else has changed the object, and no sending can have landed
	done      func()
	undone    func()
}

// operator runs the protocol step by step: each step sends at most one write.
type operator struct {
	*server
	mistake  mistake
	restarts bool // recycles by restart, else by deletion

	ledger         *Ledger
	podPos, boxPos int               // how much of the logs its caches have taken in
	cached         map[string]object // the cache of BatchSandboxes
	queue          map[string]bool
	poolQueued     bool
	pending        map[string]*pending
	creating       map[string]bool // creations to repeat; true: one may have landed
	removed        map[types.UID]bool
	// asked is what each owner has asked for and not got, as far as this operator knows.
	asked map[types.UID]demand
}

type demand struct {
	owner Owner
	count int
}

// persist sends a write for a BatchSandbox and follows it to its end.
func (o *operator) persist(b object, p *pending) {
	p.box, p.rv, p.uid = b.name, b.rv, b.uid
	o.pending[b.name] = p
	o.resolve(p)
}

func (o *operator) resolve(p *pending) {
	o.queue[p.box] = true
	switch o.send(p.write) {
	case done:
		o.finish(p, true)
	case timeout:
		p.ambiguous = true
		if o.mistake == "a timeout counts as a refusal" {
			o.finish(p, false)
		}
	case refused: // says nothing about an earlier sending
		if !p.ambiguous || o.mistake == "a refused repetition counts for the first sending" {
			o.finish(p, false)
		}
	case conflict, notFound:
		live := o.boxes[p.box]
		switch {
		case o.mistake == "a conflict counts as a refusal":
			o.finish(p, false)
		case live == nil || live.uid != p.uid:
			o.finish(p, p.unfinalize)
		case p.unfinalize:
			o.finish(p, !live.finalizer)
		default:
			p.overtaken = !p.ambiguous
			o.finish(p, slices.Equal(live.alloc, p.alloc) && slices.Equal(live.release, p.release))
		}
	}
}

func (o *operator) finish(p *pending, ok bool) {
	delete(o.pending, p.box)
	if ok && p.done != nil {
		p.done()
	}
	if !ok && p.undone != nil {
		p.undone()
	}
}

func (o *operator) reconcile(name string) {
	delete(o.queue, name)
	if p := o.pending[name]; p != nil {
		o.resolve(p)
		return
	}
	b, ok := o.cached[name]
	for _, ref := range o.ledger.Lookup(types.NamespacedName{Namespace: "ns", Name: name}) {
		if !ok || ref.UID != b.uid {
			o.reconcileGone(object{name: name, uid: ref.UID})
			return
		}
	}
	switch {
	case !ok:
	case b.deleting && b.finalizer:
		o.reconcileDeleted(b)
	case !b.deleting:
		o.reconcileLive(b)
	}
}

// giveUp recycles all that the owner has; it returns the pods once that is done.
func (o *operator) giveUp(b object) ([]string, bool) {
	o.ledger.SetDemand(poolKey, b.owner(), 0)
	delete(o.asked, b.uid)
	var names []string
	a := o.allocation(b.uid)
	for _, h := range a.Held {
		names = append(names, h.Name)
	}
	o.ledger.BeginRelease(poolKey, b.uid, names)
	if a.Unreadable {
		for _, pod := range o.ledger.PodsSetAside(poolKey) {
			if !pod.Terminating {
				o.remove(pod.UID)
			}
		}
		if len(o.ledger.PodsSetAside(poolKey)) > 0 {
			o.queue[b.name] = true
		}
	}
	clean, all := o.recycle(b)
	return clean, all && len(o.ledger.PodsSetAside(poolKey)) == 0 || all && !a.Unreadable
}

func (o *operator) reconcileGone(b object) {
	o.queue[b.name] = true
	if names, ok := o.giveUp(b); ok {
		o.ended(b, names)
	}
}

func (o *operator) ended(b object, names []string) {
	o.ledger.EndRelease(poolKey, b.uid, names)
	if !o.ledger.ForgetOwner(poolKey, b.owner()) {
		o.fail("%s still holds pods: %v", b.uid, o.allocation(b.uid))
	}
}

func (o *operator) reconcileDeleted(b object) {
	names, ok := o.giveUp(b)
	if o.mistake == "freed before the finalizer is known to be gone" && ok {
		o.ledger.EndRelease(poolKey, b.uid, names)
	}
	if o.mistake == "the finalizer goes before the pods are clean" || ok {
		o.persist(b, &pending{write: write{unfinalize: true}, done: func() {
			if ok {
				o.ended(b, names)
			}
		}})
	}
}

// recycle takes a step with each pod that is being released; it returns those that
// are done with and whether that is all.
func (o *operator) recycle(b object) (clean []string, all bool) {
	all = true
	for _, r := range o.allocation(b.uid).Releasing {
		if !o.recycled(b, r) {
			all = false
			continue
		}
		clean = append(clean, r.Name)
	}
	if !all {
		o.queue[b.name] = true
	}
	return clean, all
}

func (o *operator) recycled(b object, r HeldPod) bool {
	switch {
	case r.Gone || r.Clean || r.Terminating:
		return true
	case !r.Seen:
		return false
	case !o.restarts || r.Finished:
		return o.remove(r.UID)
	}
	if p := o.pods[r.Name]; p != nil && p.UID == r.UID && o.dice("the restart works", 2) == 0 {
		p.dirty = ""
		o.ledger.MarkClean(poolKey, b.uid, r.Name)
	}
	if o.mistake == "clean without recycling" {
		o.ledger.MarkClean(poolKey, b.uid, r.Name)
	}
	return false
}

// remove deletes a pod and says whether that is known to have been done.
func (o *operator) remove(uid types.UID) bool {
	if !o.removed[uid] {
		o.removed[uid] = o.send(write{remove: uid}) == done
	}
	return o.removed[uid]
}

func (o *operator) allocation(uid types.UID) Allocation {
	a := o.ledger.Allocation(poolKey, uid)
	byName := func(x, y HeldPod) int { return cmp.Compare(x.Name, y.Name) }
	return Allocation{
		Held: slices.SortedFunc(slices.Values(a.Held), byName), Releasing: slices.SortedFunc(slices.Values(a.Releasing), byName),
		Unreadable: a.Unreadable,
	}
}

// reconcileLive brings a BatchSandbox one write nearer to what is asked for.
func (o *operator) reconcileLive(b object) {
	a := o.allocation(b.uid)
	if a.Unreadable {
		if !b.corrupt {
			o.ledger.Settle(b.record())
			o.queue[b.name] = true
		}
		return
	}
	kept, lost, extra, endpoints := sortOut(a.Held, b.replicas)
	clean, _ := o.recycle(b)
	var releasing []string
	for _, r := range a.Releasing {
		if !slices.Contains(clean, r.Name) {
			releasing = append(releasing, r.Name)
		}
	}
	var missing []int32
	for shard, name := range kept {
		if name == "" {
			missing = append(missing, int32(shard))
		}
	}
	var claimed []string
	least := 0
	if len(a.Held)+len(a.Releasing) == 0 {
		least = b.least()
	}
	for _, g := range o.claim(b, missing, least) {
		if p := o.pods[g.Pod.Name]; p != nil && p.UID == g.Pod.UID && p.dirty != "" {
			o.fail("%s claims %s, dirty of %s", b.uid, p.Name, p.dirty)
		}
		kept[g.Shard] = g.Pod.Name
		claimed = append(claimed, g.Pod.Name)
		endpoints = append(endpoints, g.Pod.UID)
	}
	alloc, release := trim(kept), slices.Concat(releasing, extra)
	if slices.Equal(alloc, b.alloc) && slices.Equal(release, b.release) && len(lost)+len(extra)+len(clean) == 0 {
		return
	}
	free := func() { o.ledger.EndRelease(poolKey, b.uid, clean) }
	if o.mistake == "freed before alloc-release is known to be empty" {
		free()
	}
	p := &pending{
		write: write{alloc: alloc, release: release, endpoints: endpoints},
		done: func() {
			o.ledger.Discard(poolKey, b.uid, lost)
			if o.mistake == "a pod that is scaled away is unclaimed" {
				o.ledger.Unclaim(poolKey, b.owner(), extra)
				delete(o.asked, b.uid)
			}
			o.ledger.BeginRelease(poolKey, b.uid, extra)
			free()
		},
	}
	p.undone = func() {
		if p.overtaken {
			o.ledger.UnclaimAndWait(poolKey, b.owner(), claimed, least)
			o.asked[b.uid] = demand{b.owner(), o.asked[b.uid].count + len(claimed)}
			return
		}
		o.ledger.Unclaim(poolKey, b.owner(), claimed)
		delete(o.asked, b.uid)
	}
	o.persist(b, p)
}

// claim takes pods for the missing shards, at least so many or none, and looks whether it takes
// what older ones wait for.
func (o *operator) claim(b object, missing []int32, least int) []Grant {
	switch {
	case o.mistake == "a gang takes what comes":
		least = 0
	case least > o.cap, o.mistake == "a gang asks for nothing before it can be served" && o.ledger.SetDemand(poolKey, b.owner(), len(missing)) < least:
		o.ledger.SetDemand(poolKey, b.owner(), 0) // nobody is to wait for what can never be
		delete(o.asked, b.uid)
		return nil
	}
	available := 0
	if p := o.ledger.pools[poolKey]; p != nil {
		available = p.available
	}
	for _, d := range o.asked {
		if d.owner.Created.Before(b.owner().Created) {
			available -= d.count
		}
	}
	o.ledger.SetGangDemand(poolKey, b.owner(), len(missing), least)
	grants := o.ledger.Claim(poolKey, b.owner(), missing)
	if len(grants) > max(0, available) {
		o.fail("%s takes %d pods, %d of which older ones wait for", b.uid, len(grants), len(grants)-max(0, available))
	}
	o.asked[b.uid] = demand{b.owner(), len(missing) - len(grants)}
	return grants
}

// sortOut tells the pods to keep, by shard, from those that are lost and those that
// are too many.
func sortOut(held []HeldPod, replicas int) (kept, lost, extra []string, endpoints []types.UID) {
	kept = make([]string, replicas)
	for _, h := range held {
		switch {
		case h.Lost():
			lost = append(lost, h.Name)
		case int(h.Shard) >= replicas:
			extra = append(extra, h.Name)
		default:
			kept[h.Shard] = h.Name
			endpoints = append(endpoints, h.UID)
		}
	}
	return kept, lost, extra, endpoints
}

func trim(pods []string) []string {
	for len(pods) > 0 && pods[len(pods)-1] == "" {
		pods = pods[:len(pods)-1]
	}
	return pods
}
