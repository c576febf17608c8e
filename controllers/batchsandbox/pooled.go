package batchsandbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/taskreport"
)

const (
	// topUpInterval is the least time between two writes of a batch that fills while
	// its pool still grows.
	topUpInterval = 250 * time.Millisecond
	// topUpBytesPerSecond bounds how fast the object is written over and over.
	topUpBytesPerSecond = 100_000
)

func (r *Reconciler) reconcilePooled(ctx context.Context, s *scope) (view, time.Duration, error) {
	if err := r.resolve(ctx, s); err != nil {
		why := &blocked{v1alpha1.ReasonAllocationRefused, err.Error()}
		if p := s.memo.pending; p != nil {
			// Each has a message of its own, so that there is always a status to write against it.
			why.message += " (since " + p.since.UTC().Format(time.RFC3339) + ")"
		}
		return r.viewPooled(ctx, s, why), 0, err
	}
	held := r.Ledger.Allocation(s.key, s.owner.UID)
	if held.Unreadable {
		record, err := allocation.RecordOf(s.bs)
		if err != nil {
			return r.viewPooled(ctx, s, &blocked{v1alpha1.ReasonAllocationUnreadable, err.Error()}), 0, nil //nolint:nilerr // told by the condition; a retry would not help
		}
		for _, pod := range r.Ledger.Settle(record) {
			r.noteDoubleAllocation(s, pod)
		}
		held = r.Ledger.Allocation(s.key, s.owner.UID)
	}
	r.noteForeignEdit(s, held)
	again, why, err := r.allocate(ctx, s, held)
	if err == nil {
		var later time.Duration
		later, err = r.finishReleases(ctx, s)
		again = soonest(again, later)
	}
	return r.viewPooled(ctx, s, why), again, err
}

// noteForeignEdit tells the user that an annotation of the operator was changed by
// someone else: the ledger is the truth, and allocate writes it back.
func (r *Reconciler) noteForeignEdit(s *scope, held ledger.Allocation) {
	want, err := allocation.Format(held.Held, names(held.Releasing))
	is := allocation.Of(s.bs)
	if err == nil && (want.Status != is.Status || want.Release != is.Release) {
		r.event(s.bs, corev1.EventTypeWarning, "AllocationRestored", "Restore",
			"annotation %s or %s was changed by someone else and is written back", v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationAllocRelease)
		for _, pod := range r.disputed(s, held) {
			r.noteDoubleAllocation(s, pod)
		}
	}
}

// disputed returns the pods that the annotations name and that another BatchSandbox
// holds, as a write of the last leader that came too late may leave behind.
func (r *Reconciler) disputed(s *scope, held ledger.Allocation) []string {
	record, err := allocation.RecordOf(s.bs)
	if err != nil {
		return nil
	}
	own := append(names(held.Held), names(held.Releasing)...)
	var found []string
	for _, pod := range r.Ledger.Snapshot(s.key).Pods {
		lent := pod.State == ledger.Held || pod.State == ledger.Releasing
		if lent && slices.Contains(record.Pods, pod.Name) && !slices.Contains(own, pod.Name) {
			found = append(found, pod.Name)
		}
	}
	return found
}

// noteDoubleAllocation tells that the object names a pod whose holder, by the
// ledger, is another BatchSandbox, which keeps it.
func (r *Reconciler) noteDoubleAllocation(s *scope, pod string) {
	allocation.DoubleAllocations.Inc()
	r.event(s.bs, corev1.EventTypeWarning, "DoubleAllocation", "Restore", "pod %s is held by another BatchSandbox: it is replaced here", pod)
}

// allocate brings what is held to what is asked for with at most one write. It
// returns when to come back for more, and what stands in the way.
func (r *Reconciler) allocate(ctx context.Context, s *scope, held ledger.Allocation) (time.Duration, *blocked, error) {
	plan := planPooled(held.Held, s.bs.DesiredReplicas(), taskreport.Released(s.bs))
	if err := r.deleteLost(ctx, s, plan.lost); err != nil {
		return 0, nil, err
	}
	ask, tooLarge := fit(s.bs, plan, held.Releasing)
	var grants []ledger.Grant
	var again time.Duration
	switch share := r.Ledger.SetDemand(s.key, s.owner, ask); {
	case share == 0:
	case share < len(plan.empty) && len(plan.lost)+len(plan.surplus) == 0 && r.tooSoon(s) > 0:
		again = r.tooSoon(s)
	default:
		grants = r.Ledger.Claim(s.key, s.owner, plan.empty)
	}
	next := plan.keep
	for _, g := range grants {
		next = append(next, ledger.HeldPod{Pod: g.Pod, Shard: g.Shard, Base: g.Pod.Restarts, Seen: true})
	}
	missing := len(plan.empty) - len(grants)
	why, err := r.persist(ctx, s, plan, next, append(names(held.Releasing), names(plan.surplus)...), grants, missing)
	if err != nil || why != nil {
		return again, why, err
	}
	if len(plan.lost) > 0 {
		r.event(s.bs, corev1.EventTypeWarning, "SandboxLost", "Replace", "lost %d sandboxes (%s): each is replaced at its shard, and what ran there is gone",
			len(plan.lost), someOf(names(plan.lost)))
	}
	if tooLarge != nil {
		return again, tooLarge, nil
	}
	return again, r.whyMissing(ctx, s, missing), nil
}

