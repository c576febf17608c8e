package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/store"
)

// stat is what is needed of /proc/PID/stat.
type stat struct {
	pid, parent int
	state       byte // of the main thread
	threads     int
	startTime   uint64
}

// zombie says that the main thread has ended: others may go on.
func (s stat) zombie() bool { return s.state == 'Z' || s.state == 'X' }

// dead says that no thread lives. What is left of it waits for its parent, or for
// whoever traces it.
func (s stat) dead() bool { return s.zombie() && s.threads <= 1 }

func (s stat) identity() store.Process { return store.Process{PID: s.pid, StartTime: s.startTime} }

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(pid, data)
}

// parseStat skips the command's name, which may hold anything, also ") R 1".
func parseStat(pid int, data []byte) (stat, error) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return stat{}, errors.New("malformed stat")
	}
	fields := strings.Fields(string(data[end+1:]))
	if len(fields) < 20 || len(fields[0]) != 1 {
		return stat{}, errors.New("malformed stat")
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, errors.New("malformed stat")
	}
	threads, err := strconv.Atoi(fields[17])
	if err != nil {
		return stat{}, errors.New("malformed stat")
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return stat{}, errors.New("malformed stat")
	}
	return stat{pid: pid, parent: parent, state: fields[0][0], threads: threads, startTime: start}, nil
}

// allProcesses lists every process that can be seen.
func allProcesses() ([]stat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make([]stat, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil { // else it is gone
			all = append(all, s)
		}
	}
	return all, nil
}

// below returns the live descendants of those processes that isRoot accepts,
// without these.
func below(all []stat, isRoot func(stat) bool) []stat {
	children := make(map[int][]stat, len(all))
	var queue []stat
	for _, s := range all {
		children[s.parent] = append(children[s.parent], s)
		if isRoot(s) {
			queue = append(queue, s)
		}
	}
	var found []stat
	seen := map[int]bool{}
	for len(queue) > 0 {
		for _, child := range children[queue[0].pid] {
			if seen[child.pid] {
				continue
			}
			seen[child.pid] = true
			queue = append(queue, child)
			if !child.dead() {
				found = append(found, child)
			}
		}
		queue = queue[1:]
	}
	return found
}

// tree lists the live processes that are to be ended together.
type tree func() ([]stat, error)

// descendantsOf is the tree below one process, for as long as that lives.
func descendantsOf(root store.Process) tree {
	return func() ([]stat, error) {
		all, err := allProcesses()
		if err != nil {
			return nil, err
		}
		return below(all, func(s stat) bool { return s.identity() == root }), nil
	}
}

// signalProcess signals exactly the process that was seen, not another one that
// got its pid since.
func signalProcess(s stat, signal unix.Signal) error {
	fd, err := unix.PidfdOpen(s.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err == nil {
		defer unix.Close(fd)
	}
	now, statErr := readStat(s.pid)
	if statErr != nil || now.startTime != s.startTime {
		return nil
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, signal, nil, 0)
	} else { // no pidfd here (gVisor, an old seccomp profile)
		err = unix.Kill(s.pid, signal)
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

// errRemain is returned where processes outlived SIGKILL.
var errRemain = errors.New("processes remain after SIGKILL")

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

// kill ends every process of the tree. It stops them all first, so that a fork
// bomb cannot outrun it, and repeats until none is left.
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
				return fmt.Errorf("kill process %d: %w", s.pid, err)
			}
			if since, again := killed[s.identity()]; !again {
				killed[s.identity()] = now
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
func stopAll(t tree, deadline time.Time) ([]stat, error) {
	stopped := map[store.Process]bool{}
	for {
		members, err := t()
		if err != nil {
			return nil, err
		}
		fresh := false
		for _, s := range members {
			if !stopped[s.identity()] {
				stopped[s.identity()], fresh = true, true
				_ = signalProcess(s, unix.SIGSTOP)
			}
		}
		if !fresh || time.Now().After(deadline) {
			return members, nil
		}
	}
}
