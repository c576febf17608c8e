package process

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
)

// defaultPath is the PATH of a task whose environment has none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// child is a supervisor, seen from the executor.
type child struct {
	process store.Process
	socket  *os.File
	// events is closed when the supervisor has ended and been reaped.
	events chan event
	// stdout and stderr are the ends to read from.
	stdout, stderr *os.File
}

// newLaunch is the launch of a task in a container.
func newLaunch(c *container, request api.TaskRequest) launch {
	env := c.env
	if env == nil {
		env = merge(nil, request.FallbackEnv)
	}
	env = merge(env, request.Spec.Process.Env)
	if !has(env, "PATH") {
		env = append(env, "PATH="+defaultPath)
	}
	p := request.Spec.Process
	return launch{
		Argv:        append(append([]string{}, p.Command...), p.Args...),
		Env:         env,
		WorkingDir:  p.WorkingDir,
		Credentials: c.credentials,
	}
}

// merge lays variables over an environment; the last of a name wins.
func merge(env []string, over []api.EnvVar) []string {
	merged := append([]string{}, env...)
	at := make(map[string]int, len(env))
	for i, entry := range merged {
		name, _, _ := strings.Cut(entry, "=")
		at[name] = i
	}
	for _, v := range over {
		entry := v.Name + "=" + v.Value
		if i, found := at[v.Name]; found {
			merged[i] = entry
			continue
		}
		at[v.Name] = len(merged)
		merged = append(merged, entry)
	}
	return merged
}

func has(env []string, name string) bool {
	for _, entry := range env {
		if strings.HasPrefix(entry, name+"=") {
			return true
		}
	}
	return false
}

// startChild starts a supervisor, which starts the launcher.
func (e *Executor) startChild(c *container, l launch) (*child, error) {
	request, err := writeRequest(l)
	if err != nil {
		return nil, err
	}
	defer request.Close()
	mine, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	stdout, stdoutEnd, err := pipe()
	if err != nil {
		mine.Close()
		return nil, err
	}
	defer stdoutEnd.Close()
	stderr, stderrEnd, err := pipe()
	if err != nil {
		mine.Close()
		stdout.Close()
		return nil, err
	}
	defer stderrEnd.Close()
	cmd := &exec.Cmd{
		Path:        self,
		Args:        []string{api.ContainerName, SuperviseCommand},
		Env:         selfEnv,
		Dir:         "/",
		Stdout:      stdoutEnd,
		Stderr:      stderrEnd,
		ExtraFiles:  []*os.File{theirs, request, c.root, c.cwd},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	ch := &child{socket: mine, stdout: stdout, stderr: stderr, events: make(chan event, 4)}
	if err := e.startSupervisor(cmd, ch); err != nil {
		mine.Close()
		stdout.Close()
		stderr.Close()
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	go e.watchSupervisor(cmd, ch)
	return ch, nil
}

// startSupervisor holds the lock from the fork until the supervisor is listed, or
// HuntOrphans could take it for an orphan and kill it.
func (e *Executor) startSupervisor(cmd *exec.Cmd, ch *child) error {
	e.supervisorsMu.Lock()
	defer e.supervisorsMu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	ch.process = store.Process{PID: cmd.Process.Pid}
	if s, err := procstat.Read(cmd.Process.Pid); err == nil {
		ch.process = identity(s)
	}
	e.supervisors[cmd.Process.Pid] = true
	return nil
}

// watchSupervisor passes events on until the supervisor has ended.
func (e *Executor) watchSupervisor(cmd *exec.Cmd, ch *child) {
	defer close(ch.events)
	dec := json.NewDecoder(io.LimitReader(ch.socket, 64<<10))
	for {
		var ev event
		if dec.Decode(&ev) != nil {
			break
		}
		ch.events <- ev
	}
	// Its socket is closed, so it is ending or useless.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	e.supervisorsMu.Lock()
	delete(e.supervisors, cmd.Process.Pid)
	e.supervisorsMu.Unlock()
	ch.socket.Close()
}

func writeRequest(l launch) (*os.File, error) {
	fd, err := unix.MemfdCreate("launch", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	file := os.NewFile(uintptr(fd), "launch")
	if err := json.NewEncoder(file).Encode(l); err != nil {
		file.Close()
		return nil, fmt.Errorf("write the launch request: %w", err)
	}
	return file, nil
}

func socketPair() (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// pipe is os.Pipe with a write end that blocks, as programs expect of their
// stdout.
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
