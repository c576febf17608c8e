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
	launcher *launcher // that runs it; nil of a task of the last run
	// outputs of its commands, by the messages that bring them.
	outputs        map[link.Kind]*output
	timeout, grace time.Duration
	accepted       time.Time
	// started is closed when it is known how it started, exited when the task's own command is
	// over or will never start, ended when its hooks are over too and its end is recorded.
	started, exited, ended chan struct{}

	// guarded by the executor's lock
	record   store.Record // with the result while that is not told, because postStop runs
	timedOut bool
	refused  error         // why it was not begun, and is not kept
	stage    link.Stage    // of the command that runs, or that the launcher was last asked to start
	limit    time.Duration // of that command; 0 where the launcher sets it none
	patience *time.Timer   // with the launcher that is to start it
	timer    *time.Timer   // of the command that runs
	ran      bool          // something of the task
	// main and postStop are the commands that are still to come; nil where there is none.
	main, postStop *link.Start

	forgotten bool // its record was wiped; guarded by recordsMu
}

func newTask(r store.Record) *task {
	return &task{record: r, started: make(chan struct{}), exited: make(chan struct{}), ended: make(chan struct{})}
}

// conclude says that nothing more will be known of the task. The lock is held.
func (t *task) conclude() {
	t.stopTimer()
	t.answer()
	closeOnce(t.started)
	closeOnce(t.exited)
	closeOnce(t.ended)
}

// stopTimer stops the timer of the command that ran. The lock is held.
func (t *task) stopTimer() {
	if t.timer != nil {
		t.timer.Stop()
	}
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
	e.mu.Lock()
	record, first := t.record, t.plan(spec)
	e.mu.Unlock()
	if err := e.save(t, record); err != nil {
		e.withdraw(t, err)
		return
	}
	e.send(t, first)
}

// send has the launcher start a command. One that does not answer is treated as lost, and
// one that cannot be told is lost, and ends the task by that.
func (e *Executor) send(t *task, start *link.Start) {
	e.mu.Lock()
	t.stage, t.limit = start.Stage, start.Timeout
	t.patience = time.AfterFunc(startPatience, t.launcher.conn.Close)
	e.mu.Unlock()
	_ = t.launcher.conn.Send(link.KindStart, start)
}

// answer takes in that the launcher has started a command, or could not, and says whether it
// was asked to. The lock is held.
func (t *task) answer() bool {
	if t.patience == nil {
		return false
	}
	t.patience.Stop()
	t.patience = nil
	return true
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

// runs takes in that a command of the task is being executed.
func (e *Executor) runs(t *task) {
	now := time.Now().UTC()
	e.mu.Lock()
	if !t.answer() {
		e.mu.Unlock()
		return
	}
	t.ran = true
	switch {
	case t.stage != link.StageMain: // the launcher ends it, and one that does not is treated as lost
		t.timer = time.AfterFunc(t.limit+endPatience, t.launcher.conn.Close)
	case t.timeout > 0:
		t.timer = time.AfterFunc(t.timeout, func() { e.timeOut(t) })
	}
	if t.record.Task.State != api.Starting {
		e.mu.Unlock()
		return
	}
	t.record.Task.State, t.record.Task.StartedAt = api.Running, &now
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
	if err := l.ask(link.KindStop, link.Stop{Grace: t.grace}, t.grace+endPatience, t.exited); err != nil {
		e.Log.Error("A task that timed out could not be ended", "task", t.record.Task.ID, "error", err)
		l.conn.Close()
	}
}

// exits takes in how the task ended. Where it has a postStop hook, that runs before the end
// is told. The first end counts.
func (e *Executor) exits(t *task, describe func(*api.Task)) {
	e.mu.Lock()
	if t.record.Result != nil || t.record.Task.State.Ended() {
		e.mu.Unlock()
		return
	}
	now := time.Now().UTC()
	result := t.record.Task
	result.State, result.FinishedAt = api.Failed, &now
	describe(&result)
	t.record.Result = &result
	t.stopTimer()
	t.answer()
	closeOnce(t.exited)
	hook := t.ran && t.postStop != nil && e.launcher == t.launcher
	e.mu.Unlock()
	if !hook {
		e.finish(t)
		return
	}
	go e.runPostStop(t)
}

// finish records the end of a task and only then tells it.
func (e *Executor) finish(t *task) {
	e.mu.Lock()
	record := t.record
	if record.Task.State.Ended() {
		e.mu.Unlock()
		return
	}
	record.Task, record.Result = *record.Result, nil
	e.mu.Unlock()
	for _, o := range t.outputs {
		o.flush()
	}
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
	t.main = nil
	if t.postStop != nil {
		t.postStop.Env = nil
	}
	e.note()
	t.conclude()
	e.mu.Unlock()
	e.Log.Info("A task ended", "task", record.Task.ID, "state", record.Task.State, "reason", record.Task.Reason)
}

// failed takes in that a command could not be started.
func (e *Executor) failed(t *task, f link.Failure) {
	e.mu.Lock()
	asked, stage := t.answer(), t.stage
	e.mu.Unlock()
	switch {
	case !asked:
		return
	case stage == link.StagePostStop:
		e.Log.Warn("The postStop hook of a task could not be started", "task", t.record.Task.ID, "error", f.Message)
		e.finish(t)
		return
	case stage == link.StagePreStart && f.Reason != api.ReasonFileUnwritable:
		f.Reason, f.Message = api.ReasonPreStartFailed, "preStart: "+f.Message
	}
	e.exits(t, func(task *api.Task) {
		task.ExitCode, task.Reason, task.Message = &f.Code, f.Reason, lastBytes(f.Message)
	})
}

// exited takes in that the first process of a command has ended.
func (e *Executor) exited(t *task, exit link.Exit) {
	e.mu.Lock()
	stage := t.stage
	t.stopTimer()
	e.mu.Unlock()
	switch stage {
	case link.StagePreStart:
		e.exitedPreStart(t, exit)
	case link.StagePostStop:
		e.exitedPostStop(t, exit)
	default:
		e.exitedMain(t, exit)
	}
}

// exitedMain ends a task whose own command has ended.
func (e *Executor) exitedMain(t *task, exit link.Exit) {
	e.mu.Lock()
	timedOut := t.timedOut
	e.mu.Unlock()
	e.exits(t, func(task *api.Task) {
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

// lost ends a task whose launcher is gone, or was sent away because the executor ends. One
// whose own command had ended keeps that result.
func (e *Executor) lost(t *task) {
	e.mu.Lock()
	timedOut, closed := t.timedOut, e.closed
	e.mu.Unlock()
	e.exits(t, func(task *api.Task) {
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
	e.finish(t)
}

// lastWords is the end of the task's stderr, or a sentence where it is silent.
func (t *task) lastWords(reason string) string {
	if said := t.wordsOf(link.KindStderr); said != "" {
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

// wordsOf is the end of an output.
func (t *task) wordsOf(kind link.Kind) string {
	return lastBytes(strings.TrimRight(string(t.outputs[kind].last), "\n"))
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
