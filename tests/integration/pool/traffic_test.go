package pool

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
)

// traffic counts the requests of a client and can hold back what the pod watch
// shows, as a slow cache would.
type traffic struct {
	mu     sync.Mutex // guards what follows
	counts map[string]int
	gate   chan struct{} // closed while the watch flows
	// losses are what happens to the next creates of pods.
	losses []loss
}

// loss is how a request gets lost.
type loss int

const (
	answerLost  loss = iota // it is done, and its sender does not learn of it
	requestLost             // it never arrives
)

var errLost = errors.New("connection lost")

// lose loses the next creates of pods.
func (tr *traffic) lose(losses ...loss) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.losses = losses
}

func (tr *traffic) nextLoss() (loss, bool) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if len(tr.losses) == 0 {
		return 0, false
	}
	next := tr.losses[0]
	tr.losses = tr.losses[1:]
	return next, true
}

func newTraffic() *traffic {
	flowing := make(chan struct{})
	close(flowing)
	return &traffic{counts: map[string]int{}, gate: flowing}
}

// through returns a config whose requests are counted.
func (tr *traffic) through(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &counting{tr, next} })
	return config
}

// count returns how many requests with the method were sent to the resource, with
// its subresource: "pods", "pools/status".
func (tr *traffic) count(method, resource string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.counts[method+" "+resource]
}

// writes returns how many requests were sent that change something. Events do not count.
func (tr *traffic) writes() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	n := 0
	for what, count := range tr.counts {
		if !strings.HasPrefix(what, http.MethodGet+" ") && !strings.HasSuffix(what, " events") {
			n += count
		}
	}
	return n
}

// holdPodWatch holds back what the pod watch shows from now on; the result lets it flow.
func (tr *traffic) holdPodWatch() (release func()) {
	gate := make(chan struct{})
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (tr *traffic) wait(ctx context.Context) {
	tr.mu.Lock()
	gate := tr.gate
	tr.mu.Unlock()
	select {
	case <-gate:
	case <-ctx.Done():
	}
}

type counting struct {
	*traffic
	next http.RoundTripper
}

func (c *counting) RoundTrip(req *http.Request) (*http.Response, error) {
	resource := resourceOf(req.URL.Path)
	watch := req.URL.Query().Get("watch") != ""
	if !watch {
		c.mu.Lock()
		c.counts[req.Method+" "+resource]++
		c.mu.Unlock()
	}
	lost, losing := loss(0), false
	if req.Method == http.MethodPost && resource == "pods" {
		lost, losing = c.nextLoss()
	}
	if losing && lost == requestLost {
		return nil, errLost
	}
	resp, err := c.next.RoundTrip(req)
	if losing {
		if err == nil {
			_ = resp.Body.Close()
		}
		return nil, errLost
	}
	if err == nil && watch && resource == "pods" {
		resp.Body = &heldBody{resp.Body, c.traffic, req.Context()}
	}
	return resp, err
}

// resourceOf returns "pods" or "pools/status" for a path of the API.
func resourceOf(path string) string {
	_, rest, ok := strings.Cut(path, "/namespaces/")
	if !ok {
		return path
	}
	parts := strings.Split(rest, "/") // namespace, resource, name, subresource
	switch {
	case len(parts) >= 4:
		return parts[1] + "/" + parts[3]
	case len(parts) >= 2:
		return parts[1]
	}
	return "namespaces"
}

// heldBody is the body of a watch that shows nothing while it is held.
type heldBody struct {
	io.ReadCloser
	tr  *traffic
	ctx context.Context
}

func (b *heldBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.tr.wait(b.ctx)
	return n, err
}
