package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/opensandbox/operator/tests/cluster/internal/builds"
	"github.com/opensandbox/operator/tests/cluster/internal/prereq"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

// Up builds what is missing, starts what does not run, and returns when the cluster
// is usable. The caller holds the lock.
func (c *Cluster) Up(ctx context.Context) error {
	began := time.Now()
	if err := c.Check(); err != nil {
		return err
	}
	if err := c.checkPorts(); err != nil {
		return err
	}
	if err := c.buildAll(ctx); err != nil {
		return err
	}
	// From here on there is something to take down.
	if err := c.Save(); err != nil {
		return err
	}
	if err := c.start(ctx); err != nil {
		return err
	}
	fmt.Fprintf(c.Out, "The cluster is up after %.1f s. Its kubeconfig is %s\n", time.Since(began).Seconds(), c.Kubeconfig())
	return nil
}

// Check fails when the machine lacks what this kind of cluster needs.
func (c *Cluster) Check() error {
	if err := c.Host.Linux(); err != nil {
		return err
	}
	if c.ControlPlaneOnly {
		if c.GVisor {
			return errors.New("a cluster without a node has nothing to run gVisor on")
		}
		return c.Host.Programs(prereq.Go)
	}
	if err := c.Host.Root("a cluster with a node (namespaces, mounts, control groups; --control-plane-only does without)"); err != nil {
		return err
	}
	return c.Host.Programs(prereq.Go, prereq.Runc, prereq.Nft, prereq.Mount)
}

func (c *Cluster) buildAll(ctx context.Context) error {
	kubernetes, err := builds.FindKubernetes(c.Repo, c.Kubernetes)
	if err != nil {
		return err
	}
	sets := [][]builds.Program{kubernetes.ControlPlane()}
	if !c.ControlPlaneOnly {
		sets = append(sets, kubernetes.Node())
	}
	if c.FakeNodes > 0 {
		sets = append(sets, builds.Kwok)
	}
	if c.GVisor {
		sets = append(sets, builds.GVisor)
	}
	if err := c.Build(ctx, sets...); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return c.builder.Install("cluster", self)
}

func (c *Cluster) start(ctx context.Context) error {
	if !c.ControlPlaneOnly {
		if err := c.prepareNode(); err != nil {
			return err
		}
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	if !c.ControlPlaneOnly {
		if err := c.launch(ctx, c.registry(), c.registryAnswers); err != nil {
			return err
		}
		if err := c.startNode(ctx); err != nil {
			return err
		}
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if c.FakeNodes > 0 {
		if err := c.startKwok(ctx, client); err != nil {
			return err
		}
	}
	if err := c.step("default service account", func() (string, error) {
		return "exists", c.await(ctx, "kube-controller-manager", defaultAccountExists(client))
	}); err != nil || c.ControlPlaneOnly {
		return err
	}
	if err := c.step("node", func() (string, error) {
		if err := c.await(ctx, "kubelet", nodeReady(client, settings.NodeName)); err != nil {
			return "", err
		}
		return "ready", c.await(ctx, "kubelet", c.podsKnown(client))
	}); err != nil {
		return err
	}
	if err := c.step("service address", func() (string, error) {
		return "answers", c.await(ctx, "kube-proxy", c.serviceAnswers)
	}); err != nil || !c.GVisor {
		return err
	}
	return c.step("gVisor", func() (string, error) { return "runs", c.offerGVisor(ctx, client) })
}

// checkPorts refuses a slot whose ports somebody else uses.
func (c *Cluster) checkPorts() error {
	ports := map[string]int{
		"etcd":                    settings.PortEtcd,
		"kube-controller-manager": settings.PortControllerManager,
		"kube-scheduler":          settings.PortScheduler,
	}
	if c.ControlPlaneOnly {
		ports["kube-apiserver"] = settings.PortAPIServer
	}
	var errs []error
	for name, offset := range ports {
		if c.processes.Alive(name) {
			continue
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", loopback, c.Port(offset)))
		if err != nil {
			errs = append(errs, fmt.Errorf("port %d of %s is taken by another program, perhaps a cluster with another state directory: choose another --slot (%w)", c.Port(offset), name, err))
			continue
		}
		listener.Close()
	}
	return errors.Join(errs...)
}
