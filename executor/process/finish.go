package process

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/store"
)

// saveAttempts is how often writing the end of a task to the disk is tried. After that it is
// reported all the same: a full disk must not hide a result for ever.
const saveAttempts = 3

// finish records the end of a task and reports it only then.
func (t *task) finish(state api.TaskState, describe func(*api.Task)) {
	record := t.copy()
	if record.Task.State.Ended() {
		return
	}
	now := time.Now().UTC()
	record.Task.State, record.Task.FinishedAt = state, &now
	describe(&record.Task)
	var err error
	for try := range saveAttempts {
		time.Sleep(time.Duration(try) * 50 * time.Millisecond)
		if err = t.e.Store.Save(record); err == nil {
			break
		}
	}
	if err != nil {
		t.e.log.Error("The end of a task could not be recorded", "task", t.id, "error", err)
	}
	t.update(func(r *store.Record) { *r = record })
	t.e.log.Info("A task ended", "task", t.id, "state", state, "reason", record.Task.Reason)
}

// finishExited ends a task whose first process has ended.
func (t *task) finishExited(r *run, e exit) {
	r.drain()
	state, reason := api.Succeeded, ""
	oom := t.e.oom.read() > r.oomKills && (e.Signal == int32(unix.SIGKILL) || e.Code == 128+int32(unix.SIGKILL))
	switch {
	case r.timedOut:
		state, reason = api.Failed, api.ReasonTimeout
	case oom:
		state, reason = api.Failed, api.ReasonOOMKilled
	case e.Signal != 0:
		state, reason = api.Failed, api.ReasonSignaled
	case e.Code != 0:
		state, reason = api.Failed, api.ReasonExitCode
	}
	t.finish(state, func(task *api.Task) {
		code := e.Code
		task.ExitCode, task.Signal, task.Reason = &code, e.Signal, reason
		if state == api.Failed {
			task.Message = t.lastWords(r, reason)
		}
	})
}

// finishLost ends a task whose supervisor has ended without reporting a result. A task that
// has ended stays as it is.
func (t *task) finishLost(r *run) {
	if t.snapshot().State.Ended() {
		return
	}
	r.drain()
	reason := api.ReasonSupervisorLost
	if r.timedOut {
		reason = api.ReasonTimeout
	} else if t.e.oom.read() > r.oomKills {
		reason = api.ReasonOOMKilled
	}
	t.finish(api.Failed, func(task *api.Task) {
		task.Reason, task.Message = reason, t.lastWords(r, reason)
	})
}

func (t *task) finishUnstarted(f *startError) {
	t.finish(api.Failed, func(task *api.Task) {
		code := f.Code
		task.ExitCode, task.Reason, task.Message = &code, f.Reason, lastBytes(f.Message)
	})
}

// lastWords is the end of the task's stderr, or a sentence where it is silent.
func (t *task) lastWords(r *run, reason string) string {
	if r.stderr != nil { // nil where the task failed before its output could be read
		if said := lastBytes(strings.TrimRight(r.stderr.tail(), "\n")); said != "" {
			return said
		}
	}
	switch reason {
	case api.ReasonTimeout:
		return fmt.Sprintf("did not end within %v", t.spec().Timeout())
	case api.ReasonOOMKilled:
		return "killed because the memory limit was reached"
	case api.ReasonSupervisorLost:
		return "the process that watched the task was killed"
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
