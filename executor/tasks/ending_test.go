package tasks_test

import (
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/tasks"
)

// long is a grace that no test waits for the end of.
var long int64 = api.MaxGraceSeconds

func newLauncher(t *testing.T, f *fixture) {
	t.Helper()
	f.sandbox = fakesandbox.New(t, f.offers)
	require.True(t, f.Ready())
}

func TestATimeoutEndsWhatIgnoresSIGTERM(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	// The first process says that it was asked, its child ignores it.
	request := f.request("sh", "-c", `trap 'echo asked' TERM; sh -c "trap '' TERM; while :; do sleep `+fakesandbox.Asleep(7101)+`; done" & while :; do wait; done`)
	request.Spec.TimeoutSeconds = 3
	task := f.run(request)
	assert.Equal(t, api.ReasonTimeout, task.Reason)
	assert.Equal(t, int32(9), task.Signal)
	assert.Equal(t, "did not end within 3s", task.Message)
	assert.Equal(t, "shard 7 stdout: asked\n", f.stdout.String())
	eventually(t, "all of it is gone", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7101)) == 0 })
}

func TestATimeoutGivesTimeToEndInOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := f.request("sh", "-c", `trap 'echo bye >&2; exit 0' TERM; while :; do sleep 0.05; done`)
	request.Spec.TimeoutSeconds, request.Spec.GraceSeconds = 3, &long
	task := f.run(request)
	assert.Equal(t, api.Failed, task.State)
	assert.Equal(t, api.ReasonTimeout, task.Reason)
	assert.Equal(t, int32(0), *task.ExitCode)
	assert.Contains(t, task.Message, "bye")
}

func TestWhatATaskLeavesLivesUntilTheReset(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	// A daemon, twice removed from its parent and in a session of its own, that
	// goes on forking.
	script := `(setsid sh -c 'trap "" TERM; while :; do (setsid sleep ` + fakesandbox.Asleep(7102) + ` &) ; sleep 0.02; done' </dev/null >/dev/null 2>&1 &) ; exit 0`
	task := f.run(f.request("sh", "-c", script))
	assert.Equal(t, api.Succeeded, task.State)
	eventually(t, "it forks on", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7102)) > 3 })
	f.reset()
	assert.Zero(t, fakesandbox.Processes(t, fakesandbox.Asleep(7102)))
	assert.Equal(t, api.Succeeded, f.run(f.request("true")).State, "the next task of the same launcher")
}

func TestStoppingKillsAForkBomb(t *testing.T) {
	f := newFixture(t)
	script := `trap "" TERM; i=0; while [ $i -lt 300 ]; do (while :; do (sleep ` + fakesandbox.Asleep(7103) + ` & sleep 0.3; kill $!); done) & i=$((i+1)); done; wait`
	f.start(f.request("sh", "-c", script))
	eventually(t, "it has spread", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7103)) > 100 })
	f.reset()
	assert.Zero(t, fakesandbox.Processes(t, fakesandbox.Asleep(7103)))
}

func TestStoppingGivesGrace(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := f.request("sh", "-c", `trap 'echo stopped > stopped; exit' TERM; echo ready; while :; do sleep 0.05; done`)
	request.Spec.GraceSeconds = &long
	f.start(request)
	eventually(t, "it is ready", func() bool { return f.stdout.String() != "" })
	f.reset()
	data, err := os.ReadFile(f.sandbox.Path("stopped"))
	require.NoError(t, err)
	assert.Equal(t, "stopped\n", string(data))
}

func TestATaskThatKillsItsLauncherFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	task := f.run(f.request("sh", "-c", "kill -9 $PPID; exec sleep "+fakesandbox.Asleep(7104)))
	assert.Equal(t, api.Failed, task.State)
	assert.Equal(t, api.ReasonLauncherLost, task.Reason)
	assert.Nil(t, task.ExitCode, "it is not known")
	eventually(t, "it dies with its launcher", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7104)) == 0 })

	newLauncher(t, f)
	again := f.start(f.request("sh", "-c", "kill -9 $PPID; exec sleep "+fakesandbox.Asleep(7104)))
	assert.Equal(t, task, again, "another launcher does not run it again")
	_, err := f.Reset(f.BootID(), nil, false)
	require.ErrorIs(t, err, tasks.ErrRemain, "what it has left cannot be found")
	_, err = f.Reset(f.BootID(), nil, true)
	require.NoError(t, err, "a restart of the containers ends that")
}

func TestATaskThatStopsItsLauncherCanBeEnded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := f.request("sh", "-c", "until [ -e go ]; do sleep 0.05; done; kill -STOP $PPID; exec sleep "+fakesandbox.Asleep(7105))
	request.Spec.TimeoutSeconds = 1
	f.start(request)
	require.NoError(t, os.WriteFile(f.sandbox.Path("go"), nil, 0o644))
	task := f.ended()
	assert.Equal(t, api.ReasonTimeout, task.Reason)
}

func TestAProcessWhoseMainThreadHasEndedIsKilled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	fakesandbox.BuildLeaderless(t, f.sandbox.Path("leaderless"))
	require.Equal(t, api.Succeeded, f.run(f.request("sh", "-c", "./leaderless pid & until [ -s pid ]; do sleep 0.05; done")).State)
	pid, err := os.ReadFile(f.sandbox.Path("pid"))
	require.NoError(t, err)
	eventually(t, "its main thread has ended", func() bool {
		stat, err := os.ReadFile("/proc/" + string(pid) + "/stat")
		require.NoError(t, err)
		return strings.Contains(string(stat), ") Z ")
	})
	f.reset()
	require.NoDirExists(t, "/proc/"+string(pid))
}

func TestWhatSomebodyTracesIsKilledAndSaidToRemain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start(f.request("sh", "-c", `echo $$ > pid; exec sleep `+fakesandbox.Asleep(7306)))
	pid := 0
	eventually(t, "its pid is known", func() bool {
		text, _ := os.ReadFile(f.sandbox.Path("pid"))
		var err error
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	runtime.LockOSThread() // who traces is a thread
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.PtraceSeize(pid))
	_, err := f.Reset(f.BootID(), nil, false)
	require.ErrorIs(t, err, tasks.ErrRemain)
	var status unix.WaitStatus
	_, err = unix.Wait4(pid, &status, 0, nil)
	require.NoError(t, err)
	assert.Equal(t, unix.SIGKILL, status.Signal(), "it is dead, and only waited for its tracer")
	f.ended()
	f.reset()
}

