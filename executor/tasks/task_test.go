package tasks_test

import (
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/tasks"
)

func TestHowTasksEnd(t *testing.T) {
	t.Parallel()
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	for _, c := range []struct {
		name    string
		process api.Process
		state   api.TaskState
		code    int32
		signal  int32
		reason  string
		message string // a part of it
		out     string
	}{
		{name: "a command that succeeds", process: api.Process{Command: []string{"echo", "Default task"}}, state: api.Succeeded, out: "shard 7 stdout: Default task\n"},
		{name: "args follow the command", process: api.Process{Command: []string{"echo", "a"}, Args: []string{"b", "c d"}}, state: api.Succeeded, out: "shard 7 stdout: a b c d\n"},
		{name: "the container's environment, and the task's over it", process: api.Process{
			Command: sh("echo $OF_THE_CONTAINER $NEW $PATH"), Env: []api.EnvVar{{Name: "NEW", Value: "x"}, {Name: "NEW", Value: "y"}, {Name: "PATH", Value: "/bin"}},
		}, state: api.Succeeded, out: "shard 7 stdout: yes y /bin\n"},
		{name: "the container's working directory", process: api.Process{Command: sh("test -e plain")}, state: api.Succeeded},
		{name: "a relative command", process: api.Process{Command: []string{"./echo", "relative"}, WorkingDir: "/bin"}, state: api.Succeeded, out: "shard 7 stdout: relative\n"},
		{name: "stdin is empty", process: api.Process{Command: []string{"cat"}}, state: api.Succeeded},
		{name: "a session of its own", process: api.Process{Command: sh("test $(ps -o sid= -p $$) = $$")}, state: api.Succeeded},
		{name: "nothing is open but the three", process: api.Process{Command: sh("test $(ls /proc/self/fd | wc -w) = 4")}, state: api.Succeeded},
		{name: "its output may be opened again", process: api.Process{Command: sh("echo again > /dev/stdout")}, state: api.Succeeded, out: "shard 7 stdout: again\n"},
		{name: "output without a newline", process: api.Process{Command: sh("printf no-newline")}, state: api.Succeeded, out: "shard 7 stdout: no-newline\n"},
		{name: "exit code 1", process: api.Process{Command: sh("echo sorry >&2; exit 1")}, state: api.Failed, code: 1, reason: api.ReasonExitCode, message: "sorry"},
		{name: "exit code 126", process: api.Process{Command: sh("exit 126")}, state: api.Failed, code: 126, reason: api.ReasonExitCode},
		{name: "exit code 127", process: api.Process{Command: sh("exit 127")}, state: api.Failed, code: 127, reason: api.ReasonExitCode},
		{name: "exit code 255", process: api.Process{Command: sh("exit 255")}, state: api.Failed, code: 255, reason: api.ReasonExitCode},
		{name: "killed by a signal", process: api.Process{Command: sh("kill -9 $$")}, state: api.Failed, code: 137, signal: 9, reason: api.ReasonSignaled},
		{name: "killed by another signal", process: api.Process{Command: sh("kill -USR1 $$")}, state: api.Failed, code: 138, signal: 10, reason: api.ReasonSignaled},
		{name: "command not found", process: api.Process{Command: []string{"no-such-command"}, Env: []api.EnvVar{{Name: "PATH", Value: "/bin"}}}, state: api.Failed, code: 127, reason: api.ReasonCommandNotFound, message: `"no-such-command" is not in the PATH that the task sets`},
		{name: "path not found", process: api.Process{Command: []string{"/no/such"}}, state: api.Failed, code: 127, reason: api.ReasonCommandNotFound, message: "/no/such"},
		{name: "below a file", process: api.Process{Command: []string{"/etc/passwd/x"}}, state: api.Failed, code: 127, reason: api.ReasonCommandNotFound},
		{name: "not executable", process: api.Process{Command: []string{"./plain"}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable, message: "permission denied"},
		{name: "a directory", process: api.Process{Command: []string{"/tmp"}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable},
		{name: "not a program", process: api.Process{Command: []string{"not-a-program"}, Env: []api.EnvVar{{Name: "PATH", Value: "/bin:."}}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable, message: "exec format error"},
		{name: "no interpreter", process: api.Process{Command: []string{"./no-interpreter"}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable, message: "interpreter"},
		{name: "working directory missing", process: api.Process{Command: []string{"true"}, WorkingDir: "/no/such"}, state: api.Failed, code: 128, reason: api.ReasonWorkingDir, message: `working directory "/no/such": no such file or directory`},
		{name: "working directory a file", process: api.Process{Command: []string{"true"}, WorkingDir: "/etc/passwd"}, state: api.Failed, code: 128, reason: api.ReasonWorkingDir, message: "not a directory"},
		{name: "arguments too long", process: api.Process{Command: []string{"echo", strings.Repeat("x", 1<<18)}}, state: api.Failed, code: 126, reason: api.ReasonCannotStart, message: "argument list too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			require.NoError(t, os.WriteFile(f.sandbox.Path("plain"), []byte("echo hi\n"), 0o644))
			require.NoError(t, os.WriteFile(f.sandbox.Path("no-interpreter"), []byte("#!/no/such\n"), 0o755))
			require.NoError(t, os.WriteFile(f.sandbox.Path("not-a-program"), []byte("just text\n"), 0o755))
			request := f.request()
			request.Spec.Process = c.process
			first := f.start(request)
			task := f.ended()
			assert.Equal(t, c.state, task.State)
			if assert.NotNil(t, task.ExitCode) {
				assert.Equal(t, c.code, *task.ExitCode)
			}
			assert.Equal(t, c.signal, task.Signal)
			assert.Equal(t, c.reason, task.Reason)
			assert.Contains(t, task.Message, c.message)
			assert.NotNil(t, task.FinishedAt)
			if first.State == api.Failed { // told at once, without a second call
				assert.Equal(t, task, first)
			}
			assert.Equal(t, c.out, f.stdout.String())
			f.reset()
		})
	}
}

func TestWithoutALauncherNothingIsKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.sandbox.Kill()
	eventually(t, "the loss is noticed", func() bool { return !f.Ready() })
	_, _, err := f.Start(t.Context(), f.BootID(), "a", f.request("true"))
	require.ErrorIs(t, err, tasks.ErrNoLauncher)
	assert.Empty(t, f.Wait(t.Context(), api.Cursor{}).Tasks)
	newLauncher(t, f)
	assert.Equal(t, api.Succeeded, f.run(f.request("true")).State, "the same id may be used again")
}

func TestStartIsIdempotent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := f.request("sh", "-c", "echo ran >> ran")
	var wait sync.WaitGroup
	var created atomic.Int32
	for range 50 {
		wait.Go(func() {
			_, fresh, err := f.Start(t.Context(), f.BootID(), "a", request)
			require.NoError(t, err)
			if fresh {
				created.Add(1)
			}
		})
	}
	wait.Wait()
	f.ended()
	ran, err := os.ReadFile(f.sandbox.Path("ran"))
	require.NoError(t, err)
	assert.Equal(t, "ran\n", string(ran))
	assert.Equal(t, int32(1), created.Load())

	_, _, err = f.Start(t.Context(), f.BootID(), "a", f.request("true"))
	require.ErrorIs(t, err, tasks.ErrSpecDiffers)
	_, _, err = f.Start(t.Context(), f.BootID(), "b", f.request("true"))
	require.ErrorIs(t, err, tasks.ErrAnotherTask, "one task between two resets")
}

// Whoever asks for a task while it is refused is told so, too.
func TestATaskThatCannotBeRecordedIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, os.Rename(f.dir, f.dir+".away"))
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			for range 50 {
				task, _, err := f.Start(t.Context(), f.BootID(), "a", f.request("true"))
				if !assert.ErrorIs(t, err, os.ErrNotExist, "%+v", task) {
					return
				}
			}
		})
	}
	wait.Wait()
	assert.Empty(t, f.Wait(t.Context(), api.Cursor{}).Tasks)
	require.NoError(t, os.Rename(f.dir+".away", f.dir))
	assert.Equal(t, api.Succeeded, f.run(f.request("true")).State, "the same id may be used again")
}
