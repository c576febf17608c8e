package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
)

// Exit codes of a command that could not start: the first two as shells have them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
	codeCannotStart   = 128
)

// defaultPath is the PATH of a command whose environment has none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// reapPatience is how long the dead may take to be reaped: longer only if somebody
// traces them.
const reapPatience = 2 * time.Second

// command is what was started for a task, and all that came of it: the task's own command,
// and those of its hooks.
type command struct {
	conn *link.Conn
	gone chan struct{} // closed when every process of it is dead and reaped

	// mu guards the rest, and is held while a process is started: none is reaped before it
	// is known.
	mu    sync.Mutex
	first map[int]*first
	pumps []*pump
}

// first is the first process of one of the commands.
type first struct {
	stdout, stderr *pump
	oomKills       int64 // before it started
	timer          *time.Timer
	timedOut       bool
}

func newCommand(conn *link.Conn) *command {
	return &command{conn: conn, gone: make(chan struct{}), first: map[int]*first{}}
}

// start starts a command. It is called by the main thread. Where everything that was started
// before is gone, over is true and nothing was done.
func (c *command) start(s link.Start) (failure *link.Failure, over bool) {
	stdout, stdoutEnd, err := pipe()
	if err != nil {
		return cannotStart("%v", err), false
	}
	defer stdoutEnd.Close()
	stderr, stderrEnd, err := pipe()
	if err != nil {
		stdout.Close()
		return cannotStart("%v", err), false
	}
	defer stderrEnd.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over() {
		stdout.Close()
		stderr.Close()
		return nil, true
	}
	f := &first{oomKills: oomKills()}
	pid, failure := forkExec(s, stdoutEnd, stderrEnd)
	if failure != nil {
		stdout.Close()
		stderr.Close()
		return failure, false
	}
	outKind, errKind := s.Stage.Output()
	f.stdout, f.stderr = newPump(stdout, c.conn, outKind), newPump(stderr, c.conn, errKind)
	if s.Timeout > 0 {
		f.timer = time.AfterFunc(s.Timeout, func() { c.timeOut(pid, f) })
	}
	c.first[pid] = f
	c.pumps = append(c.pumps, f.stdout, f.stderr)
	_ = c.conn.Send(link.KindStarted, nil) // before anything that it prints, and its end
	go f.stdout.run()
	go f.stderr.run()
	return nil, false
}

// timeOut kills a process, which leads a group of its own, if it was not reaped.
func (c *command) timeOut(pid int, f *first) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first[pid] == f {
		f.timedOut = true
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
}

// reap waits for every child until there is none: the descendants of what was started become
// the launcher's children when their parents die.
func (c *command) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ECHILD
			if c.finish() {
				return
			}
		case status.Signaled():
			signal := int32(status.Signal() & 0x7f)
			c.reaped(pid, link.Exit{Code: 128 + signal, Signal: signal})
		case status.Exited():
			c.reaped(pid, link.Exit{Code: int32(status.ExitStatus() & 0xff)})
		}
	}
}

// finish ends the command, unless something was started since there was no child.
func (c *command) finish() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.first) > 0 {
		return false
	}
	for _, p := range c.pumps {
		p.close()
	}
	close(c.gone)
	return true
}

// reaped tells of the end of a first process.
func (c *command) reaped(pid int, e link.Exit) {
	c.mu.Lock()
	f := c.first[pid]
	delete(c.first, pid)
	c.mu.Unlock()
	if f == nil {
		return
	}
	if f.timer != nil {
		f.timer.Stop()
	}
	e.OutOfMemory, e.TimedOut = oomKills() > f.oomKills, f.timedOut
	f.stdout.drain()
	f.stderr.drain()
	_ = c.conn.Send(link.KindExited, e)
}

func (c *command) over() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// end ends every process of the command. There may be no command.
func (c *command) end(grace time.Duration) error {
	if c == nil {
		return nil
	}
	if err := terminate(grace, c.gone); err != nil {
		return err
	}
	select {
	case <-c.gone:
		return nil
	case <-time.After(reapPatience):
		return errors.New("processes are dead and cannot be reaped: something traces them")
	}
}

func cannotStart(format string, args ...any) *link.Failure {
	return &link.Failure{Code: codeCannotStart, Reason: api.ReasonCannotStart, Message: fmt.Sprintf(format, args...)}
}