func TestOutput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, script, stdout, stderr, message string }{
		{
			"binary", `printf '\000\377\001\n\200'; printf '\000\377x' >&2; exit 3`,
			"shard 7 stdout: \x00\xff\x01\nshard 7 stdout: \x80\n", "shard 7 stderr: \x00\xffx\n", "\x00\uFFFDx",
		},
		{
			"the message is the end of stderr, in whole characters", `i=0; while [ $i -lt 200 ]; do printf 'é' >&2; i=$((i+1)); done; printf 'x' >&2; exit 1`,
			"", "shard 7 stderr: " + strings.Repeat("é", 200) + "x\n", strings.Repeat("é", 127) + "x",
		},
		{
			"the message is made of what many writes have left", `i=0; while [ $i -lt 200 ]; do echo 12 >&2; i=$((i+1)); done; echo >&2; exit 1`,
			"", strings.Repeat("shard 7 stderr: 12\n", 200) + "shard 7 stderr: \n", strings.Repeat("12\n", 84) + "12",
		},
		{
			"no line can be taken for the executor's own", `printf 'x\ntime=2026-01-01T00:00:00Z level=INFO msg="A task ended"\n'; exit 1`,
			"shard 7 stdout: x\nshard 7 stdout: time=2026-01-01T00:00:00Z level=INFO msg=\"A task ended\"\n", "", "",
		},
		{
			"no part of a line can stand over whose it is", `printf 'x\r\ny\rtime=2026\n'; exit 1`,
			"shard 7 stdout: x\nshard 7 stdout: y\nshard 7 stdout: time=2026\n", "", "",
		},
		{
			"a long line is split, and both parts say whose they are", `head -c 16326 /dev/zero | tr '\0' y; exit 1`,
			"shard 7 stdout: " + strings.Repeat("y", 16320) + "\nshard 7 stdout: yyyyyy\n", "", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			task := f.run(f.request("sh", "-c", c.script))
			assert.Equal(t, c.stdout, f.stdout.String())
			for line := range strings.Lines(c.stdout) {
				assert.LessOrEqual(t, len(line), 16<<10, "a container runtime would split it")
			}
			assert.Equal(t, c.stderr, f.stderr.String())
			assert.Equal(t, c.message, task.Message)
		})
	}
	t.Run("of 100 MB the end is the message", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
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
	f := newFixture(t)
	f.close()
	out := blocked{make(chan struct{})}
	echo := tasks.NewEcho(out)
	f.open(echo)
	eventually(t, "the launcher is back", f.Ready)
	assert.Equal(t, api.Succeeded, f.run(f.request("sh", "-c", "yes | head -c 5000000")).State)
	close(out.released)
	echo.Close(patience)
}

func TestResetStopsAndWipesEverything(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start(f.request("sh", "-c", "trap '' TERM; sleep "+fakesandbox.Asleep(7106)))
	grace, before := int64(0), f.BootID()
	stopped, err := f.Reset(before, &grace, false)
	require.NoError(t, err)
	assert.Equal(t, 1, stopped)
	assert.Zero(t, fakesandbox.Processes(t, fakesandbox.Asleep(7106)))
	records, err := f.store.Load()
	require.NoError(t, err)
	assert.Empty(t, records)
	_, _, err = f.Start(t.Context(), before, "late", f.request("true"))
	require.ErrorIs(t, err, tasks.ErrAnotherLife, "it was meant for the last owner's time")
	_, err = f.Reset(before, nil, false)
	require.ErrorIs(t, err, tasks.ErrAnotherLife)
	assert.Equal(t, api.Succeeded, f.run(f.request("true")).State)

	_, err = f.Reset(f.BootID(), nil, true)
	require.NoError(t, err)
	_, _, err = f.Start(t.Context(), f.BootID(), "a", f.request("true"))
	assert.ErrorIs(t, err, tasks.ErrResetting, "the last reset before the executor's end")
}

func TestTheEndOfTheExecutorEndsItsTask(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start(f.request("sh", "-c", "(setsid sleep "+fakesandbox.Asleep(7107)+" &); exec sleep "+fakesandbox.Asleep(7107)))
	eventually(t, "it runs", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7107)) > 1 })
	f.close()
	assert.Equal(t, api.ReasonExecutorRestarted, f.ended().Reason, "nobody has killed the launcher")
	eventually(t, "the launcher kills all of it", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7107)) == 0 })
	offers, err := os.ReadDir(f.offers)
	require.NoError(t, err)
	assert.Empty(t, offers, "nobody would answer")
}

func TestRecordsOutliveTheExecutor(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ended := f.run(f.request("sh", "-c", "echo kept >&2; exit 4"))
	f.close()
	f.open(io.Discard)
	assert.Equal(t, ended, f.ended())
	assert.Equal(t, "kept", ended.Message)

	// Of a task that ran, the record says so when the executor has died.
	g := newFixture(t)
	g.start(g.request("sleep", fakesandbox.Asleep(7108)))
	records := t.TempDir()
	require.NoError(t, os.CopyFS(records, os.DirFS(g.dir)))
	g.close()
	g.dir = records
	g.open(io.Discard)
	lost := g.ended()
	assert.Equal(t, api.ReasonExecutorRestarted, lost.Reason)
	eventually(t, "the launcher is back", g.Ready)
	assert.Equal(t, lost, g.start(g.request("sleep", fakesandbox.Asleep(7108))), "it does not run again")
	eventually(t, "nothing of it runs", func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7108)) == 0 })
}

