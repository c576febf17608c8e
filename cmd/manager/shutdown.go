package main

import (
	"context"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
)

// goOn returns a context that ends so much later than the given one. The pod of a replica
// that is told to end leaves the webhooks' Service at the same moment, and nodes learn of
// that a little later: until then the API server calls a replica whose port would be
// closed already, and as the webhooks fail open, it accepts what they would refuse.
func goOn(ctx context.Context, delay time.Duration) context.Context {
	later, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		ctrl.Log.Info("told to end", "goesOnFor", delay.String())
		time.AfterFunc(delay, end)
	})
	return later
}
