package wakequeue

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

var key = types.NamespacedName{Namespace: "ns", Name: "warm"}

func TestWakesFromBeforeTheStartAreNotLost(t *testing.T) {
	wakes := &Queue{}
	wakes.Wake(key)
	wakes.Wake(key)
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer q.ShutDown()
	require.NoError(t, wakes.Start(t.Context(), q))
	got, _ := q.Get()
	assert.Equal(t, key, got.NamespacedName)
	q.Done(got)

	wakes.Wake(key)
	got, _ = q.Get()
	assert.Equal(t, key, got.NamespacedName)
	assert.Zero(t, q.Len(), "one item for many wakes")
}
