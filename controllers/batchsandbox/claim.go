package batchsandbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
)

// unclearPatience is how long an allocation write of unclear outcome is repeated before
// the status says so. The status write moves the resourceVersion, after which the
// allocation write can no longer be done.
const unclearPatience = 30 * time.Second

// change is what the allocation of a BatchSandbox is to become, and what that means to
// the ledger once the object says so.
type change struct {
	annotations allocation.Annotations
	// holds: pods are held or are not clean yet, so the object needs its finalizers.
	holds bool

	claimed  []string // idle pods that it takes
	dropped  []string // lost pods that it takes out
	released []string // held pods that it moves to alloc-release
	freed    []string // released pods that it takes out
}

// allocationWrite is a change that was sent, or is about to be.
type allocationWrite struct {
	change
	patch
	began time.Time
	// sentBefore: an earlier sending may have been done, or may still be; since when.
	sentBefore bool
	since      time.Time
	// status is one that was sent for the same version, and of which it is not known
	// whether it was written.
	status *v1alpha1.BatchSandboxStatus
}

// claims writes allocations: claims, and releases, which are written the same way. It
// settles what became of a write whose outcome is unclear, and is the only place where
// a claim is undone.
type claims struct {
	ledger *ledger.Ledger
	writer *writer
	tasks  Tasks
	clock  clock.PassiveClock
}

// allocation returns what the BatchSandbox holds by the ledger, without the pods of a
// claim that may not have been written.
func (c *claims) allocation(o *object) ledger.Allocation {
	held := c.ledger.Allocation(o.pool, o.owner.UID)
	if o.unclear != nil && len(o.unclear.claimed) > 0 {
		claimed := sets.New(o.unclear.claimed...)
		held.Held = slices.DeleteFunc(slices.Clone(held.Held), func(h ledger.HeldPod) bool { return claimed.Has(h.Name) })
	}
	return held
}

// write brings the object to the change with one patch, or with none where it is so
// already. After nil the ledger has taken the change in. After an error either the write
// is known not to have been done and its claim is undone, or it is repeated by resolve.
func (c *claims) write(ctx context.Context, o *object, to change) error {
	finalizers := finalizersWith(o.bs, to.holds)
	if allocation.Of(o.bs) == to.annotations && slices.Equal(finalizers, o.bs.Finalizers) {
		c.commit(ctx, o, &to, c.clock.Now())
		return nil
	}
	fields := map[string]any{"annotations": to.annotations.Map()}
	if !slices.Equal(finalizers, o.bs.Finalizers) {
		fields["finalizers"] = finalizers
	}
	var spec map[string]any
	if o.choosesPool() && len(to.claimed) > 0 {
		spec = map[string]any{"poolRef": o.pool.Name}
	}
	return c.send(ctx, o, &allocationWrite{change: to, patch: objectPatch(o.bs, fields, spec), began: c.clock.Now()})
}

// resolve repeats the write whose outcome is unclear, if there is one, until it is known.
func (c *claims) resolve(ctx context.Context, o *object) error {
	if o.unclear == nil {
		return nil
	}
	return c.send(ctx, o, o.unclear)
}

// mayMove says whether the resourceVersion may be moved by another write. While the
// outcome of an allocation write is unclear it is not, for a while: the same patch could
// not be repeated any more.
func (c *claims) mayMove(o *object) bool {
	return o.unclear == nil || c.clock.Since(o.unclear.since) >= unclearPatience
}

// noteStatus settles the unclear allocation write by what became of a status write: once
// that has moved the resourceVersion, the patch of the allocation must fail.
func (c *claims) noteStatus(o *object, sent statusWrite) {
	switch {
	case o.unclear == nil || sent.status == nil || sent.version != o.unclear.version:
	case sent.outcome == done && o.bs.ResourceVersion != sent.version:
		c.undo(o, o.unclear.claimed) // it had not been done until then
	case sent.outcome == unclear:
		o.unclear.status = sent.status
	}
}

func (c *claims) send(ctx context.Context, o *object, w *allocationWrite) error {
	result, err := c.writer.send(ctx, o, w.patch)
	switch {
	case result == done:
		o.allocationWritten = c.clock.Now()
		c.commit(ctx, o, &w.change, w.began)
		return nil
	case result == overtaken, result == refused && w.sentBefore:
		return c.settle(ctx, o, w, err)
	case result == tooLarge, result == refused, result == notSent && !w.sentBefore:
		c.undo(o, w.claimed) // of what is too large, an earlier sending was so as well
	case result == unclear:
		c.keep(o, w)
	}
	return fmt.Errorf("writing the allocation: %w", err)
}

// keep has the write repeated until its outcome is known.
func (c *claims) keep(o *object, w *allocationWrite) {
	if !w.sentBefore {
		w.sentBefore, w.since = true, c.clock.Now()
	}
	o.unclear = w
}

