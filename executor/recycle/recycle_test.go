package recycle

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/fakesandbox/ownnamespaces"
)

// So that nothing of the machine is emptied.
func TestMain(m *testing.M) { os.Exit(ownnamespaces.Run(m)) }

type fixture struct {
	Pod
	shm, mqueue, stateDir string
}

// newFixture is a new pod at the first start of its executor.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		require.NoError(t, os.Chmod(d, 0o755)) // others may look, too
	}
	f := &fixture{stateDir: filepath.Join(dir, "state"), shm: filepath.Join(dir, "shm"), mqueue: filepath.Join(dir, "mqueue")}
	f.Dirs, f.IPC = []string{f.shm, f.mqueue}, ThisPod().IPC
	for _, d := range []string{f.stateDir, f.shm, f.mqueue} {
		require.NoError(t, os.Mkdir(d, 0o755))
	}
	require.NoError(t, unix.Mount("tmpfs", f.shm, "tmpfs", 0, "mode=1777"))
	require.NoError(t, unix.Mount("mqueue", f.mqueue, "mqueue", 0, ""))
	t.Cleanup(func() {
		require.NoError(t, f.Clean()) // the queues and objects of this namespace are the next test's, too
		for _, mount := range f.Dirs {
			_ = unix.Unmount(mount, unix.MNT_DETACH)
		}
	})
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(name), 0o644))
		f.Files = append(f.Files, file)
	}
	f.requireClean(t)
	return f
}

func (f *fixture) requireClean(t *testing.T) {
	t.Helper()
	differences, err := f.AtStart(f.stateDir)
	require.NoError(t, err)
	require.Empty(t, differences)
}

// look is what the executor finds after a restart.
func (f *fixture) look(t *testing.T) ([]string, error) {
	t.Helper()
	require.NoError(t, RequestRestart(f.stateDir))
	return f.AtStart(f.stateDir)
}

// as runs an action with another effective user, on a thread of its own.
func as(t *testing.T, uid int, action func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), 0); errno == 0 {
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

func plantQueue(t *testing.T) {
	t.Helper()
	name := []byte("planted\x00")
	fd, _, errno := unix.RawSyscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0)
	require.Zero(t, errno)
	unix.Close(int(fd))
}

func TestWhatIsPlantedIsRemovedAndNothingIsFound(t *testing.T) {
	f := newFixture(t)
	plantSystemV(t)
	plantQueue(t)
	require.NoError(t, os.MkdirAll(filepath.Join(f.shm, "a/b"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(f.shm, "a/b/planted"), []byte("x"), 0o600))
	require.NoError(t, os.Symlink(f.Files[0], filepath.Join(f.shm, "link")))
	found, err := f.look(t)
	require.NoError(t, err)
	assert.Len(t, found, 5, "each kind is found where nobody has cleaned: %q", found)

	require.NoError(t, f.Clean())
	f.requireClean(t)
	data, err := os.ReadFile(f.Files[0])
	require.NoError(t, err)
	assert.Equal(t, "hostname", string(data), "a link is removed, not what it names")
}

func TestAnExecutorThatCrashesLooksForNothing(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.WriteFile(filepath.Join(f.shm, "in-use"), nil, 0o600))
	require.NoError(t, os.WriteFile(f.Files[0], []byte("changed by its user"), 0o644))
	f.requireClean(t)
}

