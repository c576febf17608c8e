// Command leaderless lives on after its main thread has ended, as a program in C does
// that calls pthread_exit in main: /proc says Z of it. It writes its pid to the file
// that its argument names.
package main

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

func init() { runtime.LockOSThread() } // main then runs on the main thread

func main() {
	written := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if err := os.WriteFile(os.Args[1], []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			panic(err)
		}
		close(written)
		for {
			_ = unix.Nanosleep(&unix.Timespec{Sec: 3600}, nil)
		}
	}()
	<-written
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0) // ends this thread alone
}
