package launcher

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/procstat"
)

// process names a process for good: a pid alone can be used again.
type process struct {
	pid       int
	startTime uint64
}

func identity(s procstat.Stat) process { return process{s.PID, s.StartTime} }

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

// below returns the live descendants of a process, without itself.
func below(all []procstat.Stat, root int) []procstat.Stat {
	children := make(map[int][]procstat.Stat, len(all))
	for _, s := range all {
		children[s.Parent] = append(children[s.Parent], s)
	}
	var found []procstat.Stat
	seen := map[int]bool{root: true}
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, child := range children[queue[0]] {
			if seen[child.PID] {
				continue
			}
			seen[child.PID] = true
			queue = append(queue, child.PID)
			if !child.Dead() {
				found = append(found, child)
			}
		}
	}
	return found
}

// ownDescendants lists the live processes below the launcher.
func ownDescendants() ([]procstat.Stat, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	return below(all, os.Getpid()), nil
}

// signalProcess signals exactly the process that was seen, not another one that
// got its pid since.
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
	// stopPatience is how long kill tries to stop all before it kills.
	stopPatience = 10 * time.Second
	// killPatience is how long one process may take to die of SIGKILL: one in
	// uninterruptible sleep never does, others need a moment of the processor.
	killPatience = 30 * time.Second
	// killLimit bounds kill as a whole, whatever is forked meanwhile.
	killLimit = 2 * time.Minute
)

var errRemain = errors.New("processes remain after SIGKILL")

// terminate asks every descendant to end, gives them the grace (or
// less, if gone is closed), and kills what is left.
func terminate(grace time.Duration, gone <-chan struct{}) error {
	if grace > 0 {
		members, err := ownDescendants()
		if err != nil {
			return err
		}
		for _, s := range members {
			_ = signalProcess(s, unix.SIGTERM) // what refuses is killed below
		}
		if waitEmpty(grace, gone) {
			return nil
		}
	}
	return kill()
}

// waitEmpty tells whether there was no descendant any more in time.
func waitEmpty(within time.Duration, gone <-chan struct{}) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if members, err := ownDescendants(); err == nil && len(members) == 0 {
			return true
		}
		select {
		case <-deadline.C:
			return false
		case <-gone:
			return true
		case <-time.After(pause):
		}
	}
}

// kill ends every descendant. It stops them all first, so that a fork
// bomb cannot outrun it, and repeats until none is left.
func kill() error {
	begin := time.Now()
	killed := map[process]time.Time{}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		members, err := stopAll(time.Now().Add(stopPatience))
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
			return fmt.Errorf("%w: %d of them", errRemain, len(members))
		}
		time.Sleep(pause)
	}
}

// stopAll stops processes until a look finds no new one.
func stopAll(deadline time.Time) ([]procstat.Stat, error) {
	stopped := map[process]bool{}
	for {
		members, err := ownDescendants()
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
