package process_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
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
	store   *store.Store
	sandbox *fakesandbox.Sandbox
	stdout  *buffer
}

func newFixture(t *testing.T, o fakesandbox.Options) *fixture {
	t.Helper()
	f := &fixture{t: t, sandbox: fakesandbox.New(t, o), stdout: &buffer{}}
	var err error
	f.store, err = store.Open(t.TempDir())
	require.NoError(t, err)
	f.open(f.stdout)
	return f
}

func (f *fixture) open(stdout io.Writer) {
	f.t.Helper()
	var err error
	f.Executor, err = process.Open(process.Config{
		Store: f.store, LogBytes: 1 << 20, MaxTasks: 16,
		Stdout: stdout, Stderr: io.Discard, Log: slog.New(slog.DiscardHandler),
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

func (f *fixture) stop(id string) {
	f.t.Helper()
	attempt, found := f.Stop(id)
	require.True(f.t, found)
	select {
	case <-attempt.Done:
		require.NoError(f.t, attempt.Err)
	case <-time.After(patience):
		f.t.Fatalf("task %s was not stopped", id)
	}
}

func (f *fixture) output(id string, stream store.Stream) string {
	f.t.Helper()
	data, found, err := f.Logs(id, stream, 1<<20)
	require.NoError(f.t, err)
	require.True(f.t, found)
	return string(data)
}

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
