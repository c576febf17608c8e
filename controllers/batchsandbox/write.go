package batchsandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/apiwrite"
)

// write is one patch of a BatchSandbox' allocation and what it means to the ledger
// when it is done.
type write struct {
	patch           []byte
	resourceVersion string
	annotations     allocation.Annotations
	finalizer       bool
	// uncertain: it was sent and may have been done, or may still be; since when.
	uncertain bool
	since     time.Time
	// fence is a status that was sent against it, and of which it is not known whether
	// it was written.
	fence *v1alpha1.BatchSandboxStatus

	grants   []string // claimed by it
	drops    []string // lost pods that it takes out
	releases []string // pods that it moves to alloc-release
	frees    []string // released pods that it takes out
}

// newWrite returns the patch that brings the object to these annotations and the
// finalizer to what is asked for, or nil where both are so already.
func newWrite(bs *v1alpha1.BatchSandbox, want allocation.Annotations, finalizer bool) (*write, error) {
	finalizers := finalizersWith(bs, finalizer)
	if allocation.Of(bs) == want && slices.Equal(finalizers, bs.Finalizers) {
		return nil, nil
	}
	metadata := map[string]any{
		"resourceVersion": bs.ResourceVersion,
		"annotations":     want.Map(),
	}
	if !slices.Equal(finalizers, bs.Finalizers) {
		metadata["finalizers"] = finalizers
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return nil, fmt.Errorf("building the allocation patch: %w", err)
	}
	return &write{patch: patch, resourceVersion: bs.ResourceVersion, annotations: want, finalizer: finalizer}, nil
}

// finalizersWith returns the finalizers that a pooled BatchSandbox is to have while
// it holds pods, or while it holds none.
func finalizersWith(bs *v1alpha1.BatchSandbox, holds bool) []string {
	want := slices.Clone(bs.Finalizers)
	set := func(finalizer string, wanted bool) {
		switch {
		case wanted && !slices.Contains(want, finalizer):
			want = append(want, finalizer)
		case !wanted:
			want = slices.DeleteFunc(want, func(f string) bool { return f == finalizer })
		}
	}
	set(v1alpha1.FinalizerPoolAllocation, holds)
	set(v1alpha1.FinalizerTaskCleanup, holds && bs.Spec.TaskTemplate != nil)
	return want
}

// send does the write. When it returns nil, the write is done and the ledger knows.
// When it returns an error, either the write is known not to have been done and its
// claims were given back, or it stays in the memo and is to be repeated.
func (r *Reconciler) send(ctx context.Context, s *scope, w *write) error {
	if err := r.Fresh(); err != nil {
		if !w.uncertain {
			r.rollback(s, w)
		}
		return fmt.Errorf("not writing the allocation: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	answer := s.bs.DeepCopy()
	err := r.Client.Patch(ctx, answer, client.RawPatch(types.MergePatchType, w.patch))
	switch {
	case err == nil:
		r.commit(s, w, answer)
		return nil
	case apiwrite.TooLarge(err): // an earlier sending of the same was so as well
		r.rollback(s, w)
		return fmt.Errorf("writing the allocation: %w", err)
	case apierrors.IsConflict(err), apierrors.IsNotFound(err), w.uncertain && apiwrite.Refused(err):
		return r.settle(ctx, s, w, err)
	case apiwrite.Refused(err):
		r.rollback(s, w)
		return fmt.Errorf("writing the allocation: %w", err)
	}
	r.keepPending(s, w)
	return fmt.Errorf("writing the allocation, to be repeated: %w", err)
}

// keepPending has the write repeated until its outcome is known.
func (r *Reconciler) keepPending(s *scope, w *write) {
	if !w.uncertain {
		w.uncertain, w.since = true, r.Clock.Now()
	}
	s.memo.pending = w
}

// settle finds out by a live read what came of a write whose precondition no longer holds.
func (r *Reconciler) settle(ctx context.Context, s *scope, w *write, cause error) error {
	live := &v1alpha1.BatchSandbox{}
	err := r.Live.Get(ctx, client.ObjectKeyFromObject(s.bs), live)
	switch {
	case apierrors.IsNotFound(err), err == nil && live.UID != s.bs.UID:
		// What it may have held is recycled when the deletion is reconciled.
		if !w.uncertain {
			r.rollback(s, w)
		}
		s.memo.pending = nil
		return nil
	case err != nil:
		r.keepPending(s, w)
		return fmt.Errorf("reading back after a refused allocation write: %w", err)
	}
	done := allocation.Of(live) == w.annotations &&
		slices.Contains(live.Finalizers, v1alpha1.FinalizerPoolAllocation) == w.finalizer
	switch {
	case done:
		r.commit(s, w, live)
		return nil
	case live.ResourceVersion == w.resourceVersion:
		// It has not moved, so an earlier sending may still land.
		r.keepPending(s, w)
		return fmt.Errorf("writing the allocation, to be repeated: %w", cause)
	}
	if fenced := w.fence != nil && equality.Semantic.DeepEqual(live.Status, *w.fence); w.uncertain && !fenced {
		r.abandon(s, w)
	} else {
		r.rollback(s, w)
	}
	s.memo.latest = live
	return fmt.Errorf("writing the allocation, to be planned anew: %w", cause)
}

func (r *Reconciler) commit(s *scope, w *write, answer *v1alpha1.BatchSandbox) {
	s.memo.pending = nil
	s.memo.latest = answer
	s.memo.allocationWritten = r.Clock.Now()
	s.bs = answer.DeepCopy()
	r.Ledger.Discard(s.key, s.owner.UID, w.drops)
	r.Ledger.BeginRelease(s.key, s.owner.UID, w.releases)
	if r.Tasks != nil && len(w.frees) > 0 {
		r.Tasks.Freed(s.bs, w.frees)
	}
	r.Ledger.EndRelease(s.key, s.owner.UID, w.frees)
}

// rollback gives back what the write would have claimed. The owner asks again when
// it is reconciled; until then it does not keep others waiting.
func (r *Reconciler) rollback(s *scope, w *write) {
	s.memo.pending = nil
	r.Ledger.Unclaim(s.key, s.owner, w.grants)
}

// abandon gives up what a write would have claimed that may have been done for a while,
// and then undone by somebody else: its endpoints may have been read. The pods are
// never lent again.
func (r *Reconciler) abandon(s *scope, w *write) {
	s.memo.pending = nil
	r.Ledger.SetDemand(s.key, s.owner, 0)
	r.Ledger.Discard(s.key, s.owner.UID, w.grants)
}

// resolve repeats the write that is pending, if one is, until its outcome is known.
func (r *Reconciler) resolve(ctx context.Context, s *scope) error {
	if s.memo.pending == nil {
		return nil
	}
	return r.send(ctx, s, s.memo.pending)
}
