package process

import (
	"encoding/json"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
)

// The hidden subcommands by which the binary starts itself.
const (
	SuperviseCommand = "supervise"
	LaunchCommand    = "launch"
)

// self is the running binary, also where its file is not in this root directory.
const self = "/proc/self/exe"

// selfEnv is the environment of supervisors and launchers. It has nothing of the
// executor's, which tasks must not see, and nothing of the task's.
var selfEnv = []string{"GOMAXPROCS=1"}

// supervisorSocket connects a supervisor to the executor. The executor sends nothing over
// it, so that its end of file means that the executor has died.
const supervisorSocket = 3

// event is a message of a supervisor: first Started or Failed, then Exited.
type event struct {
	Started *store.Process `json:"started,omitempty"`
	Failed  *startError    `json:"failed,omitempty"`
	Exited  *exit          `json:"exited,omitempty"`
}

// exit is how the first process ended.
type exit struct {
	Code   int32 `json:"code"`
	Signal int32 `json:"signal,omitempty"`
}

// Supervise is the supervisor's main.
func Supervise() int {
	// The task's first process dies with the thread that started it (PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	closeAtExec()
	socket := os.NewFile(supervisorSocket, "socket")
	tell := json.NewEncoder(socket)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		_ = tell.Encode(event{Failed: cannotStart("PR_SET_DUMPABLE: %v", err)})
		return 1
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		_ = tell.Encode(event{Failed: cannotStart("PR_SET_CHILD_SUBREAPER: %v", err)})
		return 1
	}
	go dieWithExecutor(socket)
	first, failure := startLauncher()
	releaseFiles()
	if failure != nil {
		_ = tell.Encode(event{Failed: failure})
		reap(0, nil)
		return 0
	}
	started := store.Process{PID: first}
	if s, err := procstat.Read(first); err == nil { // it is not reaped yet, so it is there
		started = identity(s)
	}
	_ = tell.Encode(event{Started: &started})
	reap(first, func(e exit) { _ = tell.Encode(event{Exited: &e}) })
	return 0
}

// startLauncher returns once the command is being executed, or has failed to.
func startLauncher() (pid int, failure *startError) {
	var status [2]int
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC); err != nil {
		return 0, cannotStart("pipe: %v", err)
	}
	defer unix.Close(status[0])
	pid, err := syscall.ForkExec(self, []string{api.ContainerName, LaunchCommand}, &syscall.ProcAttr{
		Env:   selfEnv,
		Files: []uintptr{0, 1, 2, uintptr(status[1]), launchRequest, launchRoot, launchCwd},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	unix.Close(status[1])
	if err != nil {
		return 0, cannotStart("start the launcher: %v", err)
	}
	// The pipe closes at execve. What can be read before that says what failed.
	said := make([]byte, 0, 4096)
	for len(said) < cap(said) {
		n, err := unix.Read(status[0], said[len(said):cap(said)])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			break
		}
		said = said[:len(said)+n]
	}
	if len(said) == 0 {
		return pid, nil
	}
	failure = cannotStart("the launcher said %q", said)
	var f startError
	if json.Unmarshal(said, &f) == nil {
		failure = &f
	}
	return 0, failure
}

// releaseFiles closes the supervisor's own copies of the task's files, so that the outputs
// end when the last process of the task does.
func releaseFiles() {
	if null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup3(null, fd, 0)
		}
		unix.Close(null)
	}
	for _, fd := range []int{launchRequest, launchRoot, launchCwd} {
		unix.Close(fd)
	}
}

// reap waits for every child until there is none.
func reap(first int, ended func(exit)) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil: // ECHILD
			return
		case pid == first && status.Signaled():
			signal := int32(status.Signal() & 0x7f)
			ended(exit{Code: 128 + signal, Signal: signal})
		case pid == first && status.Exited():
			ended(exit{Code: int32(status.ExitStatus() & 0xff)})
		}
	}
}

func dieWithExecutor(socket *os.File) {
	_, _ = io.Copy(io.Discard, socket)
	me, err := procstat.Read(os.Getpid())
	if err == nil {
		for kill(descendantsOf(identity(me))) != nil {
			time.Sleep(time.Second)
		}
	}
	os.Exit(1)
}
