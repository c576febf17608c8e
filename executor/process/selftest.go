package process

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
)

// needed are the capabilities that starting and ending tasks takes.
const needed = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SETUID |
	1<<unix.CAP_SETGID | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_KILL

// SelfTest says what keeps tasks from running here. It enters the root directory of the
// pod's first process, as a task would enter that of the sandbox container.
func (e *Executor) SelfTest() []string {
	var problems []string
	if uid := os.Geteuid(); uid != 0 {
		problems = append(problems, fmt.Sprintf("the executor runs as user %d, not as root (runAsUser)", uid))
	}
	for _, name := range namesOf(needed &^ e.own) {
		problems = append(problems, "capability "+name+" is missing")
	}
	if os.Getpid() == 1 {
		return append(problems, "the pod does not share its process namespace (shareProcessNamespace)")
	}
	if err := e.tryLaunch(); err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}

// Capabilities that the executor has.
func (e *Executor) Capabilities() []string { return namesOf(e.own) }

func (e *Executor) tryLaunch() error {
	dir, err := os.Open("/proc/1")
	if err != nil {
		return fmt.Errorf("look at process 1: %w", err)
	}
	defer dir.Close()
	c, err := readContainer(dir)
	if err != nil {
		return fmt.Errorf("look at process 1: %w", err)
	}
	defer c.close()
	child, err := e.startChild(c, launch{Credentials: c.credentials, DryRun: true})
	if err != nil {
		return err
	}
	defer child.stdout.Close()
	defer child.stderr.Close()
	return awaitDryRun(child)
}

func awaitDryRun(child *child) error {
	deadline := time.NewTimer(startPatience)
	defer deadline.Stop()
	for {
		select {
		case ev, alive := <-child.events:
			switch {
			case !alive:
				return fmt.Errorf("the supervisor ended without a word")
			case ev.Failed != nil:
				return ev.Failed
			case ev.Exited != nil && ev.Exited.Code != 0:
				return fmt.Errorf("the launcher ended with exit code %d", ev.Exited.Code)
			case ev.Exited != nil:
				return nil
			}
		case <-deadline.C:
			p := store.Process{PID: child.process.PID, StartTime: child.process.StartTime}
			_ = signalProcess(procstat.Stat{PID: p.PID, StartTime: p.StartTime}, unix.SIGKILL)
			return fmt.Errorf("no answer within %v", startPatience)
		}
	}
}
