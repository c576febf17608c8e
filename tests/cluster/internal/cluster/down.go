package cluster

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opensandbox/operator/tests/cluster/internal/cgroup"
	"github.com/opensandbox/operator/tests/cluster/internal/sysctl"
)

// stopOrder ends first what would restart the others, or fail without them. The node's
// containers end after containerd.
var (
	stopNode         = []string{"kwok", "firewall", "kubelet", "kube-proxy", "containerd"}
	stopControlPlane = []string{"registry", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"}
)

// stopGrace is short: the data is thrown away, and the API server otherwise waits for
// its watchers.
const stopGrace = 3 * time.Second

// kept survives Down: the built programs, the images, and the lock that the caller
// holds.
var kept = []string{"bin", "images", "cache", "lock"}

// Down stops everything that Up started and removes its state, whatever state it is
// in. The caller holds the lock.
func (c *Cluster) Down() error {
	began := time.Now()
	running := 0
	for _, name := range c.processes.Names() {
		if c.processes.Alive(name) {
			running++
		}
	}
	errs := []error{c.stop(stopNode)}
	if !c.ControlPlaneOnly {
		errs = append(errs, c.removeNode())
	}
	errs = append(errs, c.stop(stopControlPlane))
	if err := errors.Join(errs...); err != nil {
		// The record stays, so that a second try knows what to stop.
		return err
	}
	if err := c.removeState(); err != nil {
		return err
	}
	fmt.Fprintf(c.Out, "Stopped %d processes in %.1f s. Programs and images are kept in %s\n", running, time.Since(began).Seconds(), c.State)
	return nil
}

func (c *Cluster) stop(names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, c.processes.Stop(name, stopGrace))
	}
	return errors.Join(errs...)
}

// removeNode ends all containers and takes namespaces, mounts and control groups
// away.
func (c *Cluster) removeNode() error {
	owner, err := c.owner()
	if err != nil {
		return err
	}
	if owner != "" && owner != c.State {
		// After a restart of the machine another cluster may have taken the slot.
		return nil
	}
	if err := c.Host.Root("stopping the node"); err != nil {
		return err
	}
	group, err := cgroup.Open(c.Name())
	if err != nil {
		return err
	}
	if err := group.KillAll(30 * time.Second); err != nil {
		return err
	}
	return errors.Join(
		c.space().Remove(),
		group.Remove(),
		sysctl.Restore(c.Path("sysctls.json")),
		os.RemoveAll(c.RunDir()),
	)
}

func (c *Cluster) removeState() error {
	entries, err := os.ReadDir(c.State)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if slices.Contains(kept, entry.Name()) {
			continue
		}
		if err := os.RemoveAll(c.Path(entry.Name())); err != nil {
			return err
		}
	}
	return nil
}
