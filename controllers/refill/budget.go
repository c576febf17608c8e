// Package refill gives the requests that keep pools full their turn: the creates and deletes of
// pods. Hand-outs go first, and there are never more under way than the API server answers in good
// time, as long as nobody waits for the pods.
package refill

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
	"golang.org/x/sync/semaphore"
	"k8s.io/client-go/rest"
)

const (
	// How many requests may be under way: at least and at first, and at most. With few an API server
	// that is slow for other reasons still fills pools.
	least, most = 4, 64
	// baseline is how many seconds of work, about, tell how long a request usually takes. Of a time
	// much shorter, an overload that lasts would become the usual.
	baseline = 200
	// patience is how long a request makes way for hand-outs. Pools fill even where hand-outs
	// never end, at a rate of at least the most in this time.
	patience = time.Second
)

// ErrNoTurn says that a request was not sent because its context ended before its turn came.
var ErrNoTurn = errors.New("not sent: its turn has not come")

// Budget is what the requests of one process share. It is safe for concurrent use.
type Budget struct {
	limiter adaptivelimiter.AdaptiveLimiter[any]
	urgent  *semaphore.Weighted

	mu       sync.Mutex // guards the rest
	handOuts int
	// ended is closed when the last hand-out ends. It is nil while there is none.
	ended chan struct{}
}

// New returns a Budget with nothing under way.
//
// How many requests may be under way follows from how long they take, beside how long they
// usually take, and from whether more of them at a time get more done: see
// https://failsafe-go.dev/adaptive-limiter.
func New() *Budget {
	return &Budget{urgent: semaphore.NewWeighted(most), limiter: adaptivelimiter.NewBuilder[any]().WithLimits(least, most, least).WithBaselineWindow(baseline).Build()}
}

// HandOuts returns a config whose clients' writes of BatchSandboxes count as hand-outs.
func (b *Budget) HandOuts(config *rest.Config) *rest.Config {
	return wrapped(config, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		if req.Method == http.MethodGet || !strings.Contains(req.URL.Path, "/batchsandboxes/") {
			return next.RoundTrip(req)
		}
		b.begin()
		defer b.end()
		return next.RoundTrip(req)
	})
}

// Refill returns a config whose clients' writes wait for their turn. Whether they may still be
// sent then is for next, which the config has already: see leadership.Fenced.
func (b *Budget) Refill(config *rest.Config) *rest.Config {
	return wrapped(config, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		if req.Method == http.MethodGet {
			return next.RoundTrip(req)
		}
		done, err := b.acquire(req.Context())
		if err != nil {
			if req.Body != nil {
				_ = req.Body.Close()
			}
			return nil, fmt.Errorf("%w: %w", ErrNoTurn, err)
		}
		answer, err := next.RoundTrip(req)
		// How long a refusal takes says nothing.
		done(err == nil && answer.StatusCode != http.StatusTooManyRequests && answer.StatusCode < http.StatusInternalServerError)
		return answer, err
	})
}

type urgentKey struct{}

// Urgent returns a context whose requests make no way for hand-outs, and of which the most may be
// under way whatever the API server has to do: somebody waits for the pods, or for their room in the
// pool. Where all is slow, those that hand out would otherwise leave nothing to hand out.
func Urgent(ctx context.Context) context.Context {
	return context.WithValue(ctx, urgentKey{}, true)
}

// IsUrgent says that the context is one that Urgent has returned, or made from such a one.
func IsUrgent(ctx context.Context) bool { return ctx.Value(urgentKey{}) != nil }

// acquire waits for the turn of a request. It returns what to call after it, with whether the API
// server has done it.
func (b *Budget) acquire(ctx context.Context) (done func(bool), err error) {
	if IsUrgent(ctx) {
		err := b.urgent.Acquire(ctx, 1)
		return func(bool) { b.urgent.Release(1) }, err
	}
	if err := b.makeWay(ctx); err != nil {
		return nil, err
	}
	permit, err := b.limiter.AcquirePermit(ctx)
	return func(answered bool) {
		if answered {
			permit.Record()
		} else {
			permit.Drop()
		}
	}, err
}

// makeWay returns when no hand-out is under way, or when it has waited long enough.
func (b *Budget) makeWay(ctx context.Context) error {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for {
		b.mu.Lock()
		ended := b.ended
		b.mu.Unlock()
		if ended == nil {
			return nil
		}
		select {
		case <-ended:
		case <-enough.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *Budget) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.handOuts++; b.handOuts == 1 {
		b.ended = make(chan struct{})
	}
}

func (b *Budget) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.handOuts--; b.handOuts == 0 {
		close(b.ended)
		b.ended = nil
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func wrapped(config *rest.Config, send func(*http.Request, http.RoundTripper) (*http.Response, error)) *rest.Config {
	result := rest.CopyConfig(config)
	result.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) { return send(req, next) })
	})
	return result
}
