package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
)

func TestRequestsThatFollowEachOtherShareAConnection(t *testing.T) {
	from := map[string]bool{}
	c, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		from[r.RemoteAddr] = true
		_, _ = io.WriteString(w, "{}")
	})
	for range 5 {
		require.NoError(t, c.anything(t, target))
	}
	assert.Len(t, from, 1)
	c.Close()
	require.NoError(t, c.anything(t, target), "a new one")
	assert.Len(t, from, 2)
}

// Its executor may have restarted since.
func TestAPollIsRepeatedWhereAKeptConnectionHasEnded(t *testing.T) {
	var asked, started atomic.Int32
	c, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			started.Add(1)
			panic(http.ErrAbortHandler)
		}
		if asked.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "{}")
	})
	require.NoError(t, c.anything(t, target))
	require.NoError(t, c.anything(t, target))
	assert.Equal(t, int32(3), asked.Load())
	_, err := c.Start(t.Context(), target, "a", api.TaskRequest{})
	require.ErrorIs(t, err, io.EOF, "a change may have been made")
	assert.Equal(t, int32(1), started.Load())
}

// What comes after an answer would be taken for the next one.
func TestAConnectionOnWhichMoreCameIsNotUsedAgain(t *testing.T) {
	var asked atomic.Int32
	forged := "HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n{\"tasks\":[{\"id\":\"x\"}] }"
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		conn, _, err := w.(http.Hijacker).Hijack()
		if assert.NoError(t, err) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"+forged)
		}
	})
	for range 2 {
		list, err := c.List(t.Context(), target, api.Cursor{}, 0)
		require.NoError(t, err)
		assert.Empty(t, list.Tasks)
	}
	assert.Equal(t, int32(2), asked.Load())
}

func TestAnAnswerOfWhichTheHeadDoesNotEndIsNotRead(t *testing.T) {
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if !assert.NoError(t, err) {
			return
		}
		defer conn.Close()
		for _, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"); err == nil; {
			_, err = fmt.Fprintf(conn, "X-%d: %0100d\r\n", time.Now().UnixNano(), 0)
		}
	})
	require.ErrorContains(t, c.anything(t, target), "read the answer")
}

func TestACallThatIsGivenUpEndsItsConnection(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	c, target := hostile(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(ended)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	_, err := c.List(ctx, target, api.Cursor{}, time.Minute)
	require.ErrorIs(t, err, context.Canceled)
	<-ended
}

func TestAnIdleConnectionIsClosedAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{idle: map[string]*conn{}}
		target := &Target{PodUID: "uid"}
		ours, theirs := net.Pipe()
		kept := &conn{Conn: tls.Client(ours, &tls.Config{MinVersion: tls.VersionTLS13})}
		d.keep(target, kept)
		time.Sleep(idleFor - time.Second)
		again := d.take(target)
		require.Same(t, kept, again)
		time.Sleep(idleFor)
		d.keep(target, again) // it was in use meanwhile
		began := time.Now()
		_, err := theirs.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, idleFor, time.Since(began))
		require.Empty(t, d.idle)
	})
}
