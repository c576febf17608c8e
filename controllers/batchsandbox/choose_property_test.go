package batchsandbox

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/opensandbox/operator/controllers/ledger"
)

// market has owners choose among pools, by the real choice and the real ledger. Only those
// whom the ledger wakes choose again.
type market struct {
	*ledger.Ledger
	t      *rapid.T
	most   map[ledger.Key]int
	keys   []ledger.Key
	owners []*chooser
	woken  map[types.NamespacedName]bool
	pods   int
}

type chooser struct {
	ledger.Owner
	want  int
	least int
	asked ledger.Key // none: it has never chosen
	named bool       // it goes by the name of the pool
	left  int        // that it still waits for
}

func newMarket(t *rapid.T) *market {
	m := &market{t: t, most: map[ledger.Key]int{}, woken: map[types.NamespacedName]bool{}}
	m.Ledger = ledger.New(ledger.Hooks{Owner: func(name types.NamespacedName) { m.woken[name] = true }})
	for i := range 3 {
		key := ledger.Key{Namespace: "ns", Name: fmt.Sprint("pool", i)}
		m.keys, m.most[key] = append(m.keys, key), rapid.IntRange(0, 6).Draw(t, "most")
		m.SetPool(key, "pool-uid", "r1", true)
	}
	return m
}

func (m *market) candidates(c *chooser) []candidate {
	var list []candidate
	for _, key := range m.keys {
		list = append(list, candidate{name: key.Name, room: m.Room(key, c.Owner), poolMax: m.most[key]})
	}
	return list
}

// look is what a reconcile does.
func (m *market) look(c *chooser) {
	for again := true; again && c.left > 0; {
		choice := ledger.Choice{}
		if !c.named {
			best, _ := choose(m.candidates(c), c.want, c.least)
			asked := ledger.Key{Namespace: "ns", Name: best.name}
			if c.asked != asked && c.asked.Name != "" {
				m.ForgetOwner(c.asked, c.Owner)
			}
			c.asked = asked
			choice = ledger.Choice{Want: c.want, Asked: asked, Served: best.prospect(c.want, c.least) <= allLater}
			for _, key := range m.keys {
				choice.Offers = append(choice.Offers, ledger.Offer{Pool: key, PoolMax: m.most[key]})
			}
		}
		least := c.least
		if c.named {
			least = 0
		}
		m.SetGangDemand(c.asked, c.Owner, c.left, least)
		if grants := m.Claim(c.asked, c.Owner, make([]int32, c.left)); len(grants) > 0 {
			c.left -= len(grants)
			c.named, choice = true, ledger.Choice{}
		}
		again = m.Consider(c.Owner, choice) && !c.named
	}
}

func (m *market) rest() {
	for rounds := 0; len(m.woken) > 0; rounds++ {
		if rounds > 1000 {
			m.t.Fatal("they choose again and again")
		}
		now := m.woken
		m.woken = map[types.NamespacedName]bool{}
		for _, c := range m.owners { // the order in which they come must not matter
			if now[c.NamespacedName] {
				m.look(c)
			}
		}
	}
}

func (m *market) enter() {
	name := types.NamespacedName{Namespace: "ns", Name: fmt.Sprint("x", len(m.owners))}
	age := rapid.IntRange(0, 20).Draw(m.t, "age")
	c := &chooser{Owner: ledger.Owner{NamespacedName: name, UID: types.UID(name.Name), Created: now.Add(time.Duration(age) * time.Second)}}
	c.want = rapid.IntRange(1, 4).Draw(m.t, "want")
	c.left = c.want
	c.least = rapid.SampledFrom([]int{0, 0, c.want}).Draw(m.t, "least")
	if c.named = rapid.IntRange(0, 3).Draw(m.t, "by name") == 0; c.named {
		c.asked, c.least = rapid.SampledFrom(m.keys).Draw(m.t, "pool"), 0
	}
	m.owners = append(m.owners, c)
	m.look(c)
}

// leave gives back what an owner holds and ends it.
func (m *market) leave() {
	if len(m.owners) == 0 {
		return
	}
	c := m.owners[rapid.IntRange(0, len(m.owners)-1).Draw(m.t, "owner")]
	if c.asked.Name == "" {
		return
	}
	c.left = 0
	m.SetDemand(c.asked, c.Owner, 0)
	var names []string
	for _, h := range m.Allocation(c.asked, c.UID).Held {
		names = append(names, h.Name)
	}
	m.BeginRelease(c.asked, c.UID, names)
	m.EndRelease(c.asked, c.UID, names)
	m.ForgetOwner(c.asked, c.Owner)
	for _, name := range names {
		m.ObserveGone(c.asked, name, "")
	}
}

// pod has something happen to a pod of a pool.
func (m *market) pod() {
	key := rapid.SampledFrom(m.keys).Draw(m.t, "pool")
	pods := m.Snapshot(key).Pods
	if rapid.Bool().Draw(m.t, "new") {
		live := 0
		for i := range pods {
			if pods[i].Live() {
				live++
			}
		}
		if live < m.most[key] {
			m.pods++
			pod := facts(fmt.Sprint("p", m.pods))
			pod.Ready = rapid.Bool().Draw(m.t, "ready")
			m.BeginCreate(key, []string{pod.Name})
			m.Observe(key, pod)
		}
		return
	}
	for i := range pods {
		if pods[i].State != ledger.Idle {
			continue
		}
		pod := pods[i].Pod
		switch rapid.IntRange(0, 2).Draw(m.t, "what") {
		case 0:
			m.Retire(key, []string{pod.Name})
			m.ObserveGone(key, pod.Name, pod.UID)
		case 1:
			pod.Ready, pod.Problem = false, "ErrImagePull"
			m.Observe(key, pod)
		default:
			pod.Ready, pod.Problem = true, ""
			m.Observe(key, pod)
		}
		return
	}
}

// Nothing but the ledger wakes those who have not found their pool: no pod may stand idle that
// one of them would take, and nobody may wait for a pool that cannot serve it while another can.
func TestNobodyWhoNamesNoPoolIsForgotten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMarket(t)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				m.enter()
			case 1:
				m.leave()
			default:
				m.pod()
			}
			m.rest()
			for _, c := range m.owners {
				if c.left == 0 || c.named {
					continue
				}
				is := allNow
				for _, candidate := range m.candidates(c) {
					if candidate.name == c.asked.Name {
						is = candidate.prospect(c.want, c.least)
					}
				}
				best, _ := choose(m.candidates(c), c.want, c.least)
				can := best.prospect(c.want, c.least)
				if can == allNow || is > allLater && can <= allLater {
					t.Fatalf("%s, which wants %d, asks %s (%d) though %s is better (%d)", c.UID, c.want, c.asked.Name, is, best.name, can)
				}
			}
		}
	})
}
