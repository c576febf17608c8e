package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// command is what was started, and all that came of it.
type command struct {
	first          int
	conn           *link.Conn
	stdout, stderr *pump
	oomKills       int64         // before it started
	gone           chan struct{} // closed when every process of it is dead and reaped
}

// startCommand is called by the main thread.
func startCommand(s link.Start, conn *link.Conn) (*command, *link.Failure) {
	c := &command{conn: conn, oomKills: oomKills(), gone: make(chan struct{})}
	stdout, stdoutEnd, err := pipe()
	if err != nil {
		return nil, cannotStart("%v", err)
	}
	defer stdoutEnd.Close()
	stderr, stderrEnd, err := pipe()
	if err != nil {
		stdout.Close()
		return nil, cannotStart("%v", err)
	}
	defer stderrEnd.Close()
	var failure *link.Failure
	if c.first, failure = forkExec(s, stdoutEnd, stderrEnd); failure != nil {
		stdout.Close()
		stderr.Close()
		return nil, failure
	}
	c.stdout, c.stderr = newPump(stdout, conn, link.KindStdout), newPump(stderr, conn, link.KindStderr)
	return c, nil
}

// follow passes on what the command prints and how it ends.
func (c *command) follow() {
	go c.stdout.run()
	go c.stderr.run()
	go c.reap()
}

// reap waits for every child until there is none: the command's descendants become the
// launcher's children when their parents die.
func (c *command) reap() {
	defer close(c.gone)
	defer c.stdout.close()
	defer c.stderr.close()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ECHILD
			return
		case pid == c.first && status.Signaled():
			signal := int32(status.Signal() & 0x7f)
			c.exited(link.Exit{Code: 128 + signal, Signal: signal})
		case pid == c.first && status.Exited():
			c.exited(link.Exit{Code: int32(status.ExitStatus() & 0xff)})
		}
	}
}

func (c *command) exited(e link.Exit) {
	e.OutOfMemory = oomKills() > c.oomKills
	c.stdout.drain()
	c.stderr.drain()
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
	failure := &link.Failure{Code: codeNotFound, Reason: api.ReasonCommandNotFound,
		Message: fmt.Sprintf("command %q is not in PATH (%s)", name, valueOf(env, "PATH"))}
	if valueOf(s.Env, "PATH") != "" { // it may come from a Secret, and the message stands in a status
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
		found := execFailure(name, s.WorkingDir, file, err)
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

func execFailure(name, dir, file string, err error) *link.Failure {
	at := file
	if !filepath.IsAbs(at) {
		at = filepath.Join(dir, file)
	}
	_, statErr := os.Lstat(at)
	switch {
	case errors.Is(err, unix.ENOENT) && statErr == nil:
		return &link.Failure{Code: codeNotExecutable, Reason: api.ReasonNotExecutable, Message: fmt.Sprintf("command %q: %s is there, but its interpreter or loader is not", name, file)}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return &link.Failure{Code: codeNotFound, Reason: api.ReasonCommandNotFound, Message: fmt.Sprintf("command %q: %s: %v", name, file, err)}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EPERM), errors.Is(err, unix.ELOOP):
		return &link.Failure{Code: codeNotExecutable, Reason: api.ReasonNotExecutable, Message: fmt.Sprintf("command %q: %s: %v", name, file, err)}
	default: // E2BIG, ENOMEM, ETXTBSY, ...
		return &link.Failure{Code: codeNotExecutable, Reason: api.ReasonCannotStart, Message: fmt.Sprintf("command %q: %s: %v", name, file, err)}
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
