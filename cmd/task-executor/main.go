// The task executor runs tasks inside the sandbox container of its pod. It is a sidecar
// that shares the pod's process namespace. The operator calls it over HTTP.
package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/process"
	"github.com/opensandbox/operator/executor/token"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] { // the executor has started its own binary
		case process.LaunchCommand:
			os.Exit(process.Launch())
		case process.SuperviseCommand:
			os.Exit(process.Supervise())
		}
	}
	options, err := parse(os.Args[1:], os.Getenv, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "task-executor:", err)
		os.Exit(2)
	}
	code, err := serve(options, os.Stdout, os.Stderr)
	if err != nil {
		slog.New(slog.NewTextHandler(os.Stderr, nil)).Error("The executor cannot run", "error", err)
	}
	os.Exit(code)
}

// options are the flags and what comes from the environment.
type options struct {
	listen        string
	stateDir      string
	maxTasks      int
	restartCode   int
	restartable   bool
	shutdownGrace time.Duration

	podUID   string
	verifier *token.Verifier
}

func parse(args []string, getenv func(string) string, output io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet(api.ContainerName, flag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&o.listen, "listen", fmt.Sprintf(":%d", api.Port), "address to listen on")
	flags.StringVar(&o.stateDir, "state-dir", api.DefaultStateDir, "directory for records, on a volume that outlives the container and that nobody else mounts")
	flags.IntVar(&o.maxTasks, "max-tasks", 16, "tasks, ended ones included, that there may be at a time")
	flags.IntVar(&o.restartCode, "restart-exit-code", api.RestartExitCode, "exit code after a reset that asks for a restart; the container's restart rule maps it to RestartAllContainers")
	flags.BoolVar(&o.restartable, strings.TrimPrefix(api.ArgRestartable, "--"), false, "guard the pod's first process and, after a reset that asked for a restart, empty what the pod's containers share; only for the pod's first restartable init container")
	flags.DurationVar(&o.shutdownGrace, "shutdown-grace", 20*time.Second, "at SIGTERM, the longest time that tasks get before SIGKILL")
	flags.Usage = func() {
		fmt.Fprintf(output, "Usage: task-executor [flags]\n\nEnvironment:\n  %s  the operator's public keys (required)\n  %s  the pod's UID (required)\n\nFlags:\n", api.EnvPublicKeys, api.EnvPodUID)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.maxTasks < 1 || o.maxTasks > 1000:
		return o, fmt.Errorf("--max-tasks: %d is not between 1 and 1000", o.maxTasks)
	case o.restartCode < 1 || o.restartCode > 255:
		return o, fmt.Errorf("--restart-exit-code: %d is not between 1 and 255", o.restartCode)
	}
	return o, o.readEnvironment(getenv)
}

func (o *options) readEnvironment(getenv func(string) string) error {
	if o.podUID = getenv(api.EnvPodUID); o.podUID == "" {
		return fmt.Errorf("%s is not set", api.EnvPodUID)
	}
	text := getenv(api.EnvPublicKeys)
	if text == "" {
		return fmt.Errorf("%s is not set", api.EnvPublicKeys)
	}
	keys, err := token.ParsePublicKeys(text)
	if err != nil {
		return fmt.Errorf("%s: %w", api.EnvPublicKeys, err)
	}
	o.verifier, err = token.NewVerifier(keys, o.podUID)
	return err
}
