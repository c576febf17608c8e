// Package cluster starts, checks, repairs and stops one hermetic cluster. The commands call
// it, and it calls all other packages: it decides in which order things happen.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/tests/cluster/internal/builds"
	"github.com/opensandbox/operator/tests/cluster/internal/nodespace"
	"github.com/opensandbox/operator/tests/cluster/internal/pki"
	"github.com/opensandbox/operator/tests/cluster/internal/prereq"
	"github.com/opensandbox/operator/tests/cluster/internal/process"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

// Cluster is one cluster, with the programs, processes and images that it is worked on with.
type Cluster struct {
	*settings.Cluster
	Host *prereq.Host
	Out  io.Writer

	processes process.Table
	builder   builds.Builder
}

// New prepares work on a cluster. It starts nothing.
func New(s *settings.Cluster, host *prereq.Host, out io.Writer) *Cluster {
	return &Cluster{
		Cluster:   s,
		Host:      host,
		Out:       out,
		processes: process.Table{Run: s.Path("run"), Logs: s.Path("logs")},
		builder:   builds.Builder{Repo: s.Repo, Bin: s.Bin, Out: out},
	}
}

// The users of the API server.
var (
	admin             = pki.User{File: "admin", Name: "admin", Groups: []string{"system:masters"}}
	controllerManager = pki.User{File: "controller-manager", Name: "system:kube-controller-manager"}
	scheduler         = pki.User{File: "scheduler", Name: "system:kube-scheduler"}
	kubelet           = pki.User{File: "kubelet", Name: "system:node:" + settings.NodeName, Groups: []string{"system:nodes"}}
	kubeProxy         = pki.User{File: "kube-proxy", Name: "system:kube-proxy"}
	kwok              = pki.User{File: "kwok", Name: "kwok", Groups: []string{"system:masters"}}
)

var users = []pki.User{admin, controllerManager, scheduler, kubelet, kubeProxy, kwok}

func (c *Cluster) pki() string { return c.Path("pki") }

func (c *Cluster) space() *nodespace.Space {
	return &nodespace.Space{
		Name: c.Name(),
		Dir:  filepath.Join(c.RunDir(), "space"),
		Network: nodespace.Network{
			HostInterface: fmt.Sprintf("opensandbox%d", c.Slot),
			HostIP:        c.HostIP(),
			NodeIP:        c.NodeIP(),
			Bits:          settings.LinkBits,
			Subnet:        c.Subnet(),
		},
		Mounts: []nodespace.Bind{
			{From: c.Path("kubelet"), To: "/var/lib/kubelet"},
			{From: c.Path("containerd"), To: "/var/lib/containerd"},
			{From: c.Path("pod-logs"), To: "/var/log/pods"},
			{From: filepath.Join(c.RunDir(), "containerd"), To: "/run/containerd"},
			{To: "/var/log/containers"},
			{To: "/var/lib/cni"},
		},
	}
}

// inNode calls start in the node's namespaces.
func (c *Cluster) inNode(start func() error) error { return c.space().Do(start) }

// step prints what happens, runs it, and prints how long it took.
func (c *Cluster) step(what string, run func() (string, error)) error {
	fmt.Fprintf(c.Out, "%-28s ", what)
	began := time.Now()
	result, err := run()
	if err != nil {
		fmt.Fprintln(c.Out, "failed")
		return err
	}
	fmt.Fprintf(c.Out, "%s (%.1f s)\n", result, time.Since(began).Seconds())
	return nil
}

// Lock keeps other commands away from the cluster until unlock is called.
func (c *Cluster) Lock() (unlock func(), err error) {
	if err := os.MkdirAll(c.State, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(c.Path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		fmt.Fprintf(c.Out, "waiting for another command on %s\n", c.State)
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// Build compiles what a cluster of this kind needs.
func (c *Cluster) Build(ctx context.Context, sets ...[]builds.Program) error {
	if err := c.Host.Programs(prereq.Go); err != nil {
		return err
	}
	var all []builds.Program
	for _, set := range sets {
		all = append(all, set...)
	}
	return c.builder.Ensure(ctx, all)
}
