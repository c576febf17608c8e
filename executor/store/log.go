package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
)

// Stream is one of a task's two outputs.
type Stream string

const (
	// Stdout is the task's standard output.
	Stdout Stream = "stdout"
	// Stderr is the task's standard error.
	Stderr Stream = "stderr"
)

// Log is the last bytes of a stream: a ring in a file, so that it costs one
// write per write however much came before. The file is a header (magic, size of
// the ring, number of bytes ever written) and then the ring. It need not be on
// disk: the page cache outlives the executor's process, and the node's death ends
// the pod.
type Log struct {
	mu    sync.Mutex
	file  *os.File
	total int64
	size  int64
}

const (
	logMagic  = "osblog1\n"
	logHeader = 24
)

func (s *Store) logPath(id string, stream Stream) string {
	return filepath.Join(s.Dir(id), string(stream)+".log")
}

// CreateLog starts an empty log of at most size bytes. The task's record must
// have been saved.
func (s *Store) CreateLog(id string, stream Stream, size int64) (*Log, error) {
	file, err := os.OpenFile(s.logPath(id, stream), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create a log: %w", err)
	}
	l := &Log{file: file, size: size}
	if err := l.writeHeader(); err != nil {
		file.Close()
		return nil, fmt.Errorf("create a log: %w", err)
	}
	return l, nil
}

// ReadLog returns the last bytes, at most tail, of a log, also while another
// Log writes to it. A log that does not exist is empty.
func (s *Store) ReadLog(id string, stream Stream, tail int64) ([]byte, error) {
	file, err := os.Open(s.logPath(id, stream))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a log: %w", err)
	}
	defer file.Close()
	var header [logHeader]byte
	if _, err := file.ReadAt(header[:], 0); err != nil || string(header[:8]) != logMagic {
		return nil, nil
	}
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read a log: %w", err)
	}
	size, total := binary.LittleEndian.Uint64(header[8:]), binary.LittleEndian.Uint64(header[16:])
	if size == 0 || size > math.MaxInt64-logHeader || total > math.MaxInt64 {
		return nil, nil // damaged
	}
	l := &Log{file: file, size: int64(size), total: int64(total)}
	if min(l.size, l.total) > info.Size()-logHeader {
		return nil, nil // damaged
	}
	return l.Tail(tail)
}

// Write appends to the log. It implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	written := len(p)
	if over := int64(len(p)) - l.size; over > 0 {
		l.total += over
		p = p[over:]
	}
	for len(p) > 0 {
		at := l.total % l.size
		n := min(int64(len(p)), l.size-at)
		if _, err := l.file.WriteAt(p[:n], logHeader+at); err != nil {
			return 0, err
		}
		l.total += n
		p = p[n:]
	}
	return written, l.writeHeader()
}

func (l *Log) writeHeader() error {
	var header [logHeader]byte
	copy(header[:], logMagic)
	binary.LittleEndian.PutUint64(header[8:], uint64(max(l.size, 0)))
	binary.LittleEndian.PutUint64(header[16:], uint64(max(l.total, 0)))
	_, err := l.file.WriteAt(header[:], 0)
	return err
}

// Tail returns the last bytes, at most n.
func (l *Log) Tail(n int64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	length := min(l.total, l.size, max(n, 0))
	out := make([]byte, length)
	start := (l.total - length) % l.size
	first := min(length, l.size-start)
	if _, err := l.file.ReadAt(out[:first], logHeader+start); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, err := l.file.ReadAt(out[first:], logHeader); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return out, nil
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }
