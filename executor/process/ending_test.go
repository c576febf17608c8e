package process_test

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/process"
)

// long is a grace that no test waits for the end of.
var long int64 = api.MaxGraceSeconds

func TestATimeoutEndsWhatIgnoresSIGTERM(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	// The first process says that it was asked, its child ignores it.
	request := f.request("sh", "-c", `trap 'echo asked' TERM; sh -c "trap '' TERM; while :; do sleep `+asleep(7101)+`; done" & while :; do wait; done`)
	request.Spec.TimeoutSeconds = 3
	task := f.run(request)
	assert.Equal(t, api.ReasonTimeout, task.Reason)
	assert.Equal(t, int32(9), task.Signal)
	assert.Equal(t, "did not end within 3s", task.Message)
	assert.Equal(t, "asked\n", f.stdout.String())
	assert.Zero(t, processes(t, asleep(7101)))
}

func TestATimeoutGivesTimeToEndInOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	request := f.request("sh", "-c", `trap 'echo bye >&2; exit 0' TERM; while :; do sleep 0.05; done`)
	request.Spec.TimeoutSeconds, request.Spec.GraceSeconds = 3, &long
	task := f.run(request)
	assert.Equal(t, api.Failed, task.State)
	assert.Equal(t, api.ReasonTimeout, task.Reason)
	assert.Equal(t, int32(0), *task.ExitCode)
	assert.Contains(t, task.Message, "bye")
}

func TestWhatATaskLeavesLivesUntilTheTaskIsDeleted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	// A daemon, twice removed from its parent and in a session of its own, that
	// goes on forking.
	script := `(setsid sh -c 'trap "" TERM; while :; do (setsid sleep ` + asleep(7102) + ` &) ; sleep 0.02; done' </dev/null >/dev/null 2>&1 &) ; exit 0`
	task := f.run(f.request("sh", "-c", script))
	assert.Equal(t, api.Succeeded, task.State)
	eventually(t, "it forks on", func() bool { return processes(t, asleep(7102)) > 3 })
	f.reset()
	assert.Zero(t, processes(t, asleep(7102)))
	_, found := f.get("a")
	assert.False(t, found)
}

func TestStoppingKillsAForkBomb(t *testing.T) {
	f := newFixture(t, fakesandbox.Options{})
	script := `trap "" TERM; i=0; while [ $i -lt 300 ]; do (while :; do (sleep ` + asleep(7103) + ` & sleep 0.3; kill $!); done) & i=$((i+1)); done; wait`
	f.start("a", f.request("sh", "-c", script))
	eventually(t, "it has spread", func() bool { return processes(t, asleep(7103)) > 100 })
	f.reset()
	assert.Zero(t, processes(t, asleep(7103)))
}

func TestStoppingGivesGrace(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	request := f.request("sh", "-c", `trap 'echo stopped > /tmp/stopped; exit' TERM; echo ready; while :; do sleep 0.05; done`)
	request.Spec.GraceSeconds = &long
	f.start("a", request)
	eventually(t, "it is ready", func() bool { return f.stdout.String() != "" })
	f.reset()
	data, err := os.ReadFile(f.sandbox.Path("tmp/stopped"))
	require.NoError(t, err)
	assert.Equal(t, "stopped\n", string(data))
}

func TestATaskThatKillsItsSupervisorFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	task := f.run(f.request("sh", "-c", "kill -9 $PPID; exec sleep "+asleep(7104)))
	assert.Equal(t, api.Failed, task.State)
	assert.Equal(t, api.ReasonSupervisorLost, task.Reason)
	assert.Nil(t, task.ExitCode, "it is not known")
	eventually(t, "it dies with its supervisor", func() bool { return processes(t, asleep(7104)) == 0 })
}

func TestAProcessWhoseMainThreadHasEndedIsKilled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	fakesandbox.BuildLeaderless(t, f.sandbox.Path("bin/leaderless"))
	f.start("a", f.request("sh", "-c", "leaderless /tmp/pid & until [ -s /tmp/pid ]; do sleep 0.05; done"))
	require.Equal(t, api.Succeeded, f.ended("a").State)
	pid, err := os.ReadFile(f.sandbox.Path("tmp/pid"))
	require.NoError(t, err)
	eventually(t, "its main thread has ended", func() bool {
		stat, err := os.ReadFile("/proc/" + string(pid) + "/stat")
		require.NoError(t, err)
		return strings.Contains(string(stat), ") Z ")
	})
	f.reset()
	require.NoDirExists(t, "/proc/"+string(pid))
}

func TestATaskThatStopsItsSupervisorCanBeEnded(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	request := f.request("sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; kill -STOP $PPID; exec sleep "+asleep(7105))
	request.Spec.TimeoutSeconds = 2
	f.start("a", request)
	require.NoError(t, os.WriteFile(f.sandbox.Path("tmp/go"), nil, 0o644))
	task := f.ended("a")
	assert.Equal(t, api.ReasonTimeout, task.Reason)
	assert.Zero(t, processes(t, asleep(7105)))
	f.reset()
}

func TestOutput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, script, stdout, stderr, message string }{
		{
			"binary", `printf '\000\377\001\n\200'; printf '\000\377x' >&2; exit 3`,
			"\x00\xff\x01\n\x80\n", "\x00\xffx\n", "\x00\uFFFDx",
		},
		{
			"the message is the end of stderr, in whole characters", `i=0; while [ $i -lt 200 ]; do printf 'é' >&2; i=$((i+1)); done; printf 'x' >&2; exit 1`,
			"", strings.Repeat("é", 200) + "x\n", strings.Repeat("é", 127) + "x",
		},
		{
			"the message is made of what many writes have left", `i=0; while [ $i -lt 200 ]; do echo 12 >&2; i=$((i+1)); done; echo >&2; exit 1`,
			"", strings.Repeat("12\n", 200) + "\n", strings.Repeat("12\n", 84) + "12",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, fakesandbox.Options{})
			task := f.run(f.request("sh", "-c", c.script))
			assert.Equal(t, c.stdout, f.stdout.String())
			assert.Equal(t, c.stderr, f.stderr.String())
			assert.Equal(t, c.message, task.Message)
		})
	}
	t.Run("of 100 MB the end is the message", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, fakesandbox.Options{})
		task := f.run(f.request("sh", "-c", "yes 0123456789abcde | head -c 100000000 >&2; echo the end >&2; exit 1"))
		assert.Len(t, task.Message, api.MaxMessageBytes-1, "without the last newline")
		assert.True(t, strings.HasSuffix(task.Message, "abcde\nthe end"))
	})
}

// blocked is an output that nobody reads.
type blocked struct{ released chan struct{} }

func (b blocked) Write(p []byte) (int, error) {
	<-b.released
	return len(p), nil
}

func TestAnOutputThatNobodyReadsDoesNotHoldATaskUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	out := blocked{make(chan struct{})}
	echo := process.NewEcho(out)
	f.open(echo)
	task := f.run(f.request("sh", "-c", "yes | head -c 5000000"))
	assert.Equal(t, api.Succeeded, task.State)
	close(out.released)
	echo.Close(patience)
}

func TestResetStopsAndWipesEverything(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	f.start("a", f.request("sh", "-c", "trap '' TERM; sleep "+asleep(7106)))
	f.start("b", f.request("true"))
	grace, before := int64(0), f.BootID()
	stopped, err := f.Reset(t.Context(), before, &grace, false)
	require.NoError(t, err)
	assert.Equal(t, 2, stopped)
	assert.Zero(t, processes(t, asleep(7106)))
	records, _, err := f.store.Load()
	require.NoError(t, err)
	assert.Empty(t, records)
	_, _, err = f.Start(t.Context(), before, "late", f.request("true"))
	require.ErrorIs(t, err, process.ErrOldBootID, "it was meant for the last owner's time")
	_, err = f.Reset(t.Context(), before, nil, false)
	require.ErrorIs(t, err, process.ErrOldBootID)
	f.start("a", f.request("true"))
	assert.Equal(t, api.Succeeded, f.ended("a").State)

	_, err = f.Reset(t.Context(), f.BootID(), nil, true)
	require.NoError(t, err)
	_, _, err = f.Start(t.Context(), f.BootID(), "a", f.request("true"))
	assert.ErrorIs(t, err, process.ErrResetting, "the last reset before the executor's end")
}

func TestRecordsOutliveTheExecutor(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	f.run(f.request("sh", "-c", "echo kept >&2; exit 4"))
	f.start("running", f.request("sleep", asleep(7107)))
	ended, _ := f.get("a")
	// Another executor finds the same records, and the first one's task is a leftover. Its
	// records are copies, since the first one lives on here and would write to them.
	records := t.TempDir()
	require.NoError(t, os.CopyFS(records, os.DirFS(f.dir)))
	f.dir = records
	f.open(io.Discard)
	again, found := f.get("a")
	require.True(t, found)
	assert.Equal(t, ended, again)
	assert.Equal(t, "kept", again.Message)
	lost, found := f.get("running")
	require.True(t, found)
	assert.Equal(t, api.Failed, lost.State)
	assert.Equal(t, api.ReasonExecutorRestarted, lost.Reason)
	assert.Zero(t, processes(t, asleep(7107)))
	f.start("running", f.request("sleep", asleep(7107)))
	assert.Zero(t, processes(t, asleep(7107)), "it does not run again")
}
