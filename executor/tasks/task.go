package tasks

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/store"
)

const (
	// startPatience is how long a launcher may take to start a command.
	startPatience = 30 * time.Second
	// saveAttempts is how often the end of a task is tried to be recorded before it is
	// told without: a full disk must not hide a result for ever.
	saveAttempts = 3
)

const restartedMessage = "the executor ended while the task ran"

// task is one task of an executor.
type task struct {
	launcher       *launcher // that runs it; nil of a task of the last run
	stdout, stderr *output
	timeout, grace time.Duration
	accepted       time.Time
	started, ended chan struct{} // closed when it is known how it started, and how it ended

	// guarded by the executor's lock
	record   store.Record
	timedOut bool
	refused  error       // why it was not begun, and is not kept
	timer    *time.Timer // of the timeout

	forgotten bool // its record was wiped; guarded by recordsMu
}

func newTask(r store.Record) *task {
	return &task{record: r, started: make(chan struct{}), ended: make(chan struct{})}
}

// conclude says that nothing more will be known of the task. The lock is held.
func (t *task) conclude() {
	if t.timer != nil {
		t.timer.Stop()
	}
	closeOnce(t.started)
	closeOnce(t.ended)
}

// closeOnce closes a channel that may be closed already. The lock is held.
func closeOnce(known chan struct{}) {
	select {
	case <-known:
	default:
		close(known)
	}
}

// begin has the launcher start the command. A task that cannot be recorded is refused:
// nothing was done, and the same request may succeed later.
func (e *Executor) begin(t *task, spec api.TaskSpec) {
	// From here on the task counts as one that may have run.
	if err := e.save(t, t.record); err != nil {
		e.withdraw(t, err)
		return
	}
	p := spec.Process
	start := link.Start{Files: spec.Files, Argv: append(append([]string{}, p.Command...), p.Args...), WorkingDir: p.WorkingDir}
	for _, v := range p.Env {
		start.Env = append(start.Env, v.Name+"="+v.Value)
	}
	time.AfterFunc(startPatience, func() { e.giveUpStart(t) })
	// A launcher that cannot be told is lost, and ends the task by that.
	_ = t.launcher.conn.Send(link.KindStart, start)
}

// withdraw forgets a task that was not begun, and tells all who have asked for it why.
func (e *Executor) withdraw(t *task, why error) {
	e.recordsMu.Lock()
	t.forgotten = true
	_ = e.Store.Remove(t.record.Task.ID)
	e.recordsMu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.task, t.refused = nil, why
	t.conclude()
}

func (e *Executor) save(t *task, record store.Record) error {
	e.recordsMu.Lock()
	defer e.recordsMu.Unlock()
	if t.forgotten {
		return nil
	}
	return e.Store.Save(record)
}

// giveUpStart treats a launcher that does not answer as lost.
func (e *Executor) giveUpStart(t *task) {
	select {
	case <-t.started:
	default:
		t.launcher.conn.Close()
	}
}

// runs takes in that the command is being executed.
func (e *Executor) runs(t *task) {
	now := time.Now().UTC()
	e.mu.Lock()
	t.record.Task.State, t.record.Task.StartedAt = api.Running, &now
	if t.timeout > 0 {
		t.timer = time.AfterFunc(t.timeout, func() { e.timeOut(t) })
	}
	record := t.record
	e.note()
	e.mu.Unlock()
	if err := e.save(t, record); err != nil { // it runs all the same
		e.Log.Error("The start of a task could not be recorded", "task", record.Task.ID, "error", err)
	}
	e.mu.Lock()
	closeOnce(t.started)
	e.mu.Unlock()
}

// timeOut ends a task that has not ended in time. A launcher that does not do it is
// treated as lost.
func (e *Executor) timeOut(t *task) {
	e.mu.Lock()
	t.timedOut = true
	e.mu.Unlock()
	l := t.launcher
	// It may have to wait for a reset, and must not end the task after that one.
	if err := l.ask(link.KindStop, link.Stop{Grace: t.grace}, t.grace+endPatience, t.ended); err != nil {
		e.Log.Error("A task that timed out could not be ended", "task", t.record.Task.ID, "error", err)
		l.conn.Close()
	}
}

