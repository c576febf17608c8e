// The task executor: the program beside a sandbox that has the operator's tasks run, and,
// as the launcher, the program inside the sandbox container that runs them.
package main

import (
	"crypto/ed25519"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/launcher"
	"github.com/opensandbox/operator/executor/token"
)

// awaitPatience is how long the executor may take to listen.
const awaitPatience = 2 * time.Minute

func main() {
	if len(os.Args) > 1 {
		if run, found := subcommands[os.Args[1]]; found {
			if err := run(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "task-executor:", err)
				os.Exit(1)
			}
			return
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

// subcommands other than the executor itself.
var subcommands = map[string]func(args []string) error{
	api.InstallCommand: func(args []string) error { return launcher.Install(append(args, api.LauncherDir)[0]) },
	api.HookCommand:    launcher.Hook,
	api.LaunchCommand:  func([]string) error { return launcher.Launch() },
	api.AwaitCommand:   func([]string) error { return await(awaitPatience) },
}

// await returns when somebody listens on the executor's port.
func await(patience time.Duration) error {
	dialer, address := &net.Dialer{Timeout: time.Second}, net.JoinHostPort("127.0.0.1", strconv.Itoa(api.Port))
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		conn, err := dialer.Dial("tcp", address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the executor does not listen: %w", err)
		}
	}
}

// options are the flags and what comes from the environment.
type options struct {
	listen      string
	stateDir    string
	launcherDir string

	podUID   string
	verifier *token.Verifier
	key      ed25519.PrivateKey
}

func parse(args []string, getenv func(string) string, output io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet(api.ContainerName, flag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&o.listen, "listen", fmt.Sprintf(":%d", api.Port), "address to listen on")
	flags.StringVar(&o.stateDir, "state-dir", api.DefaultStateDir, "directory for records, on a volume that outlives the container and that nobody else mounts")
	flags.StringVar(&o.launcherDir, "launcher-dir", api.LauncherDir, "directory for the launcher, on a volume that the sandbox container mounts read-only")
	flags.Usage = func() {
		fmt.Fprintf(output, "Usage: task-executor [flags]\n\nEnvironment:\n  %s  the operator's public keys (required)\n  %s  the executor's own private key (required)\n  %s  the pod's UID (required)\n\nFlags:\n",
			api.EnvPublicKeys, api.EnvTLSKey, api.EnvPodUID)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return o, o.readEnvironment(getenv)
}

func (o *options) readEnvironment(getenv func(string) string) error {
	for _, name := range []string{api.EnvPodUID, api.EnvPublicKeys, api.EnvTLSKey} {
		if getenv(name) == "" {
			return fmt.Errorf("%s is not set", name)
		}
	}
	o.podUID = getenv(api.EnvPodUID)
	keys, err := token.ParsePublicKeys(getenv(api.EnvPublicKeys))
	if err != nil {
		return fmt.Errorf("%s: %w", api.EnvPublicKeys, err)
	}
	if o.key, err = token.ParseSeed(getenv(api.EnvTLSKey)); err != nil {
		return fmt.Errorf("%s: %w", api.EnvTLSKey, err)
	}
	o.verifier, err = token.NewVerifier(keys, o.podUID)
	return err
}
