package process

import (
	"context"
	"errors"
	"time"

	"github.com/opensandbox/operator/executor/api"
)

// attempt is one try to end a task with everything that it left, and to forget it.
type attempt struct {
	// done is closed when the try is over; err is then valid.
	done chan struct{}
	err  error

	mostGrace time.Duration
	// keep the record, and let it say that the executor's end has ended the task.
	keep bool
}

const anyGrace = time.Duration(1<<63 - 1)

// stop begins to end a task and returns at once. Calls share an attempt that is under
// way; a call after one that failed makes a new one. There is none if there is no such
// task.
func (e *Executor) stop(id string, wanted *attempt) (*attempt, bool) {
	e.tasksMu.Lock()
	defer e.tasksMu.Unlock()
	t := e.tasks[id]
	switch {
	case t == nil:
		return nil, false
	case t.attempt != nil:
		return t.attempt, true
	}
	wanted.done = make(chan struct{})
	t.attempt = wanted
	t.stops <- wanted // there is room: one attempt at a time
	return wanted, true
}

// Reset stops all tasks and wipes all records. New tasks are refused meanwhile, and
// afterwards too if the reset is the last before the executor's end. Otherwise the executor
// takes a new boot id for the next owner, so that requests of the last owner's time that
// are still on their way are refused.
func (e *Executor) Reset(ctx context.Context, bootID string, mostGrace *int64, last bool) (int, error) {
	if err := e.beginReset(bootID); err != nil {
		return 0, err
	}
	stopped, err := e.stopAll(ctx, mostGrace, false)
	if err == nil {
		err = e.killOrphans()
	}
	if err == nil {
		err = e.Store.Wipe()
	}
	e.change(func() {
		e.resetting = err == nil && last
		if err == nil && !last {
			e.bootID = newBootID()
		}
	})
	return stopped, err
}

func (e *Executor) beginReset(bootID string) error {
	e.tasksMu.Lock()
	defer e.tasksMu.Unlock()
	switch {
	case bootID != e.bootID:
		return ErrOldBootID
	case e.resetting:
		return ErrResetting
	}
	e.resetting = true
	return nil
}

// Close stops all tasks for the executor's own end. When ctx ends, it does not
// wait for their grace any longer.
func (e *Executor) Close(ctx context.Context) error {
	e.tasksMu.Lock()
	e.resetting = true
	e.tasksMu.Unlock()
	release := context.AfterFunc(ctx, func() { close(e.hurry) })
	defer release()
	_, err := e.stopAll(context.WithoutCancel(ctx), nil, true)
	return err
}

func (e *Executor) stopAll(ctx context.Context, mostGrace *int64, keep bool) (int, error) {
	e.tasksMu.Lock()
	ids := make([]string, 0, len(e.tasks))
	for id := range e.tasks {
		ids = append(ids, id)
	}
	e.tasksMu.Unlock()
	var attempts []*attempt
	for _, id := range ids {
		wanted := &attempt{mostGrace: anyGrace, keep: keep}
		if mostGrace != nil {
			wanted.mostGrace = time.Duration(*mostGrace) * time.Second
		}
		if attempt, found := e.stop(id, wanted); found {
			attempts = append(attempts, attempt)
		}
	}
	var failed []error
	for _, attempt := range attempts {
		select {
		case <-attempt.done:
			failed = append(failed, attempt.err)
		case <-ctx.Done():
			return len(attempts), ctx.Err()
		}
	}
	return len(attempts), errors.Join(failed...)
}

// serveStops ends the task whenever it is asked to, until it is gone.
func (t *task) serveStops(r *run) {
	for attempt := range t.stops {
		if t.serveStop(r, attempt) {
			return
		}
	}
}

// serveStop tells whether the task is gone.
func (t *task) serveStop(r *run, attempt *attempt) bool {
	err := t.end(r, min(t.spec().Grace(), attempt.mostGrace))
	if err == nil && attempt.keep {
		t.finishInterrupted()
	} else if err == nil {
		err = t.e.Store.Remove(t.id)
	}
	t.e.change(func() {
		attempt.err = err
		if err != nil {
			t.attempt = nil
			return
		}
		delete(t.e.tasks, t.id)
	})
	if err != nil {
		t.e.log.Error("A task could not be stopped", "task", t.id, "error", err)
	}
	close(attempt.done)
	return err == nil
}

// finishInterrupted records that the executor's end ended the task.
func (t *task) finishInterrupted() {
	if t.snapshot().State.Ended() {
		return
	}
	t.finish(api.Failed, func(task *api.Task) {
		task.Reason = api.ReasonExecutorRestarted
		task.Message = "the executor ended while the task ran"
	})
}
