package process_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/process"
)

// buffer keeps the beginning of what several goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b.Len() > 1<<20 {
		return len(p), nil
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

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
		{name: "a command that succeeds", process: api.Process{Command: []string{"echo", "Default task"}}, state: api.Succeeded, out: "Default task\n"},
		{name: "args follow the command", process: api.Process{Command: []string{"echo", "a"}, Args: []string{"b", "c d"}}, state: api.Succeeded, out: "a b c d\n"},
		{name: "a file of the sandbox", process: api.Process{Command: []string{"cat", "/etc/only-in-the-sandbox"}}, state: api.Succeeded, out: "a file of the sandbox\n"},
		{name: "root may chown", process: api.Process{Command: sh("touch /tmp/x && chown 1000 /tmp/x && stat -c %u /tmp/x")}, state: api.Succeeded, out: "1000\n"},
		{name: "a relative command", process: api.Process{Command: []string{"./sh", "-c", "pwd"}, WorkingDir: "/bin"}, state: api.Succeeded, out: "/bin\n"},
		{name: "stdin is empty", process: api.Process{Command: []string{"cat"}}, state: api.Succeeded},
		{name: "output without a newline", process: api.Process{Command: sh("printf no-newline")}, state: api.Succeeded, out: "no-newline\n"},
		{name: "exit code 1", process: api.Process{Command: sh("echo sorry >&2; exit 1")}, state: api.Failed, code: 1, reason: api.ReasonExitCode, message: "sorry"},
		{name: "exit code 126", process: api.Process{Command: sh("exit 126")}, state: api.Failed, code: 126, reason: api.ReasonExitCode},
		{name: "exit code 127", process: api.Process{Command: sh("exit 127")}, state: api.Failed, code: 127, reason: api.ReasonExitCode},
		{name: "exit code 255", process: api.Process{Command: sh("exit 255")}, state: api.Failed, code: 255, reason: api.ReasonExitCode},
		{name: "killed by a signal", process: api.Process{Command: sh("kill -9 $$")}, state: api.Failed, code: 137, signal: 9, reason: api.ReasonSignaled},
		{name: "killed by another signal", process: api.Process{Command: sh("kill -USR1 $$")}, state: api.Failed, code: 138, signal: 10, reason: api.ReasonSignaled},
		{name: "command not found", process: api.Process{Command: []string{"no-such-command"}}, state: api.Failed, code: 127, reason: api.ReasonCommandNotFound, message: `"no-such-command" is not in PATH (/bin)`},
		{name: "path not found", process: api.Process{Command: []string{"/no/such"}}, state: api.Failed, code: 127, reason: api.ReasonCommandNotFound, message: "/no/such"},
		{name: "below a file", process: api.Process{Command: []string{"/etc/passwd/x"}}, state: api.Failed, code: 127, reason: api.ReasonCommandNotFound},
		{name: "not executable", process: api.Process{Command: []string{"/tmp/plain"}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable, message: "permission denied"},
		{name: "a directory", process: api.Process{Command: []string{"/tmp"}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable},
		{name: "not a program", process: api.Process{Command: []string{"not-a-program"}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable, message: "exec format error"},
		{name: "no interpreter", process: api.Process{Command: []string{"no-interpreter"}}, state: api.Failed, code: 126, reason: api.ReasonNotExecutable, message: "interpreter"},
		{name: "working directory missing", process: api.Process{Command: []string{"true"}, WorkingDir: "/no/such"}, state: api.Failed, code: 128, reason: api.ReasonWorkingDir, message: `working directory "/no/such": no such file or directory`},
		{name: "arguments too long", process: api.Process{Command: []string{"echo", strings.Repeat("x", 1<<18)}}, state: api.Failed, code: 126, reason: api.ReasonCannotStart, message: "argument list too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, fakesandbox.Options{})
			require.NoError(t, os.WriteFile(f.sandbox.Path("tmp/plain"), []byte("echo hi\n"), 0o644))
			require.NoError(t, os.WriteFile(f.sandbox.Path("bin/no-interpreter"), []byte("#!/no/such\n"), 0o755))
			require.NoError(t, os.WriteFile(f.sandbox.Path("bin/not-a-program"), []byte("just text\n"), 0o755))
			request := f.request()
			request.Spec.Process = c.process
			first := f.start("a", request)
			task := f.ended("a")
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

func TestTheContainerMustBeThere(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	request := f.request("true")
	request.ContainerID = "containerd://" + strings.Repeat("0", 64)
	_, _, err := f.Start(t.Context(), f.BootID(), "a", request)
	require.ErrorIs(t, err, process.ErrContainerNotFound)
	_, found := f.get("a")
	assert.False(t, found, "nothing is kept of it")

	request.ContainerID = f.sandbox.ID
	f.start("a", request)
	assert.Equal(t, api.Succeeded, f.ended("a").State, "the same id may be used again")
}

func TestStartIsIdempotent(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	request := f.request("sh", "-c", "echo ran >> /tmp/ran")
	var wait sync.WaitGroup
	var created sync.Map
	for i := range 50 {
		wait.Go(func() {
			_, fresh, err := f.Start(t.Context(), f.BootID(), "a", request)
			require.NoError(t, err)
			if fresh {
				created.Store(i, true)
			}
		})
	}
	wait.Wait()
	f.ended("a")
	ran, err := os.ReadFile(f.sandbox.Path("tmp/ran"))
	require.NoError(t, err)
	assert.Equal(t, "ran\n", string(ran))
	count := 0
	created.Range(func(any, any) bool { count++; return true })
	assert.Equal(t, 1, count)

	other := f.request("true")
	_, _, err = f.Start(t.Context(), f.BootID(), "a", other)
	require.ErrorIs(t, err, process.ErrSpecDiffers)

	request.ContainerID = "containerd://" + strings.Repeat("1", 64)
	_, _, err = f.Start(t.Context(), f.BootID(), "a", request)
	assert.NoError(t, err, "the container may have restarted since; the spec is the same")
}

func TestThereIsALimitOfTasks(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	for i := range 16 {
		f.start(fmt.Sprint(i), f.request("true"))
	}
	_, _, err := f.Start(t.Context(), f.BootID(), "more", f.request("true"))
	assert.ErrorIs(t, err, process.ErrTooManyTasks)
}
