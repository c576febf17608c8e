package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/token"
)

// binary is the executor as it ships: nobody but root may read it, and a copy that others
// may read, the launcher, is beside it.
var binary, launcherBinary string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "task-executor")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // another user runs it, too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binary = filepath.Join(dir, "task-executor")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the executor:", err)
		return 1
	}
	launcherBinary = filepath.Join(dir, "launcher")
	if err := errors.Join(copyFile(binary, launcherBinary), os.Chmod(binary, 0o711)); err != nil {
		fmt.Fprintln(os.Stderr, "copy the launcher:", err)
		return 1
	}
	return fakesandbox.Run(m)
}

func copyFile(from, to string) error {
	program, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, program, 0o755)
}

const (
	podUID   = "0b5f8f2e-0000-4000-8000-000000000001"
	patience = 3 * time.Minute
)

// executor is a running executor and what its next run needs.
type executor struct {
	*client.Client
	t           *testing.T
	target      client.Target
	launcherDir string
	workingDir  string // of the launcher
	stateDir    string
	user        uint32
	env         []string
	command     []string

	cmd    *exec.Cmd
	stdout output
	stderr *output
	ended  chan struct{}
}

// output is a buffer for several goroutines.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func newExecutor(t *testing.T, args ...string) *executor {
	t.Helper()
	e := prepare(t, args...)
	e.start()
	return e
}

// prepare makes an executor that does not run yet.
func prepare(t *testing.T, args ...string) *executor {
	t.Helper()
	key, err := token.GenerateKey()
	require.NoError(t, err)
	signer := token.NewSigner(key)
	e := &executor{
		Client: client.New(client.Options{Timeout: time.Minute, DialTimeout: time.Minute}),
		t:      t, launcherDir: t.TempDir(), workingDir: t.TempDir(), stateDir: t.TempDir(),
		target: client.Target{PodUID: podUID, Signer: signer, PublicKey: signer.PublicKey()},
		env: []string{
			api.EnvPodUID + "=" + podUID, api.EnvPublicKeys + "=" + token.FormatPublicKeys(signer.PublicKey()),
			api.EnvTLSKey + "=" + token.FormatSeed(key),
		},
	}
	e.command = append([]string{binary, "--state-dir", e.stateDir, "--launcher-dir", e.launcherDir, "--listen", "127.0.0.1:0"}, args...)
	t.Cleanup(e.Close)
	return e
}

// listens is what an executor says once it has a port.
var listens = regexp.MustCompile(`msg="The executor listens" address=(\S+)`)

// start runs the executor and waits until it answers.
func (e *executor) start() {
	e.t.Helper()
	e.cmd = exec.Command(e.command[0], e.command[1:]...)
	e.cmd.Env = e.env
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: e.user, Gid: e.user}}
	e.cmd.Stdout = &e.stdout
	e.stderr = &output{}
	e.cmd.Stderr = io.MultiWriter(e.stderr, os.Stderr)
	require.NoError(e.t, e.cmd.Start())
	cmd, ended := e.cmd, make(chan struct{})
	e.ended = ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	e.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	require.Eventually(e.t, func() bool {
		said := listens.FindStringSubmatch(e.stderr.String())
		if said != nil {
			e.target.Address = said[1]
		}
		return said != nil
	}, patience, 10*time.Millisecond)
}

func (e *executor) awaitEnd() int {
	e.t.Helper()
	select {
	case <-e.ended:
	case <-time.After(patience):
		e.t.Fatal("the executor did not end")
	}
	return e.cmd.ProcessState.ExitCode()
}

// hook runs the postStart hook that the executor has installed, as the kubelet does in the
// sandbox container.
func (e *executor) hook(own ...string) (string, error) {
	e.t.Helper()
	cmd := exec.Command(filepath.Join(e.launcherDir, "launcher"), append([]string{"hook"}, own...)...)
	cmd.Dir = e.workingDir
	e.t.Cleanup(e.killLaunchers)
	said, err := cmd.CombinedOutput() // it ends although the launcher goes on
	return string(said), err
}

