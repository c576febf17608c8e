// Package process starts the cluster's programs detached from the terminal, and stops them
// by their own recorded process id. A record counts only while the process that has the id
// was started at the recorded time, so that another process that has got the id since is
// never signalled.
package process

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec says how to run one program.
type Spec struct {
	// Name names the log file and the record.
	Name string
	// Path is the program, Args its arguments.
	Path string
	Args []string
	// Env is added to the environment.
	Env []string
	// Version changes when the program or its configuration files change.
	Version string
	// Around calls start where the program is to run, for example in the node's namespaces.
	// Without it the program runs in those of this process.
	Around func(start func() error) error
	// Started is called with the process id right after the start.
	Started func(pid int) error
}

// fingerprint is another one when a running process is no longer what the spec asks for. The
// environment is left out, because it differs from one of the user's shells to the next.
func (s *Spec) fingerprint() string {
	h := sha256.New()
	for _, part := range append([]string{s.Path, s.Version}, s.Args...) {
		fmt.Fprintf(h, "%s\x00", part)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Table is the set of processes that one cluster has started.
type Table struct {
	// Run holds the records, Logs the output.
	Run, Logs string
}

// Outcome says what Ensure did.
type Outcome string

// The outcomes of Ensure.
const (
	Kept      Outcome = "running"
	Started   Outcome = "started"
	Restarted Outcome = "restarted: it had died"
	Replaced  Outcome = "restarted: its program or configuration changed"
)

type record struct {
	pid         int
	startTime   string
	fingerprint string
}

// Ensure makes sure that the program runs as spec says.
func (t *Table) Ensure(spec *Spec) (Outcome, error) {
	outcome := Started
	if rec, err := t.read(spec.Name); err == nil {
		switch {
		case !rec.alive():
			outcome = Restarted
		case rec.fingerprint == spec.fingerprint():
			return Kept, nil
		default:
			outcome = Replaced
			if err := t.Stop(spec.Name, 20*time.Second); err != nil {
				return "", err
			}
		}
	}
	if err := t.start(spec); err != nil {
		return "", fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return outcome, nil
}

func (t *Table) start(spec *Spec) error {
	for _, dir := range []string{t.Run, t.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(t.Log(spec.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	around := spec.Around
	if around == nil {
		around = func(start func() error) error { return start() }
	}
	if err := around(cmd.Start); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	// Collect the exit status if it dies while this program still runs.
	go func() { _ = cmd.Wait() }()
	startTime, err := startTimeOf(pid)
	if err != nil {
		return t.died(spec.Name)
	}
	text := fmt.Sprintf("%d %s %s\n", pid, startTime, spec.fingerprint())
	if err := os.WriteFile(t.recordPath(spec.Name), []byte(text), 0o644); err != nil {
		return err
	}
	if spec.Started != nil {
		return spec.Started(pid)
	}
	return nil
}

// Check fails, with the end of its log, when a process that was started is dead.
func (t *Table) Check(name string) error {
	rec, err := t.read(name)
	if err != nil || !rec.alive() {
		return t.died(name)
	}
	return nil
}

func (t *Table) died(name string) error {
	return fmt.Errorf("%s died; the end of %s:\n%s", name, t.Log(name), tail(t.Log(name), 15))
}

// Stop ends a process: SIGTERM, then SIGKILL when it has not ended after grace.
// It does nothing when the process is not there.
func (t *Table) Stop(name string, grace time.Duration) error {
	rec, err := t.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := rec.stop(grace); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return os.Remove(t.recordPath(name))
}

// Names lists the recorded processes.
func (t *Table) Names() []string {
	paths, _ := filepath.Glob(filepath.Join(t.Run, "*.pid"))
	var names []string
	for _, path := range paths {
		names = append(names, strings.TrimSuffix(filepath.Base(path), ".pid"))
	}
	return names
}

// Alive says whether a recorded process runs.
func (t *Table) Alive(name string) bool {
	rec, err := t.read(name)
	return err == nil && rec.alive()
}

// Log is the path of a process's output.
func (t *Table) Log(name string) string { return filepath.Join(t.Logs, name+".log") }

func (t *Table) recordPath(name string) string { return filepath.Join(t.Run, name+".pid") }

func (t *Table) read(name string) (record, error) {
	data, err := os.ReadFile(t.recordPath(name))
	if err != nil {
		return record{}, err
	}
	fields := strings.Fields(string(data))
	if len(fields) != 3 {
		return record{}, fmt.Errorf("%s: want three fields, got %q", t.recordPath(name), data)
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil {
		return record{}, fmt.Errorf("%s: %w", t.recordPath(name), err)
	}
	return record{pid: pid, startTime: fields[1], fingerprint: fields[2]}, nil
}

func (r record) alive() bool {
	startTime, err := startTimeOf(r.pid)
	return err == nil && startTime == r.startTime
}

// stop signals through a pidfd. That stays the process that was verified, even if its id is
// given to another process meanwhile.
func (r record) stop(grace time.Duration) error {
	fd, err := unix.PidfdOpen(r.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	if !r.alive() {
		return nil
	}
	for _, try := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, 10 * time.Second}} {
		if err := unix.PidfdSendSignal(fd, try.signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if waitExit(fd, try.wait) {
			return nil
		}
	}
	return fmt.Errorf("process %d did not end after SIGKILL", r.pid)
}

func waitExit(pidfd int, wait time.Duration) bool {
	deadline := time.Now().Add(wait)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n == 1 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// startTimeOf returns when a process started, in clock ticks since boot. Zombies
// count as gone.
func startTimeOf(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the program's name in parentheses and may hold spaces.
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const state, start = 0, 19
	if len(fields) <= start {
		return "", fmt.Errorf("/proc/%d/stat: %q", pid, text)
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return "", fs.ErrNotExist
	}
	return fields[start], nil
}

func tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}
