package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
)

const (
	// idleFor is how long a connection is kept for the next request to its executor. It is
	// more than the pause between two polls, and so short that hardly ever one is used
	// whose executor is gone.
	idleFor = 5 * time.Second
	// bufferSize for reading an answer, once it comes.
	bufferSize = 2 << 10
	// maxAround is what may stand around the body of an answer.
	maxAround = 8 << 10
)

// dialer makes connections to executors and keeps those that are idle. There may be
// thousands that wait for an answer: such a connection has no goroutine and no buffer of
// its own, unlike those of http.Transport, which take 8 KiB of stacks and 6 KiB of heap.
type dialer struct {
	net.Dialer
	handshake time.Duration // how long it may take

	mu   sync.Mutex // guards idle
	idle map[string]*conn
}

// conn is a connection to the executor of one pod, and is used for no other.
type conn struct {
	*tls.Conn
	expire *time.Timer // since it was first kept
}

// take returns the connection that is kept for the pod, or nil. An address is another
// pod's soon, hence they are kept by the pod's UID.
func (d *dialer) take(t *Target) *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.idle[t.PodUID]
	if c != nil {
		c.expire.Stop()
		delete(d.idle, t.PodUID)
	}
	return c
}

// dial makes a connection to the executor, and to nobody else at its address.
func (d *dialer) dial(ctx context.Context, t *Target) (*conn, error) {
	plain, err := d.DialContext(ctx, "tcp", t.Address)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(plain, link.PinnedTo(t.PublicKey))
	ctx, cancel := context.WithTimeout(ctx, d.handshake)
	defer cancel()
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS: %w", err), plain.Close())
	}
	return &conn{Conn: secured}, nil
}

// keep keeps a connection for a while.
func (d *dialer) keep(t *Target, c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.idle[t.PodUID] != nil {
		c.discard()
		return
	}
	d.idle[t.PodUID] = c
	c.expire = time.AfterFunc(idleFor, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.idle[t.PodUID] == c {
			delete(d.idle, t.PodUID)
			c.discard()
		}
	})
}

// close closes what is idle.
func (d *dialer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for pod, c := range d.idle {
		c.expire.Stop()
		c.discard()
		delete(d.idle, pod)
	}
}

// discard closes the connection without a word of farewell, which could block.
func (c *conn) discard() { _ = c.NetConn().Close() }

// answer is what an executor has answered.
type answer struct {
	status int
	bootID string
	body   []byte
}

// errKeptEnded says that a connection that was kept ended before an answer came: the
// executor may have restarted since.
var errKeptEnded = errors.New("the connection has ended")

// do sends a request and returns its answer.
func (d *dialer) do(ctx context.Context, t *Target, request []byte) (answer, error) {
	c := d.take(t)
	if c == nil {
		var err error
		if c, err = d.dial(ctx, t); err != nil {
			return answer{}, err
		}
	}
	return d.over(ctx, c, t, request)
}

// over sends a request over that connection.
func (d *dialer) over(ctx context.Context, c *conn, t *Target, request []byte) (got answer, err error) {
	stop := context.AfterFunc(ctx, c.discard)
	first, err := c.ask(request)
	reusable := false
	if err == nil {
		got, reusable, err = c.receive(first)
	}
	if stop() && reusable {
		d.keep(t, c)
	} else {
		c.discard()
	}
	return got, cmp.Or(ctx.Err(), err)
}

// ask sends a request and waits for the first byte of its answer. This is where polls spend
// their time.
func (c *conn) ask(request []byte) ([]byte, error) {
	first := make([]byte, 1)
	_, err := c.Write(request)
	if err == nil {
		_, err = c.Read(first)
	}
	if err != nil && c.expire != nil {
		err = errors.Join(errKeptEnded, err)
	}
	return first, err
}

// receive reads the rest of an answer, and says whether another request may follow.
func (c *conn) receive(first []byte) (got answer, reusable bool, err error) {
	from := bufio.NewReaderSize(io.LimitReader(io.MultiReader(bytes.NewReader(first), c), maxAround+api.MaxAnswerBytes), bufferSize)
	response, err := http.ReadResponse(from, nil)
	if err != nil {
		return answer{}, false, fmt.Errorf("read the answer: %w", err)
	}
	defer response.Body.Close()
	got = answer{status: response.StatusCode, bootID: plausibleBootID(response.Header.Get(api.HeaderBootID))}
	got.body, err = io.ReadAll(io.LimitReader(response.Body, api.MaxAnswerBytes+1))
	switch {
	case err != nil:
		return got, false, fmt.Errorf("read the answer: %w", err)
	case len(got.body) > api.MaxAnswerBytes:
		return got, false, fmt.Errorf("the answer has more than %d bytes", api.MaxAnswerBytes)
	}
	return got, !response.Close && from.Buffered() == 0, nil
}
