package process

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/procstat"
)

// BecomeSubreaper makes this process the parent of its descendants whose own parent has died.
func BecomeSubreaper() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// HuntOrphans kills and reaps, until ctx ends, every child of this process that is not a
// supervisor. Such a child is what is left of a task that has killed its supervisor. Only a
// process that has no other children may call it.
func (e *Executor) HuntOrphans(ctx context.Context) {
	e.hunting.Store(true)
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	again := time.NewTicker(30 * time.Second) // for what could not be killed
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-died:
		case <-again.C:
		}
		if err := e.killOrphans(); err != nil {
			e.log.Error("Orphans of a task could not be killed", "error", err)
		}
	}
}

// killOrphans returns when no orphan lives. One that is dead and that somebody traces
// cannot be reaped: it stays until the tracer lets go.
func (e *Executor) killOrphans() error {
	if !e.hunting.Load() {
		return nil
	}
	for {
		if err := kill(e.liveOrphans); err != nil {
			return err
		}
		if err := e.reapOrphans(); err != nil {
			return err
		}
		// Those that were reaped may have had children.
		if left, err := e.liveOrphans(); err != nil || len(left) == 0 {
			return err
		}
	}
}

// liveOrphans is the tree of the orphans and their descendants.
func (e *Executor) liveOrphans() ([]procstat.Stat, error) {
	processes, err := allProcesses()
	if err != nil {
		return nil, err
	}
	isOrphan := e.orphanTest()
	found := below(processes, isOrphan)
	for _, s := range processes {
		if isOrphan(s) && !s.Dead() {
			found = append(found, s)
		}
	}
	return found, nil
}

func (e *Executor) reapOrphans() error {
	processes, err := allProcesses()
	if err != nil {
		return err
	}
	isOrphan := e.orphanTest()
	for _, s := range processes {
		if isOrphan(s) && s.Dead() {
			_, _ = unix.Wait4(s.PID, nil, unix.WNOHANG, nil)
		}
	}
	return nil
}

// orphanTest tells whether a process is a child that is no supervisor. It takes the lock for
// each process, so that it sees no supervisor between its fork and its listing.
func (e *Executor) orphanTest() func(procstat.Stat) bool {
	me := os.Getpid()
	return func(s procstat.Stat) bool {
		if s.Parent != me {
			return false
		}
		e.supervisorsMu.Lock()
		defer e.supervisorsMu.Unlock()
		return !e.supervisors[s.PID]
	}
}
