package recycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
)

// ownNamespaces is set in the test process that has an IPC and a mount namespace
// of its own, so that nothing of the machine is emptied.
const ownNamespaces = "RECYCLE_TEST_IN_NAMESPACES"

func TestMain(m *testing.M) {
	if os.Getenv(ownNamespaces) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownNamespaces+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWIPC | syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		if ended := new(exec.ExitError); !errors.As(err, &ended) {
			_, _ = os.Stderr.WriteString("these tests need root: " + err.Error() + "\n")
		}
		os.Exit(1)
	}
}

type fixture struct {
	Pod
	stateDir string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{stateDir: filepath.Join(dir, "state")}
	f.Shm, f.Mqueue = filepath.Join(dir, "shm"), filepath.Join(dir, "mqueue")
	for _, d := range []string{f.stateDir, f.Shm, f.Mqueue} {
		require.NoError(t, os.Mkdir(d, 0o755))
	}
	require.NoError(t, unix.Mount("tmpfs", f.Shm, "tmpfs", 0, "mode=1777"))
	require.NoError(t, unix.Mount("mqueue", f.Mqueue, "mqueue", 0, ""))
	mounts := []string{f.Shm, f.Mqueue}
	t.Cleanup(func() {
		for _, mount := range mounts {
			_ = unix.Unmount(mount, unix.MNT_DETACH)
		}
	})
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(name), 0o644))
		f.Files = append(f.Files, file)
	}
	f.Others = func() ([]int, error) { return nil, nil }
	f.First = First{PID: newFirst(t), Yama: filepath.Join(dir, "ptrace_scope")}
	require.Equal(t, api.Recycle{State: api.RecycleFirstStart}, f.AtStart(f.stateDir))
	return f
}

// newFirst starts the first process of a process namespace, without any rights.
func newFirst(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Credential: &syscall.Credential{Uid: 65535, Gid: 65535}}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// as runs an action with another effective user, on a thread of its own.
func as(t *testing.T, uid int, action func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends
		if errno := control(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), 0); errno == 0 {
			action()
		}
	}()
	<-done
}

func plantSystemV(t *testing.T) {
	t.Helper()
	_, err := unix.SysvShmGet(1234, 4096, unix.IPC_CREAT|0o600)
	require.NoError(t, err)
	_, _, errno := unix.RawSyscall(unix.SYS_SEMGET, 1234, 1, unix.IPC_CREAT|0o600)
	require.Zero(t, errno)
	_, _, errno = unix.RawSyscall(unix.SYS_MSGGET, 1234, unix.IPC_CREAT|0o600, 0)
	require.Zero(t, errno)
}

func systemVCount(t *testing.T) int {
	t.Helper()
	count := 0
	for _, kind := range systemVKinds {
		objects, err := kind.list()
		require.NoError(t, err)
		count += len(objects)
	}
	return count
}

func plantQueue(t *testing.T) {
	t.Helper()
	name := []byte("planted\x00")
	fd, _, errno := unix.RawSyscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0)
	require.Zero(t, errno)
	unix.Close(int(fd))
}

