// Package tasks is what the executor knows: the task of the sandbox, its record, and the
// launcher that runs it. It decides what a task's end was; it starts no process and knows
// nothing of HTTP. executor/server calls it.
//
// One launcher is served at a time, and one task is taken between two resets. A task
// belongs to the launcher that started it: when that is lost, the task has failed,
// whatever anybody says afterwards.
package tasks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/store"
)

// What Start and Reset refuse with.
var (
	ErrSpecDiffers = errors.New("there is a task of this id with another spec")
	ErrAnotherTask = errors.New("there is a task of another id")
	ErrNoLauncher  = errors.New("no launcher is there: the sandbox container is starting")
	ErrResetting   = errors.New("the executor is being reset")
	// ErrAnotherLife refuses what was meant for the time before a reset.
	ErrAnotherLife = errors.New("the executor was reset since")
	// ErrRemain says that processes may live that nobody can find any more.
	ErrRemain = errors.New("processes of the task may remain")
)

// Config of an Executor. All fields are required.
type Config struct {
	Store *store.Store
	// Offer is what a launcher is to find in the directory OfferDir; the secret is added.
	Offer    link.Offer
	OfferDir string
	// Stdout and Stderr get every line that tasks print.
	Stdout, Stderr io.Writer
	Log            *slog.Logger
}

// Executor has tasks run.
type Executor struct {
	Config

	mu       sync.Mutex // guards the rest, and what tasks and launchers say so of
	bootID   string
	version  int64
	changed  chan struct{} // closed and replaced at every change
	task     *task
	launcher *launcher
	secret   string // of the offer that stands; empty while there is none
	// stray: a launcher was lost that had started a task, so nobody can find what the
	// task has left.
	stray     bool
	resetting bool
	closed    bool

	recordsMu sync.Mutex // keeps a record from being written when all were wiped
}

// Open loads the records of the last run, marks a task that ran then as failed, and offers
// a launcher to connect.
func Open(config Config) (*Executor, error) {
	e := &Executor{Config: config, bootID: newID(), version: 1, changed: make(chan struct{})}
	records, err := config.Store.Load()
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		if !record.Task.State.Ended() {
			settle(&record)
			if err := config.Store.Save(record); err != nil {
				return nil, err
			}
		}
		e.task, e.stray = newTask(record), true
		e.task.conclude()
		config.Log.Info("A task of the last run", "task", record.Task.ID, "state", record.Task.State, "reason", record.Task.Reason)
	}
	return e, e.offer()
}

// settle ends a task that ran when the last executor ended: as was recorded before its
// postStop hook ran, or as one whose end nobody has seen.
func settle(r *store.Record) {
	if r.Result != nil {
		r.Task, r.Result = *r.Result, nil
		return
	}
	now := time.Now().UTC()
	r.Task.State, r.Task.FinishedAt = api.Failed, &now
	r.Task.Reason, r.Task.Message = api.ReasonExecutorRestarted, restartedMessage
}

func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(id[:])
}

// BootID names the executor's present life, from its start or its last reset: what was
// asked of it before is no longer done.
func (e *Executor) BootID() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bootID
}

// Start starts a task, or returns the one that was started before by the same request. It
// returns when the command is being executed or has failed to be. If ctx ends first, the
// task goes on. The request is for the life of that boot id.
func (e *Executor) Start(ctx context.Context, bootID, id string, request api.TaskRequest) (api.Task, bool, error) {
	t, created, err := e.accept(bootID, id, request)
	if err != nil {
		return api.Task{}, false, err
	}
	if created {
		e.begin(t, request.Spec)
	}
	select {
	case <-t.started:
	case <-ctx.Done():
		return api.Task{}, false, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return t.record.Task, created, t.refused
}

// accept returns the task of that id, and whether it is a new one, which is to be begun.
func (e *Executor) accept(bootID, id string, request api.TaskRequest) (*task, bool, error) {
	digest := request.Spec.Digest()
	e.mu.Lock()
	defer e.mu.Unlock()
	switch t := e.task; {
	case bootID != e.bootID:
		return nil, false, ErrAnotherLife
	case e.resetting:
		return nil, false, ErrResetting
	case t != nil && t.record.Task.ID != id:
		return nil, false, ErrAnotherTask
	case t != nil && t.record.Digest != "" && t.record.Digest != digest:
		return nil, false, ErrSpecDiffers
	case t != nil:
		return t, false, nil
	case e.launcher == nil:
		return nil, false, ErrNoLauncher
	}
	t := newTask(store.Record{Task: api.Task{ID: id, State: api.Starting}, Digest: digest})
	t.launcher, t.accepted = e.launcher, time.Now().UTC()
	t.openOutputs(e.Stdout, e.Stderr, request)
	t.timeout, t.grace = request.Spec.Timeout(), request.Spec.Grace()
	e.task = t
	return t, true, nil
}

// Wait returns the task as soon as it differs from what a client saw at the cursor, or
// when ctx ends.
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
	e.mu.Lock()
	defer e.mu.Unlock()
	list := api.TaskList{BootID: e.bootID, Version: e.version, Tasks: []api.Task{}}
	if e.task != nil {
		list.Tasks = append(list.Tasks, e.task.record.Task)
	}
	return list, e.changed
}

