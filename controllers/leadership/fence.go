package leadership

import (
	"fmt"
	"net/http"

	"k8s.io/client-go/rest"
)

// Fenced returns a config whose clients send no write once fresh returns an error. Every
// client that a reconciler writes with must be made from such a config.
//
// The check is made where a request leaves the process, and not where it is asked for: a
// request may wait for long in between, for its turn in the client's rate limit or
// because the whole process is frozen, while another leader takes over. What was
// withheld was never sent; its sender sees an error that it cannot tell from a broken
// connection, and does the same as then.
func Fenced(config *rest.Config, fresh func() error) *rest.Config {
	fenced := rest.CopyConfig(config)
	fenced.Wrap(func(next http.RoundTripper) http.RoundTripper { return &fence{fresh: fresh, next: next} })
	return fenced
}

type fence struct {
	fresh func() error
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (f *fence) RoundTrip(req *http.Request) (*http.Response, error) {
	if writes(req) {
		if err := f.fresh(); err != nil {
			if req.Body != nil {
				_ = req.Body.Close()
			}
			return nil, fmt.Errorf("not sent: %w", err)
		}
	}
	return f.next.RoundTrip(req)
}

// writes says that the request may change an object. A dry run changes nothing.
func writes(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return false
	}
	return req.URL.Query().Get("dryRun") == ""
}
