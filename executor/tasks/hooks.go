package tasks

import (
	"fmt"
	"io"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
)

// plan makes the commands of the task and returns the first. The lock is held.
func (t *task) plan(spec api.TaskSpec) *link.Start {
	p := spec.Process
	t.main = &link.Start{Argv: append(append([]string{}, p.Command...), p.Args...), WorkingDir: p.WorkingDir}
	for _, v := range p.Env {
		t.main.Env = append(t.main.Env, v.Name+"="+v.Value)
	}
	hook := func(stage link.Stage, h *api.Hook) *link.Start {
		return &link.Start{Stage: stage, Continues: true, Argv: h.Command, Env: t.main.Env, WorkingDir: p.WorkingDir, Timeout: h.Timeout()}
	}
	if p.PostStop != nil {
		t.postStop = hook(link.StagePostStop, p.PostStop)
	}
	first := *t.main
	if p.PreStart != nil {
		first = *hook(link.StagePreStart, p.PreStart)
		t.main.Continues = true
	} else {
		t.main = nil // not to keep it in memory
	}
	first.Continues, first.Files = false, spec.Files
	return &first
}

// openOutputs names what the commands of the task print by its shard and by what they are.
func (t *task) openOutputs(stdout, stderr io.Writer, request api.TaskRequest) {
	t.outputs = map[link.Kind]*output{}
	open := func(stage link.Stage, name string) {
		outKind, errKind := stage.Output()
		t.outputs[outKind] = newOutput(stdout, request.Shard, name+"stdout")
		t.outputs[errKind] = newOutput(stderr, request.Shard, name+"stderr")
	}
	open(link.StageMain, "")
	if request.Spec.Process.PreStart != nil {
		open(link.StagePreStart, "preStart ")
	}
	if request.Spec.Process.PostStop != nil {
		open(link.StagePostStop, "postStop ")
	}
}

// exitedPreStart goes on with the task's own command, where the hook has succeeded and
// nobody ends the task.
func (e *Executor) exitedPreStart(t *task, exit link.Exit) {
	e.mu.Lock()
	goesOn := exit.Code == 0 && !e.resetting
	e.mu.Unlock()
	if goesOn {
		e.send(t, t.main)
		return
	}
	e.exits(t, func(task *api.Task) {
		task.ExitCode, task.Signal, task.Reason = &exit.Code, exit.Signal, api.ReasonPreStartFailed
		task.Message = t.wordsOf(link.KindPreStartStderr)
		switch {
		case exit.TimedOut:
			task.Message = "preStart did not end within its timeoutSeconds"
		case task.Message == "":
			task.Message = fmt.Sprintf("preStart ended with exit code %d", exit.Code)
		}
	})
}

// runPostStop records how the task ended, which must not be lost with an executor that ends
// while the hook runs, and has the launcher run the hook. It takes the launcher's turn for
// questions, so that a stop comes before the hook or after it.
func (e *Executor) runPostStop(t *task) {
	e.mu.Lock()
	record, start := t.record, *t.postStop
	e.mu.Unlock()
	if err := e.save(t, record); err != nil {
		e.Log.Error("The end of a task could not be recorded before its postStop hook runs", "task", record.Task.ID, "error", err)
	}
	l := t.launcher
	l.asking.Lock()
	defer l.asking.Unlock()
	e.send(t, &start)
	select {
	case <-t.ended:
	case <-l.lost:
	}
}

func (e *Executor) exitedPostStop(t *task, exit link.Exit) {
	if exit.Code != 0 {
		e.Log.Warn("The postStop hook of a task failed", "task", t.record.Task.ID, "exitCode", exit.Code, "timedOut", exit.TimedOut)
	}
	e.finish(t)
}