// note tells those who wait that something has changed. The lock is held.
func (e *Executor) note() {
	e.version++
	close(e.changed)
	e.changed = make(chan struct{})
}

// Ready says that a launcher is there.
func (e *Executor) Ready() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.launcher != nil
}

// Close sends the launcher away, which then kills what it has started, and takes no other.
// It returns when the end of the task is recorded.
func (e *Executor) Close() {
	e.mu.Lock()
	e.closed = true
	l := e.launcher
	err := link.WithdrawOffer(e.OfferDir)
	e.mu.Unlock()
	if err != nil {
		e.Log.Error("The offer to connect remains, although nobody answers it any more", "error", err)
	}
	if l != nil {
		l.conn.Close()
		<-l.lost
	}
}

const (
	// endPatience is how long a launcher may take, beyond the grace, to end what it has
	// started: a fork bomb on a busy machine takes it.
	endPatience = 45 * time.Second
	// cleanPatience is how long it may take to clean.
	cleanPatience = 3 * time.Second
)

// Reset stops the task and wipes its record. New tasks are refused meanwhile, and
// afterwards too if last is true; then the launcher is asked to clean the pod as well.
// Otherwise a new life begins, for the next owner: what is still on its way from the last
// one's time is refused.
func (e *Executor) Reset(bootID string, mostGrace *int64, last bool) (int, error) {
	t, l, err := e.beginReset(bootID)
	if err != nil {
		return 0, err
	}
	stopped := 0
	if t != nil {
		stopped = 1
		grace := t.grace
		if mostGrace != nil {
			grace = min(grace, time.Duration(*mostGrace)*time.Second)
		}
		err = e.stop(t, l, grace)
	}
	if last {
		// What is left of the task ends with its container, and what is left of the rest
		// is found after the restart.
		if err := l.ask(link.KindClean, nil, cleanPatience, nil); err != nil {
			e.Log.Warn("What the pod's containers share could not be cleaned", "error", err)
		}
		err = nil
	}
	if err == nil {
		err = e.wipe(t)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.resetting = err == nil && last
	if err == nil {
		e.task = nil
	}
	if err == nil && !last {
		e.bootID = newID()
	}
	e.note()
	return stopped, err
}

func (e *Executor) beginReset(bootID string) (*task, *launcher, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case bootID != e.bootID:
		return nil, nil, ErrAnotherLife
	case e.resetting:
		return nil, nil, ErrResetting
	}
	e.resetting = true
	return e.task, e.launcher, nil
}

func (e *Executor) wipe(t *task) error {
	e.recordsMu.Lock()
	defer e.recordsMu.Unlock()
	if t != nil {
		t.forgotten = true
	}
	return e.Store.Wipe()
}

// stop returns when nothing of the task lives any more, or when that cannot be known.
func (e *Executor) stop(t *task, l *launcher, grace time.Duration) error {
	<-t.started // or its start would come after its end
	var err error
	ask := func(grace time.Duration, needless <-chan struct{}) {
		if err == nil && l != nil && l == t.launcher {
			err = l.ask(link.KindStop, link.Stop{Grace: grace}, grace+endPatience, needless)
		}
	}
	ask(grace, nil)
	ask(grace, t.exited) // its preStart hook was over, and its own command on its way
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRemain, err)
	}
	<-t.ended // it came before that answer, or comes soon because the launcher is lost or its hook is over
	if t.postStop != nil {
		ask(0, nil) // what the hook left
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRemain, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stray {
		return ErrRemain
	}
	return nil
}