func TestWhatIsPlantedIsRemoved(t *testing.T) {
	f := newFixture(t)
	as(t, 1000, func() { plantSystemV(t) })
	require.Equal(t, 3, systemVCount(t))
	plantQueue(t)
	require.NoError(t, os.MkdirAll(filepath.Join(f.Shm, "a/b"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(f.Shm, "a/b/planted"), []byte("x"), 0o600))
	require.NoError(t, os.Symlink(f.Files[0], filepath.Join(f.Shm, "link")))
	require.NoError(t, os.Chmod(f.Shm, 0o700))
	require.NoError(t, os.Chown(f.Shm, 1000, 1000))

	require.NoError(t, RequestRestart(f.stateDir))
	assert.Equal(t, api.Recycle{State: api.RecycleClean}, f.AtStart(f.stateDir))

	assert.Zero(t, systemVCount(t))
	for _, dir := range []string{f.Shm, f.Mqueue} {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Empty(t, entries)
	}
	var s unix.Stat_t
	require.NoError(t, unix.Stat(f.Shm, &s))
	assert.Equal(t, uint32(unix.S_IFDIR|0o1777), s.Mode)
	assert.Zero(t, s.Uid)
	data, err := os.ReadFile(f.Files[0])
	require.NoError(t, err)
	assert.Equal(t, "hostname", string(data), "a link is removed, not what it names")
	assert.Equal(t, api.RecycleNotRequested, f.AtStart(f.stateDir).State, "done once")
}

func TestAnExecutorThatCrashesTouchesNothing(t *testing.T) {
	f := newFixture(t)
	kept := filepath.Join(f.Shm, "in-use")
	require.NoError(t, os.WriteFile(kept, nil, 0o600))
	require.NoError(t, os.WriteFile(f.Files[0], []byte("changed by its user"), 0o644))
	assert.Equal(t, api.Recycle{State: api.RecycleNotRequested}, f.AtStart(f.stateDir))
	assert.FileExists(t, kept)
}

func TestWhatMakesThePodDirty(t *testing.T) {
	for name, plant := range map[string]func(*testing.T, *fixture){
		"a changed file":      func(t *testing.T, f *fixture) { require.NoError(t, os.WriteFile(f.Files[2], []byte("x"), 0o644)) },
		"a changed mode":      func(t *testing.T, f *fixture) { require.NoError(t, os.Chmod(f.Files[1], 0o666)) },
		"a changed owner":     func(t *testing.T, f *fixture) { require.NoError(t, os.Chown(f.Files[0], 1000, 0)) },
		"a file that is gone": func(t *testing.T, f *fixture) { require.NoError(t, os.Remove(f.Files[0])) },
		"a link for a file":   func(t *testing.T, f *fixture) { replaceByLink(t, f.Files[0]) },
		"another process":     func(_ *testing.T, f *fixture) { f.Others = func() ([]int, error) { return []int{77}, nil } },
		"no /dev/shm":         func(_ *testing.T, f *fixture) { f.Shm += "-missing" },
		"no /dev/mqueue":      func(_ *testing.T, f *fixture) { f.Mqueue += "-missing" },
		"a lost baseline":     func(t *testing.T, f *fixture) { require.NoError(t, os.Remove(filepath.Join(f.stateDir, baselineFile))) },
		"an unreadable one": func(t *testing.T, f *fixture) {
			require.NoError(t, os.WriteFile(filepath.Join(f.stateDir, baselineFile), []byte("{"), 0o600))
		},
		"an attached segment":   plantAttached,
		"another first process": func(t *testing.T, f *fixture) { f.First.PID = newFirst(t) },
		"no first process":      func(_ *testing.T, f *fixture) { f.First.PID = 1<<22 + 1 },
		"its changed OOM score": func(t *testing.T, f *fixture) {
			require.NoError(t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", f.First.PID), []byte("900"), 0))
		},
		"a lost record of it": func(t *testing.T, f *fixture) { require.NoError(t, os.Remove(filepath.Join(f.stateDir, firstFile))) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			plant(t, f)
			require.NoError(t, RequestRestart(f.stateDir))
			got := f.AtStart(f.stateDir)
			assert.Equal(t, api.RecycleDirty, got.State)
			require.NotEmpty(t, got.Differences)
			text, err := json.Marshal(got)
			require.NoError(t, err)
			assert.Less(t, len(text), 1000)
		})
	}
}

func replaceByLink(t *testing.T, file string) {
	t.Helper()
	require.NoError(t, os.Rename(file, file+".real"))
	require.NoError(t, os.Symlink(file+".real", file))
}

// plantAttached leaves a segment that is marked for removal but stays while
// somebody has it attached.
func plantAttached(t *testing.T, _ *fixture) {
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600)
	require.NoError(t, err)
	memory, err := unix.SysvShmAttach(id, 0, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.SysvShmDetach(memory) })
}

func TestTheNodesNamespaceIsNotEmptied(t *testing.T) {
	require.NoError(t, refuseNodeIPC("/proc/self/ns/ipc"))
	link := filepath.Join(t.TempDir(), "ipc")
	require.NoError(t, os.Symlink(nodeIPC, link))
	assert.ErrorContains(t, refuseNodeIPC(link), "node's IPC namespace")
}

func TestAProcessWhoseMainThreadHasEndedIsStillThere(t *testing.T) {
	dir := t.TempDir()
	fakesandbox.BuildLeaderless(t, filepath.Join(dir, "leaderless"))
	cmd := exec.Command(filepath.Join(dir, "leaderless"), filepath.Join(dir, "pid"))
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	})
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		return err == nil && strings.Contains(string(stat), ") Z ")
	}, time.Minute, time.Millisecond)
	pids, err := others()
	require.NoError(t, err)
	require.Contains(t, pids, cmd.Process.Pid)
}
