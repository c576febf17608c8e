// Package ledger knows, for every Pool, who holds which pod. It is memory only: it
// does no I/O, has no clock and imports no client. It is rebuilt at start from the
// annotations alloc-status and alloc-release of the BatchSandboxes; while a leader
// runs, the ledger is ahead of them by the writes that are under way.
//
// A pod of a pool is in exactly one of these states:
//
//	creating ──seen──▶ idle ──Claim──▶ held ──BeginRelease──▶ releasing ──EndRelease──▶ idle, if clean
//	                    │ ▲             │ │                                    └──────▶ retiring, if not
//	                    │ └───Unclaim───┘ └──Discard──▶ retiring
//	                    └──Retire──▶ retiring ──ObserveGone──▶ (forgotten)
//
//	at start, while an allocation cannot be read:  idle ──▶ set aside ──Settle, ForgetOwner──▶ held or retiring
//
// Only these make a held pod idle again: Unclaim and UnclaimAndWait, for a claim that is known
// never to have been written, and EndRelease, for a pod that was marked clean and whose
// release is known to have been written. Any other way would hand a dirty pod on.
//
// The reconcilers and the start of a leader call it; nothing else may.
package ledger

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Key names a Pool.
type Key = types.NamespacedName

// Owner is a BatchSandbox that holds or asks for pods.
type Owner struct {
	types.NamespacedName
	UID types.UID
	// Created orders the pool's queue: the oldest is served first.
	Created time.Time
}

// Pod is what the cache last showed of a pod.
type Pod struct {
	Name     string
	UID      types.UID
	PoolUID  types.UID
	Revision string
	Created  time.Time
	IP       string
	// Restarts is the sum of the restart counts of the pod's containers.
	Restarts int32
	Ready    bool
	// ReadySince is since when the pod is Ready; zero while it is not.
	ReadySince time.Time
	// StartingSince is since when a pod that is not Ready has been on its way to become so:
	// since it got its node, or was last Ready. Zero where that is not known yet.
	StartingSince time.Time
	// Terminating: the pod has a deletion timestamp.
	Terminating bool
	// Finished: the pod's phase is Failed or Succeeded, for good.
	Finished bool
	// Disrupted: of a finished pod, that the cluster has stopped it (an eviction, a
	// preemption, a node that went). Otherwise its containers finished by themselves.
	Disrupted bool
	// Evict: the pod carries the eviction label.
	Evict bool
	// Problem is the kubelet's reason why the pod cannot become ready, or empty.
	Problem string
}

// Dead says that nothing can run in the pod any more, so that it is never handed out.
func (p *Pod) Dead() bool { return p.Terminating || p.Finished }

// Ended says that the pod's containers have finished by themselves. A sandbox that has
// ended is not lost: it keeps its shard and its pod until it is released.
func (p *Pod) Ended() bool { return p.Finished && !p.Disrupted && !p.Terminating }

// Lost says that the pod was taken away from whoever holds it: it was deleted or
// evicted, or its node went. A sandbox that is lost is replaced.
func (p *Pod) Lost() bool { return p.Terminating || p.Disrupted }

// Hooks are told what changed. They are called without a lock held and must not block.
type Hooks struct {
	// Pool: the pods or the demand of a pool changed.
	Pool func(Key)
	// Owner: a pod that the owner holds changed, pods it waits for are there, or the
	// pool that it waits for begins or ceases to hand pods out; of one that names no pool also
	// that it may be better off with another one.
	Owner func(types.NamespacedName)
}

// Ledger is the set of all pools. Its methods are safe for concurrent use.
type Ledger struct {
	hooks Hooks

	// mapsMu guards what follows. It may be taken while a pool is locked, never the
	// other way round.
	mapsMu sync.Mutex
	pools  map[Key]*pool
	owners map[types.NamespacedName]map[types.UID]Key
	// offers are the pools that owners which name none may take from.
	offers map[types.UID]map[Key]struct{}
}

