package refill

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
)

// server answers a request when it is told to.
type server struct {
	underWay chan *http.Request
	answers  chan int
}

func newServer() *server {
	return &server{underWay: make(chan *http.Request, 2*most), answers: make(chan int)}
}

// RoundTrip implements http.RoundTripper.
func (s *server) RoundTrip(req *http.Request) (*http.Response, error) {
	s.underWay <- req
	return &http.Response{StatusCode: <-s.answers, Body: http.NoBody}, nil
}

func (s *server) config() *rest.Config {
	return &rest.Config{WrapTransport: func(http.RoundTripper) http.RoundTripper { return s }}
}

func transport(config *rest.Config) http.RoundTripper { return config.WrapTransport(nil) }

// send sends a request and returns what becomes of it.
func send(ctx context.Context, t *testing.T, to http.RoundTripper, method, path string) <-chan error {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://api"+path, http.NoBody)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- do(to, req) }()
	synctest.Wait()
	return done
}

func do(to http.RoundTripper, req *http.Request) error {
	answer, err := to.RoundTrip(req)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

const (
	sandbox = "/apis/sandbox.opensandbox.io/v1alpha1/namespaces/ns/batchsandboxes/a"
	pods    = "/api/v1/namespaces/ns/pods"
)

func TestRefillMakesWayForHandOuts(t *testing.T) {
	tests := map[string]struct {
		before       string // what is under way
		method, path string
		urgent       bool
		waits        bool
	}{
		"a create waits for a hand-out":           {before: sandbox, method: http.MethodPost, waits: true},
		"and for its status":                      {before: sandbox + "/status", method: http.MethodPost, waits: true},
		"a delete waits":                          {before: sandbox, method: http.MethodDelete, waits: true},
		"a read does not":                         {before: sandbox, method: http.MethodGet},
		"nor a create that somebody waits for":    {before: sandbox, method: http.MethodPost, urgent: true},
		"other writes are no hand-outs":           {before: "/apis/sandbox.opensandbox.io/v1alpha1/namespaces/ns/pools/a/status", method: http.MethodPost},
		"there is nothing to wait for by default": {method: http.MethodPost},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, s := New(), newServer()
				var handOut <-chan error
				if test.before != "" {
					handOut = send(t.Context(), t, transport(b.HandOuts(s.config())), http.MethodPatch, test.before)
					<-s.underWay
				}
				ctx := t.Context()
				if test.urgent {
					ctx = Urgent(ctx)
				}
				refilled := send(ctx, t, transport(b.Refill(s.config())), test.method, pods)
				assert.Equal(t, test.waits, len(s.underWay) == 0)
				if handOut != nil {
					s.answers <- http.StatusOK
				}
				s.answers <- http.StatusOK // it is sent now, if it was not
				require.NoError(t, <-refilled)
			})
		})
	}
}

func TestRefillMakesWayForAWhileOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := New(), newServer()
		handOut := send(t.Context(), t, transport(b.HandOuts(s.config())), http.MethodPatch, sandbox)
		<-s.underWay
		refilled := send(t.Context(), t, transport(b.Refill(s.config())), http.MethodPost, pods)
		time.Sleep(patience - time.Nanosecond) // of the test's own clock, as everywhere here
		synctest.Wait()
		assert.Empty(t, s.underWay)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		assert.Len(t, s.underWay, 1)
		s.answers <- http.StatusOK
		s.answers <- http.StatusOK
		require.NoError(t, <-handOut)
		require.NoError(t, <-refilled)
	})
}

func TestRefillThatIsGivenUpWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := New(), newServer()
		handOut := send(t.Context(), t, transport(b.HandOuts(s.config())), http.MethodPatch, sandbox)
		<-s.underWay
		ctx, cancel := context.WithCancel(t.Context())
		body := &closed{Reader: strings.NewReader("{}")}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api"+pods, body)
		require.NoError(t, err)
		cancel()
		err = do(transport(b.Refill(s.config())), req)
		require.ErrorIs(t, err, ErrNoTurn)
		require.ErrorIs(t, err, context.Canceled)
		assert.True(t, body.is, "as http.RoundTripper asks for")
		assert.Empty(t, s.underWay)
		s.answers <- http.StatusOK
		require.NoError(t, <-handOut)
	})
}

type closed struct {
	io.Reader
	is bool
}

// Close implements io.Closer.
func (c *closed) Close() error {
	c.is = true
	return nil
}

func TestSoManyAreUnderWay(t *testing.T) {
	for name, test := range map[string]struct {
		in  func(context.Context) context.Context
		may int
	}{
		"at first":             {func(ctx context.Context) context.Context { return ctx }, least},
		"where somebody waits": {Urgent, most},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, s := New(), newServer()
				refill := transport(b.Refill(s.config()))
				var sent []<-chan error
				for range test.may + 1 {
					sent = append(sent, send(test.in(t.Context()), t, refill, http.MethodPost, pods))
				}
				assert.Len(t, s.underWay, test.may)
				for range sent {
					s.answers <- http.StatusOK
				}
				for _, done := range sent {
					require.NoError(t, <-done)
				}
			})
		})
	}
}

// serve answers requests for a while, so many at a time, to clients that ask for more.
func serve(t *testing.T, b *Budget, lasts time.Duration, workers, code int) {
	work := make(chan struct{}, workers)
	answer := roundTripper(func(*http.Request) (*http.Response, error) {
		work <- struct{}{}
		time.Sleep(10 * time.Millisecond)
		<-work
		return &http.Response{StatusCode: code, Body: http.NoBody}, nil
	})
	refill := transport(b.Refill(&rest.Config{WrapTransport: func(http.RoundTripper) http.RoundTripper { return answer }}))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api"+pods, http.NoBody)
	require.NoError(t, err)
	ends := time.Now().Add(lasts)
	var clients sync.WaitGroup
	for range 2 * most {
		clients.Go(func() {
			for time.Now().Before(ends) {
				assert.NoError(t, do(refill, req))
			}
		})
	}
	clients.Wait()
}

// More requests than an API server answers at a time would only wait there, before those that
// hand out.
func TestTheBudgetFollowsTheAPIServer(t *testing.T) {
	for name, test := range map[string]struct{ workers, atLeast, atMost int }{
		"a small one": {workers: 2, atLeast: least, atMost: 16},
		"a large one": {workers: 32, atLeast: 24, atMost: 48},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New()
				serve(t, b, time.Minute, test.workers, http.StatusCreated)
				assert.GreaterOrEqual(t, b.limiter.Limit(), test.atLeast)
				assert.LessOrEqual(t, b.limiter.Limit(), test.atMost)
			})
		})
	}
}

func TestQuickRefusalsDoNotRaiseTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New()
		serve(t, b, 10*time.Second, 64, http.StatusTooManyRequests)
		assert.Equal(t, least, b.limiter.Limit())
	})
}
