// Package undump makes another process not dumpable. From then on only a process with
// CAP_SYS_PTRACE may trace it, look into its memory or go through its root directory; to run
// as its user is not enough.
//
// Only a process itself can ask the kernel for that. So it is traced for a moment and made
// to run prctl(PR_SET_DUMPABLE, 0) in place of the system call that it is blocked in, which
// the kernel then begins again. Whatever fails, the process goes on as before.
//
// Meanwhile nothing else in this program may wait for any child: it would receive the
// messages that the kernel sends about the traced process.
package undump

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Process makes a process not dumpable, which it stays until it runs another program
// or changes that itself. It takes a few seconds at most.
func Process(pid int) error {
	return onOwnThread(func() error { return undump(pid) })
}

// onOwnThread runs the action on a thread that ends after it. The kernel then detaches that
// thread from whatever it still traces.
func onOwnThread(action func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- action()
			return // and never unlocked: so the thread ends
		}
		// The main thread would not end. While it is held here, another one is taken.
		defer runtime.UnlockOSThread()
		done <- onOwnThread(action)
	}()
	return <-done
}