// finish records the end of a task and only then tells it. The first end counts.
func (e *Executor) finish(t *task, describe func(*api.Task)) {
	e.mu.Lock()
	record := t.record
	e.mu.Unlock()
	if record.Task.State.Ended() {
		return
	}
	t.stdout.flush()
	t.stderr.flush()
	now := time.Now().UTC()
	record.Task.State, record.Task.FinishedAt = api.Failed, &now
	describe(&record.Task)
	var err error
	for try := range saveAttempts {
		time.Sleep(time.Duration(try) * 50 * time.Millisecond)
		if err = e.save(t, record); err == nil {
			break
		}
	}
	if err != nil {
		e.Log.Error("The end of a task could not be recorded", "task", record.Task.ID, "error", err)
	}
	e.mu.Lock()
	t.record = record
	e.note()
	t.conclude()
	e.mu.Unlock()
	e.Log.Info("A task ended", "task", record.Task.ID, "state", record.Task.State, "reason", record.Task.Reason)
}

func (e *Executor) finishUnstarted(t *task, f link.Failure) {
	e.finish(t, func(task *api.Task) {
		task.ExitCode, task.Reason, task.Message = &f.Code, f.Reason, lastBytes(f.Message)
	})
}

// finishExited ends a task whose first process has ended.
func (e *Executor) finishExited(t *task, exit link.Exit) {
	e.mu.Lock()
	timedOut := t.timedOut
	e.mu.Unlock()
	e.finish(t, func(task *api.Task) {
		task.ExitCode, task.Signal = &exit.Code, exit.Signal
		switch {
		case timedOut:
			task.Reason = api.ReasonTimeout
		case exit.OutOfMemory && exit.Code == 128+int32(unix.SIGKILL):
			task.Reason = api.ReasonOOMKilled
		case exit.Signal != 0:
			task.Reason = api.ReasonSignaled
		case exit.Code != 0:
			task.Reason = api.ReasonExitCode
		default:
			task.State = api.Succeeded
			return
		}
		task.Message = t.lastWords(task.Reason)
	})
}

// finishLost ends a task whose launcher is gone, or was sent away because the executor ends.
func (e *Executor) finishLost(t *task) {
	e.mu.Lock()
	timedOut, closed := t.timedOut, e.closed
	e.mu.Unlock()
	e.finish(t, func(task *api.Task) {
		switch {
		case timedOut:
			task.Reason = api.ReasonTimeout
		case closed:
			task.Reason = api.ReasonExecutorRestarted
		default:
			task.Reason = api.ReasonLauncherLost
		}
		if task.StartedAt == nil { // it may have run from then on
			task.StartedAt = &t.accepted
		}
		task.Message = t.lastWords(task.Reason)
	})
}

// lastWords is the end of the task's stderr, or a sentence where it is silent.
func (t *task) lastWords(reason string) string {
	if said := lastBytes(strings.TrimRight(string(t.stderr.last), "\n")); said != "" {
		return said
	}
	switch reason {
	case api.ReasonTimeout:
		return fmt.Sprintf("did not end within %v", t.timeout)
	case api.ReasonOOMKilled:
		return "killed because the sandbox's memory limit was reached"
	case api.ReasonExecutorRestarted:
		return restartedMessage
	case api.ReasonLauncherLost:
		return "the launcher, which waits for the task inside the sandbox, was killed"
	}
	return ""
}

// lastBytes returns the last MaxMessageBytes of s as valid UTF-8.
func lastBytes(s string) string {
	s = strings.ToValidUTF8(trimPartialRune(s), "\uFFFD")
	if over := len(s) - api.MaxMessageBytes; over > 0 {
		s = trimPartialRune(s[over:])
	}
	return s
}

// trimPartialRune drops continuation bytes at the start.
func trimPartialRune(s string) string {
	for range utf8.UTFMax - 1 {
		if s == "" || utf8.RuneStart(s[0]) {
			break
		}
		s = s[1:]
	}
	return s
}
