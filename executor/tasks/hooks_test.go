package tasks_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/tasks"
)

// hooked is a request with hooks that note in a file that they have run.
func (f *fixture) hooked(preStart, command, postStop string) api.TaskRequest {
	request := f.request("sh", "-c", command)
	hook := func(script string) *api.Hook {
		return &api.Hook{Command: []string{"sh", "-c", script}, TimeoutSeconds: api.MaxHookSeconds}
	}
	if preStart != "" {
		request.Spec.Process.PreStart = hook(preStart)
	}
	if postStop != "" {
		request.Spec.Process.PostStop = hook(postStop)
	}
	return request
}

// ran is what the hooks and the task have noted.
func (f *fixture) ran() string {
	f.t.Helper()
	data, err := os.ReadFile(f.sandbox.Path("ran"))
	require.NoError(f.t, err)
	return strings.Join(strings.Fields(string(data)), " ")
}

const noteAfter = `echo after >> ran; echo over; echo over2 >&2`

func TestHooksRunBeforeAndAfter(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	// What the first hook leaves running prints under its name, and lives on.
	request := f.hooked(`echo before $NAME >> ran; pwd > dir; (while ! test -e on; do sleep 0.02; done; echo late) & echo ready`,
		`echo main >> ran; touch on; sleep 0.1; echo works`, noteAfter)
	request.Spec.Process.Env = []api.EnvVar{{Name: "NAME", Value: "x"}}
	request.Spec.Process.WorkingDir = f.sandbox.Dir
	task := f.run(request)
	require.Equal(t, api.Succeeded, task.State, task.Message)
	require.Equal(t, "before x main after", f.ran(), "the end is told when postStop is over")
	require.ElementsMatch(t, []string{"shard 7 preStart stdout: ready", "shard 7 preStart stdout: late", "shard 7 stdout: works", "shard 7 postStop stdout: over"},
		strings.Split(strings.TrimSpace(f.stdout.String()), "\n"))
	require.Equal(t, "shard 7 postStop stderr: over2\n", f.stderr.String())
	f.reset()
	require.Equal(t, "before x main after", f.ran(), "once")
	require.Equal(t, api.Succeeded, f.run(f.request("true")).State, "the launcher serves on")
}

func TestPostStopRunsHoweverTheTaskEnded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		preStart, command, reason, message, ran string
		code                                    int32
		timeout                                 int64
	}{
		"it failed":       {command: "echo main >> ran; exit 3", reason: api.ReasonExitCode, code: 3, ran: "main after"},
		"it was killed":   {command: "echo main >> ran; kill -9 $$", reason: api.ReasonSignaled, code: 137, ran: "main after"},
		"it timed out":    {command: "echo main >> ran; exec sleep " + fakesandbox.Asleep(7201), reason: api.ReasonTimeout, code: 143, timeout: 1, message: "did not end within 1s", ran: "main after"},
		"its hook failed": {preStart: "echo before >> ran; echo sorry >&2; exit 4", command: "echo main >> ran", reason: api.ReasonPreStartFailed, code: 4, message: "sorry", ran: "before after"},
		"its command is not there after its hook": {preStart: "echo before >> ran", command: "", reason: api.ReasonCommandNotFound, code: 127, ran: "before after"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			request := f.hooked(c.preStart, c.command, noteAfter)
			if c.command == "" {
				request.Spec.Process.Command = []string{"no-such-command"}
			}
			request.Spec.TimeoutSeconds = c.timeout
			task := f.run(request)
			assert.Equal(t, c.reason, task.Reason)
			assert.Equal(t, c.code, *task.ExitCode)
			assert.Contains(t, task.Message, c.message)
			assert.Equal(t, c.ran, f.ran())
			f.reset()
		})
	}
}

func TestAHookThatNeverEndsIsKilled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := f.hooked("exec sleep "+fakesandbox.Asleep(7202), "echo main >> ran", noteAfter)
	request.Spec.Process.PreStart.TimeoutSeconds = 1
	task := f.run(request)
	assert.Equal(t, api.ReasonPreStartFailed, task.Reason)
	assert.Equal(t, "preStart did not end within its timeoutSeconds", task.Message)
	assert.Equal(t, "after", f.ran())
	f.reset()

	request = f.hooked("", "exit 5", "sleep "+fakesandbox.Asleep(7203)+"; :")
	request.Spec.Process.PostStop.TimeoutSeconds = 1
	task = f.run(request)
	assert.Equal(t, api.ReasonExitCode, task.Reason, "the result is the task's")
	assert.Equal(t, int32(5), *task.ExitCode)
	eventually(t, "all of it is gone", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7203)) == 0 })
}

func TestAHookThatCannotStart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := f.hooked("x", "echo main >> ran", noteAfter)
	request.Spec.Process.PreStart.Command = []string{"no-such-hook"}
	task := f.run(request)
	assert.Equal(t, api.ReasonPreStartFailed, task.Reason)
	assert.Equal(t, int32(127), *task.ExitCode)
	assert.Contains(t, task.Message, `"no-such-hook" is not in PATH`)
	assert.NoFileExists(t, f.sandbox.Path("ran"), "nothing of the task has run")
	f.reset()

	request = f.hooked("", "true", "x")
	request.Spec.Process.PostStop.Command = []string{"no-such-hook"}
	assert.Equal(t, api.Succeeded, f.run(request).State, "the result is the task's")
}

