// Package link is the connection between the two halves of the executor: the launcher,
// inside the sandbox container, dials the executor on loopback and does what that asks.
//
// The sandbox shares the pod's network, so it may listen to the connection, write into
// it, or wait for the launcher on the executor's port. Hence TLS: the launcher knows the
// executor by the public half of the pod's key, and the executor knows the launcher by a
// secret that is good once. Both stand in a file, the offer, on a volume that the sandbox
// container mounts read-only.
package link

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/api"
)

// Protocol is what a launcher asks for in the TLS handshake, on the port on which the
// operator asks for HTTP.
const Protocol = "opensandbox-launcher"

const (
	// BinaryFile and offerFile stand on the volume.
	BinaryFile = "launcher"
	offerFile  = "offer.json"
	// handshakeTimeout is how long either side waits for the other to introduce itself.
	handshakeTimeout = 5 * time.Second
	// writeTimeout is how long a message may take to be taken in by the other side.
	writeTimeout = 30 * time.Second
	// maxHello bounds what is read of one that is not known yet.
	maxHello = 4 << 10
)

// Offer is what a launcher needs to know to be taken.
type Offer struct {
	Address   string `json:"address"`
	PublicKey []byte `json:"publicKey"`
	Secret    string `json:"secret"`
}

// WriteOffer puts an offer into the directory.
func WriteOffer(dir string, o Offer) error {
	data, err := json.Marshal(o) //nolint:gosec // G117: it is there for the launcher to read
	if err != nil {
		return err
	}
	path := filepath.Join(dir, offerFile)
	if err := os.WriteFile(path+".new", data, 0o644); err != nil { //nolint:gosec // G306: the sandbox's user reads it
		return fmt.Errorf("offer a connection: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("offer a connection: %w", err)
	}
	return nil
}

// WithdrawOffer takes it away: its secret is spent, or its executor has ended.
func WithdrawOffer(dir string) error {
	if err := os.Remove(filepath.Join(dir, offerFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("withdraw the offer of a connection: %w", err)
	}
	return nil
}

// ReadOffer returns an error that is os.ErrNotExist while there is none.
func ReadOffer(dir string) (Offer, error) {
	var o Offer
	data, err := os.ReadFile(filepath.Join(dir, offerFile))
	if err == nil {
		err = json.Unmarshal(data, &o)
	}
	return o, err
}

// hello is a launcher's first message.
type hello struct {
	Secret string `json:"secret"`
}

// Dial connects to the executor that made the offer, and to no other.
func Dial(o Offer) (*Conn, error) {
	dialer := &tls.Dialer{Config: PinnedTo(o.PublicKey)}
	dialer.Config.NextProtos = []string{Protocol}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, err
	}
	c := newConn(conn)
	_ = conn.SetReadDeadline(time.Now().Add(handshakeTimeout))
	err = c.Send(kindHello, hello{o.Secret})
	if err == nil {
		var kind Kind
		if kind, _, err = c.Receive(maxHello); err == nil && kind != kindWelcome {
			err = fmt.Errorf("a message of kind %d came before the welcome", kind)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	_ = conn.SetReadDeadline(time.Time{})
	return c, nil
}

// Accept hears a launcher out and returns its secret. Welcome or Close comes next.
func Accept(conn net.Conn) (*Conn, string, error) {
	c := newConn(conn)
	_ = conn.SetReadDeadline(time.Now().Add(handshakeTimeout))
	kind, body, err := c.Receive(maxHello)
	if err != nil {
		return nil, "", err
	}
	var h hello
	if kind != kindHello {
		return nil, "", fmt.Errorf("a message of kind %d came first", kind)
	}
	if err := json.Unmarshal(body, &h); err != nil {
		return nil, "", err
	}
	_ = conn.SetReadDeadline(time.Time{})
	return c, h.Secret, nil
}

// Welcome tells the launcher that it is taken.
func (c *Conn) Welcome() error { return c.Send(kindWelcome, nil) }

// PinnedTo returns the settings of a client that speaks to the holder of that key alone.
func PinnedTo(public ed25519.PublicKey) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519, tls.CurveP256}, // the second where FIPS 140 is asked for
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, //nolint:gosec // G402: the key itself is compared, and no authority vouches for it
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) != 1 || len(public) != ed25519.PublicKeySize || !public.Equal(state.PeerCertificates[0].PublicKey) {
				return errors.New("the other side does not hold the key of the pod's executor")
			}
			return nil
		},
	}
}

