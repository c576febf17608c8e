package process

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
)

const (
	// startPatience is how long a supervisor may take to start a command.
	startPatience = 30 * time.Second
	// settlePatience is how long a supervisor may take to end once it has no
	// child left. It takes longer only if a task has stopped it.
	settlePatience = 2 * time.Second
)

// task is one task of an executor. One goroutine, run or serveStops, leads it.
type task struct {
	e       *Executor
	id      string
	started chan struct{} // closed when Start may answer
	stops   chan *attempt

	// guarded by e.tasksMu
	record   store.Record
	attempt  *attempt
	startErr error
}

func newTask(e *Executor, r store.Record) *task {
	return &task{e: e, id: r.Task.ID, record: r, started: make(chan struct{}), stops: make(chan *attempt, 1)}
}

// run is what belongs to a task while processes of it may live.
type run struct {
	child          *child
	stdout, stderr *pump
	oomKills       int64 // before it started
	timedOut       bool
	supervised     bool // the supervisor lives
}

// run leads a task from its start until it is gone.
func (t *task) run(request api.TaskRequest) {
	r, err := t.start(request)
	if err != nil {
		t.forget(err)
		return
	}
	if r != nil && t.watch(r) {
		return
	}
	t.serveStops(r)
}

// start returns an error if nothing was done and the same request may succeed later. It
// returns no run if the task could not start: that is final and recorded.
func (t *task) start(request api.TaskRequest) (*run, error) {
	c, err := openContainer(request.ContainerID)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if missing := c.credentials.Bounding &^ t.e.own; missing != 0 {
		t.update(func(r *store.Record) { r.Task.MissingCapabilities = namesOf(missing) })
	}
	// From here on the task may have run, whatever happens to the executor.
	if err := t.e.Store.Save(t.copy()); err != nil {
		return nil, errors.Join(err, t.e.Store.Remove(t.id))
	}
	defer close(t.started)
	r, err := t.launch(c, newLaunch(c, request))
	if err != nil {
		t.e.log.Error("A task could not be started", "task", t.id, "error", err)
		t.finishUnstarted(cannotStart("%v", err))
		return nil, nil
	}
	return t.awaitStart(r), nil
}

func (t *task) launch(c *container, l launch) (*run, error) {
	r := &run{supervised: true, oomKills: t.e.oom.read()}
	var err error
	if r.child, err = t.e.startChild(c, l); err != nil {
		return nil, err
	}
	if r.stdout, err = startPump(r.child.stdout, t.e.Stdout); err == nil {
		r.stderr, err = startPump(r.child.stderr, t.e.Stderr)
	}
	if err != nil {
		return nil, errors.Join(err, t.end(r, 0))
	}
	return r, nil
}

// awaitStart waits for the supervisor's first message.
func (t *task) awaitStart(r *run) *run {
	patience := time.NewTimer(startPatience)
	defer patience.Stop()
	select {
	case ev := <-r.child.events:
		switch {
		case ev.Started != nil:
			t.recordStart(r, *ev.Started)
			return r
		case ev.Failed != nil:
			t.finishUnstarted(ev.Failed)
		default:
			t.finishLost(r)
		}
	case <-patience.C:
		t.finishUnstarted(cannotStart("the command did not start within %v", startPatience))
	}
	if err := t.end(r, 0); err != nil {
		t.e.log.Error("What was started of a task could not be killed", "task", t.id, "error", err)
	}
	return nil
}

func (t *task) recordStart(r *run, first store.Process) {
	now := time.Now().UTC()
	t.update(func(record *store.Record) {
		record.Task.State, record.Task.StartedAt = api.Running, &now
		record.Supervisor, record.First = r.child.process, first
	})
	if err := t.e.Store.Save(t.copy()); err != nil { // it runs all the same
		t.e.log.Error("The start of a task could not be recorded", "task", t.id, "error", err)
	}
}

