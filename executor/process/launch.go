package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
)

// The launcher's files. The supervisor has the same, with its socket in place
// of launchStatus.
const (
	launchStatus  = 3
	launchRequest = 4
	launchRoot    = 5
	launchCwd     = 6
)

// launch is what a launcher is asked to do.
type launch struct {
	Argv        []string    `json:"argv"`
	Env         []string    `json:"env"`
	WorkingDir  string      `json:"workingDir,omitempty"`
	Credentials credentials `json:"credentials"`
	// DryRun stops before the command is looked up: the self-test.
	DryRun bool `json:"dryRun,omitempty"`
}

// startError says why a task could not start.
type startError struct {
	Code    int32  `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (f *startError) Error() string { return f.Message }

// Exit codes of a task that could not start: the first two as shells have them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
	codeCannotStart   = 128
)

func cannotStart(format string, args ...any) *startError {
	return &startError{codeCannotStart, api.ReasonCannotStart, fmt.Sprintf(format, args...)}
}

// Launch is the launcher's main. It becomes the command. It returns only if that cannot be
// executed, and has then reported to its supervisor why.
func Launch() int {
	// Credentials belong to a thread. execve makes those of the calling thread the
	// process's.
	runtime.LockOSThread()
	supervisor := unix.Getppid()
	raiseOOMScore()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return report(cannotStart("PR_SET_DUMPABLE: %v", err))
	}
	closeAtExec()
	var l launch
	if err := readRequest(&l); err != nil {
		return report(cannotStart("read the launch request: %v", err))
	}
	if failure := l.run(supervisor); failure != nil {
		return report(failure)
	}
	return 0
}

// closeAtExec has every file but the standard three closed at execve, also those that the
// executor inherited from whatever started it. A task would have them otherwise.
func closeAtExec() {
	if unix.CloseRange(launchStatus, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	for fd := launchStatus; fd < 1024; fd++ { // an old kernel or seccomp profile
		unix.CloseOnExec(fd)
	}
}

func readRequest(l *launch) error {
	file := os.NewFile(launchRequest, "request")
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return json.NewDecoder(io.NewSectionReader(file, 0, info.Size())).Decode(l)
}

func report(failure *startError) int {
	data, _ := json.Marshal(failure) // strings and a number always marshal
	_, _ = os.NewFile(launchStatus, "status").Write(data)
	return int(failure.Code)
}

// raiseOOMScore makes the kernel prefer the task over the executor when the
// memory that they share runs out.
func raiseOOMScore() {
	const path = "/proc/self/oom_score_adj"
	data, err := os.ReadFile(path)
	if err != nil {
		return
	}
	if score, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
		_ = os.WriteFile(path, []byte(strconv.Itoa(min(score+100, 1000))), 0)
	}
}

func (l *launch) run(supervisor int) *startError {
	for fd := 1; fd <= 2; fd++ { // or the task's user could not open /dev/stdout
		_ = unix.Fchown(fd, l.Credentials.UID, l.Credentials.GID)
	}
	if err := enterRoot(); err != nil {
		return cannotStart("enter the sandbox container's root: %v", err)
	}
	cwdErr := unix.Fchdir(launchCwd)
	if failure := l.Credentials.assume(); failure != nil {
		return failure
	}
	// After the credentials: the kernel forgets it when they change.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return cannotStart("PR_SET_PDEATHSIG: %v", err)
	}
	if unix.Getppid() != supervisor {
		return cannotStart("the supervisor has ended")
	}
	if l.DryRun {
		return nil
	}
	if cwdErr != nil {
		cwdErr = unix.Fchdir(launchCwd)
	}
	if failure := l.changeDir(cwdErr); failure != nil {
		return failure
	}
	return l.exec()
}

func enterRoot() error {
	if err := unix.Fchdir(launchRoot); err != nil {
		return fmt.Errorf("fchdir: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return nil
}

func (l *launch) changeDir(cwdErr error) *startError {
	if l.WorkingDir == "" {
		if cwdErr != nil {
			return &startError{codeCannotStart, api.ReasonWorkingDir, fmt.Sprintf("the sandbox container's working directory: %v", cwdErr)}
		}
		return nil
	}
	if err := unix.Chdir(l.WorkingDir); err != nil {
		return &startError{codeCannotStart, api.ReasonWorkingDir, fmt.Sprintf("working directory %q: %v", l.WorkingDir, err)}
	}
	return nil
}

// exec looks the command up as execvp does and executes it.
func (l *launch) exec() *startError {
	name := l.Argv[0]
	if strings.Contains(name, "/") {
		return execFailure(name, name, syscall.Exec(name, l.Argv, l.Env))
	}
	path := defaultPath
	for _, entry := range l.Env {
		if value, found := strings.CutPrefix(entry, "PATH="); found {
			path = value
		}
	}
	var refused *startError
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		file := dir + "/" + name
		failure := execFailure(name, file, syscall.Exec(file, l.Argv, l.Env))
		if failure.Code != codeNotFound && refused == nil {
			refused = failure
		}
		if failure.Reason == api.ReasonCannotStart {
			break
		}
	}
	if refused != nil {
		return refused
	}
	return &startError{codeNotFound, api.ReasonCommandNotFound, fmt.Sprintf("command %q is not in PATH (%s)", name, path)}
}

func execFailure(name, file string, err error) *startError {
	switch {
	case errors.Is(err, unix.ENOENT) && exists(file):
		return &startError{codeNotExecutable, api.ReasonNotExecutable, fmt.Sprintf("command %q: %s is there, but its interpreter or loader is not", name, file)}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return &startError{codeNotFound, api.ReasonCommandNotFound, fmt.Sprintf("command %q: %s: %v", name, file, err)}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EPERM), errors.Is(err, unix.ELOOP):
		return &startError{codeNotExecutable, api.ReasonNotExecutable, fmt.Sprintf("command %q: %s: %v", name, file, err)}
	default: // E2BIG, ENOMEM, ETXTBSY, ...
		return &startError{codeNotExecutable, api.ReasonCannotStart, fmt.Sprintf("command %q: %s: %v", name, file, err)}
	}
}

func exists(file string) bool {
	var s unix.Stat_t
	return unix.Lstat(file, &s) == nil
}