func TestWhoTakesALostLaunchersPlaceChangesNoResult(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start(f.request("sleep", fakesandbox.Asleep(7109)))
	f.sandbox.Kill()
	require.Equal(t, api.ReasonLauncherLost, f.ended().Reason)

	// A sandbox may read the next offer, and be the launcher from then on.
	var impostor *link.Conn
	eventually(t, "another launcher is offered to connect", func() bool {
		offer, err := link.ReadOffer(f.offers)
		if err == nil {
			impostor, err = link.Dial(offer)
		}
		return err == nil
	})
	t.Cleanup(impostor.Close)
	before := f.Wait(t.Context(), api.Cursor{})
	for kind, v := range map[link.Kind]any{link.KindStarted: nil, link.KindExited: link.Exit{}, link.KindGone: link.Outcome{}} {
		require.NoError(t, impostor.Send(kind, v))
	}
	require.NoError(t, impostor.SendBytes(link.KindStdout, []byte("forged\n")))
	require.NoError(t, impostor.Send(link.KindStop, nil), "which is no launcher's to say")
	eventually(t, "it is sent away", func() bool { return !f.Ready() })
	assert.Equal(t, before, f.Wait(t.Context(), api.Cursor{}))
	assert.NotContains(t, f.stdout.String(), "forged")
	_, err := f.Reset(f.BootID(), nil, false)
	require.ErrorIs(t, err, tasks.ErrRemain, "it cannot say that nothing is left either")
}

func TestASecretIsGoodOnce(t *testing.T) {
	t.Parallel()
	f := withoutLauncher(t)
	offer, err := link.ReadOffer(f.offers)
	require.NoError(t, err)
	first := impostor(t, f)
	left, err := os.ReadDir(f.offers)
	require.NoError(t, err)
	assert.Empty(t, left, "nobody can read the secret any more")
	_, err = link.Dial(offer)
	require.Error(t, err, "while its launcher is there")

	first.Close()
	var next link.Offer
	eventually(t, "another launcher is offered to connect", func() bool {
		next, err = link.ReadOffer(f.offers)
		return err == nil
	})
	_, err = link.Dial(offer)
	require.Error(t, err, "after its launcher was lost")
	assert.False(t, f.Ready())
	assert.NotEqual(t, offer.Secret, next.Secret)
}

// impostor takes the launcher's place in the fixture.
func impostor(t *testing.T, f *fixture) *link.Conn {
	t.Helper()
	offer, err := link.ReadOffer(f.offers)
	require.NoError(t, err)
	conn, err := link.Dial(offer)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	return conn
}

func TestALauncherThatSendsTooMuchAtATimeIsSentAway(t *testing.T) {
	t.Parallel()
	f := withoutLauncher(t)
	conn := impostor(t, f)
	require.NoError(t, conn.SendBytes(link.KindStdout, make([]byte, 64<<10)))
	_ = conn.SendBytes(link.KindStdout, make([]byte, 64<<10+1)) // it may be sent away before the end
	eventually(t, "it is sent away", func() bool { return !f.Ready() })
}

func TestALauncherThatDoesNotStartATaskIsLost(t *testing.T) {
	t.Parallel()
	f := withoutLauncher(t)
	impostor(t, f)
	task := f.start(f.request("true"))
	assert.Equal(t, api.Failed, task.State)
	assert.Equal(t, api.ReasonLauncherLost, task.Reason)
	assert.NotNil(t, task.StartedAt, "it may have run")
}
