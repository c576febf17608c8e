// Package ownnamespaces runs tests in an IPC, a mount and a process namespace of their own,
// so that nothing of the machine is emptied, and nothing that they start outlives them.
// That needs root.
package ownnamespaces

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespaces is set in the test process that has those namespaces.
const inNamespaces = "OWN_NAMESPACES"

// Run is what TestMain calls in place of m.Run.
func Run(m *testing.M) int {
	if os.Getenv(inNamespaces) != "" {
		if err := ownMounts(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	runtime.LockOSThread() // the tests die with the thread that started them
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespaces+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWIPC | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if ended := new(exec.ExitError); err != nil && !errors.As(err, &ended) {
		fmt.Fprintln(os.Stderr, "these tests need root:", err)
	}
	if err != nil {
		return 1
	}
	return 0
}

func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for dir, kind := range map[string]string{"/dev/shm": "tmpfs", "/dev/mqueue": "mqueue", "/proc": "proc"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}
