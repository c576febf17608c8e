package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
)

// What Start refuses with, besides ErrContainerNotFound.
var (
	ErrSpecDiffers  = errors.New("there is a task of this id with another spec")
	ErrTooManyTasks = errors.New("there are as many tasks as this executor takes")
	ErrResetting    = errors.New("the executor is being reset")
	// ErrOldBootID refuses a request that was meant for the time before a reset.
	ErrOldBootID = errors.New("the executor was reset since")
)

// Config of an Executor. All fields are required.
type Config struct {
	Store    *store.Store
	MaxTasks int
	// Stdout and Stderr get every line that tasks print.
	Stdout, Stderr io.Writer
	Log            *slog.Logger
}

// Executor runs tasks.
type Executor struct {
	Config
	log     *slog.Logger
	oom     oomCounter
	own     uint64 // capabilities of the executor itself
	running sync.WaitGroup
	hunting atomic.Bool   // orphans are killed
	hurry   chan struct{} // closed when shutdown has no time left

	supervisorsMu sync.Mutex
	supervisors   map[int]bool // by pid

	tasksMu   sync.Mutex // guards the rest, and the fields of tasks that say so
	bootID    string
	tasks     map[string]*task
	version   int64
	changed   chan struct{} // closed and replaced at every change
	resetting bool
}

// Open loads the records of the last run, kills what is left of its tasks, and marks the
// tasks that were running as failed.
func Open(config Config) (*Executor, error) {
	own, err := ownCapabilities()
	if err != nil {
		return nil, fmt.Errorf("capget: %w", err)
	}
	e := &Executor{
		Config:      config,
		log:         config.Log,
		oom:         newOOMCounter(),
		own:         own,
		hurry:       make(chan struct{}),
		supervisors: map[int]bool{},
		bootID:      newBootID(),
		tasks:       map[string]*task{},
		version:     1,
		changed:     make(chan struct{}),
	}
	records, setAside, err := config.Store.Load()
	if err != nil {
		return nil, err
	}
	for _, err := range setAside {
		e.log.Error("A record was unreadable and is set aside", "error", err)
	}
	for _, record := range records {
		if err := e.recover(record); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func newBootID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(id[:])
}

// BootID is another one after each start and each reset. A request that names an earlier one
// is refused: the sandbox may have another owner by now.
func (e *Executor) BootID() string {
	e.tasksMu.Lock()
	defer e.tasksMu.Unlock()
	return e.bootID
}

// recover takes over a record of the last run.
func (e *Executor) recover(r store.Record) error {
	for _, p := range []store.Process{r.First, r.Supervisor} {
		if err := killWithDescendants(p); err != nil {
			e.log.Error("A process of the last run could not be killed", "task", r.Task.ID, "error", err)
		}
	}
	if !r.Task.State.Ended() {
		now := time.Now().UTC()
		r.Task.State, r.Task.FinishedAt = api.Failed, &now
		r.Task.Reason = api.ReasonExecutorRestarted
		r.Task.Message = "the executor ended while the task ran"
		if err := e.Store.Save(r); err != nil {
			return err
		}
	}
	t := newTask(e, r)
	close(t.started)
	e.tasks[t.id] = t
	e.running.Go(func() { t.serveStops(nil) })
	return nil
}

func killWithDescendants(p store.Process) error {
	if p.PID == 0 {
		return nil
	}
	return kill(func() ([]procstat.Stat, error) {
		all, err := allProcesses()
		if err != nil {
			return nil, err
		}
		found := below(all, func(s procstat.Stat) bool { return identity(s) == p })
		for _, s := range all {
			if identity(s) == p && !s.Dead() {
				found = append(found, s)
			}
		}
		return found, nil
	})
}

// Start starts a task, or returns the one that an equal request has started before. It
// returns when the command runs or could not be started. If ctx ends first, the task goes
// on. A request for another boot id than the present one is refused.
func (e *Executor) Start(ctx context.Context, bootID, id string, request api.TaskRequest) (api.Task, bool, error) {
	e.tasksMu.Lock()
	t, found := e.tasks[id]
	var err error
	switch {
	case bootID != e.bootID:
		err = ErrOldBootID
	case e.resetting:
		err = ErrResetting
	case found && t.record.Spec != nil && !t.record.Spec.Equal(request.Spec):
		err = ErrSpecDiffers
	case !found && len(e.tasks) >= e.MaxTasks:
		err = ErrTooManyTasks
	case !found:
		t = newTask(e, store.Record{Task: api.Task{ID: id, State: api.Starting}, Spec: &request.Spec})
		e.tasks[id] = t
		e.running.Go(func() { t.run(request) })
	}
	e.tasksMu.Unlock()
	if err != nil {
		return api.Task{}, false, err
	}
	select {
	case <-t.started:
	case <-ctx.Done():
		return api.Task{}, false, ctx.Err()
	}
	e.tasksMu.Lock()
	defer e.tasksMu.Unlock()
	return t.record.Task, !found, t.startErr
}

// Wait returns all tasks as soon as they differ from what a client saw at the
// cursor, or when ctx ends.
func (e *Executor) Wait(ctx context.Context, since api.Cursor) api.TaskList {
	for {
		list, changed := e.list()
		if since != list.Cursor() {
			return list
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return list
		}
	}
}

func (e *Executor) list() (api.TaskList, <-chan struct{}) {
	e.tasksMu.Lock()
	defer e.tasksMu.Unlock()
	list := api.TaskList{BootID: e.bootID, Version: e.version, Tasks: []api.Task{}}
	for _, t := range e.tasks {
		list.Tasks = append(list.Tasks, t.record.Task)
	}
	slices.SortFunc(list.Tasks, func(a, b api.Task) int { return strings.Compare(a.ID, b.ID) })
	return list, e.changed
}

// change applies a change to what clients see, and tells those who wait.
func (e *Executor) change(apply func()) {
	e.tasksMu.Lock()
	defer e.tasksMu.Unlock()
	apply()
	e.version++
	close(e.changed)
	e.changed = make(chan struct{})
}