// Kind tells messages apart.
type Kind byte

// The messages.
const (
	kindHello Kind = iota + 1
	kindWelcome
	// KindStart asks to run a command (Start); KindStarted, or KindFailed (Failure), is
	// the answer. The first processes of two commands never run together.
	KindStart
	KindStarted
	KindFailed
	// KindStdout and KindStderr carry output as it is.
	KindStdout
	KindStderr
	// KindExited tells how the first process ended (Exit), after all that it has printed.
	KindExited
	// KindStop asks to end every process of the command (Stop); KindGone is the answer
	// (Outcome).
	KindStop
	KindGone
	// KindClean asks to remove what containers of the pod share; KindCleaned is the
	// answer (Outcome).
	KindClean
	KindCleaned
	// Output of the hooks.
	KindPreStartStdout
	KindPreStartStderr
	KindPostStopStdout
	KindPostStopStderr
)

// Stage is what a command is to its task.
type Stage string

// The stages, in their order. Every task has the main one.
const (
	StagePreStart Stage = "preStart"
	StageMain     Stage = ""
	StagePostStop Stage = "postStop"
)

// Output returns the kinds of messages that carry what a command of the stage prints.
func (s Stage) Output() (stdout, stderr Kind) {
	switch s {
	case StagePreStart:
		return KindPreStartStdout, KindPreStartStderr
	case StagePostStop:
		return KindPostStopStdout, KindPostStopStderr
	default:
		return KindStdout, KindStderr
	}
}

// Start is a command to run.
type Start struct {
	Stage Stage `json:"stage,omitempty"`
	// Continues says that it is of the task of the command before, of which processes may be
	// there still.
	Continues bool `json:"continues,omitempty"`
	// Timeout, where it is not 0, after which the command's process group is killed.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Files are written first.
	Files []api.File `json:"files,omitempty"`
	Argv  []string   `json:"argv"`
	// Env is laid over the sandbox container's environment.
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
}

// Failure says why a command could not be started, with the exit code that shells have
// for it.
type Failure struct {
	Code    int32  `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Exit is how a process ended.
type Exit struct {
	Code   int32 `json:"code"`
	Signal int32 `json:"signal,omitempty"`
	// OutOfMemory: the kernel has killed a process of the sandbox for want of memory
	// since the command was started.
	OutOfMemory bool `json:"outOfMemory,omitempty"`
	// TimedOut: it was killed because its Timeout was over.
	TimedOut bool `json:"timedOut,omitempty"`
}

// Stop is how long the processes have between SIGTERM and SIGKILL.
type Stop struct {
	Grace time.Duration `json:"grace"`
}

// Outcome is empty when all went well.
type Outcome struct {
	Problem string `json:"problem,omitempty"`
}

// Conn carries messages. Sending is safe for concurrent use, receiving is not.
type Conn struct {
	conn   net.Conn
	header [5]byte

	writeMu sync.Mutex // keeps messages whole
}

func newConn(conn net.Conn) *Conn { return &Conn{conn: conn} }

// Close ends the connection.
func (c *Conn) Close() { _ = c.conn.Close() }

// Send sends a message; a nil value is an empty one.
func (c *Conn) Send(kind Kind, v any) error {
	var body []byte
	if v != nil {
		var err error
		if body, err = json.Marshal(v); err != nil {
			return err
		}
	}
	return c.SendBytes(kind, body)
}

// SendBytes sends a message as it is.
func (c *Conn) SendBytes(kind Kind, body []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	message := binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(body))) //nolint:gosec // G115: no message is that long
	_, err := c.conn.Write(append(message, body...))
	if err != nil {
		c.Close() // a part of it may be on its way
	}
	return err
}

// Receive waits for the next message, of at most so many bytes.
func (c *Conn) Receive(most uint32) (Kind, []byte, error) {
	if _, err := io.ReadFull(c.conn, c.header[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(c.header[1:])
	if size > most {
		return 0, nil, fmt.Errorf("a message of %d bytes", size)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(c.conn, body)
	return Kind(c.header[0]), body, err
}
