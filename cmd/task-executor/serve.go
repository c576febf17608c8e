package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/process"
	"github.com/opensandbox/operator/executor/recycle"
	"github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/store"
)

// answerPatience is how long the executor's end waits for answers that are on their way.
const answerPatience = 2 * time.Second

// serve runs the executor until SIGTERM or a reset that asks for a restart, and
// returns the exit code.
func serve(o options, stdout, stderr io.Writer) (int, error) {
	if err := protect(); err != nil {
		return 1, err
	}
	echoOut, echoErr := process.NewEcho(stdout), process.NewEcho(stderr)
	defer echoErr.Close(answerPatience)
	defer echoOut.Close(answerPatience)
	log := slog.New(slog.NewTextHandler(echoErr, nil))

	records, err := store.Open(o.stateDir)
	if err != nil {
		return 1, err
	}
	info := api.Info{StartedAt: time.Now().UTC(), Recycle: api.Recycle{State: api.RecycleOff}}
	if o.restartable {
		info.Recycle = recycle.ThisPod().AtStart(o.stateDir)
	}
	executor, err := process.Open(process.Config{
		Store: records, MaxTasks: o.maxTasks,
		Stdout: echoOut, Stderr: echoErr, Log: log,
	})
	if err != nil {
		return 1, err
	}
	info.Capabilities = executor.Capabilities()
	info.Problems = executor.SelfTest()
	info.Supported = len(info.Problems) == 0
	log.Info("The executor starts", "boot", executor.BootID(), "pod", o.podUID, "supported", info.Supported,
		"problems", info.Problems, "recycle", info.Recycle.State, "differences", info.Recycle.Differences)
	if why := info.Recycle.NotRestartable; why != "" {
		log.Warn("The containers cannot be restarted in place: the pod would not be clean", "why", why)
	}

	l := &daemon{options: o, log: log, executor: executor, restart: make(chan struct{})}
	handler := server.New(server.Config{Executor: executor, Verifier: o.verifier, Info: info, BeforeRestart: l.beforeRestart, Exit: l.exit, Log: log})
	return l.run(handler)
}

// protect keeps tasks from looking into the executor, and makes it the parent of what they
// leave behind.
func protect() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	if err := process.BecomeSubreaper(); err != nil {
		return fmt.Errorf("PR_SET_CHILD_SUBREAPER: %w", err)
	}
	// The executor must not end because nobody reads its output. It catches the signal
	// instead of ignoring it, since tasks would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return nil
}

// daemon is the executor from when it begins to listen until its end.
type daemon struct {
	options
	log      *slog.Logger
	executor *process.Executor
	once     sync.Once
	restart  chan struct{}
}

// beforeRestart notes that the next start is to clean.
func (l *daemon) beforeRestart() error {
	if err := recycle.RequestRestart(l.stateDir); err != nil {
		return fmt.Errorf("noting that the next start is to clean: %w", err)
	}
	return nil
}

// exit is called when a reset has asked for a restart and was answered.
func (l *daemon) exit() { l.once.Do(func() { close(l.restart) }) }

func (l *daemon) run(handler *server.Server) (int, error) {
	terminated, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	var config net.ListenConfig
	listener, err := config.Listen(terminated, "tcp", l.listen)
	if err != nil {
		return 1, err
	}
	polls, endPolls := context.WithCancel(context.Background())
	defer endPolls()
	hunt, endHunt := context.WithCancel(context.Background())
	defer endHunt()
	var work sync.WaitGroup
	work.Go(func() { l.executor.HuntOrphans(hunt) })
	server := handler.HTTPServer(polls)
	failed := make(chan error, 1)
	work.Go(func() { failed <- server.Serve(listener) })
	l.log.Info("The executor listens", "address", listener.Addr().String())

	code := 0
	select {
	case err := <-failed:
		return 1, err
	case <-l.restart:
		l.log.Info("The executor ends, so that all containers restart", "exitCode", l.restartCode)
		code = l.restartCode
	case <-terminated.Done():
		l.log.Info("The executor ends: it was told to")
		grace, cancel := context.WithTimeout(context.Background(), l.shutdownGrace)
		defer cancel()
		if err := l.executor.Close(grace); err != nil {
			l.log.Error("Tasks could not be ended", "error", err)
		}
	}
	endPolls()
	answers, cancel := context.WithTimeout(context.Background(), answerPatience)
	defer cancel()
	if err := server.Shutdown(answers); err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, http.ErrServerClosed) {
		l.log.Error("The server did not end in order", "error", err)
	}
	endHunt()
	work.Wait()
	return code, nil
}
