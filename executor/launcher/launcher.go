// Package launcher is the half of the executor inside the sandbox container. The kubelet
// starts it there, as the container's postStart hook, so that what it starts has the
// container's file system, namespaces, environment, user, capabilities, seccomp profile,
// cgroup and limits without anything being taken over: a task sees what `kubectl exec`
// sees.
//
// It does what the executor asks over executor/link and decides nothing: start a command,
// pass its output on, tell how it ended, end all that is left of it. It is a subreaper:
// whatever the command forks or daemonizes keeps it as an ancestor. When the executor is
// gone it kills what it has started, and connects anew.
package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/recycle"
)

const (
	// firstPause between two tries to connect; it doubles up to lastPause.
	firstPause, lastPause = 5 * time.Millisecond, 2 * time.Second
	// killPause between two tries to kill what could not be killed.
	killPause = time.Second
	// maxRequest is more than what the largest request for a task becomes as JSON.
	maxRequest = 8 << 20
)

// Launcher serves one executor after the other.
type Launcher struct {
	dir     string
	conn    *link.Conn
	command *command
}

// Run is the launcher's main. It returns only if it cannot work at all. The descriptor
// ready, where it is not negative, is closed when the executor has taken the launcher.
func Run(dir string, ready int) error {
	// A command dies with the thread that started it: the main one, which lives on.
	runtime.LockOSThread()
	debug.SetGCPercent(20) // it runs on the sandbox's memory
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_CHILD_SUBREAPER: %w", err)
	}
	l := &Launcher{dir: dir}
	for {
		l.connect()
		if ready >= 0 {
			unix.Close(ready)
			ready = -1
		}
		debug.FreeOSMemory()
		l.serve()
		l.conn.Close()
		l.endAll()
	}
}

// connect returns when an executor has taken the launcher.
func (l *Launcher) connect() {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		offer, err := link.ReadOffer(l.dir)
		if err == nil {
			if l.conn, err = link.Dial(offer); err == nil {
				return
			}
		}
		time.Sleep(pause)
	}
}

// serve does what the executor asks until the connection ends.
func (l *Launcher) serve() {
	for {
		kind, body, err := l.conn.Receive(maxRequest)
		if err != nil {
			return
		}
		switch kind {
		case link.KindStart:
			l.start(body)
		case link.KindStop:
			var stop link.Stop
			if json.Unmarshal(body, &stop) != nil {
				return
			}
			conn, command := l.conn, l.command
			go func() { _ = conn.Send(link.KindGone, outcome(command.end(stop.Grace))) }()
		case link.KindClean:
			_ = l.conn.Send(link.KindCleaned, outcome(recycle.ThisPod().Clean()))
		default:
			return
		}
	}
}

func (l *Launcher) start(body []byte) {
	var request link.Start
	if err := json.Unmarshal(body, &request); err != nil {
		_ = l.conn.Send(link.KindFailed, cannotStart("read the request: %v", err))
		return
	}
	if failure := l.run(request); failure != nil {
		_ = l.conn.Send(link.KindFailed, failure)
	}
	if len(request.Files) > 0 {
		debug.FreeOSMemory()
	}
}

// run starts a command beside what is left of those before it, where it is of the same task.
func (l *Launcher) run(request link.Start) *link.Failure {
	if l.command != nil && !request.Continues && !l.command.over() {
		return cannotStart("processes of the last task are there still")
	}
	if failure := writeFiles(request.Files); failure != nil {
		return failure
	}
	if l.command != nil && request.Continues {
		if failure, over := l.command.start(request); !over {
			return failure
		}
	}
	fresh := newCommand(l.conn)
	failure, _ := fresh.start(request)
	if failure == nil {
		l.command = fresh
		go fresh.reap()
	}
	return failure
}

// endAll returns when nothing of the last command lives.
func (l *Launcher) endAll() {
	for l.command.end(0) != nil {
		time.Sleep(killPause)
	}
	l.command = nil
}

func outcome(err error) link.Outcome {
	if err == nil {
		return link.Outcome{}
	}
	return link.Outcome{Problem: err.Error()}
}

// Install puts the program into the directory, from where the sandbox container runs it.
func Install(dir string) error {
	program, err := readOwn()
	if err != nil {
		return fmt.Errorf("read the launcher's program: %w", err)
	}
	path := dir + "/" + link.BinaryFile
	err = os.WriteFile(path+".new", program, 0o755) //nolint:gosec // G306: the sandbox's user runs it
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("install the launcher: %w", err), os.Remove(path+".new"))
	}
	return nil
}

// readOwn reads the running program or, where its user may not read it, the copy beside it.
func readOwn() ([]byte, error) {
	program, err := os.ReadFile("/proc/self/exe")
	if !errors.Is(err, os.ErrPermission) {
		return program, err
	}
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(filepath.Dir(path), link.BinaryFile))
}
