// Command cluster builds, starts and stops a whole Kubernetes on one Linux machine,
// from pinned Go modules, without a container engine and without a registry. The
// operator's end-to-end tests and its demo run on it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// command is one subcommand.
type command struct {
	name, args, help string
	run              func(ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"up", "[flags]", "build what is missing, start what does not run, wait until the cluster is usable", up},
		{"down", "[flags]", "stop everything; keep built programs and images", down},
		{"kubeconfig", "[flags]", "print the path of the kubeconfig", kubeconfig},
		{"env", "[flags]", "print shell exports to use the cluster", env},
		{"build", "[flags]", "only build the programs", build},
		{"network-policies", "on|off [flags]", "enforce NetworkPolicies, or ignore them again", networkPolicies},
		{"image", "--tag T --binary B [flags]", "make an image of a static program and give it to the cluster", buildImage},
		{"load", "FILE.tar [flags]", "give the images of an OCI or docker archive to the cluster", load},
		{"sample-images", "[flags]", "make nginx:latest, ubuntu:latest and busybox:latest of Debian packages", sampleImages},
		{"registry", "[flags]", "serve the images to the node (started by up)", serveRegistry},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := dispatch(ctx, os.Args[1:])
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		usage()
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "cluster: "+strings.TrimSpace(err.Error()))
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	for _, command := range commands() {
		if command.name == args[0] {
			return command.run(ctx, args[1:])
		}
	}
	if help := args[0]; help != "help" && help != "-h" && help != "--help" {
		fmt.Fprintf(os.Stderr, "cluster: no command %q\n", help)
		return errUsage
	}
	usage()
	return nil
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: cluster COMMAND")
	for _, command := range commands() {
		fmt.Fprintf(os.Stderr, "  %-42s %s\n", command.name+" "+command.args, command.help)
	}
	fmt.Fprintln(os.Stderr, "All commands take --state DIR (default: .cluster in the source tree, or $OPENSANDBOX_CLUSTER_STATE); COMMAND -h tells the rest.")
}
