package process

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// BecomeSubreaper makes orphans of this process's descendants its own children.
func BecomeSubreaper() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// HuntOrphans kills and reaps, until ctx ends, every child of this process that
// is not a supervisor: what a task left that killed its supervisor. Only a
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

func (e *Executor) killOrphans() error {
	if !e.hunting.Load() {
		return nil
	}
	for {
		orphans := e.orphans()
		if len(orphans) == 0 {
			return nil
		}
		all := func() ([]stat, error) {
			processes, err := allProcesses()
			if err != nil {
				return nil, err
			}
			isOrphan := e.orphanTest()
			found := below(processes, isOrphan)
			for _, s := range processes {
				if isOrphan(s) && !s.zombie() {
					found = append(found, s)
				}
			}
			return found, nil
		}
		err := kill(all)
		for _, s := range e.orphans() {
			if s.zombie() {
				_, _ = unix.Wait4(s.pid, nil, unix.WNOHANG, nil)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (e *Executor) orphans() []stat {
	all, err := allProcesses()
	if err != nil {
		return nil
	}
	isOrphan := e.orphanTest()
	var found []stat
	for _, s := range all {
		if isOrphan(s) {
			found = append(found, s)
		}
	}
	return found
}

// orphanTest asks, process by process and under the lock, whether a child is
// known, so that it never meets a supervisor between its fork and its entry.
func (e *Executor) orphanTest() func(stat) bool {
	me := os.Getpid()
	return func(s stat) bool {
		if s.parent != me {
			return false
		}
		e.supervisorsMu.Lock()
		defer e.supervisorsMu.Unlock()
		return !e.supervisors[s.pid]
	}
}
