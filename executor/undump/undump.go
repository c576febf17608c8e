// Package undump makes another process not dumpable: from then on only who has
// CAP_SYS_PTRACE may trace it, look into its memory or go through its root directory,
// not who merely runs as its user.
//
// Only a process itself can ask the kernel for that, so it is traced for a moment and
// made to run prctl(PR_SET_DUMPABLE, 0) in place of the system call that it is blocked
// in, which the kernel then begins again. Whatever fails, the process goes on as before.
//
// While it works, nothing else of the program may wait for any child: it would take
// what the traced process has to say.
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

// onOwnThread runs what traces on a thread that ends after it: the kernel then lets go
// of whatever that still traces.
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