// forkExec looks the command up as execvp does and starts it.
func forkExec(s link.Start, stdout, stderr *os.File) (int, *link.Failure) {
	if s.WorkingDir != "" {
		if err := enterable(s.WorkingDir); err != nil {
			return 0, &link.Failure{Code: codeCannotStart, Reason: api.ReasonWorkingDir, Message: fmt.Sprintf("working directory %q: %v", s.WorkingDir, err)}
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return 0, cannotStart("%v", err)
	}
	defer null.Close()
	env := environment(os.Environ(), s.Env)
	name := s.Argv[0]
	files, byPath := []string{name}, !strings.Contains(name, "/")
	if byPath {
		files = inPath(name, valueOf(env, "PATH"))
	}
	// The task's own PATH may come from a Secret, and messages stand in a status.
	hidden := byPath && slices.ContainsFunc(s.Env, func(entry string) bool { return strings.HasPrefix(entry, "PATH=") })
	failure := &link.Failure{Code: codeNotFound, Reason: api.ReasonCommandNotFound,
		Message: fmt.Sprintf("command %q is not in PATH (%s)", name, valueOf(env, "PATH"))}
	if hidden {
		failure.Message = fmt.Sprintf("command %q is not in the PATH that the task sets", name)
	}
	for _, file := range files {
		pid, err := syscall.ForkExec(file, s.Argv, &syscall.ProcAttr{
			Dir: s.WorkingDir, Env: env,
			Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
			Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		})
		if err == nil {
			return pid, nil
		}
		called := file
		if hidden {
			called = "what is in the PATH that the task sets"
		}
		found := execFailure(name, s.WorkingDir, file, called, err)
		if found.Reason == api.ReasonCannotStart || !byPath {
			return 0, found
		}
		if failure.Code == codeNotFound && found.Code != codeNotFound {
			failure = found // the first that is there and cannot be executed
		}
	}
	return 0, failure
}

func enterable(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return errors.Unwrap(err)
	case !info.IsDir():
		return unix.ENOTDIR
	}
	return unix.Access(dir, unix.X_OK)
}

func inPath(name, path string) []string {
	var files []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		files = append(files, dir+"/"+name)
	}
	return files
}

// execFailure says why a file could not be executed, without calling it otherwise.
func execFailure(name, dir, file, called string, err error) *link.Failure {
	at := file
	if !filepath.IsAbs(at) {
		at = filepath.Join(dir, file)
	}
	_, statErr := os.Lstat(at)
	switch {
	case errors.Is(err, unix.ENOENT) && statErr == nil:
		return &link.Failure{Code: codeNotExecutable, Reason: api.ReasonNotExecutable, Message: fmt.Sprintf("command %q: %s is there, but its interpreter or loader is not", name, called)}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return &link.Failure{Code: codeNotFound, Reason: api.ReasonCommandNotFound, Message: fmt.Sprintf("command %q: %s: %v", name, called, err)}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EPERM), errors.Is(err, unix.ELOOP):
		return &link.Failure{Code: codeNotExecutable, Reason: api.ReasonNotExecutable, Message: fmt.Sprintf("command %q: %s: %v", name, called, err)}
	default: // E2BIG, ENOMEM, ETXTBSY, ...
		return &link.Failure{Code: codeNotExecutable, Reason: api.ReasonCannotStart, Message: fmt.Sprintf("command %q: %s: %v", name, called, err)}
	}
}

// environment lays variables over an environment; the last of a name wins.
func environment(env, over []string) []string {
	merged := append([]string{}, env...)
	at := make(map[string]int, len(env))
	for i, entry := range merged {
		name, _, _ := strings.Cut(entry, "=")
		at[name] = i
	}
	for _, entry := range over {
		name, _, _ := strings.Cut(entry, "=")
		if i, found := at[name]; found {
			merged[i] = entry
			continue
		}
		at[name] = len(merged)
		merged = append(merged, entry)
	}
	if _, found := at["PATH"]; !found {
		merged = append(merged, "PATH="+defaultPath)
	}
	return merged
}

func valueOf(env []string, name string) string {
	for _, entry := range env {
		if value, found := strings.CutPrefix(entry, name+"="); found {
			return value
		}
	}
	return ""
}
