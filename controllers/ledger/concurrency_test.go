package ledger

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Owners, the pod feed and the pool work at the same time, on pools that come and
// go; no pod is granted to two of them. It is for the race detector above all.
func TestConcurrentUse(t *testing.T) {
	l := New(Hooks{})
	keys := []Key{{Namespace: "ns", Name: "a"}, {Namespace: "ns", Name: "b"}}
	var taken sync.Map
	var work sync.WaitGroup
	for g := range 8 {
		work.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(g), 0))
			owner := box(fmt.Sprint("x", g), g)
			for range 2000 {
				key, name := keys[dice.IntN(len(keys))], fmt.Sprint("p", dice.IntN(20))
				switch dice.IntN(6) {
				case 0:
					l.SetPool(key, "pool-uid", "r1", true)
				case 1:
					l.Observe(key, ready(name))
				case 2:
					l.Retire(key, []string{name})
					l.ObserveGone(key, name, "")
				case 3:
					l.SetPool(key, "", "", false)
				default:
					l.claimAndGiveBack(t, key, owner, &taken)
				}
			}
			for _, key := range keys {
				assert.True(t, l.ForgetOwner(key, owner))
			}
		})
	}
	work.Wait()
	for _, key := range keys {
		for i := range 20 {
			l.ObserveGone(key, fmt.Sprint("p", i), "")
		}
		l.SetPool(key, "", "", false)
	}
	require.Empty(t, l.pools)
	require.Empty(t, l.owners)
}

func (l *Ledger) claimAndGiveBack(t *testing.T, key Key, owner Owner, taken *sync.Map) {
	var names []string
	for _, g := range l.Claim(key, owner, shards(3)) {
		names = append(names, g.Pod.Name)
		if other, twice := taken.LoadOrStore(key.Name+g.Pod.Name, owner.Name); twice {
			t.Errorf("%s is granted to %s and to %v", g.Pod.Name, owner.Name, other)
		}
	}
	l.Snapshot(key)
	l.Allocation(key, owner.UID)
	for _, name := range names {
		taken.Delete(key.Name + name)
	}
	l.Unclaim(key, owner, names)
}