// persist writes the next allocation, or gives the claims back where it does not fit.
func (r *Reconciler) persist(ctx context.Context, s *scope, plan pooledPlan, next []ledger.HeldPod, releasing []string, grants []ledger.Grant, missing int) (*blocked, error) {
	granted := make([]string, len(grants))
	ipLength := 0
	for i, g := range grants {
		granted[i], ipLength = g.Pod.Name, max(ipLength, len(g.Pod.IP))
	}
	want, err := allocation.Format(next, releasing)
	if err != nil {
		r.Ledger.Unclaim(s.key, s.owner, granted)
		return nil, err
	}
	size := allocation.SizeWith(s.bs, want) + missing*shardSize(s.bs, ipLength)
	if size > allocation.MaxAnnotationBytes && len(grants) > 0 {
		r.Ledger.Unclaim(s.key, s.owner, granted)
		return allocationTooLarge(s.bs, size), nil
	}
	w, err := newWrite(s.bs, want, len(next)+len(releasing) > 0)
	if err != nil {
		r.Ledger.Unclaim(s.key, s.owner, granted)
		return nil, err
	}
	if w == nil {
		return nil, nil
	}
	w.grants, w.drops, w.releases = granted, names(plan.lost), names(plan.surplus)
	if err := r.send(ctx, s, w); err != nil {
		if apiwrite.TooLarge(err) {
			return objectTooLarge(s.bs, size), nil
		}
		if apiwrite.Refused(err) {
			return &blocked{v1alpha1.ReasonAllocationRefused, err.Error()}, err
		}
		return nil, err
	}
	return nil, nil
}

// tooSoon returns how long to wait before the object is written again for a part of
// what is missing.
func (r *Reconciler) tooSoon(s *scope) time.Duration {
	if s.memo.allocationWritten.IsZero() {
		return 0
	}
	return max(0, s.memo.allocationWritten.Add(writeInterval(sizeOf(s.bs))).Sub(r.Clock.Now()))
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

// whyMissing says why not every shard has a pod.
func (r *Reconciler) whyMissing(ctx context.Context, s *scope, missing int) *blocked {
	if missing == 0 {
		return nil
	}
	pool := &v1alpha1.Pool{}
	err := r.Client.Get(ctx, s.key, pool)
	switch {
	case apierrors.IsNotFound(err):
		return &blocked{v1alpha1.ReasonPoolNotFound, fmt.Sprintf("spec.poolRef: namespace %s has no Pool %q; waiting for it", s.key.Namespace, s.key.Name)}
	case err == nil && pool.DeletionTimestamp != nil:
		return &blocked{v1alpha1.ReasonPoolDeleting, fmt.Sprintf("spec.poolRef: Pool %q is being deleted and lends nothing more", s.key.Name)}
	}
	return &blocked{v1alpha1.ReasonPoolExhausted, fmt.Sprintf("waiting for %d of %d sandboxes: Pool %q has no more that are ready", missing, s.bs.DesiredReplicas(), s.key.Name)}
}

// viewPooled returns what is to be seen of a pooled BatchSandbox.
func (r *Reconciler) viewPooled(_ context.Context, s *scope, why *blocked) view {
	v := view{blocked: why}
	unclear := map[string]bool{}
	if s.memo.pending != nil {
		for _, name := range s.memo.pending.grants {
			unclear[name] = true
		}
	}
	for _, h := range r.Ledger.Allocation(s.key, s.owner.UID).Held {
		if unclear[h.Name] {
			continue // claimed, and perhaps not handed over
		}
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
		if h.Problem != "" && v.problem == "" {
			v.problem = fmt.Sprintf("sandbox %s: %s", h.Name, h.Problem)
		}
	}
	return v
}

func someOf(list []string) string {
	const most = 5
	if len(list) > most {
		return strings.Join(list[:most], ", ") + ", ..."
	}
	return strings.Join(list, ", ")
}
