package undump

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience is how long the process may take to be blocked in a system call.
	patience = 5 * time.Second
	// stopPatience is how long it may take to its next stop, on a busy node.
	stopPatience = 5 * time.Second
	// between attempts the process goes on.
	between = 5 * time.Millisecond
)

// errBusy says that at this moment the process has something to do.
var errBusy = errors.New("the process is not blocked in a system call, or has signals to deal with")

func undump(pid int) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(between) {
		err := attempt(pid)
		if !errors.Is(err, errBusy) || time.Now().After(deadline) {
			return err
		}
	}
}

func attempt(pid int) error {
	if err := unix.PtraceSeize(pid); err != nil { // not ATTACH: a namespace's first process ignores its SIGSTOP
		return fmt.Errorf("trace process %d: %w", pid, err)
	}
	t := &tracee{pid: pid}
	err := t.makeUndumpable()
	return errors.Join(err, t.detach())
}

// tracee is a process that this thread traces.
type tracee struct {
	pid int
	// at is where it is stopped, or running.
	at stop
	// signal was on its way to the process when it was stopped, and is passed on at the end.
	signal unix.Signal
}

type stop int

const (
	running stop = iota
	// inCall is at the entry or exit of a system call.
	inCall
	// interrupted is where PTRACE_INTERRUPT stops it. After this stop the kernel looks for
	// signals, and decides whether a system call that was interrupted is to begin again.
	interrupted
	// signaled is the same place, but the process has a signal to deal with, or is stopped
	// by one.
	signaled
)

func (t *tracee) makeUndumpable() error {
	if err := t.interrupt(); err != nil {
		return err
	}
	if t.at == signaled {
		return errBusy
	}
	if err := unix.PtraceSetOptions(t.pid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return fmt.Errorf("trace its system calls: %w", err)
	}
	var own unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.pid, &own); err != nil {
		return fmt.Errorf("read its registers: %w", err)
	}
	if err := t.checkBlocked(&own); err != nil {
		return err
	}
	err := t.run(&own)
	return errors.Join(err, t.restore(&own))
}

// checkBlocked returns an error unless the process is in a system call: the instruction
// before the one at which it goes on must be a system call.
func (t *tracee) checkBlocked(own *unix.PtraceRegs) error {
	const userCode64 = 0x33
	if own.Cs != userCode64 {
		return errors.New("the process is not a 64-bit one")
	}
	var instruction [2]byte
	if _, err := unix.PtracePeekText(t.pid, uintptr(own.Rip)-2, instruction[:]); err != nil || instruction != [2]byte{0x0f, 0x05} {
		return errBusy
	}
	return nil
}

func (t *tracee) run(own *unix.PtraceRegs) error {
	result, err := t.prctl(own, unix.PR_SET_DUMPABLE)
	if err != nil {
		return err
	}
	if result < 0 {
		return fmt.Errorf("PR_SET_DUMPABLE in the process: %w", unix.Errno(-result))
	}
	result, err = t.prctl(own, unix.PR_GET_DUMPABLE)
	if err != nil {
		return err
	}
	if result != 0 {
		return fmt.Errorf("PR_GET_DUMPABLE in the process is %d", result)
	}
	return nil
}

// prctl makes the process run prctl(option, 0).
func (t *tracee) prctl(own *unix.PtraceRegs, option uint64) (int64, error) {
	regs := *own
	regs.Rip -= 2
	regs.Rax, regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8 = unix.SYS_PRCTL, option, 0, 0, 0, 0
	regs.Orig_rax = ^uint64(0) // no system call was interrupted: none begins again
	if err := unix.PtraceSetRegs(t.pid, &regs); err != nil {
		return 0, fmt.Errorf("set its registers: %w", err)
	}
	for range 2 { // entry and exit
		if err := t.next(unix.PtraceSyscall); err != nil {
			return 0, err
		}
		if t.at != inCall {
			return 0, errBusy
		}
	}
	if err := unix.PtraceGetRegs(t.pid, &regs); err != nil {
		return 0, fmt.Errorf("read its registers: %w", err)
	}
	if regs.Rip != own.Rip {
		return 0, errors.New("the process did not run its own system call instruction")
	}
	return int64(regs.Rax), nil //nolint:gosec // -errno
}

// restore gives the process its registers back at a stop after which the kernel begins
// the interrupted system call again, as it would have without this.
func (t *tracee) restore(own *unix.PtraceRegs) error {
	if err := t.interrupt(); err != nil {
		return err
	}
	if err := unix.PtraceSetRegs(t.pid, own); err != nil {
		return fmt.Errorf("restore its registers: %w", err)
	}
	return nil
}

// interrupt brings the process to a stop at which it may be given its registers.
func (t *tracee) interrupt() error {
	if t.at == interrupted || t.at == signaled {
		return nil
	}
	if err := unix.PtraceInterrupt(t.pid); err != nil {
		return fmt.Errorf("interrupt the process: %w", err)
	}
	for t.at == running || t.at == inCall {
		if err := t.next(unix.PtraceCont); err != nil {
			return err
		}
	}
	return nil
}

// next resumes the process, if it is stopped, and waits for its next stop.
func (t *tracee) next(resume func(pid, signal int) error) error {
	if t.at != running {
		if err := resume(t.pid, 0); err != nil {
			return fmt.Errorf("resume the process: %w", err)
		}
		t.at = running
	}
	deadline := time.Now().Add(stopPatience)
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 2*time.Millisecond) {
		var status unix.WaitStatus
		pid, err := unix.Wait4(t.pid, &status, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the process: %w", err)
		case pid == t.pid && !status.Stopped():
			return errors.New("the process has ended")
		case pid == t.pid:
			t.stopped(status)
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the process did not stop within %v", stopPatience)
		}
		time.Sleep(pause)
	}
}

func (t *tracee) stopped(status unix.WaitStatus) {
	const callSignal = unix.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD
	signal := status.StopSignal()
	event := int(status) >> 16
	switch {
	case event == 0 && signal == callSignal:
		t.at = inCall
	case event == unix.PTRACE_EVENT_STOP && signal == unix.SIGTRAP:
		t.at = interrupted
	case event == unix.PTRACE_EVENT_STOP: // by SIGSTOP or the like, which it has got
		t.at = signaled
	case signal == unix.SIGSYS: // a seccomp profile's word on our call, not on its own
		t.at = signaled
	default:
		t.at, t.signal = signaled, signal
	}
}

func (t *tracee) detach() error {
	if t.at == running {
		return nil // the end of this thread does it
	}
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(t.pid), 0, uintptr(t.signal), 0, 0); errno != 0 {
		return fmt.Errorf("detach from the process: %w", errno)
	}
	return nil
}
