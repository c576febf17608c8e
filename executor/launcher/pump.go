package launcher

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/link"
)

const (
	pumpBuffer = 32 << 10
	// maxDrain bounds what is still read when the first process has ended: what it left
	// running may write for ever.
	maxDrain = 4 << 20
)

// pump sends what is printed to the executor.
type pump struct {
	file *os.File
	raw  syscall.RawConn
	conn *link.Conn
	kind link.Kind
	done chan struct{} // closed at the end of the output

	readMu sync.Mutex // guards reading, and the buffer
	buffer []byte     // nil at the end
}

func newPump(file *os.File, conn *link.Conn, kind link.Kind) *pump {
	raw, _ := file.SyscallConn() // it fails for a closed file alone
	return &pump{file: file, raw: raw, conn: conn, kind: kind, done: make(chan struct{}), buffer: make([]byte, pumpBuffer)}
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
	p.buffer = nil
}

// readOnce sends what one read gives; open is false at the end of the output.
func (p *pump) readOnce(fd int) (n int, open bool) {
	p.readMu.Lock()
	defer p.readMu.Unlock()
	if p.buffer == nil {
		return 0, false
	}
	for {
		n, err := unix.Read(fd, p.buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, true
		case err != nil || n == 0:
			return 0, false
		}
		_ = p.conn.SendBytes(p.kind, p.buffer[:n]) // without an executor the command is killed soon
		return n, true
	}
}

// drain returns when everything that was printed before the call is sent.
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
}

// close is called when nobody of the command can print any more.
func (p *pump) close() {
	p.drain()
	p.file.Close()
	<-p.done
}

// pipe is os.Pipe with a write end that blocks, as programs expect of their stdout.
func pipe() (read, write *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}
