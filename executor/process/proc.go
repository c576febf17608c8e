package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
)

func identity(s procstat.Stat) store.Process {
	return store.Process{PID: s.PID, StartTime: s.StartTime}
}

// allProcesses lists every process that can be seen.
func allProcesses() ([]procstat.Stat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make([]procstat.Stat, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, err := procstat.Read(pid); err == nil { // else it is gone
			all = append(all, s)
		}
	}
	return all, nil
}

// below returns the live descendants of the processes that isRoot accepts, without these
// themselves.
func below(all []procstat.Stat, isRoot func(procstat.Stat) bool) []procstat.Stat {
	children := make(map[int][]procstat.Stat, len(all))
	var queue []procstat.Stat
	for _, s := range all {
		children[s.Parent] = append(children[s.Parent], s)
		if isRoot(s) {
			queue = append(queue, s)
		}
	}
	var found []procstat.Stat
	seen := map[int]bool{}
	for len(queue) > 0 {
		for _, child := range children[queue[0].PID] {
			if seen[child.PID] {
				continue
			}
			seen[child.PID] = true
			queue = append(queue, child)
			if !child.Dead() {
				found = append(found, child)
			}
		}
		queue = queue[1:]
	}
	return found
}

// tree lists the live processes that are to be ended together.
type tree func() ([]procstat.Stat, error)

// descendantsOf is the tree below one process, for as long as that lives.
func descendantsOf(root store.Process) tree {
	return func() ([]procstat.Stat, error) {
		all, err := allProcesses()
		if err != nil {
			return nil, err
		}
		return below(all, func(s procstat.Stat) bool { return identity(s) == root }), nil
	}
}

// signalProcess signals the very process that was seen, and not another one that has got
// its pid since.
func signalProcess(s procstat.Stat, signal unix.Signal) error {
	fd, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err == nil {
		defer unix.Close(fd)
	}
	now, statErr := procstat.Read(s.PID)
	if statErr != nil || now.StartTime != s.StartTime {
		return nil
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, signal, nil, 0)
	} else { // no pidfd here (gVisor, an old seccomp profile)
		err = unix.Kill(s.PID, signal)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

const (
	// stopPatience is how long kill tries to stop all processes before it kills them.
	stopPatience = 10 * time.Second
	// killPatience is how long one process may take to die of SIGKILL: one in
	// uninterruptible sleep never does, others need a moment of the processor.
	killPatience = 30 * time.Second
	// killLimit bounds kill as a whole, whatever is forked meanwhile.
	killLimit = 2 * time.Minute
)

// ErrRemain is what Reset fails with when processes outlive SIGKILL.
var ErrRemain = errors.New("processes remain after SIGKILL")

// terminate asks every process of the tree to end, gives them the grace (or
// until hurry is closed), and kills what is left.
func terminate(t tree, grace time.Duration, hurry <-chan struct{}) error {
	if grace > 0 {
		members, err := t()
		if err != nil {
			return err
		}
		for _, s := range members {
			_ = signalProcess(s, unix.SIGTERM) // what refuses is killed below
		}
		if waitEmpty(t, grace, hurry) {
			return nil
		}
	}
	return kill(t)
}

// waitEmpty tells whether the tree became empty in time.
func waitEmpty(t tree, within time.Duration, hurry <-chan struct{}) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if members, err := t(); err == nil && len(members) == 0 {
			return true
		}
		select {
		case <-deadline.C:
			return false
		case <-hurry:
			return false
		case <-time.After(pause):
		}
	}
}

// kill ends every process of the tree. It stops them all before it kills any, since a fork
// bomb would make new ones faster than they can be killed, and repeats until none is left.
func kill(t tree) error {
	begin := time.Now()
	killed := map[store.Process]time.Time{}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		members, err := stopAll(t, time.Now().Add(stopPatience))
		if err != nil {
			return err
		}
		if len(members) == 0 {
			return nil
		}
		now := time.Now()
		stuck := now.Sub(begin) > killLimit
		for _, s := range members {
			if err := signalProcess(s, unix.SIGKILL); err != nil {
				return fmt.Errorf("kill process %d: %w", s.PID, err)
			}
			if since, again := killed[identity(s)]; !again {
				killed[identity(s)] = now
			} else if now.Sub(since) > killPatience {
				stuck = true
			}
		}
		if stuck {
			return fmt.Errorf("%w: %d of them", ErrRemain, len(members))
		}
		time.Sleep(pause)
	}
}

// stopAll stops processes until it finds none that it has not stopped.
func stopAll(t tree, deadline time.Time) ([]procstat.Stat, error) {
	stopped := map[store.Process]bool{}
	for {
		members, err := t()
		if err != nil {
			return nil, err
		}
		fresh := false
		for _, s := range members {
			if !stopped[identity(s)] {
				stopped[identity(s)], fresh = true, true
				_ = signalProcess(s, unix.SIGSTOP)
			}
		}
		if !fresh || time.Now().After(deadline) {
			return members, nil
		}
	}
}
