// Package startup is what a process does once it leads, before any reconciler runs: it
// rebuilds the ledger from what the API server has, makes sure that no late write of
// the last leader can land, and then opens the gate at which the reconcilers wait.
package startup

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/wiring"
)

// Config is what a Startup works with.
type Config struct {
	// Client writes the touches. It must refuse to write with an old lease.
	Client client.Client
	// Live reads from the API server, not from the cache.
	Live client.Reader
	// Cache is the one that the reconcilers read from.
	Cache    cache.Cache
	Ledger   *ledger.Ledger
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
	// Term names this leader's term, as it is written into the annotation allocator.
	Term func() string
	// Prepare does what else must be done before the gate opens; it is called first.
	Prepare func(context.Context) error
	// LookAtOwnNamespace finds out whether the operator's own namespace is being deleted,
	// so that the reconcilers know it before they put a finalizer on anything there.
	LookAtOwnNamespace func(context.Context)
	// Open opens the gate at which the reconcilers wait.
	Open func()
	// Namespaces that are watched; empty stands for all.
	Namespaces []string `wiring:"optional"`
}

// Startup rebuilds the ledger once this process leads, and then opens the gate. It is a
// Runnable of the manager.
type Startup struct{ Config }

// New returns a Startup, or an error that says what is missing.
func New(config Config) (*Startup, error) {
	if err := wiring.Check("start of a leader", config); err != nil {
		return nil, err
	}
	return &Startup{config}, nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Startup) NeedLeaderElection() bool { return true }

// takeover counts what a start has found and done.
type takeover struct {
	sandboxes, pooled, unreadable, touched, conflicts int
	// adopted and converted are pods and BatchSandboxes that another controller has left.
	adopted, converted int
}

// Start implements manager.Runnable. An error ends the process: a ledger that is
// not rebuilt must hand nothing out.
func (s *Startup) Start(ctx context.Context) error {
	begin := s.Clock.Now()
	done, err := s.takeOver(ctx)
	if err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	log.FromContext(ctx).Info("took over", "term", s.Term(), "duration", s.Clock.Since(begin).Round(time.Millisecond).String(),
		"batchSandboxes", done.sandboxes, "pooled", done.pooled, "unreadable", done.unreadable,
		"touched", done.touched, "doubleAllocations", done.conflicts, "adoptedPods", done.adopted, "converted", done.converted)
	s.Open()
	return nil
}

