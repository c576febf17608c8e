package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	executorapi "github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/process"
)

// taskTakes is how long a task runs: about what true does. It is over after the answer
// to its start, so that it must be polled for, as with a real process.
const taskTakes = 2 * time.Millisecond

// shortTasks is what executor/server serves here: tasks that start at once and soon
// succeed, whatever they are. No process is started, whose cost would be the same on
// both sides and bring the ratio closer to 1.
type shortTasks struct {
	boot, container string

	mu      sync.Mutex // guards the rest
	tasks   map[string]executorapi.Task
	version int64
	changed chan struct{} // closed and replaced at every change
}

func newShortTasks(boot, container string) *shortTasks {
	return &shortTasks{boot: boot, container: container, tasks: map[string]executorapi.Task{}, version: 1, changed: make(chan struct{})}
}

// BootID implements server.Tasks.
func (t *shortTasks) BootID() string { return t.boot }

// Start implements server.Tasks.
func (t *shortTasks) Start(_ context.Context, _, id string, request executorapi.TaskRequest) (executorapi.Task, bool, error) {
	if request.ContainerID != t.container {
		return executorapi.Task{}, false, fmt.Errorf("%w: %s is another pod's", process.ErrContainerNotFound, request.ContainerID)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if task, found := t.tasks[id]; found {
		return task, false, nil
	}
	began := time.Now().UTC()
	t.tasks[id] = executorapi.Task{ID: id, State: executorapi.Running, StartedAt: &began}
	t.change()
	time.AfterFunc(taskTakes, func() { t.succeed(id) })
	return t.tasks[id], true, nil
}

func (t *shortTasks) succeed(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	task, found := t.tasks[id]
	if !found {
		return
	}
	now, code := time.Now().UTC(), int32(0)
	task.State, task.FinishedAt, task.ExitCode = executorapi.Succeeded, &now, &code
	t.tasks[id] = task
	t.change()
}

// change tells those who wait. The lock is held.
func (t *shortTasks) change() {
	t.version++
	close(t.changed)
	t.changed = make(chan struct{})
}

// Wait implements server.Tasks.
func (t *shortTasks) Wait(ctx context.Context, since executorapi.Cursor) executorapi.TaskList {
	for {
		list, changed := t.list()
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

func (t *shortTasks) list() (executorapi.TaskList, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := executorapi.TaskList{BootID: t.boot, Version: t.version, Tasks: []executorapi.Task{}}
	for _, task := range t.tasks {
		list.Tasks = append(list.Tasks, task)
	}
	return list, t.changed
}

// Reset implements server.Tasks.
func (t *shortTasks) Reset(context.Context, string, *int64, bool) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.tasks)
	clear(t.tasks)
	t.change()
	return n, nil
}
