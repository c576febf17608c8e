package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/token"
)

func TestTheOutputReadsAsTheTaskPrintedIt(t *testing.T) {
	e := newExecutor(t)
	e.startTask("a", e.request("echo", "Custom task for sandbox 2", "with", "additional", "arguments"))
	e.awaitTask("a")
	require.Eventually(t, func() bool { return e.stdout.String() != "" }, patience, patience/1000)
	assert.Equal(t, "Custom task for sandbox 2 with additional arguments\n", e.stdout.String())
}

func TestAnExecutorThatIsKilledAndComesBack(t *testing.T) {
	e := newExecutor(t)
	e.startTask("ended", e.request("sh", "-c", "echo kept >&2; exit 5"))
	ended := e.awaitTask("ended")
	e.startTask("running", e.request("sh", "-c", "(setsid sleep "+asleep(7301)+" &); exec sleep "+asleep(7301)))
	require.Eventually(t, func() bool { return processes(t, asleep(7301)) > 1 }, patience, patience/1000)

	require.NoError(t, e.cmd.Process.Kill())
	e.awaitEnd()
	require.Eventually(t, func() bool { return processes(t, asleep(7301)) == 0 }, patience, patience/1000, "its tasks die with it")

	e.start()
	assert.Equal(t, ended, e.awaitTask("ended"))
	assert.Equal(t, "kept", ended.Message)
	lost := e.awaitTask("running")
	assert.Equal(t, api.ReasonExecutorRestarted, lost.Reason)
	assert.Nil(t, lost.ExitCode)
	again := e.startTask("running", e.request("sh", "-c", "(setsid sleep "+asleep(7301)+" &); exec sleep "+asleep(7301)))
	assert.Equal(t, lost, again, "it does not run twice")
}

// killer ends the process that is the parent of the task's parent.
const killer = `kill -9 $(awk '/^PPid/{print $2}' /proc/$PPID/status); `

func TestATaskThatKillsTheExecutor(t *testing.T) {
	e := newExecutor(t)
	_, _ = e.Start(t.Context(), e.target, "a", e.request("sh", "-c", killer+"sleep "+asleep(7302)+"; exit 0"))
	e.awaitEnd()
	require.Eventually(t, func() bool { return processes(t, asleep(7302)) == 0 }, patience, patience/1000)
	e.start()
	task := e.awaitTask("a")
	assert.Equal(t, api.Failed, task.State)
	assert.Equal(t, api.ReasonExecutorRestarted, task.Reason)
}

func TestATaskThatKillsItsSupervisorLeavesNothing(t *testing.T) {
	e := newExecutor(t)
	script := `trap "" TERM; (while :; do (setsid sleep ` + asleep(7303) + ` &) ; sleep 0.02; done) & sleep 0.3; kill -9 $PPID; exec sleep ` + asleep(7303)
	e.startTask("a", e.request("sh", "-c", script))
	task := e.awaitTask("a")
	assert.Equal(t, api.ReasonSupervisorLost, task.Reason)
	require.Eventually(t, func() bool { return processes(t, asleep(7303)) == 0 }, patience, patience/1000)
	e.startTask("b", e.request("true"))
	assert.Equal(t, api.Succeeded, e.awaitTask("b").State, "the executor goes on")
}

func TestAResetEndsWhatSomebodyTraces(t *testing.T) {
	e := newExecutor(t)
	e.startTask("a", e.request("sh", "-c", `echo $$ > /tmp/pid; exec sleep `+asleep(7306)))
	pid := 0
	require.Eventually(t, func() bool {
		text, _ := os.ReadFile(e.sandbox.Path("tmp/pid"))
		var err error
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	}, patience, patience/1000)
	runtime.LockOSThread() // a thread traces, not a process
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.PtraceSeize(pid))
	answer, err := e.Reset(t.Context(), e.target, api.ResetRequest{}, patience)
	require.NoError(t, err)
	assert.Equal(t, 1, answer.Stopped)
	var status unix.WaitStatus
	_, err = unix.Wait4(pid, &status, 0, nil)
	require.NoError(t, err)
	assert.Equal(t, unix.SIGKILL, status.Signal(), "it is dead, and only waited for its tracer")
}

