package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/launcher"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/recycle"
	"github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/store"
	"github.com/opensandbox/operator/executor/tasks"
)

// answerPatience is how long answers that are on their way may take at the end.
const answerPatience = 2 * time.Second

// serve runs the executor until SIGTERM or a reset that asks for a restart, and returns
// the exit code.
func serve(o options, stdout, stderr io.Writer) (int, error) {
	// The key is in the environment, which nobody is to read in /proc.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 1, fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	debug.SetGCPercent(20) // there may be one in every pod of a node
	echoOut, echoErr := tasks.NewEcho(stdout), tasks.NewEcho(stderr)
	defer echoErr.Close(answerPatience)
	defer echoOut.Close(answerPatience)
	log := slog.New(slog.NewTextHandler(echoErr, nil))

	records, err := store.Open(o.stateDir)
	if err != nil {
		return 1, err
	}
	differences, err := recycle.ThisPod().AtStart(o.stateDir)
	if err != nil {
		return api.DirtyExitCode, err
	}
	if len(differences) > 0 {
		return api.DirtyExitCode, fmt.Errorf("the last owner of this sandbox has left traces: %q", differences)
	}
	if err := launcher.Install(o.launcherDir); err != nil {
		return 1, err
	}
	var config net.ListenConfig
	plain, err := config.Listen(context.Background(), "tcp", o.listen)
	if err != nil {
		return 1, err
	}
	listener, err := server.Listen(plain, o.key)
	if err != nil {
		return 1, err
	}
	executor, err := tasks.Open(tasks.Config{
		Store: records, Offer: o.offer(plain), OfferDir: o.launcherDir,
		Stdout: echoOut, Stderr: echoErr, Log: log,
	})
	if err != nil {
		return 1, err
	}
	log.Info("The executor listens", "address", plain.Addr().String(), "boot", executor.BootID(), "pod", o.podUID)
	l := &life{options: o, log: log, restart: make(chan struct{})}
	handler := server.New(server.Config{Executor: executor, Verifier: o.verifier, BeforeRestart: l.beforeRestart, Exit: l.exit, Log: log})
	return l.run(handler, listener, executor.Close)
}

// offer names where the launcher, in another container of the pod, finds the executor.
func (o *options) offer(listener net.Listener) link.Offer {
	port := strconv.Itoa(api.Port)
	if address, ok := listener.Addr().(*net.TCPAddr); ok {
		port = strconv.Itoa(address.Port)
	}
	public, _ := o.key.Public().(ed25519.PublicKey) // which it always is
	return link.Offer{Address: net.JoinHostPort("127.0.0.1", port), PublicKey: public}
}

// life is the executor from listening to its end.
type life struct {
	options
	log     *slog.Logger
	once    sync.Once
	restart chan struct{}
}

// beforeRestart notes that the next start is to look whether the pod is clean.
func (l *life) beforeRestart() error { return recycle.RequestRestart(l.stateDir) }

// exit is called when a reset has asked for a restart and was answered.
func (l *life) exit() { l.once.Do(func() { close(l.restart) }) }

func (l *life) run(handler *server.Server, listener net.Listener, dismiss func()) (int, error) {
	terminated, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	polls, endPolls := context.WithCancel(context.Background())
	defer endPolls()
	web := handler.HTTPServer(polls)
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	debug.FreeOSMemory()

	code := 0
	select {
	case err := <-failed:
		return 1, err
	case <-l.restart:
		l.log.Info("The executor ends, so that all containers restart", "exitCode", api.RestartExitCode)
		code = api.RestartExitCode
	case <-terminated.Done():
		// The launcher kills what runs as soon as the executor is gone.
		l.log.Info("The executor ends: it was told to")
	}
	dismiss()
	endPolls()
	answers, cancel := context.WithTimeout(context.Background(), answerPatience)
	defer cancel()
	if err := web.Shutdown(answers); err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, http.ErrServerClosed) {
		l.log.Error("The server did not end in order", "error", err)
	}
	return code, nil
}