// launchers are those that the hook has started.
func (e *executor) launchers() []int {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(e.t, err)
	var pids []int
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, e.launcherDir) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			require.NoError(e.t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

func (e *executor) killLaunchers() {
	for _, pid := range e.launchers() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (e *executor) request(command ...string) api.TaskRequest {
	grace := int64(1)
	return api.TaskRequest{Spec: api.TaskSpec{Process: api.Process{Command: command}, GraceSeconds: &grace}}
}

func (e *executor) startTask(request api.TaskRequest) api.Task {
	e.t.Helper()
	task, err := e.Start(e.t.Context(), e.target, "a", request)
	require.NoError(e.t, err)
	return task
}

func (e *executor) awaitTask() api.Task {
	e.t.Helper()
	var task api.Task
	require.Eventually(e.t, func() bool {
		list, err := e.List(e.t.Context(), e.target, api.Cursor{}, 0)
		at := slices.IndexFunc(list.Tasks, func(t api.Task) bool { return t.ID == "a" })
		if at >= 0 {
			task = list.Tasks[at]
		}
		return err == nil && task.State.Ended()
	}, patience, 10*time.Millisecond)
	return task
}

func memoryOf(t *testing.T, pid int) int { return memory(t, pid, "VmRSS:") }

func memory(t *testing.T, pid int, field string) (kib int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if value, found := strings.CutPrefix(line, field); found {
			kib, err = strconv.Atoi(strings.Fields(value)[0])
			require.NoError(t, err)
		}
	}
	return kib
}

func TestBothHalvesAreSmall(t *testing.T) {
	info, err := os.Stat(binary)
	require.NoError(t, err)
	assert.Less(t, info.Size(), int64(15<<20))
	e := newExecutor(t)
	said, err := e.hook()
	require.NoError(t, err, said)
	e.startTask(e.request("true"))
	e.awaitTask()
	pids := e.launchers()
	require.Len(t, pids, 1)
	executor, launcher := memoryOf(t, e.cmd.Process.Pid), memoryOf(t, pids[0])
	t.Logf("the binary has %d bytes; idle the executor takes %d KiB and the launcher %d KiB", info.Size(), executor, launcher)
	assert.Less(t, executor+launcher, 24<<10)
}

// The executor's container has 64 MiB, and the launcher runs on the sandbox's memory.
func TestTheLargestTaskCrossesTheWire(t *testing.T) {
	e := newExecutor(t)
	said, err := e.hook()
	require.NoError(t, err, said)
	content := bytes.Repeat([]byte{0xff}, api.MaxFilesBytes)
	path := filepath.Join(e.workingDir, "file")
	request := e.request("sh", "-c", "test ${#A} = 131000 && wc -c < "+path)
	request.Spec.Files = []api.File{{Path: path, Mode: 0o600, Content: content}}
	for _, name := range []string{"A", "B", "C"} { // the kernel takes 128 KiB of one variable
		request.Spec.Process.Env = append(request.Spec.Process.Env, api.EnvVar{Name: name, Value: strings.Repeat("x", 131000)})
	}
	hook := &api.Hook{Command: []string{"true"}, TimeoutSeconds: 30}
	request.Spec.Process.PreStart, request.Spec.Process.PostStop = hook, hook
	e.startTask(request)
	task := e.awaitTask()
	require.Equal(t, api.Succeeded, task.State, "%+v", task)
	require.Contains(t, e.stdout.String(), "stdout: 1048576\n")
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, got))
	executor, launcher := memory(t, e.cmd.Process.Pid, "VmHWM:"), memory(t, e.launchers()[0], "VmHWM:")
	t.Logf("at most the executor took %d KiB and the launcher %d KiB", executor, launcher)
	assert.Less(t, executor, 48<<10)
	assert.Less(t, launcher, 48<<10)

	request.Spec.Files[0].Content = make([]byte, api.MaxFilesBytes+1)
	_, err = e.Start(t.Context(), e.target, "a", request)
	require.ErrorContains(t, err, "spec.files: the files hold 1048577 bytes, more than 1048576")
}

func TestTheTemplatesOwnHookComesAfterTheLauncher(t *testing.T) {
	e := newExecutor(t)
	said, err := e.hook("sh", "-c", "echo from the hook; pwd; exit 7")
	var ended *exec.ExitError
	require.ErrorAs(t, err, &ended)
	assert.Equal(t, 7, ended.ExitCode(), "its end is the hook's")
	assert.Equal(t, "from the hook\n"+e.workingDir+"\n", said)
	assert.Len(t, e.launchers(), 1)

	said, err = e.hook("no-such-command")
	require.Error(t, err)
	assert.Contains(t, said, "the template's own hook")
}

func TestTheHookDoesNotWaitForAnExecutorThatComesLater(t *testing.T) {
	e := prepare(t)
	require.NoError(t, exec.Command(binary, "install", e.launcherDir).Run())
	said, err := e.hook()
	require.NoError(t, err, said)
	e.start()
	require.Eventually(t, func() bool {
		_, err := e.Start(t.Context(), e.target, "a", e.request("true"))
		return err == nil
	}, patience, 10*time.Millisecond)
}

func TestFlagsAndEnvironment(t *testing.T) {
	const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	good := map[string]string{api.EnvPodUID: "uid", api.EnvPublicKeys: `{"k":"` + key + `"}`, api.EnvTLSKey: key}
	without := func(name, value string) map[string]string {
		env := maps.Clone(good)
		env[name] = value
		return env
	}
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{"the defaults", nil, good, ""},
		{"an argument", []string{"x"}, good, `unexpected argument "x"`},
		{"an unknown flag", []string{"--x"}, good, "not defined"},
		{"no pod", nil, without(api.EnvPodUID, ""), api.EnvPodUID},
		{"no key", nil, without(api.EnvPublicKeys, ""), api.EnvPublicKeys},
		{"a bad key", nil, without(api.EnvPublicKeys, "AAAA"), api.EnvPublicKeys},
		{"no key of its own", nil, without(api.EnvTLSKey, ""), api.EnvTLSKey},
		{"a bad key of its own", nil, without(api.EnvTLSKey, "AAAA"), api.EnvTLSKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said bytes.Buffer
			o, err := parse(c.args, func(key string) string { return c.env[key] }, &said)
			if c.want == "" {
				require.NoError(t, err)
				assert.Equal(t, ":5758", o.listen)
				return
			}
			assert.ErrorContains(t, err, c.want)
		})
	}
}