func TestWhatMakesThePodDirty(t *testing.T) {
	for name, plant := range map[string]func(*testing.T, *fixture){
		"a changed file":  func(t *testing.T, f *fixture) { require.NoError(t, os.WriteFile(f.Files[2], []byte("x"), 0o644)) },
		"a changed mode":  func(t *testing.T, f *fixture) { require.NoError(t, os.Chmod(f.Files[1], 0o666)) },
		"a changed owner": func(t *testing.T, f *fixture) { require.NoError(t, os.Chown(f.Files[0], 1000, 0)) },
		"an attribute of a file": func(t *testing.T, f *fixture) {
			require.NoError(t, unix.Setxattr(f.Files[0], "trusted.x", []byte("y"), 0))
		},
		"a file that is gone":          func(t *testing.T, f *fixture) { require.NoError(t, os.Remove(f.Files[0])) },
		"a link for a file":            func(t *testing.T, f *fixture) { replaceByLink(t, f.Files[0]) },
		"another mode of /dev/shm":     func(t *testing.T, f *fixture) { require.NoError(t, os.Chmod(f.shm, 0o700)) },
		"another owner of /dev/shm":    func(t *testing.T, f *fixture) { require.NoError(t, os.Chown(f.shm, 1000, 1000)) },
		"another mode of /dev/mqueue":  func(t *testing.T, f *fixture) { require.NoError(t, os.Chmod(f.mqueue, 0o700)) },
		"another owner of /dev/mqueue": func(t *testing.T, f *fixture) { require.NoError(t, os.Chown(f.mqueue, 1000, 1000)) },
		"an access list of /dev/shm": func(t *testing.T, f *fixture) {
			// Version 2; owner, group and others as before, and one user more.
			list := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 4, 0, 7, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255}
			require.NoError(t, unix.Setxattr(f.shm, "system.posix_acl_default", list, 0))
		},
		"no /dev/shm":     func(_ *testing.T, f *fixture) { f.Dirs[0] += "-missing" },
		"a lost baseline": func(t *testing.T, f *fixture) { require.NoError(t, os.Remove(filepath.Join(f.stateDir, baselineFile))) },
		"an unreadable one": func(t *testing.T, f *fixture) {
			require.NoError(t, os.WriteFile(filepath.Join(f.stateDir, baselineFile), []byte("{"), 0o600))
		},
		"an attached segment": plantAttached,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			dirs := slices.Clone(f.Dirs)
			t.Cleanup(func() { f.Dirs = dirs })
			plant(t, f)
			found, err := f.look(t)
			assert.True(t, err != nil || len(found) > 0)
			again, err := f.AtStart(f.stateDir)
			assert.True(t, err != nil || len(again) > 0, "it is dirty for good")
		})
	}
}

// gVisor has message queues and does not mount /dev/mqueue.
func TestWhatCannotBeSeenMayBeDirty(t *testing.T) {
	f, stateDir := newFixture(t), t.TempDir()
	pod := Pod{Dirs: []string{f.shm, f.mqueue + "-not-mounted"}, Files: f.Files}
	found, err := pod.AtStart(stateDir)
	require.NoError(t, err)
	require.Empty(t, found)
	require.NoError(t, RequestRestart(stateDir))
	found, err = pod.AtStart(stateDir)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Contains(t, found[0], "look into "+pod.Dirs[1])
}

func TestWhatAnotherUserHasMadeRemainsAndIsFound(t *testing.T) {
	f := newFixture(t)
	as(t, 1000, func() { plantSystemV(t) })
	as(t, 1001, func() { assert.Error(t, f.Clean(), "it may not remove them") })
	found, err := f.look(t)
	require.NoError(t, err)
	assert.Len(t, found, 3, "%q", found)
}

func TestItTakesNoPrivilegeToLook(t *testing.T) {
	f := newFixture(t)
	plantSystemV(t)
	plantQueue(t)
	require.NoError(t, os.WriteFile(filepath.Join(f.shm, "planted"), nil, 0o600))
	baseline, err := readBaseline(f.stateDir)
	require.NoError(t, err)
	as(t, 65532, func() { assert.Len(t, f.differences(baseline), 5) })
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
	f := newFixture(t)
	planted := filepath.Join(f.shm, "planted")
	require.NoError(t, os.WriteFile(planted, nil, 0o600))
	own := f.IPC
	f.IPC = filepath.Join(t.TempDir(), "ipc")
	require.NoError(t, os.Symlink(nodeIPC, f.IPC))
	require.ErrorContains(t, f.Clean(), "node's IPC namespace")
	require.FileExists(t, planted)
	f.IPC = own
	require.NoError(t, f.Clean())
	require.NoFileExists(t, planted)
}
