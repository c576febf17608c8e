package batchsandbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// pooled brings BatchSandboxes that take from a pool to what they ask for.
type pooled struct {
	ledger   *ledger.Ledger
	client   client.Reader
	claims   *claims
	releases *releases
	events   announcer
	clock    clock.PassiveClock
	executor func() *podtemplate.Executor
}

// reconcile returns what is to be seen of the BatchSandbox and when to come back.
func (p *pooled) reconcile(ctx context.Context, o *object) (*view, time.Duration, error) {
	if err := p.claims.resolve(ctx, o); err != nil {
		why := &blocked{v1alpha1.ReasonAllocationRefused, err.Error()}
		if o.unclear != nil {
			// Each has a message of its own, so that there is always a status to write,
			// which settles it.
			why.message += " (since " + o.unclear.since.UTC().Format(time.RFC3339) + ")"
		}
		return viewPooled(p.claims.allocation(o).Held, why), 0, err
	}
	p.goByName(o)
	held, why := p.read(o)
	if why != nil {
		return viewPooled(held.Held, why), 0, nil
	}
	p.noteForeignEdit(o, &held)
	choice := ledger.Choice{}
	if o.choosesPool() && o.bs.DesiredReplicas() > 0 {
		var err error
		if choice, why, err = p.choosePool(ctx, o); why != nil || err != nil {
			return viewPooled(nil, why), 0, err
		}
	}
	again, why, err := p.allocate(ctx, o, &held)
	if p.considerOthers(o, choice) {
		again = afterPass
	}
	if err == nil {
		var later time.Duration
		later, err = p.releases.finish(ctx, o, &held)
		again = soonest(again, later)
	}
	return viewPooled(held.Held, why), again, err
}

// goByName ends the choice of a pool once spec.poolRef names one: the chosen one, by the claim,
// or another, by a user, and then nothing is asked of the chosen one any more. An unclear claim
// must be settled before: its pods are the chosen pool's.
func (p *pooled) goByName(o *object) {
	if o.chosen == "" || o.choosesPool() {
		return
	}
	if o.chosen != o.bs.Spec.PoolRef {
		p.ledger.ForgetOwner(o.pool, o.owner)
	}
	o.chosen, o.pool.Name = "", o.bs.Spec.PoolRef
}

