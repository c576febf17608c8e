package batchsandbox

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/ledger"
)

const (
	// topUpInterval is the least time between two writes of a batch that fills while
	// its pool still grows.
	topUpInterval = 250 * time.Millisecond
	// topUpBytesPerSecond bounds how fast an object is written over and over.
	topUpBytesPerSecond = 100_000
)

// object is one BatchSandbox during one reconcile.
type object struct {
	*memo
	// bs is the newest version that is known. It may be the cache's own: nobody changes it.
	bs    *v1alpha1.BatchSandbox
	pool  ledger.Key
	owner ledger.Owner
}

// objectOf returns the object for the cached version.
func objectOf(m *memo, cached *v1alpha1.BatchSandbox) *object {
	bs := m.newest.Of(cached)
	o := &object{memo: m, bs: bs, pool: allocation.PoolOf(bs), owner: allocation.OwnerOf(bs)}
	if m.chosen != "" {
		o.pool.Name = m.chosen
	}
	return o
}

// choosesPool says that the object names no pool yet and has one chosen.
func (o *object) choosesPool() bool { return o.bs.Spec.PoolRef == v1alpha1.AnyPool }

// choosePool has the object ask that pool.
func (o *object) choosePool(name string) {
	o.chosen, o.pool.Name = name, name
}

// take goes on with the version that the API server has answered.
func (o *object) take(answer *v1alpha1.BatchSandbox) {
	o.newest.Note(answer)
	o.bs = answer
}

// annotationsOf returns what the annotations are to say of an allocation. The ledger
// returns the same slices until something of it changes, and so what was formatted last
// is good for as long: to write down 5,000 sandboxes takes milliseconds.
func (o *object) annotationsOf(held *ledger.Allocation) allocation.Annotations {
	if last := o.formatted; last == nil || !same(last.held.Held, held.Held) || !same(last.held.Releasing, held.Releasing) {
		o.formatted = &formatted{held: *held, annotations: allocation.Format(o.pool.Name, held.Held, names(held.Releasing))}
	}
	return o.formatted.annotations
}

func same(a, b []ledger.HeldPod) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// tooSoon returns how long to wait before the annotations are written again for a part
// of what is missing.
func (o *object) tooSoon(now time.Time) time.Duration {
	if o.allocationWritten.IsZero() {
		return 0
	}
	return max(0, o.allocationWritten.Add(writeInterval(sizeOf(o.bs))).Sub(now))
}

// sizeOf returns about how many bytes of the object grow with its replicas.
func sizeOf(bs *v1alpha1.BatchSandbox) int {
	size := 0
	for key, value := range bs.Annotations {
		size += len(key) + len(value)
	}
	return size
}

// writeInterval is the least time between two writes of an object of so many bytes.
func writeInterval(size int) time.Duration {
	return max(topUpInterval, time.Duration(size)*time.Second/topUpBytesPerSecond)
}

// memo is what this process remembers of one BatchSandbox between reconciles. The
// work queue never reconciles one object twice at a time, so it needs no lock. It
// may be lost at any time without harm to allocations: the annotations and the
// ledger hold those.
type memo struct {
	uid    types.UID
	newest apiwrite.Newest[*v1alpha1.BatchSandbox]
	// unclear is an allocation write of which it is not known whether it was done.
	unclear *allocationWrite
	// chosen is the pool that an object asks which names none, or named none until now; else empty.
	chosen string
	// allocationWritten is when the annotations were last written.
	allocationWritten time.Time
	status            statusMemo
	shards            shardMemo
	deleted           deletions
	// formatted is what was last written down of what is held.
	formatted *formatted
	// recyclingSince is when pods that are not clean yet were first recycled.
	recyclingSince time.Time
}

// formatted is an allocation and what the annotations say of it.
type formatted struct {
	held        ledger.Allocation
	annotations allocation.Annotations
}

// memory holds the memos. The zero value is ready to use.
type memory struct {
	mu    sync.Mutex // guards memos
	memos map[types.NamespacedName]*memo
}

// of returns the memo of an object; one of an earlier object of that name is dropped.
func (m *memory) of(name types.NamespacedName, uid types.UID) *memo {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memos == nil {
		m.memos = map[types.NamespacedName]*memo{}
	}
	if found := m.memos[name]; found != nil && found.uid == uid {
		return found
	}
	made := &memo{uid: uid, shards: newShardMemo()}
	m.memos[name] = made
	return made
}

func (m *memory) forget(name types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.memos, name)
}
