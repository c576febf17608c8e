package main

import (
	"context"
	"crypto/rand"
	"net"
	"strings"
	"sync"
	"time"

	executorapi "github.com/opensandbox/operator/executor/api"
)

// taskTakes is how long a short task runs: about what true does. It is over after the answer
// to its start, so that it must be polled for, as with a real process.
const taskTakes = 2 * time.Millisecond

// standInTasks is what executor/server serves here: tasks that start at once and succeed
// soon, or when the fleet says so, whatever they are. No process is started, whose cost would
// be the same on both sides and bring the ratio closer to 1.
type standInTasks struct {
	fleet *fleet

	mu      sync.Mutex // guards what is below
	bootID  string
	tasks   map[string]executorapi.Task
	version int64
	changed chan struct{} // closed and replaced at every change
}

func newStandInTasks(f *fleet) *standInTasks {
	t := &standInTasks{fleet: f, changed: make(chan struct{})}
	t.boot()
	return t
}

// boot makes it one that nobody has called yet.
func (t *standInTasks) boot() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bootID, t.tasks, t.version = strings.ToLower(rand.Text()), map[string]executorapi.Task{}, 0
	t.change()
}

// BootID implements server.Tasks.
func (t *standInTasks) BootID() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bootID
}

// Start implements server.Tasks.
func (t *standInTasks) Start(_ context.Context, _, id string, _ executorapi.TaskRequest) (executorapi.Task, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if task, found := t.tasks[id]; found {
		return task, false, nil
	}
	began := time.Now().UTC()
	t.tasks[id] = executorapi.Task{ID: id, State: executorapi.Running, StartedAt: &began}
	t.change()
	t.fleet.started.Add(1)
	if t.fleet.until == nil {
		time.AfterFunc(taskTakes, func() { t.succeed(id) })
	} else {
		go func() {
			<-t.fleet.until
			t.succeed(id)
		}()
	}
	return t.tasks[id], true, nil
}

func (t *standInTasks) succeed(id string) {
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
func (t *standInTasks) change() {
	t.version++
	close(t.changed)
	t.changed = make(chan struct{})
}

// Wait implements server.Tasks.
func (t *standInTasks) Wait(ctx context.Context, since executorapi.Cursor) executorapi.TaskList {
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

func (t *standInTasks) list() (executorapi.TaskList, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := executorapi.TaskList{BootID: t.bootID, Version: t.version, Tasks: []executorapi.Task{}}
	for _, task := range t.tasks {
		list.Tasks = append(list.Tasks, task)
	}
	return list, t.changed
}

// Reset implements server.Tasks.
func (t *standInTasks) Reset(string, *int64, bool) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.tasks)
	clear(t.tasks)
	t.change()
	return n, nil
}

// Ready implements server.Tasks.
func (t *standInTasks) Ready() bool { return true }

// Serve implements server.Tasks: there is no launcher.
func (t *standInTasks) Serve(conn net.Conn) { _ = conn.Close() }