// New returns an empty ledger.
func New(hooks Hooks) *Ledger {
	return &Ledger{
		hooks:  hooks,
		pools:  map[Key]*pool{},
		owners: map[types.NamespacedName]map[types.UID]Key{},
		offers: map[types.UID]map[Key]struct{}{},
	}
}

// with runs fn on the pool under its lock, then calls the hooks for what has changed.
func (l *Ledger) with(key Key, fn func(*pool)) {
	p := l.lock(key)
	before := p.outlook()
	fn(p)
	p.wakeServed(p.spare() - before.spare)
	p.wakeChoosing(before)
	changed, woken := p.takeWakes()
	if changed {
		p.snapshot = nil
	}
	if p.unused() {
		l.mapsMu.Lock()
		delete(l.pools, key)
		l.mapsMu.Unlock()
		p.removed = true
	}
	p.mu.Unlock()

	if changed && l.hooks.Pool != nil {
		l.hooks.Pool(key)
	}
	if l.hooks.Owner != nil {
		for owner := range woken {
			l.hooks.Owner(owner)
		}
	}
}

// lock returns the pool, made anew where there is none, with its lock held.
func (l *Ledger) lock(key Key) *pool {
	for {
		l.mapsMu.Lock()
		p := l.pools[key]
		if p == nil {
			p = newPool(key)
			l.pools[key] = p
		}
		l.mapsMu.Unlock()
		p.mu.Lock()
		if !p.removed {
			return p
		}
		p.mu.Unlock() // it left the map in between
	}
}

// SetPool tells which Pool object stands behind key: its UID, the revision of its
// current template and whether it hands pods out. An empty uid says that there is none.
func (l *Ledger) SetPool(key Key, uid types.UID, revision string, handsOut bool) {
	l.with(key, func(p *pool) {
		if p.uid == uid && p.revision == revision && p.handsOut == handsOut {
			return
		}
		wasOpen := p.open()
		p.uid, p.revision, p.handsOut = uid, revision, handsOut
		p.requeueAll()
		if p.open() != wasOpen {
			p.wakeAllWaiting()
		}
		p.changed = true
	})
}

// OwnerRef is where the ledger knows an owner from.
type OwnerRef struct {
	Pool Key
	UID  types.UID
}

// Lookup returns the owners of that name that the ledger knows: more than one when
// a BatchSandbox was deleted and made anew.
func (l *Ledger) Lookup(name types.NamespacedName) []OwnerRef {
	l.mapsMu.Lock()
	defer l.mapsMu.Unlock()
	var refs []OwnerRef
	for uid, key := range l.owners[name] {
		refs = append(refs, OwnerRef{Pool: key, UID: uid})
	}
	return refs
}

func (l *Ledger) know(key Key, owner Owner) {
	l.mapsMu.Lock()
	defer l.mapsMu.Unlock()
	byUID := l.owners[owner.NamespacedName]
	if byUID == nil {
		byUID = map[types.UID]Key{}
		l.owners[owner.NamespacedName] = byUID
	}
	byUID[owner.UID] = key
}

// ForgetOwner ends what is known of an owner whose object is gone or can go now: its
// demand, and what was set aside because its annotations could not be read, which is
// retired. It reports false, and keeps the owner, while pods are still held or being
// released.
//
// Delete the pods that are set aside (PodsSetAside) before the object goes: after
// that nothing names them any more, and a leader that starts anew would hand them out.
func (l *Ledger) ForgetOwner(key Key, owner Owner) bool {
	done := true
	l.with(key, func(p *pool) {
		p.setDemand(owner, 0, 0)
		h := p.holders[owner.UID]
		if h == nil {
			return
		}
		p.setReadable(h)
		if done = h.empty(); done {
			delete(p.holders, owner.UID)
		}
	})
	if !done {
		return false
	}
	l.Consider(owner, Choice{})
	l.mapsMu.Lock()
	defer l.mapsMu.Unlock()
	delete(l.owners[owner.NamespacedName], owner.UID)
	if len(l.owners[owner.NamespacedName]) == 0 {
		delete(l.owners, owner.NamespacedName)
	}
	return true
}
