package recycle

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
)

// newPod is one whose executor has not started yet.
func newPod(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	for _, name := range []string{baselineFile, firstFile} {
		require.NoError(t, os.Remove(filepath.Join(f.stateDir, name)))
	}
	f.First.PID = newFirst(t)
	return f
}

// untraceable has another process trace the pod's first one, so that the executor
// cannot.
func (f *fixture) untraceable(t *testing.T) {
	t.Helper()
	traced, done := make(chan error), make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		traced <- unix.PtraceSeize(f.First.PID)
		<-done
	}()
	require.NoError(t, <-traced)
}

func (f *fixture) restart(t *testing.T) api.Recycle {
	t.Helper()
	require.NoError(t, RequestRestart(f.stateDir))
	return f.AtStart(f.stateDir)
}

func (f *fixture) yama(t *testing.T, mode string) {
	t.Helper()
	require.NoError(t, os.WriteFile(f.First.Yama, []byte(mode+"\n"), 0o600))
}

func TestTheFirstProcessIsGuarded(t *testing.T) {
	f := newPod(t)
	limits := fmt.Sprintf("/proc/%d/limits", f.First.PID)
	owner := func() (s unix.Stat_t) {
		require.NoError(t, unix.Stat(limits, &s))
		return s
	}
	require.Equal(t, uint32(65535), owner().Uid)
	require.Equal(t, api.Recycle{State: api.RecycleFirstStart}, f.AtStart(f.stateDir))
	require.Zero(t, owner().Uid, "it is not dumpable")
	require.Equal(t, api.Recycle{State: api.RecycleNotRequested}, f.AtStart(f.stateDir))
	for range 2 {
		require.Equal(t, api.Recycle{State: api.RecycleClean}, f.restart(t))
	}
}

func TestAPodWhoseFirstProcessIsNotGuardedIsNotRestarted(t *testing.T) {
	for name, test := range map[string]struct {
		plant func(*testing.T, *fixture)
		why   string
	}{
		"it cannot be traced":       {func(t *testing.T, f *fixture) { f.untraceable(t) }, "operation not permitted; the kernel has no Yama"},
		"and Yama is off":           {func(t *testing.T, f *fixture) { f.untraceable(t); f.yama(t, "0") }, `the mode of the kernel's Yama is "0"`},
		"and Yama is not known":     {func(t *testing.T, f *fixture) { f.untraceable(t); f.yama(t, "strict") }, `the mode of the kernel's Yama is "strict"`},
		"it is the executor itself": {func(_ *testing.T, f *fixture) { f.First.PID = os.Getpid() }, "does not share its process namespace"},
		"it is the node's": {func(t *testing.T, f *fixture) {
			cmd := exec.Command("sleep", "1000")
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			f.First.PID = cmd.Process.Pid
		}, "it is the node's"},
		"there is none": {func(_ *testing.T, f *fixture) { f.First.PID = 1<<22 + 1 }, "no such file"},
		"an executor that died of it": {func(t *testing.T, f *fixture) {
			record, err := f.First.look()
			require.NoError(t, err)
			record.Problem = "begun"
			require.NoError(t, record.write(filepath.Join(f.stateDir, firstFile)))
		}, "begun"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newPod(t)
			test.plant(t, f)
			for _, want := range []api.RecycleState{api.RecycleFirstStart, api.RecycleNotRequested} {
				got := f.AtStart(f.stateDir)
				assert.Equal(t, want, got.State, "it may be used")
				assert.Contains(t, got.NotRestartable, test.why)
			}
			got := f.restart(t)
			assert.Equal(t, api.RecycleDirty, got.State)
			require.Len(t, got.Differences, 1)
			assert.Contains(t, got.Differences[0], test.why)
		})
	}
}

func TestYamaGuardsTheFirstProcessWhereItCannotBeTraced(t *testing.T) {
	for _, mode := range []string{"1", "2", "3"} {
		f := newPod(t)
		f.untraceable(t)
		f.yama(t, mode)
		require.Equal(t, api.Recycle{State: api.RecycleFirstStart}, f.AtStart(f.stateDir))
		require.Equal(t, api.Recycle{State: api.RecycleClean}, f.restart(t))
		f.yama(t, "0")
		require.Contains(t, f.AtStart(f.stateDir).NotRestartable, "Yama", "it was turned off")
		require.Equal(t, api.RecycleDirty, f.restart(t).State)
	}
}

func TestAPodThatGotAnotherFirstProcessIsNotRestarted(t *testing.T) {
	f := newFixture(t)
	f.First.PID = newFirst(t)
	got := f.AtStart(f.stateDir)
	assert.Equal(t, api.RecycleNotRequested, got.State)
	assert.Contains(t, got.NotRestartable, "another one")
	assert.Equal(t, api.RecycleDirty, f.restart(t).State)
}