// choosePool has the object ask the pool of its namespace that fits it best, from the cache
// and the ledger alone.
func (p *pooled) choosePool(ctx context.Context, o *object) (ledger.Choice, *blocked, error) {
	var pools v1alpha1.PoolList
	if err := p.client.List(ctx, &pools, client.InNamespace(o.bs.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return ledger.Choice{}, nil, fmt.Errorf("listing the pools to choose from: %w", err)
	}
	executor := p.executor()
	candidates := make([]candidate, len(pools.Items))
	choice := ledger.Choice{Want: int(o.bs.DesiredReplicas())}
	for i := range pools.Items {
		pool := &pools.Items[i]
		c := &candidates[i]
		*c = candidate{name: pool.Name, lacks: lacks(o.bs, pool, executor), poolMax: int(pool.Spec.CapacitySpec.PoolMax), stuck: stuck(pool)}
		if c.lacks == "" {
			key := client.ObjectKeyFromObject(pool)
			c.room = p.ledger.Room(key, o.owner)
			choice.Offers = append(choice.Offers, ledger.Offer{Pool: key, PoolMax: c.growsTo()})
		}
	}
	least, name := o.bs.LeastAtOnce(), v1alpha1.AnyPool
	best, why := choose(candidates, choice.Want, least)
	if best != nil {
		name, choice.Served = best.name, best.prospect(choice.Want, least) <= allLater
	}
	if name != o.chosen && o.chosen != "" {
		p.ledger.ForgetOwner(o.pool, o.owner) // it holds nothing there yet
	}
	o.choosePool(name)
	choice.Asked = o.pool
	return choice, why, nil
}

// considerOthers has an object that waits for the chosen pool woken when it may be better off
// with another one, and no more once it waits no more. It says whether to choose once more.
func (p *pooled) considerOthers(o *object, choice ledger.Choice) bool {
	if o.chosen == "" {
		return false
	}
	if !o.choosesPool() {
		choice = ledger.Choice{}
	}
	return p.ledger.Consider(o.owner, choice) && len(choice.Offers) > 0
}

// read returns what the BatchSandbox holds. One that is set aside is taken in again when
// its annotations have become readable; until then there is nothing to be done.
func (p *pooled) read(o *object) (ledger.Allocation, *blocked) {
	held := p.claims.allocation(o)
	if !held.Unreadable {
		return held, nil
	}
	record, err := allocation.RecordOf(o.bs)
	if err != nil {
		return held, &blocked{v1alpha1.ReasonAllocationUnreadable, err.Error()}
	}
	for _, pod := range p.ledger.Settle(record) {
		p.events.doubleAllocation(o.bs, pod)
	}
	return p.claims.allocation(o), nil
}

// noteForeignEdit tells the user that an annotation of the operator was changed by
// someone else: the ledger is the truth, and allocate writes it back.
func (p *pooled) noteForeignEdit(o *object, held *ledger.Allocation) {
	want, is := o.annotationsOf(held), allocation.Of(o.bs)
	if want.Release == is.Release && (want.Status == is.Status || is.Status == allocation.Format("", held.Held, nil).Status) {
		return // as it is, or as a version of the operator wrote it that did not name the pool
	}
	p.events.restored(o.bs)
	for _, pod := range p.disputed(o, held) {
		p.events.doubleAllocation(o.bs, pod)
	}
}

// disputed returns the pods that the annotations name and that another BatchSandbox
// holds, as a write of the last leader that came too late may leave behind.
func (p *pooled) disputed(o *object, held *ledger.Allocation) []string {
	record, err := allocation.RecordOf(o.bs)
	if err != nil {
		return nil
	}
	own := append(names(held.Held), names(held.Releasing)...)
	var found []string
	for _, pod := range p.ledger.Snapshot(o.pool).Pods {
		taken := pod.State == ledger.Held || pod.State == ledger.Releasing
		if taken && slices.Contains(record.Pods, pod.Name) && !slices.Contains(own, pod.Name) {
			found = append(found, pod.Name)
		}
	}
	return found
}

// allocate brings what is held to what is asked for with at most one write, and held up
// to date with it. It returns when to come back for more, and what stands in the way.
func (p *pooled) allocate(ctx context.Context, o *object, held *ledger.Allocation) (time.Duration, *blocked, error) {
	plan := planPooled(held.Held, o.bs.DesiredReplicas(), shardtask.Released(o.bs))
	if err := p.releases.deleteLost(ctx, o, plan.lost); err != nil {
		again, err := unlessUnfinished(err)
		return again, nil, err
	}
	var to change
	next := held.Held
	if plan.settled() {
		to = change{annotations: o.annotationsOf(held), holds: len(held.Held)+len(held.Releasing) > 0}
	} else {
		to, next = plan.change(o.pool.Name, nil, held.Releasing)
	}
	ask, never := fit(o.bs, o.pool.Name, &plan, to.annotations)
	least := 0
	if held.Empty() {
		least = min(o.bs.LeastAtOnce(), len(plan.empty))
	}
	if small := p.poolTooSmall(ctx, o, least); small != nil && never == nil {
		ask, never = 0, small
	}
	grants, again := p.claim(o, &plan, ask, least)
	missing := len(plan.empty) - len(grants)
	if len(grants) > 0 {
		to, next = plan.change(o.pool.Name, grants, held.Releasing)
		if size := sizeWhenFull(o.bs, o.pool.Name, next, to.annotations, missing, longestIPOf(next)); size > allocation.MaxAnnotationBytes {
			p.claims.undo(o, to.claimed)
			return again, allocationTooLarge(o.bs, o.pool.Name, size), nil
		}
	}
	if wait := o.tooSoon(p.clock.Now()); wait > 0 && onlyAddressesChange(o.bs, &to) {
		return soonest(again, wait), p.whyMissing(ctx, o, missing), nil
	}
	if err := p.claims.write(ctx, o, to); err != nil {
		why, err := whyNotWritten(o.bs, to.annotations, err)
		return again, why, err
	}
	held.Held, held.Releasing = next, slices.Concat(held.Releasing, plan.surplus)
	if len(plan.lost) > 0 {
		p.events.lost(o.bs, names(plan.lost))
	}
	if never != nil {
		return again, never, nil
	}
	return again, p.whyMissing(ctx, o, missing), nil
}

// claim takes pods for the empty shards, at least so many or none. Where only a part of them
// is to be had, it waits until the object may be written again and returns when that is.
func (p *pooled) claim(o *object, plan *pooledPlan, ask, least int) (grants []ledger.Grant, again time.Duration) {
	if ask > 0 && least > 0 {
		ask = len(plan.empty) // one alone, to learn how long its address is, is not to be had
	}
	share := p.ledger.SetGangDemand(o.pool, o.owner, ask, least)
	if share == 0 {
		return nil, 0
	}
	if wait := o.tooSoon(p.clock.Now()); wait > 0 && share < len(plan.empty) && plan.settled() {
		return nil, wait
	}
	return p.ledger.Claim(o.pool, o.owner, plan.empty), 0
}

// onlyAddressesChange says that sandboxes have ended and nothing else is to be written:
// with thousands of them, that is not one write for each.
func onlyAddressesChange(bs *v1alpha1.BatchSandbox, to *change) bool {
	is := allocation.Of(bs)
	return len(to.claimed) == 0 && is.Status == to.annotations.Status && is.Release == to.annotations.Release && is.Endpoints != to.annotations.Endpoints
}

// whyNotWritten says what an error of the allocation write means to the user. An object
// that is too large is no error: a retry would not help.
func whyNotWritten(bs *v1alpha1.BatchSandbox, a allocation.Annotations, err error) (*blocked, error) {
	switch {
	case apiwrite.TooLarge(err):
		return objectTooLarge(bs, allocation.SizeWith(bs, a)), nil
	case apiwrite.Refused(err):
		return &blocked{v1alpha1.ReasonAllocationRefused, err.Error()}, err
	}
	return nil, err
}

// whyMissing says why not every shard has a pod.
func (p *pooled) whyMissing(ctx context.Context, o *object, missing int) *blocked {
	if missing == 0 {
		return nil
	}
	pool := &v1alpha1.Pool{}
	err := p.client.Get(ctx, o.pool, pool, client.UnsafeDisableDeepCopy)
	switch {
	case apierrors.IsNotFound(err):
		return &blocked{v1alpha1.ReasonPoolNotFound, fmt.Sprintf("spec.poolRef: namespace %s has no Pool %q; waiting for it", o.pool.Namespace, o.pool.Name)}
	case err == nil && pool.DeletionTimestamp != nil:
		return &blocked{v1alpha1.ReasonPoolDeleting, fmt.Sprintf("spec.poolRef: Pool %q is being deleted and hands out nothing more", o.pool.Name)}
	}
	if least := o.bs.LeastAtOnce(); missing == int(o.bs.DesiredReplicas()) && least > 0 {
		return &blocked{v1alpha1.ReasonPoolExhausted, fmt.Sprintf(
			"waiting until %d of %d sandboxes can be had at once (spec.minAvailable): Pool %q has fewer that are ready and not waited for by older ones", least, missing, o.pool.Name)}
	}
	return &blocked{v1alpha1.ReasonPoolExhausted, fmt.Sprintf("waiting for %d of %d sandboxes: Pool %q has no more that are ready", missing, o.bs.DesiredReplicas(), o.pool.Name)}
}

// viewPooled returns what is to be seen of the pods that are held.
func viewPooled(held []ledger.HeldPod, why *blocked) *view {
	v := &view{blocked: why, delivered: len(held) > 0}
	for i := range held {
		h := &held[i]
		v.allocated++
		if h.Gone {
			continue
		}
		v.total++
		if h.Ready {
			v.ready++
		}
		if h.Restarts > h.Base {
			v.restarted++
		}
		if h.Ended() {
			v.ended++
		} else if h.Problem != "" {
			v.troubled(h.Name, h.Problem)
		}
	}
	return v
}

// reconcileDelete gives back all that the BatchSandbox holds and then lets it go. It is
// woken when tasks that it waits for are stopped.
func (p *pooled) reconcileDelete(ctx context.Context, o *object) (*view, time.Duration, error) {
	if err := p.claims.resolve(ctx, o); err != nil {
		return nil, 0, err
	}
	p.goByName(o)
	p.ledger.SetDemand(o.pool, o.owner, 0) // it waits for nothing any more, however long this takes
	o.recyclingSince = o.bs.DeletionTimestamp.Time
	freed, stopping, err := p.releases.all(ctx, holdingOf(o), p.claims.allocation(o))
	if err != nil || stopping > 0 {
		again, err := unlessUnfinished(err)
		return &view{deleting: waitsFor(stopping, err)}, again, err
	}
	// alloc-status stays as it is until the object goes.
	if err := p.claims.write(ctx, o, change{annotations: allocation.Of(o.bs), freed: freed}); err != nil {
		return nil, 0, err
	}
	p.forget(o.pool, o.owner, freed)
	return nil, 0, nil
}

// gone gives back what BatchSandboxes of that name still hold although their objects are
// gone, except the one with UID alive: somebody took their finalizer away.
func (p *pooled) gone(ctx context.Context, name types.NamespacedName, alive types.UID) (time.Duration, error) {
	for _, ref := range p.ledger.Lookup(name) {
		if ref.UID == alive {
			continue
		}
		owner := ledger.Owner{NamespacedName: name, UID: ref.UID}
		p.ledger.SetDemand(ref.Pool, owner, 0)
		began := p.clock.Now()
		freed, _, err := p.releases.all(ctx, holding{pool: ref.Pool, owner: owner, deleted: &deletions{}, since: began}, p.ledger.Allocation(ref.Pool, ref.UID))
		if err != nil {
			return unlessUnfinished(err)
		}
		logDone(ctx, "recycled sandboxes", ref.Pool, len(freed), p.clock.Since(began))
		p.forget(ref.Pool, owner, freed)
	}
	return 0, nil
}

// forget ends the owner's time in the ledger.
func (p *pooled) forget(pool ledger.Key, owner ledger.Owner, freed []string) {
	p.ledger.EndRelease(pool, owner.UID, freed)
	p.ledger.ForgetOwner(pool, owner)
}
