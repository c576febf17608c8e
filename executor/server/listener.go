package server

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/link"
)

const (
	// maxConnections at a time. Each costs some 50 KB while it says nothing.
	maxConnections = 64
	// maxOfOneAddress keeps a sandbox, which reaches the port too, from taking the turn of
	// the operator and of the kubelet. Launchers count as well. All that comes from within
	// the pod counts as of one address, since loopback has millions of them.
	maxOfOneAddress = 16
)

// TLS returns the settings for a server with that key. The certificate says nothing: its
// key is what clients compare.
func TLS(key ed25519.PrivateKey) (*tls.Config, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<33, 0)}
	raw, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}},
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519, tls.CurveP256}, // the second where FIPS 140 is asked for
		SessionTicketsDisabled: true,
		NextProtos:             []string{"http/1.1", link.Protocol},
	}, nil
}

// limit bounds the connections of a listener: those that are too many are closed at once.
type limit struct {
	net.Listener

	mu    sync.Mutex // guards the counts
	all   int
	ofOne map[string]int
}

func newLimit(l net.Listener) *limit { return &limit{Listener: l, ofOne: map[string]int{}} }

// Accept implements net.Listener.
func (l *limit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := origin(conn.RemoteAddr(), conn.LocalAddr())
		if l.enter(from) {
			return &limited{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		_ = conn.Close()
	}
}

// origin is the address that a connection comes from, and empty within the pod.
func origin(remote, local net.Addr) string {
	from, _ := remote.(*net.TCPAddr)
	to, _ := local.(*net.TCPAddr)
	if from == nil || to == nil || from.IP.IsLoopback() || to.IP.IsLoopback() || from.IP.Equal(to.IP) {
		return ""
	}
	return from.IP.String()
}

func (l *limit) enter(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConnections || l.ofOne[from] >= maxOfOneAddress {
		return false
	}
	l.all++
	l.ofOne[from]++
	return true
}

func (l *limit) leave(from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.ofOne[from]--; l.ofOne[from] == 0 {
		delete(l.ofOne, from)
	}
}

type limited struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *limited) Close() error {
	c.leave()
	return c.Conn.Close()
}
