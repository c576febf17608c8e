package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// acceptPause is between two tries to take a connection.
const acceptPause = 10 * time.Millisecond

// switchboard listens once for all executors of a fleet and passes each connection to the one
// whose address was called. A socket for each of them would be one more open file for each.
type switchboard struct {
	listener net.Listener

	mu    sync.Mutex // guards lines
	lines map[string]*line
}

// newSwitchboard listens at the address, on every loopback address where it names none.
func newSwitchboard(address string) (*switchboard, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", address)
	if err != nil {
		return nil, fmt.Errorf("listening in place of the pods: %w", err)
	}
	s := &switchboard{listener: l, lines: map[string]*line{}}
	go s.serve()
	return s, nil
}

func (s *switchboard) serve() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(acceptPause) // there are too many open files: it passes, as in net/http
			continue
		}
		called, _, err := net.SplitHostPort(conn.LocalAddr().String())
		if err != nil || !s.pass(called, conn) {
			_ = conn.Close()
		}
	}
}

// pass says that somebody answers at that address.
func (s *switchboard) pass(called string, conn net.Conn) bool {
	s.mu.Lock()
	to := s.lines[called]
	s.mu.Unlock()
	if to == nil {
		return false
	}
	select {
	case to.calls <- conn:
		return true
	case <-to.closed:
		return false
	}
}

// open returns a listener for connections to that address, in place of an earlier one.
func (s *switchboard) open(ip string) net.Listener {
	l := &line{address: s.listener.Addr(), calls: make(chan net.Conn), closed: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines[ip] = l
	return l
}

// line is the listener of one executor.
type line struct {
	address net.Addr
	calls   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

// Accept implements net.Listener.
func (l *line) Accept() (net.Conn, error) {
	select {
	case conn := <-l.calls:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *line) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *line) Addr() net.Addr { return l.address }