// watch follows a task that runs. It returns when the supervisor has ended, after which
// whatever is left of the task is killed as an orphan, or when the task was stopped and is
// gone.
func (t *task) watch(r *run) (gone bool) {
	var timer <-chan time.Time
	if timeout := t.spec().Timeout(); timeout > 0 {
		timer = time.After(timeout)
	}
	for {
		select {
		case ev, alive := <-r.child.events:
			if ev.Exited != nil {
				timer = nil
				t.finishExited(r, *ev.Exited)
			}
			if !alive {
				r.supervised = false
				t.finishLost(r)
				t.releaseOutputs(r)
				return false
			}
		case <-timer:
			if r.timedOut { // the supervisor does not answer
				_ = r.killSupervisor()
				timer = nil
				continue
			}
			r.timedOut = true
			if err := terminate(descendantsOf(r.child.process), t.spec().Grace(), t.e.hurry); err != nil {
				t.e.log.Error("A task that timed out could not be ended", "task", t.id, "error", err)
			}
			timer = time.After(settlePatience)
		case attempt := <-t.stops:
			if t.serveStop(r, attempt) {
				return true
			}
		}
	}
}

// end ends every process of a task.
func (t *task) end(r *run, grace time.Duration) error {
	if r == nil {
		return nil
	}
	if r.supervised {
		select { // it may have ended by itself just now
		case ev := <-r.child.events:
			if ev.Exited != nil {
				t.finishExited(r, *ev.Exited)
			}
		default:
		}
		if err := terminate(descendantsOf(r.child.process), grace, t.e.hurry); err != nil {
			return err
		}
		r.settle()
	}
	if err := t.e.killOrphans(); err != nil {
		return err
	}
	r.close()
	return nil
}

// settle waits until the supervisor has ended.
func (r *run) settle() {
	timer := time.NewTimer(settlePatience)
	defer timer.Stop()
	for {
		select {
		case _, alive := <-r.child.events:
			if !alive {
				r.supervised = false
				return
			}
		case <-timer.C:
			_ = r.killSupervisor()
		}
	}
}

func (r *run) killSupervisor() error {
	p := r.child.process
	return signalProcess(procstat.Stat{PID: p.PID, StartTime: p.StartTime}, unix.SIGKILL)
}

// releaseOutputs closes the outputs when the supervisor has ended by itself. No process of
// the task can write to them any more, and what the sandbox may have opened is not waited for.
func (t *task) releaseOutputs(r *run) {
	r.drain()
	r.close()
}

func (r *run) drain() {
	for _, p := range []*pump{r.stdout, r.stderr} {
		if p != nil {
			p.drain()
		}
	}
}

func (r *run) close() {
	for _, p := range []*pump{r.stdout, r.stderr} {
		if p != nil {
			p.close()
		}
	}
	r.stdout, r.stderr = nil, nil
}

// forget drops a task that was not started, and answers whoever asked for it.
func (t *task) forget(err error) {
	t.e.change(func() {
		delete(t.e.tasks, t.id)
		t.startErr = err
	})
	close(t.started)
	select {
	case attempt := <-t.stops:
		close(attempt.done)
	default:
	}
}

func (t *task) spec() api.TaskSpec {
	t.e.tasksMu.Lock()
	defer t.e.tasksMu.Unlock()
	if t.record.Spec == nil {
		return api.TaskSpec{}
	}
	return *t.record.Spec
}

func (t *task) snapshot() api.Task { return t.copy().Task }

func (t *task) copy() store.Record {
	t.e.tasksMu.Lock()
	defer t.e.tasksMu.Unlock()
	r := t.record
	r.Task.MissingCapabilities = slices.Clone(r.Task.MissingCapabilities)
	return r
}

func (t *task) update(apply func(*store.Record)) {
	t.e.change(func() { apply(&t.record) })
}

func (t *task) String() string { return fmt.Sprintf("task %s", t.id) }