func (s *Startup) takeOver(ctx context.Context) (*takeover, error) {
	done := &takeover{}
	if err := s.Prepare(ctx); err != nil {
		return nil, err
	}
	if err := podfeed.Register(ctx, s.Cache, s.Ledger); err != nil {
		return nil, err
	}
	listed, err := s.listSandboxes(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.adoptPods(ctx, listed, done); err != nil {
		return nil, err
	}
	// Before the touch, so that a sandbox that is lost counts as demand.
	if err := s.waitForPods(ctx); err != nil {
		return nil, err
	}
	sandboxes, err := s.convertAll(ctx, listed, done)
	if err != nil {
		return nil, err
	}
	if sandboxes, err = s.touchUnmet(ctx, sandboxes, done); err != nil {
		return nil, err
	}
	// And after the touch, from which on no write of the last leader can land, where one has landed
	// since the list: every pod that the BatchSandboxes name now was created before. One that the
	// last leader had created and allocated since the first look would otherwise be taken for gone,
	// and one that it has taken back and deleted for idle.
	if !sameAllocations(listed, sandboxes) {
		if err := s.waitForPods(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.rebuild(ctx, sandboxes, done); err != nil {
		return nil, err
	}
	if err := s.waitForSandboxes(ctx, sandboxes); err != nil {
		return nil, err
	}
	s.LookAtOwnNamespace(ctx)
	return done, nil
}

// sameAllocations says that the objects hold what they held, and that none is gone.
func sameAllocations(before, after []*v1alpha1.BatchSandbox) bool {
	return slices.EqualFunc(before, after, func(a, b *v1alpha1.BatchSandbox) bool {
		return a.UID == b.UID && allocation.PoolOf(a) == allocation.PoolOf(b) && allocation.Of(a) == allocation.Of(b)
	})
}

// rebuild fills the ledger from the annotations of the BatchSandboxes.
func (s *Startup) rebuild(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox, done *takeover) error {
	logger := log.FromContext(ctx)
	byUID := map[types.UID]*v1alpha1.BatchSandbox{}
	var records []ledger.Record
	for _, bs := range sandboxes {
		if bs.Spec.PoolRef == "" {
			continue
		}
		byUID[bs.UID] = bs
		record, err := allocation.RecordOf(bs)
		if err != nil {
			done.unreadable++
			logger.Error(err, "setting a BatchSandbox aside", "batchSandbox", client.ObjectKeyFromObject(bs))
		}
		records = append(records, record)
	}
	conflicts := s.Ledger.Rebuild(records)
	done.sandboxes, done.pooled, done.conflicts = len(sandboxes), len(records), len(conflicts)
	for _, conflict := range conflicts {
		allocation.DoubleAllocations.Inc()
		for _, owner := range conflict.Owners {
			logger.Error(nil, "a pod stands in two allocations and is deleted", "pod", conflict.Pod, "batchSandbox", owner.NamespacedName)
			s.Recorder.Eventf(byUID[owner.UID], nil, corev1.EventTypeWarning, v1alpha1.EventDoubleAllocation, "Rebuild",
				"pod %s stands in the allocation of another BatchSandbox too: it is deleted and replaced", conflict.Pod)
		}
	}
	if err := s.loseHidden(ctx, records); err != nil {
		return err
	}
	s.Ledger.CompleteRebuild()
	for i := range records {
		s.noteDemand(byUID[records[i].Owner.UID], &records[i])
	}
	return nil
}

// noteDemand gives a BatchSandbox that waits its place in the queue of its pool. The first to
// be reconciled would otherwise take what older ones wait for, and a gang would lose, with each
// change of leaders, the pods that were kept for it.
func (s *Startup) noteDemand(bs *v1alpha1.BatchSandbox, record *ledger.Record) {
	if record.Unreadable || bs.DeletionTimestamp != nil || bs.Spec.PoolRef == v1alpha1.AnyPool {
		return
	}
	if missing := s.missing(bs, record); missing > 0 {
		s.Ledger.SetGangDemand(record.Pool, record.Owner, missing, bs.LeastAtOnce())
	}
}

// namespaces returns what to list: one entry that stands for all, or each.
func (s *Startup) namespaces() []string {
	if len(s.Namespaces) == 0 {
		return []string{metav1.NamespaceAll}
	}
	return s.Namespaces
}

func (s *Startup) listSandboxes(ctx context.Context) ([]*v1alpha1.BatchSandbox, error) {
	var all []*v1alpha1.BatchSandbox
	err := each(ctx, s, func() client.ObjectList { return &v1alpha1.BatchSandboxList{} }, client.MatchingLabels{}, func(bs *v1alpha1.BatchSandbox) error {
		all = append(all, bs)
		return nil
	})
	return all, err
}

// waitForSandboxes returns when the cache is at or past every listed object, so
// that no reconciler acts on a copy older than what the ledger was rebuilt from.
func (s *Startup) waitForSandboxes(ctx context.Context, sandboxes []*v1alpha1.BatchSandbox) error {
	for _, bs := range sandboxes {
		err := untilCaughtUp(ctx, func(ctx context.Context, lookLive bool) (bool, error) {
			cached := &v1alpha1.BatchSandbox{}
			err := s.Cache.Get(ctx, client.ObjectKeyFromObject(bs), cached, client.UnsafeDisableDeepCopy)
			switch {
			case err == nil && cached.UID == bs.UID:
				order, err := resourceversion.CompareResourceVersion(cached.ResourceVersion, bs.ResourceVersion)
				return order >= 0, err
			case err != nil && !apierrors.IsNotFound(err):
				return false, err
			case !lookLive:
				return false, nil
			}
			return s.isGone(ctx, &v1alpha1.BatchSandbox{}, bs)
		})
		if err != nil {
			return fmt.Errorf("waiting for the cache to show BatchSandbox %s/%s: %w", bs.Namespace, bs.Name, err)
		}
	}
	return nil
}

func (s *Startup) isGone(ctx context.Context, into, listed client.Object) (bool, error) {
	err := s.Live.Get(ctx, client.ObjectKeyFromObject(listed), into)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return err == nil && into.GetUID() != listed.GetUID(), err
}

// untilCaughtUp asks until the condition holds: often at first, and from time to
// time with leave to look at the API server itself.
func untilCaughtUp(ctx context.Context, condition func(ctx context.Context, lookLive bool) (bool, error)) error {
	const interval, liveEvery = 5 * time.Millisecond, 100
	tries := 0
	return wait.PollUntilContextCancel(ctx, interval, true, func(ctx context.Context) (bool, error) {
		tries++
		return condition(ctx, tries%liveEvery == 0)
	})
}
