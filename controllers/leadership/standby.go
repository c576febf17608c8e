package leadership

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/utils/clock"
)

// standby waits for the lease of another process by a watch. The election code looks at it every
// few seconds instead, and would be so much later in taking over.
type standby struct {
	client          kubernetes.Interface
	namespace, name string
	clock           clock.WithDelayedExecution
}

// untilSilent returns what the holder of the lease has written last, when it has not renewed the
// lease for as long as it stands, counted from when the renewal was seen here. Where the lease is
// another's, nobody's or gone before that, it returns nil.
func (s *standby) untilSilent(ctx context.Context, record *resourcelock.LeaderElectionRecord) (*resourcelock.LeaderElectionRecord, error) {
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	silence := s.clock.AfterFunc(standsFor(record), stop)
	defer silence.Stop()
	_, err := watchtools.UntilWithSync(waiting, s.listWatch(), &coordinationv1.Lease{}, func(store cache.Store) (bool, error) {
		return len(store.List()) == 0, nil
	}, func(e watch.Event) (bool, error) {
		lease, ok := e.Object.(*coordinationv1.Lease)
		if !ok || e.Type == watch.Deleted {
			return true, nil
		}
		now := resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec)
		if now.HolderIdentity != record.HolderIdentity {
			return true, nil
		}
		if !equality.Semantic.DeepEqual(now, record) {
			record = now
			silence.Reset(standsFor(record))
		}
		return false, nil
	})
	switch {
	case err == nil:
		return nil, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case waiting.Err() != nil:
		return record, nil
	}
	return nil, fmt.Errorf("watching the lease of %s: %w", record.HolderIdentity, err)
}

func (s *standby) listWatch() cache.ListerWatcher {
	leases, selector := s.client.CoordinationV1().Leases(s.namespace), fields.OneTermEqualSelector(metav1.ObjectNameField, s.name).String()
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return leases.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return leases.Watch(ctx, options)
		},
	}, s.client)
}

func standsFor(record *resourcelock.LeaderElectionRecord) time.Duration {
	return time.Duration(record.LeaseDurationSeconds) * time.Second
}
