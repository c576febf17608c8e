package ledger

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
)

var (
	poolKey = Key{Namespace: "ns", Name: "pool"}
	epoch   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// book is a ledger and what its hooks were told since the last call of wakes.
type book struct {
	*Ledger
	t      *testing.T
	mu     sync.Mutex // guards what follows
	pools  int
	owners []string
}

// newBook returns a ledger with one pool that hands pods out and holds the named ready pods.
func newBook(t *testing.T, pods ...string) *book {
	b := &book{t: t}
	b.Ledger = New(Hooks{
		Pool: func(Key) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.pools++
		},
		Owner: func(o types.NamespacedName) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.owners = append(b.owners, o.Name)
		},
	})
	b.SetPool(poolKey, "pool-uid", "r1", true)
	for _, name := range pods {
		b.Observe(poolKey, ready(name))
	}
	b.wakes()
	return b
}

// wakes returns the owners woken since the last call, sorted.
func (b *book) wakes() []string {
	woken := b.owners
	b.pools, b.owners = 0, nil
	slices.Sort(woken)
	return slices.Compact(woken)
}

// ready is a pod of the pool that can be handed out.
func ready(name string) Pod {
	return Pod{Name: name, UID: types.UID("uid-" + name), PoolUID: "pool-uid", Revision: "r1", Created: epoch, IP: "10.0.0.1", Ready: true}
}

func with(p Pod, change func(*Pod)) Pod {
	change(&p)
	return p
}

func seen(name, uid string) Pod {
	return with(ready(name), func(p *Pod) { p.UID = types.UID(uid) })
}

// box is an owner that was created at second age.
func box(name string, age int) Owner {
	return Owner{
		NamespacedName: types.NamespacedName{Namespace: "ns", Name: name},
		UID:            types.UID("uid-" + name),
		Created:        epoch.Add(time.Duration(age) * time.Second),
	}
}

func shards(n int) []int32 {
	s := make([]int32, n)
	for i := range s {
		s[i] = int32(i)
	}
	return s
}

// claim returns the names of the pods that the owner gets for n shards.
func (b *book) claim(owner Owner, n int) []string {
	var names []string
	for _, g := range b.Claim(poolKey, owner, shards(n)) {
		names = append(names, g.Pod.Name)
	}
	return names
}

// states returns the pool as "name state" lines, sorted; a gone pod is marked.
func (b *book) states() []string {
	names := map[State]string{Creating: "Creating", Idle: "Idle", Held: "Held", Releasing: "Releasing", Retiring: "Retiring", SetAside: "SetAside"}
	var lines []string
	for _, p := range b.Snapshot(poolKey).Pods {
		line := fmt.Sprintf("%s %s", p.Name, names[p.State])
		if p.Gone {
			line += " gone"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// holds returns what the owner holds as "shard name" lines, then what it releases.
func (b *book) holds(owner Owner) []string {
	a := b.Allocation(poolKey, owner.UID)
	var lines []string
	for _, h := range a.Held {
		line := fmt.Sprintf("%d %s", h.Shard, h.Name)
		if h.Gone {
			line += " gone"
		}
		lines = append(lines, line)
	}
	for _, h := range a.Releasing {
		lines = append(lines, "releasing "+h.Name)
	}
	slices.Sort(lines)
	return lines
}

// check fails the test when the pool's counters and queues do not agree with its pods.
func (b *book) check() {
	b.t.Helper()
	for key, p := range b.Ledger.pools {
		require.NoError(b.t, p.audit(), "pool %s", key)
	}
}

// audit compares what is derived from the pods with the pods: the queues, the holders'
// lists, the counters and what Snapshot and Allocation show.
func (p *pool) audit() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cmp.Or(p.auditQueues(), p.auditHolders(), p.auditShown(), p.waiting.audit(), p.choosing.pods.queue.audit(), p.choosing.growth.queue.audit())
}

func (p *pool) auditQueues() error {
	queued := map[*entry]int{}
	for _, t := range slices.Concat(p.current, p.outdated) {
		if !t.stale() {
			queued[t.entry]++
		}
	}
	claimable := 0
	for name, e := range p.pods {
		if e.Name != name {
			return fmt.Errorf("entry %s stands under the name %s", e.Name, name)
		}
		want := 0
		if p.claimable(e) {
			want = 1
		}
		claimable += want
		if queued[e] != want || e.queued != (want == 1) {
			return fmt.Errorf("pod %s: claimable %d, in the queues %d times, queued %v", name, want, queued[e], e.queued)
		}
	}
	if p.available != claimable || len(queued) != claimable {
		return fmt.Errorf("available %d, in the queues %d, want %d", p.available, len(queued), claimable)
	}
	return nil
}

func (p *pool) auditHolders() error {
	withHolder, listed, unreadable := 0, 0, 0
	for name, e := range p.pods {
		l := e.holding()
		if l == nil {
			continue
		}
		withHolder++
		if p.holders[l.holder.owner.UID] != l.holder {
			return fmt.Errorf("pod %s has a holder that the pool does not know", name)
		}
	}
	for uid, h := range p.holders {
		listed += len(h.held) + len(h.releasing)
		for _, e := range h.held {
			if p.pods[e.Name] != e || h.holds(e) == nil {
				return fmt.Errorf("holder %s lists %s as held, which is %+v", uid, e.Name, e)
			}
		}
		for _, e := range h.releasing {
			if p.pods[e.Name] != e || h.releases(e) == nil {
				return fmt.Errorf("holder %s lists %s as being released, which is %+v", uid, e.Name, e)
			}
		}
		if h.unreadable {
			unreadable++
		}
		if kept := h.shown; kept != nil {
			h.shown = nil
			if fresh := h.allocation(); !reflect.DeepEqual(*kept, fresh) {
				return fmt.Errorf("allocation of %s is out of date: got %+v, want %+v", uid, *kept, fresh)
			}
		}
	}
	if withHolder != listed || p.unreadable != unreadable {
		return fmt.Errorf("%d pods in the lists of holders, want %d; unreadable %d, want %d", listed, withHolder, p.unreadable, unreadable)
	}
	return nil
}

func (p *pool) auditShown() error {
	if len(p.shown) != len(p.pods) {
		return fmt.Errorf("%d pods are shown, want %d", len(p.shown), len(p.pods))
	}
	for name, e := range p.pods {
		if p.shown[e.index] != e.podState() {
			return fmt.Errorf("pod %s is shown as %+v, want %+v", name, p.shown[e.index], e.podState())
		}
	}
	live, coming, failing := 0, 0, 0
	for i := range p.shown {
		if s := &p.shown[i]; s.Live() {
			live++
			if s.coming() {
				coming++
			}
			if s.failing() {
				failing++
			}
		}
	}
	if p.live != live || p.coming != coming || p.failing != failing {
		return fmt.Errorf("%d pods are live, %d coming and %d failing, want %d, %d and %d", p.live, p.coming, p.failing, live, coming, failing)
	}
	if kept := p.snapshot; kept != nil {
		if fresh := p.takeSnapshot(); !reflect.DeepEqual(*kept, *fresh) {
			return fmt.Errorf("the snapshot is out of date: got %+v, want %+v", *kept, *fresh)
		}
	}
	return nil
}