// A sandbox that is given back runs the hook first, and nothing of it is left afterwards.
func TestPostStopRunsWhenTheSandboxIsGivenBack(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{
		"while the task runs": "touch up; exec sleep " + fakesandbox.Asleep(7204),
		"while postStop runs": "touch up",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.start(f.hooked("", command, `sleep 1; echo after >> ran; (trap "" TERM; exec sleep `+fakesandbox.Asleep(7205)+`) &`))
			eventually(t, "it runs", func() bool { _, err := os.Stat(f.sandbox.Path("up")); return err == nil })
			f.reset()
			assert.Equal(t, "after", f.ran())
			assert.Equal(t, api.Succeeded, f.run(f.request("true")).State)
		})
	}
}

func TestATaskKeepsItsResultWhenTheLauncherIsLostInItsHook(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	task := f.run(f.hooked("", "exit 6", "kill -9 $PPID; exec sleep "+fakesandbox.Asleep(7206)))
	assert.Equal(t, api.ReasonExitCode, task.Reason)
	assert.Equal(t, int32(6), *task.ExitCode)
}

func TestAResultIsKeptWhenTheExecutorDiesInThePostStopHook(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := f.hooked("", "exit 6", "touch up; exec sleep "+fakesandbox.Asleep(7207))
	f.start(request)
	eventually(t, "the hook runs", func() bool { _, err := os.Stat(f.sandbox.Path("up")); return err == nil })
	assert.Equal(t, api.Running, f.start(request).State, "a new leader that asks for it is told what the last one was")
	records := t.TempDir()
	require.NoError(t, os.CopyFS(records, os.DirFS(f.dir)))
	f.close()
	f.dir = records
	f.open(f.stdout)
	task := f.ended()
	require.Equal(t, api.ReasonExitCode, task.Reason)
	assert.Equal(t, int32(6), *task.ExitCode)
	eventually(t, "nothing of the hook runs", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7207)) == 0 })
	_, err := f.Reset(f.BootID(), nil, false)
	require.ErrorIs(t, err, tasks.ErrRemain, "the hook may have left what nobody can find")
}

func TestAHookThatStopsItsLauncherEnds(t *testing.T) {
	t.Parallel()
	const stop = "kill -STOP $PPID; exec sleep "
	t.Run("preStart", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		request := f.hooked(stop+fakesandbox.Asleep(7208), "true", "")
		request.Spec.Process.PreStart.TimeoutSeconds = 1
		assert.Equal(t, api.ReasonLauncherLost, f.run(request).Reason)
	})
	t.Run("postStop", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		request := f.hooked("", "exit 6", stop+fakesandbox.Asleep(7209))
		request.Spec.Process.PostStop.TimeoutSeconds = 1
		assert.Equal(t, int32(6), *f.run(request).ExitCode)
		_, err := f.Reset(f.BootID(), nil, false)
		require.ErrorIs(t, err, tasks.ErrRemain)
	})
}

// What hooks leave forks on, ignores SIGTERM and is in sessions of its own.
func TestNothingOfAHookIsLeftForTheNextOwner(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ preStart, command, postStop string }{
		"preStart":                  {leaves(7210), "true", ""},
		"preStart, as the task ran": {leaves(7210), "touch up; exec sleep " + fakesandbox.Asleep(7210), "true"},
		"postStop":                  {"true", "true", leaves(7210)},
		"postStop, once stopped":    {"", "touch up; exec sleep " + fakesandbox.Asleep(7210), leaves(7210)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.start(f.hooked(c.preStart, c.command, c.postStop))
			if c.command == "true" {
				f.ended()
			} else {
				eventually(t, "it runs", func() bool { _, err := os.Stat(f.sandbox.Path("up")); return err == nil })
			}
			f.reset()
			assert.Zero(t, fakesandbox.Processes(t, fakesandbox.Asleep(7210)))
			assert.Equal(t, api.Succeeded, f.run(f.request("true")).State, "the next owner's task")
		})
	}
}

func leaves(seconds int) string {
	return `(setsid sh -c 'trap "" TERM; while :; do (setsid sleep ` + fakesandbox.Asleep(seconds) + ` &) ; sleep 0.02; done' </dev/null >/dev/null 2>&1 &) ; exit 0`
}

// A leader that is replaced while it gives a sandbox back leaves a reset behind that goes on.
func TestTheNextLeaderWaitsForTheHookThatTheLastOneLetRun(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	boot := f.BootID()
	f.start(f.hooked("", "touch up; exec sleep "+fakesandbox.Asleep(7211), "touch hook; until test -e on; do sleep 0.02; done; "+noteAfter))
	eventually(t, "the task runs", func() bool { _, err := os.Stat(f.sandbox.Path("up")); return err == nil })
	last := make(chan error, 1)
	go func() {
		_, err := f.Reset(boot, nil, false)
		last <- err
	}()
	eventually(t, "the hook runs", func() bool { _, err := os.Stat(f.sandbox.Path("hook")); return err == nil })
	_, err := f.Reset(boot, nil, false)
	require.ErrorIs(t, err, tasks.ErrResetting)
	_, _, err = f.Start(t.Context(), boot, "b", f.request("true"))
	require.ErrorIs(t, err, tasks.ErrResetting, "no task of another owner starts beside it")
	require.NoError(t, os.WriteFile(f.sandbox.Path("on"), nil, 0o644))
	require.NoError(t, <-last)
	assert.Equal(t, "after", f.ran())
	_, err = f.Reset(boot, nil, false)
	require.ErrorIs(t, err, tasks.ErrAnotherLife)
	f.reset()
	assert.Equal(t, "after", f.ran(), "once")
}
