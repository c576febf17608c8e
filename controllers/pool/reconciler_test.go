package pool

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

func TestRetriesAreAtMostHalfAMinuteApart(t *testing.T) {
	limiter := withRetries(controller.Options{MaxConcurrentReconciles: 3}).RateLimiter
	request := reconcile.Request{NamespacedName: key}
	assert.Equal(t, firstRetry, limiter.When(request))
	for range 50 {
		limiter.When(request)
	}
	assert.Equal(t, lastRetry, limiter.When(request))
}