func TestSIGTERMEndsTasksWithGrace(t *testing.T) {
	e := newExecutor(t, "--shutdown-grace", patience.String())
	request := e.request("sh", "-c", `trap 'echo bye > /tmp/bye; exit' TERM; echo ready; while :; do sleep 0.05; done`)
	*request.Spec.GraceSeconds = api.MaxGraceSeconds
	e.startTask("a", request)
	require.Eventually(t, func() bool { return e.stdout.String() != "" }, patience, patience/1000)
	require.NoError(t, e.cmd.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, e.awaitEnd())
	said, err := os.ReadFile(e.sandbox.Path("tmp/bye"))
	require.NoError(t, err)
	assert.Equal(t, "bye\n", string(said))
	e.start()
	assert.Equal(t, api.ReasonExecutorRestarted, e.awaitTask("a").Reason)
}

func TestAResetThatAsksForARestartAnswersAndExits(t *testing.T) {
	e := newExecutor(t, "--restart-exit-code", "77")
	e.startTask("a", e.request("sleep", asleep(7304)))
	before, err := e.Info(t.Context(), e.target)
	require.NoError(t, err)
	body, err := json.Marshal(e.request("touch", "/tmp/replayed"))
	require.NoError(t, err)
	kept, err := e.target.Signer.Sign(token.Request{PodUID: podUID, BootID: before.BootID, Method: http.MethodPut, Path: api.TaskPath("b"), Body: body})
	require.NoError(t, err)
	answer, err := e.Reset(t.Context(), e.target, api.ResetRequest{Restart: true}, patience)
	require.NoError(t, err)
	assert.True(t, answer.Exiting)
	assert.Equal(t, 77, e.awaitEnd())
	assert.Zero(t, processes(t, asleep(7304)))
	e.start()
	after, err := e.Info(t.Context(), e.target)
	require.NoError(t, err)
	assert.NotEqual(t, before.BootID, after.BootID)
	list, err := e.List(t.Context(), e.target, api.Cursor{}, 0)
	require.NoError(t, err)
	assert.Empty(t, list.Tasks)

	// A request that the last owner has seen does nothing when it is sent again.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+e.target.Address+api.TaskPath("b"), bytes.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+kept)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUnauthorized, response.StatusCode)
	assert.JSONEq(t, `{"type":"about:blank","title":"Unauthorized","status":401}`, string(said), "nothing else is said")
	list, err = e.List(t.Context(), e.target, api.Cursor{}, 0)
	require.NoError(t, err)
	assert.Empty(t, list.Tasks, "nothing ran")
}

func TestATaskThatFillsItsMemoryLimit(t *testing.T) {
	cgroup := "/sys/fs/cgroup/memory/task-executor-test-" + strconv.Itoa(os.Getpid())
	limit := "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // v2
		cgroup, limit = filepath.Join("/sys/fs/cgroup", filepath.Base(cgroup)), "memory.max"
	}
	require.NoError(t, os.Mkdir(cgroup, 0o755), "this test needs a memory cgroup that it may write")
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return os.Remove(cgroup) == nil }, patience, patience/1000)
	})
	require.NoError(t, os.WriteFile(filepath.Join(cgroup, limit), []byte("67108864"), 0))
	e := prepare(t)
	e.command = append([]string{"/bin/sh", "-c", `echo $$ > "$1"/cgroup.procs; shift; exec "$@"`, "sh", cgroup}, e.command...)
	e.start()
	e.startTask("a", e.request("tail", "/dev/zero"))
	task := e.awaitTask("a")
	assert.Equal(t, api.ReasonOOMKilled, task.Reason, "%+v", task)
	assert.Equal(t, int32(9), task.Signal)
	e.startTask("b", e.request("true"))
	assert.Equal(t, api.Succeeded, e.awaitTask("b").State, "the executor goes on")
}
