package process

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
)

const (
	pumpBuffer = 32 << 10
	// maxLine is the longest line that is echoed; longer ones are split.
	maxLine = 16 << 10
	// maxDrain bounds how much is still read when a task has ended: processes that it left
	// running may write for ever.
	maxDrain = 4 << 20
)

// pump carries one output of a task to the executor's own and remembers its end.
type pump struct {
	file *os.File
	raw  syscall.RawConn
	echo *lines
	done chan struct{} // closed at the end of the output

	readMu sync.Mutex // guards reading, what is read into, and last
	buffer []byte
	last   []byte
}

func startPump(file *os.File, echo io.Writer) (*pump, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &pump{file: file, raw: raw, echo: &lines{out: echo}, done: make(chan struct{}), buffer: make([]byte, pumpBuffer)}
	go p.run()
	return p, nil
}

func (p *pump) run() {
	defer close(p.done)
	open := true
	for open {
		err := p.raw.Read(func(fd uintptr) bool {
			var n int
			n, open = p.readOnce(int(fd))
			return n > 0 || !open // else wait until there is something
		})
		if err != nil { // closed
			open = false
		}
	}
	p.readMu.Lock()
	defer p.readMu.Unlock()
	p.echo.flush()
	p.buffer = nil
}

// readOnce carries what one read gives; open is false at the end of the output.
func (p *pump) readOnce(fd int) (n int, open bool) {
	p.readMu.Lock()
	defer p.readMu.Unlock()
	if p.buffer == nil {
		return 0, false
	}
	for {
		n, err := unix.Read(fd, p.buffer)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, true
		case err != nil || n == 0:
			return 0, false
		}
		p.remember(p.buffer[:n])
		_, _ = p.echo.Write(p.buffer[:n])
		return n, true
	}
}

// remember keeps as much of the output's end as fits into the message of a task that fails.
func (p *pump) remember(read []byte) {
	p.last = append(p.last, read[max(0, len(read)-api.MaxMessageBytes):]...)
	p.last = p.last[max(0, len(p.last)-api.MaxMessageBytes):]
}

// tail returns the last bytes that were read, at most api.MaxMessageBytes.
func (p *pump) tail() string {
	p.readMu.Lock()
	defer p.readMu.Unlock()
	return string(p.last)
}

// drain returns when everything that was written before the call has been read and echoed.
func (p *pump) drain() {
	_ = p.raw.Control(func(fd uintptr) {
		for total := 0; total < maxDrain; {
			n, open := p.readOnce(int(fd))
			if n == 0 || !open {
				break
			}
			total += n
		}
	})
	p.readMu.Lock()
	defer p.readMu.Unlock()
	p.echo.flush()
}

func (p *pump) close() {
	p.file.Close()
	<-p.done
}

// lines passes whole lines on, so that those of several tasks do not mix.
type lines struct {
	out     io.Writer
	pending []byte
}

func (l *lines) Write(p []byte) (int, error) {
	written := len(p)
	if end := bytes.LastIndexByte(p, '\n'); end >= 0 {
		l.emit(append(l.pending, p[:end+1]...))
		l.pending, p = nil, p[end+1:]
	}
	l.pending = append(l.pending, p...)
	for len(l.pending) > maxLine {
		l.emit(append(l.pending[:maxLine:maxLine], '\n'))
		l.pending = append([]byte(nil), l.pending[maxLine:]...)
	}
	return written, nil
}

// flush passes on a line that the task has begun, and ends it.
func (l *lines) flush() {
	if len(l.pending) > 0 {
		l.emit(append(l.pending, '\n'))
		l.pending = nil
	}
}

func (l *lines) emit(p []byte) { _, _ = l.out.Write(p) }

// echoPatience is how long a task waits for whoever reads the executor's own output. Then
// lines are dropped until that reader goes on.
const echoPatience = time.Second

// Echo is an output of the executor that never holds a task up for long.
type Echo struct {
	out    io.Writer
	chunks chan []byte
	ended  chan struct{}

	writeMu sync.Mutex // keeps chunks in order, and guards the rest
	closed  bool
	stalled bool
}

// NewEcho starts an echo to out. Close it to have everything written.
func NewEcho(out io.Writer) *Echo {
	e := &Echo{out: out, chunks: make(chan []byte, 8), ended: make(chan struct{})}
	go func() {
		defer close(e.ended)
		for chunk := range e.chunks {
			_, _ = e.out.Write(chunk)
		}
	}()
	return e
}

var errEchoClosed = errors.New("the echo is closed")

// Write takes a copy of p. It implements io.Writer.
func (e *Echo) Write(p []byte) (int, error) {
	chunk := append([]byte(nil), p...)
	e.writeMu.Lock()
	defer e.writeMu.Unlock()
	if e.closed {
		return 0, errEchoClosed
	}
	select {
	case e.chunks <- chunk:
		e.stalled = false
		return len(p), nil
	default:
	}
	if !e.stalled {
		patience := time.NewTimer(echoPatience)
		defer patience.Stop()
		select {
		case e.chunks <- chunk:
		case <-patience.C:
			e.stalled = true
		}
	}
	return len(p), nil // dropped if stalled
}

// Close waits until everything is written, or until the time is over.
func (e *Echo) Close(within time.Duration) {
	e.writeMu.Lock()
	if !e.closed {
		e.closed = true
		close(e.chunks)
	}
	e.writeMu.Unlock()
	select {
	case <-e.ended:
	case <-time.After(within):
	}
}
