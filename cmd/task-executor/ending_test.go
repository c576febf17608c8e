package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/token"
)

// newPod is an executor with a launcher.
func newPod(t *testing.T) *executor {
	t.Helper()
	e := newExecutor(t)
	said, err := e.hook()
	require.NoError(t, err, said)
	return e
}

func TestTheOutputSaysWhoseItIs(t *testing.T) {
	e := newPod(t)
	request := e.request("echo", "Custom task for sandbox 2", "with", "additional", "arguments")
	request.Shard = 1
	e.startTask(request)
	e.awaitTask()
	require.Eventually(t, func() bool { return e.stdout.String() != "" }, patience, patience/1000)
	assert.Equal(t, "shard 1 stdout: Custom task for sandbox 2 with additional arguments\n", e.stdout.String())
}

func TestAnExecutorThatIsKilledAndComesBack(t *testing.T) {
	e := newPod(t)
	e.startTask(e.request("sh", "-c", "(setsid sleep "+fakesandbox.Asleep(7301)+" &); exec sleep "+fakesandbox.Asleep(7301)))
	require.Eventually(t, func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7301)) > 1 }, patience, patience/1000)

	require.NoError(t, e.cmd.Process.Kill())
	e.awaitEnd()
	require.Eventually(t, func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7301)) == 0 }, patience, patience/1000, "its task dies with it")

	e.start()
	lost := e.awaitTask()
	assert.Equal(t, api.ReasonExecutorRestarted, lost.Reason)
	assert.Nil(t, lost.ExitCode)
	again := e.startTask(e.request("sh", "-c", "(setsid sleep "+fakesandbox.Asleep(7301)+" &); exec sleep "+fakesandbox.Asleep(7301)))
	assert.Equal(t, lost, again, "it does not run twice")
}

// The files that the kernel shows of a process are its user's, but root's where it is not
// dumpable.
func TestNobodyCanLookIntoEitherHalf(t *testing.T) {
	const user = 65532
	owner := func(pid int) uint32 {
		var s syscall.Stat_t
		require.NoError(t, syscall.Stat("/proc/"+strconv.Itoa(pid)+"/environ", &s))
		return s.Uid
	}
	asUser := func(command ...string) int {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd.Process.Pid
	}
	require.Equal(t, uint32(user), owner(asUser("sleep", "1000")), "of any other process they are")
	launcher := asUser(launcherBinary, "launch")
	require.Eventually(t, func() bool { return owner(launcher) == 0 }, patience, patience/1000)
	// The kubelet runs this with the executor's environment, its key among it.
	require.Zero(t, owner(asUser(binary, "await")), "from its first moment on")

	e := prepare(t)
	for _, dir := range []string{e.launcherDir, e.workingDir, e.stateDir} {
		require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
		require.NoError(t, os.Chown(dir, user, user))
	}
	e.user = user
	e.start()
	require.Zero(t, owner(e.cmd.Process.Pid))
}

func TestSIGTERMEndsTheExecutorAndItsTask(t *testing.T) {
	e := newPod(t)
	e.startTask(e.request("sleep", fakesandbox.Asleep(7305)))
	require.NoError(t, e.cmd.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 0, e.awaitEnd())
	require.Eventually(t, func() bool { return fakesandbox.Processes(t, fakesandbox.Asleep(7305)) == 0 }, patience, patience/1000)
	e.start()
	assert.Equal(t, api.ReasonExecutorRestarted, e.awaitTask().Reason)
}

func TestAResetThatAsksForARestartAnswersAndExits(t *testing.T) {
	e := newPod(t)
	e.startTask(e.request("sleep", fakesandbox.Asleep(7304)))
	before, err := e.List(t.Context(), e.target, api.Cursor{}, 0)
	require.NoError(t, err)
	body, err := json.Marshal(e.request("touch", "/tmp/replayed"))
	require.NoError(t, err)
	kept, err := e.target.Signer.Sign(token.Request{PodUID: podUID, BootID: before.BootID, Method: http.MethodPut, Path: api.TaskPath("b"), Body: body})
	require.NoError(t, err)
	answer, err := e.Reset(t.Context(), e.target, api.ResetRequest{Restart: true}, patience)
	require.NoError(t, err)
	assert.True(t, answer.Exiting)
	assert.Equal(t, api.RestartExitCode, e.awaitEnd())
	assert.Zero(t, fakesandbox.Processes(t, fakesandbox.Asleep(7304)))
	e.killLaunchers() // as the kubelet does
	require.NoFileExists(t, filepath.Join(e.launcherDir, "offer.json"))
	e.start()
	after, err := e.List(t.Context(), e.target, api.Cursor{}, 0)
	require.NoError(t, err)
	assert.NotEqual(t, before.BootID, after.BootID)
	assert.Empty(t, after.Tasks)

	// What the last owner has seen of a request is worth nothing to him now.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+e.target.Address+api.TaskPath("b"), bytes.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+kept)
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: link.PinnedTo(e.target.PublicKey)}}
	defer plain.CloseIdleConnections()
	response, err := plain.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUnauthorized, response.StatusCode)
	assert.JSONEq(t, `{"type":"about:blank","title":"Unauthorized","status":401}`, string(said), "nothing else is said")
}

func TestATaskThatFillsItsMemoryLimit(t *testing.T) {
	parent, limit := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // v2
		parent, limit = "/sys/fs/cgroup", "memory.max"
	}
	cgroup := filepath.Join(parent, "task-executor-test-"+rand.Text())
	require.NoError(t, os.Mkdir(cgroup, 0o700), "this test needs a memory cgroup that it may write")
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return os.Remove(cgroup) == nil }, patience, patience/1000)
	})
	require.NoError(t, os.WriteFile(filepath.Join(cgroup, limit), []byte("67108864"), 0))
	e := newPod(t)
	for _, pid := range e.launchers() {
		require.NoError(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	}
	t.Cleanup(e.killLaunchers)
	e.startTask(e.request("tail", "/dev/zero"))
	task := e.awaitTask()
	assert.Equal(t, api.ReasonOOMKilled, task.Reason, "%+v", task)
	assert.Equal(t, int32(9), task.Signal)
	_, err := e.Reset(t.Context(), e.target, api.ResetRequest{}, patience)
	require.NoError(t, err)
	e.startTask(e.request("true"))
	assert.Equal(t, api.Succeeded, e.awaitTask().State, "both halves go on")
}