// settle finds out, from the object as the API server has it, what became of a write
// whose version is not the object's any more.
func (c *claims) settle(ctx context.Context, o *object, w *allocationWrite, cause error) error {
	live, err := c.writer.readBack(ctx, o)
	switch {
	case err != nil:
		c.keep(o, w)
		return fmt.Errorf("settling the allocation: %w", err)
	case live == nil:
		// What it may have held is recycled when the deletion is reconciled.
		if !w.sentBefore {
			c.undo(o, w.claimed)
		}
		o.unclear = nil
		return nil
	case allocation.Of(live) == w.annotations && slices.Contains(live.Finalizers, v1alpha1.FinalizerPoolAllocation) == w.holds:
		o.take(live)
		o.allocationWritten = c.clock.Now()
		c.commit(ctx, o, &w.change, w.began)
		return nil
	case live.ResourceVersion == w.version:
		c.keep(o, w) // the version has not moved, so an earlier sending may still be done
		return fmt.Errorf("writing the allocation, to be repeated: %w", cause)
	}
	// The version has moved, so no sending can be done any more. An earlier one may have
	// been done, and undone by somebody else since, unless it was our status that moved it.
	byStatus := w.status != nil && equality.Semantic.DeepEqual(live.Status, *w.status)
	switch {
	case !w.sentBefore:
		c.undoAndWait(o, w.claimed)
	case byStatus:
		c.undo(o, w.claimed)
	default:
		c.drop(o, w)
	}
	return fmt.Errorf("writing the allocation, to be planned anew: %w", cause)
}

// commit has the ledger take in a change that the object shows.
func (c *claims) commit(ctx context.Context, o *object, to *change, began time.Time) {
	logDone(ctx, "claimed sandboxes", o.pool, len(to.claimed), c.clock.Since(began))
	logDone(ctx, "released sandboxes", o.pool, len(to.released), c.clock.Since(began))
	logDone(ctx, "recycled sandboxes", o.pool, len(to.freed), c.clock.Since(o.recyclingSince))
	o.unclear = nil
	if len(to.dropped) > 0 {
		c.ledger.Discard(o.pool, o.owner.UID, to.dropped)
	}
	if len(to.released) > 0 {
		c.ledger.BeginRelease(o.pool, o.owner.UID, to.released)
	}
	if len(to.freed) > 0 {
		c.tasks.Freed(o.bs, to.freed)
		c.ledger.EndRelease(o.pool, o.owner.UID, to.freed)
	}
}

// logDone leaves one line for each claim, release and recycling. The logger of the
// context names the BatchSandbox.
func logDone(ctx context.Context, what string, pool ledger.Key, count int, took time.Duration) {
	if count > 0 {
		log.FromContext(ctx).Info(what, "pool", pool.Name, "count", count, "duration", took.String())
	}
}

// undo gives back pods of a claim that was not written and never will be, and the demand:
// the owner asks again when it is reconciled; until then it does not keep others waiting.
func (c *claims) undo(o *object, claimed []string) {
	o.unclear = nil
	c.ledger.Unclaim(o.pool, o.owner, claimed)
}

// undoAndWait is undo for an object that somebody else has changed: it is planned anew at once,
// and must not lose to younger ones what it may have waited long for.
func (c *claims) undoAndWait(o *object, claimed []string) {
	o.unclear = nil
	least := 0
	if held := c.ledger.Allocation(o.pool, o.owner.UID); len(held.Held) == len(claimed) && len(held.Releasing) == 0 {
		least = o.bs.LeastAtOnce()
	}
	c.ledger.UnclaimAndWait(o.pool, o.owner, claimed, least)
}

// drop ends a claim whose write may have been visible for a while: somebody may have
// read its endpoints. Its pods are never handed out again.
func (c *claims) drop(o *object, w *allocationWrite) {
	o.unclear = nil
	c.ledger.SetDemand(o.pool, o.owner, 0)
	c.ledger.Discard(o.pool, o.owner.UID, w.claimed)
}

// finalizersWith returns the finalizers that a pooled BatchSandbox is to have while
// it holds pods, or while it holds none.
func finalizersWith(bs *v1alpha1.BatchSandbox, holds bool) []string {
	want := setFinalizer(bs.Finalizers, v1alpha1.FinalizerPoolAllocation, holds)
	return setFinalizer(want, v1alpha1.FinalizerTaskCleanup, holds && bs.Spec.TaskTemplate != nil)
}

// setFinalizer returns the finalizers with that one, or without it.
func setFinalizer(finalizers []string, finalizer string, wanted bool) []string {
	switch {
	case wanted == slices.Contains(finalizers, finalizer):
		return finalizers
	case wanted:
		return append(slices.Clone(finalizers), finalizer)
	}
	return slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool { return f == finalizer })
}
