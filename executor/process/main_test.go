package process_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/process"
	"github.com/opensandbox/operator/executor/store"
)

// The test binary stands in for the executor's, which starts itself.
func TestMain(m *testing.M) {
	fakesandbox.Main()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case process.LaunchCommand:
			os.Exit(process.Launch())
		case process.SuperviseCommand:
			os.Exit(process.Supervise())
		}
	}
	os.Exit(m.Run())
}

const patience = 3 * time.Minute

type fixture struct {
	*process.Executor
	t       *testing.T
	dir     string // of the store
	store   *store.Store
	sandbox *fakesandbox.Sandbox
	stdout  *buffer // what tasks print, as the executor passes it on
	stderr  *buffer
}

func newFixture(t *testing.T, o fakesandbox.Options) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), sandbox: fakesandbox.New(t, o), stdout: &buffer{}, stderr: &buffer{}}
	f.open(f.stdout)
	return f
}

// open starts an executor on what is in the fixture's directory.
func (f *fixture) open(stdout io.Writer) {
	f.t.Helper()
	var err error
	f.store, err = store.Open(f.dir)
	require.NoError(f.t, err)
	f.Executor, err = process.Open(process.Config{
		Store: f.store, MaxTasks: 16,
		Stdout: stdout, Stderr: f.stderr, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(f.t, err)
	e := f.Executor
	f.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		require.NoError(f.t, e.Close(ctx))
	})
}

func (f *fixture) request(command ...string) api.TaskRequest {
	grace := int64(1)
	return api.TaskRequest{
		ContainerID: f.sandbox.ID,
		Spec:        api.TaskSpec{Process: api.Process{Command: command}, GraceSeconds: &grace},
	}
}

func (f *fixture) start(id string, request api.TaskRequest) api.Task {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	task, _, err := f.Start(ctx, f.BootID(), id, request)
	require.NoError(f.t, err)
	return task
}

// ended waits, by the long poll, for a task's end.
func (f *fixture) ended(id string) api.Task {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	var since api.Cursor
	for ctx.Err() == nil {
		list := f.Wait(ctx, since)
		since = list.Cursor()
		for _, task := range list.Tasks {
			if task.ID == id && task.State.Ended() {
				return task
			}
		}
	}
	f.t.Fatalf("task %s did not end", id)
	return api.Task{}
}

func (f *fixture) run(request api.TaskRequest) api.Task {
	f.t.Helper()
	f.start("a", request)
	return f.ended("a")
}

// get returns what clients are told of a task.
func (f *fixture) get(id string) (api.Task, bool) {
	f.t.Helper()
	list := f.Wait(f.t.Context(), api.Cursor{}) // which does not wait
	at := slices.IndexFunc(list.Tasks, func(t api.Task) bool { return t.ID == id })
	if at < 0 {
		return api.Task{}, false
	}
	return list.Tasks[at], true
}

// reset ends all tasks with everything that they left.
func (f *fixture) reset() {
	f.t.Helper()
	_, err := f.Reset(f.t.Context(), f.BootID(), nil, false)
	require.NoError(f.t, err)
}

// asleep is for how many seconds a process of a test sleeps. The fraction is of this test
// process, so that processes finds its own, and not those of another one.
func asleep(seconds int) string { return fmt.Sprintf("%d.%07d", seconds, os.Getpid()) }

// processes counts those with that text in their arguments, anywhere.
func processes(t *testing.T, text string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	count := 0
	for _, file := range files {
		if strings.HasPrefix(file, "/proc/"+strconv.Itoa(os.Getpid())+"/") {
			continue
		}
		if data, err := os.ReadFile(file); err == nil && bytes.Contains(data, []byte(text)) {
			count++
		}
	}
	return count
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, what)
}
