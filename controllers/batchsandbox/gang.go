package batchsandbox

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// poolTooSmall says that the pool may never have so many pods as are to be claimed at once.
// Such a gang must not keep its place in the queue: all who are younger would wait for ever.
func (p *pooled) poolTooSmall(ctx context.Context, o *object, least int) *blocked {
	if least == 0 {
		return nil
	}
	pool := &v1alpha1.Pool{}
	if err := p.client.Get(ctx, o.pool, pool, client.UnsafeDisableDeepCopy); err != nil || pool.DeletionTimestamp != nil {
		return nil // whyMissing tells of a pool that is not there, or goes
	}
	most := pool.Spec.CapacitySpec.PoolMax
	if least <= int(most) {
		return nil
	}
	return &blocked{v1alpha1.ReasonPoolTooSmall, fmt.Sprintf(
		"spec.minAvailable: %d sandboxes are to be had at once, and Pool %q may have no more than %d pods (poolMax)", least, o.pool.Name, most)}
}

// hideUntilDelivered takes the ready sandboxes out of what is seen of a BatchSandbox from a
// template until spec.minAvailable of them are ready.
func hideUntilDelivered(bs *v1alpha1.BatchSandbox, v *view) {
	least := bs.LeastAtOnce()
	if int(v.ready) >= least {
		v.delivered = least > 0
		return
	}
	v.gang = fmt.Sprintf("waiting until %d sandboxes are ready at once (spec.minAvailable); %d are", least, v.ready)
	v.ready = 0
}
