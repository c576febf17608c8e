package ledger

import "k8s.io/apimachinery/pkg/types"

// Offer is a Pool that an owner may take from which names none.
type Offer struct {
	Pool Key
	// PoolMax is how many pods it may have.
	PoolMax int
}

// Choice is what an owner asks for that names no pool.
type Choice struct {
	Want int
	// Asked is the pool that it waits for, one of the Offers. Served says that this one has
	// all of the pods, or can make them.
	Asked  Key
	Served bool
	Offers []Offer
}

// Consider has an owner that names no pool woken when it should choose again: pods are
// available in another pool, another one can make them and the one that it asks cannot, or it
// has lost its prospects there. It says whether that is news: nobody was woken by what has
// changed since the owner has chosen, and it should look once more. Call it at the end of each
// choice: what the owner has not taken is offered to the next one. Without offers it is woken
// for none.
func (l *Ledger) Consider(owner Owner, c Choice) bool {
	l.mapsMu.Lock()
	before := l.offers[owner.UID]
	now := make(map[Key]struct{}, len(c.Offers))
	for _, o := range c.Offers {
		now[o.Pool] = struct{}{}
	}
	l.offers[owner.UID] = now
	if len(c.Offers) == 0 {
		delete(l.offers, owner.UID)
	}
	l.mapsMu.Unlock()
	news := false
	for key := range before {
		if _, still := now[key]; !still {
			l.with(key, func(p *pool) { p.consider(owner, 0, 0, false) })
			news = true
		}
	}
	unserved := c.Want
	if c.Served {
		unserved = 0
	}
	for _, o := range c.Offers {
		l.with(o.Pool, func(p *pool) {
			changed := p.choosing.poolMax != o.PoolMax
			p.choosing.poolMax = o.PoolMax
			if o.Pool == c.Asked {
				changed = p.consider(owner, 0, 0, true) || changed
			} else {
				changed = p.consider(owner, c.Want, unserved, false) || changed
			}
			news = news || changed
		})
	}
	return news
}

// choosing is what a pool knows of the owners that name no pool and may take from it.
type choosing struct {
	poolMax int
	// here are those that wait for this pool.
	here map[types.UID]struct{}
	// pods is offered to those that wait for another pool, and growth to those of them whom
	// that one cannot serve.
	pods, growth offering
}

func newChoosing() choosing {
	return choosing{here: map[types.UID]struct{}{}, pods: newOffering(), growth: newOffering()}
}

func (c *choosing) empty() bool { return len(c.here) == 0 && c.pods.queue.total() == 0 }

// consider notes how many pods, and how many pods that are to be made, are offered to the owner,
// which asks this pool or another one, and says whether that is news.
func (p *pool) consider(owner Owner, pods, growth int, asks bool) bool {
	c := &p.choosing
	_, asked := c.here[owner.UID]
	if asks {
		c.here[owner.UID] = struct{}{}
	} else {
		delete(c.here, owner.UID)
	}
	changed := c.pods.set(owner, pods, p.wake)
	return c.growth.set(owner, growth, p.wake) || changed || asks != asked
}

// offering is what a pool has for owners that ask another one. It is offered to the oldest, to
// as many as it is enough for, and what one of them leaves to the next one.
type offering struct {
	queue queue
	// open are the owners who were woken and have not answered yet.
	open map[types.UID]struct{}
}

func newOffering() offering { return offering{queue: newQueue(), open: map[types.UID]struct{}{}} }

// rise offers what has come to be there.
func (f *offering) rise(was, is int, wake func(Owner)) {
	if is > was {
		f.queue.between(was, is, func(o Owner) { f.offer(o, wake) })
	}
}

func (f *offering) offer(o Owner, wake func(Owner)) {
	f.open[o.UID] = struct{}{}
	wake(o)
}

// set notes how many the owner would take, and with that its answer to what it was offered.
func (f *offering) set(owner Owner, count int, wake func(Owner)) bool {
	if _, open := f.open[owner.UID]; open {
		delete(f.open, owner.UID)
		if next := f.queue.after(owner.UID); next != nil {
			f.offer(next.owner, wake)
		}
	}
	return f.queue.set(owner, count, 0)
}

// outlook is what those who wait can hope for from a pool: spare is how many pods are available
// beyond what they wait for, and room how many will be once the pool is as large as it may be.
type outlook struct{ spare, room int }

func (p *pool) outlook() outlook { return outlook{p.spare(), p.reach() - p.waiting.total()} }

// reach is how many pods those who wait can be given until the pool is as large as it may be.
func (p *pool) reach() int { return later(p.coming, p.live, p.failing, p.choosing.poolMax) }

// wakeChoosing wakes owners that name no pool, for what there is more of than before, and those
// who ask this pool and have no prospects here any more, because older ones have come or pods
// are gone.
func (p *pool) wakeChoosing(before outlook) {
	now := p.outlook()
	if !p.open() || p.choosing.empty() {
		return
	}
	p.choosing.pods.rise(max(0, before.spare), max(0, now.spare), p.wake)
	p.choosing.growth.rise(max(0, before.room), max(0, now.room), p.wake)
	if less := before.room - now.room; less > 0 {
		p.waiting.between(p.reach(), p.reach()+less, func(o Owner) {
			if _, chooses := p.choosing.here[o.UID]; chooses {
				p.wake(o)
			}
		})
	}
}
