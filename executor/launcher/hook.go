package launcher

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
)

// readyFile is the descriptor that the launcher closes when it is taken.
const readyFile = 3

// hookPatience is how long a hook waits for its launcher to be taken. The pod becomes
// ready without it too, a little later.
const hookPatience = 5 * time.Second

// Hook starts the launcher as a daemon and then becomes the hook of the template, if it
// has one: its end and its exit code are the hook's.
func Hook(own []string) error {
	dir, err := installed()
	if err != nil {
		return err
	}
	// Where the executor comes later than the sandbox there is nothing to wait for: the
	// kubelet starts it only after this hook.
	_, err = link.ReadOffer(dir)
	if err := startDaemon(err == nil); err != nil {
		return err
	}
	if len(own) == 0 {
		return nil
	}
	path, err := exec.LookPath(own[0])
	if err != nil {
		return fmt.Errorf("the template's own hook: %w", err)
	}
	return fmt.Errorf("the template's own hook: %w", syscall.Exec(path, own, os.Environ()))
}

// startDaemon has the kubelet's call end although the launcher goes on: another session,
// and nothing open of what the hook was given.
func startDaemon(wait bool) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	ready, taken, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	_, err = syscall.ForkExec("/proc/self/exe", []string{link.BinaryFile, api.LaunchCommand}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), taken.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	taken.Close()
	if err != nil {
		return fmt.Errorf("start the launcher: %w", err)
	}
	if wait {
		_ = ready.SetReadDeadline(time.Now().Add(hookPatience))
		_, _ = ready.Read(make([]byte, 1)) // it ends when the launcher closes its end
	}
	return nil
}

// installed is the directory that the program was installed in. The offer is there, too.
func installed() (string, error) {
	program, err := os.Readlink("/proc/self/exe")
	return filepath.Dir(program), err
}

// Launch is the main of the daemon.
func Launch() error {
	dir, err := installed()
	if err != nil {
		return err
	}
	// What the launcher was given by whoever started it is nothing for a task.
	unix.CloseOnExec(readyFile)
	_ = unix.CloseRange(readyFile, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	return Run(dir, readyFile)
}
