package tasks

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/api"
)

// maxLine of what is echoed; longer lines are split. With what stands before it, it is what
// a container runtime takes for one line. Of what such a runtime splits, kubectl prints the
// rest behind whatever came between, at the beginning of a line.
const maxLine = 16<<10 - 64

// output is one stream of a task. It passes whole lines on and says of each where it comes
// from, so that none can be taken for one of the executor's own. A carriage return ends a
// line too: on a terminal the rest would stand over the beginning.
type output struct {
	out     io.Writer
	prefix  string
	pending []byte
	last    []byte // as much of the end as fits into the message of a task that fails
}

func newOutput(out io.Writer, shard int32, stream string) *output {
	return &output{out: out, prefix: fmt.Sprintf("shard %d %s: ", shard, stream)}
}

func (o *output) write(p []byte) {
	o.last = append(o.last, p[max(0, len(p)-api.MaxMessageBytes):]...)
	o.last = o.last[max(0, len(o.last)-api.MaxMessageBytes):]
	o.emit(p)
}

func (o *output) emit(p []byte) {
	var lines bytes.Buffer
	p = bytes.ReplaceAll(bytes.ReplaceAll(p, []byte("\r\n"), []byte{'\n'}), []byte{'\r'}, []byte{'\n'})
	for {
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		o.pending = append(o.pending, part...)
		for len(o.pending) > maxLine {
			fmt.Fprintf(&lines, "%s%s\n", o.prefix, o.pending[:maxLine])
			o.pending = append([]byte(nil), o.pending[maxLine:]...)
		}
		if !ended {
			break
		}
		fmt.Fprintf(&lines, "%s%s\n", o.prefix, o.pending)
		o.pending, p = nil, rest
	}
	if lines.Len() > 0 {
		_, _ = o.out.Write(lines.Bytes())
	}
}

// flush ends a line that the task has not ended.
func (o *output) flush() {
	if len(o.pending) > 0 {
		o.emit([]byte{'\n'})
	}
}

// echoPatience is how long a task waits for whoever reads the executor's own output; then
// its lines are dropped until that reader goes on.
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

// Close waits, at most so long, until everything is written.
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
