package tasks_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/store"
	"github.com/opensandbox/operator/executor/tasks"
	"github.com/opensandbox/operator/executor/token"
)

// The test binary stands in for the launcher.
func TestMain(m *testing.M) {
	os.Exit(fakesandbox.Run(m))
}

const patience = 3 * time.Minute

type fixture struct {
	*tasks.Executor
	t              *testing.T
	dir            string // of the records
	offers         string // for the launcher
	store          *store.Store
	sandbox        *fakesandbox.Sandbox
	key            ed25519.PrivateKey
	stdout, stderr *buffer // what tasks print, as the executor passes it on
	log            *buffer // what it says itself
	close          func()  // ends the executor
}

// newFixture starts an executor with a launcher.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := withoutLauncher(t)
	f.sandbox = fakesandbox.New(t, f.offers)
	return f
}

func withoutLauncher(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), offers: t.TempDir(), stdout: &buffer{}, stderr: &buffer{}, log: &buffer{}}
	var err error
	f.key, err = token.GenerateKey()
	require.NoError(t, err)
	f.open(f.stdout)
	return f
}

// open starts an executor on what is in the fixture's directory.
func (f *fixture) open(stdout io.Writer) {
	f.t.Helper()
	plain, err := (&net.ListenConfig{}).Listen(f.t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(f.t, err)
	listener, err := server.Listen(plain, f.key)
	require.NoError(f.t, err)
	f.store, err = store.Open(f.dir)
	require.NoError(f.t, err)
	public, _ := f.key.Public().(ed25519.PublicKey)
	f.Executor, err = tasks.Open(tasks.Config{
		Store: f.store, OfferDir: f.offers, Offer: link.Offer{Address: plain.Addr().String(), PublicKey: public},
		Stdout: stdout, Stderr: f.stderr, Log: slog.New(slog.NewTextHandler(f.log, nil)),
	})
	require.NoError(f.t, err)
	web := server.New(server.Config{Executor: f.Executor, Log: slog.New(slog.DiscardHandler)}).HTTPServer(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = web.Serve(listener)
	}()
	e := f.Executor
	f.close = sync.OnceFunc(func() {
		e.Close()
		_ = web.Close()
		<-served
	})
	f.t.Cleanup(f.close)
}

func (f *fixture) request(command ...string) api.TaskRequest {
	grace := int64(1)
	return api.TaskRequest{Shard: 7, Spec: api.TaskSpec{Process: api.Process{Command: command}, GraceSeconds: &grace}}
}

func (f *fixture) start(request api.TaskRequest) api.Task {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	task, _, err := f.Start(ctx, f.BootID(), "a", request)
	require.NoError(f.t, err)
	return task
}

// ended waits, by the long poll, for the task's end.
func (f *fixture) ended() api.Task {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	var since api.Cursor
	for ctx.Err() == nil {
		list := f.Wait(ctx, since)
		since = list.Cursor()
		for _, task := range list.Tasks {
			if task.State.Ended() {
				return task
			}
		}
	}
	f.t.Fatal("the task did not end")
	return api.Task{}
}

func (f *fixture) run(request api.TaskRequest) api.Task {
	f.t.Helper()
	f.start(request)
	return f.ended()
}

// reset ends the task with everything that it left.
func (f *fixture) reset() {
	f.t.Helper()
	_, err := f.Reset(f.BootID(), nil, false)
	require.NoError(f.t, err)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, what)
}

// buffer keeps the beginning of what several goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b.Len() > 1<<20 {
		return len(p), nil
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
