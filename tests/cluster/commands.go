package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/opensandbox/operator/tests/cluster/internal/builds"
	"github.com/opensandbox/operator/tests/cluster/internal/cluster"
	"github.com/opensandbox/operator/tests/cluster/internal/prereq"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

// options are the flags that several commands share.
type options struct {
	*flag.FlagSet
	state string
}

func newOptions(name string) *options {
	o := &options{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	o.StringVar(&o.state, "state", "", "`directory` of the cluster (default: .cluster in the source tree, or $"+settings.EnvState+")")
	return o
}

// open finds the cluster and, when it was started before, its choices.
func (o *options) open() (c *cluster.Cluster, started bool, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, false, err
	}
	s, err := settings.Locate(dir, o.state)
	if err != nil {
		return nil, false, err
	}
	if started, err = s.Load(); err != nil {
		return nil, false, err
	}
	return cluster.New(s, prereq.ThisHost(os.Stderr), os.Stderr), started, nil
}

// parse refuses arguments beyond the flags.
func (o *options) parse(args []string) error {
	if err := o.Parse(args); err != nil {
		return err
	}
	if o.NArg() > 0 {
		return fmt.Errorf("%s: unexpected argument %q", o.Name(), o.Arg(0))
	}
	return nil
}

// openStarted finds a cluster that must have been started before.
func (o *options) openStarted(args []string) (*cluster.Cluster, error) {
	if err := o.parse(args); err != nil {
		return nil, err
	}
	c, started, err := o.open()
	if err != nil {
		return nil, err
	}
	if !started {
		return nil, fmt.Errorf("there is no cluster in %s: start one with the command 'up'", c.State)
	}
	return c, nil
}

func (o *options) kubernetes(minor *string) {
	o.StringVar(minor, "kubernetes", os.Getenv(settings.EnvKubernetes), "minor `version` of Kubernetes, such as 1.30 (default: the newest, or $"+settings.EnvKubernetes+")")
}

func up(ctx context.Context, args []string) error {
	o := newOptions("up")
	slot, err := settings.SlotFromEnv()
	if err != nil {
		return err
	}
	choice := settings.Choice{}
	o.IntVar(&choice.Slot, "slot", slot, "0 to 9: tells clusters on one machine apart (or $"+settings.EnvSlot+")")
	o.BoolVar(&choice.ControlPlaneOnly, "control-plane-only", false, "no node; needs no root")
	o.IntVar(&choice.FakeNodes, "kwok-nodes", 0, "`number` of nodes that kwok simulates")
	o.BoolVar(&choice.GVisor, "gvisor", false, "let pods run in gVisor, by the RuntimeClass of that name")
	o.BoolVar(&choice.Fsync, "fsync", false, "make etcd write through to the disk, as in production")
	o.kubernetes(&choice.Kubernetes)
	if err := o.parse(args); err != nil {
		return err
	}
	if err := settings.CheckSlot(choice.Slot); err != nil {
		return err
	}
	c, _, err := o.open()
	if err != nil {
		return err
	}
	unlock, err := c.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	// Read again: another command may have finished while this one waited.
	started, err := c.Load()
	if err != nil {
		return err
	}
	if err := o.apply(c, choice, started); err != nil {
		return err
	}
	return c.Up(ctx)
}

// apply takes over the choices of this call. A cluster that was started before keeps its own:
// another choice for it is an error; simulated nodes and gVisor are only added.
func (o *options) apply(c *cluster.Cluster, choice settings.Choice, started bool) error {
	if !started {
		c.Choice = choice
		return nil
	}
	var errs []error
	differs := func(name string, was, now any) {
		errs = append(errs, fmt.Errorf("the cluster in %s was started with --%s=%v, not %v: stop it first with the command 'down'", c.State, name, was, now))
	}
	// The environment counts too: what is tested on one version must not run on another.
	if choice.Kubernetes != "" && choice.Kubernetes != c.Kubernetes {
		differs("kubernetes", cmp.Or(c.Kubernetes, "the newest"), choice.Kubernetes)
	}
	o.Visit(func(f *flag.Flag) {
		switch {
		case f.Name == "slot" && choice.Slot != c.Slot:
			differs(f.Name, c.Slot, choice.Slot)
		case f.Name == "control-plane-only" && choice.ControlPlaneOnly != c.ControlPlaneOnly:
			differs(f.Name, c.ControlPlaneOnly, choice.ControlPlaneOnly)
		case f.Name == "fsync" && choice.Fsync != c.Fsync:
			differs(f.Name, c.Fsync, choice.Fsync)
		case f.Name == "kwok-nodes":
			c.FakeNodes = max(c.FakeNodes, choice.FakeNodes)
		case f.Name == "gvisor":
			c.GVisor = c.GVisor || choice.GVisor
		}
	})
	return errors.Join(errs...)
}

func down(_ context.Context, args []string) error {
	o := newOptions("down")
	if err := o.parse(args); err != nil {
		return err
	}
	c, started, err := o.open()
	if err != nil {
		return err
	}
	if !started {
		fmt.Fprintf(os.Stderr, "There is no cluster in %s\n", c.State)
		return nil
	}
	unlock, err := c.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	return c.Down()
}

func kubeconfig(_ context.Context, args []string) error {
	o := newOptions("kubeconfig")
	if err := o.parse(args); err != nil {
		return err
	}
	c, _, err := o.open()
	if err != nil {
		return err
	}
	fmt.Println(c.Kubeconfig())
	return nil
}

func env(_ context.Context, args []string) error {
	c, err := newOptions("env").openStarted(args)
	if err != nil {
		return err
	}
	fmt.Printf("export KUBECONFIG=%q\n", c.Kubeconfig())
	fmt.Printf("export PATH=%q:\"$PATH\"\n", c.Bin)
	return nil
}

func build(ctx context.Context, args []string) error {
	o := newOptions("build")
	apiOnly := o.Bool("control-plane-only", false, "only etcd, kube-apiserver and kubectl, for tests that run an API server by themselves")
	withKwok := o.Bool("kwok", false, "also kwok")
	var minor string
	o.kubernetes(&minor)
	withGVisor := o.Bool("gvisor", false, "also gVisor")
	if err := o.parse(args); err != nil {
		return err
	}
	c, _, err := o.open()
	if err != nil {
		return err
	}
	kubernetes, err := builds.FindKubernetes(c.Repo, minor)
	if err != nil {
		return err
	}
	if *apiOnly {
		return c.Build(ctx, kubernetes.Envtest())
	}
	sets := [][]builds.Program{kubernetes.ControlPlane(), kubernetes.Node()}
	if *withKwok {
		sets = append(sets, builds.Kwok)
	}
	if *withGVisor {
		sets = append(sets, builds.GVisor)
	}
	return c.Build(ctx, sets...)
}

// networkPolicies turns enforcement on or off. It is a command and no flag of up, because a
// test turns it on for itself in a cluster where other tests run without it.
func networkPolicies(ctx context.Context, args []string) error {
	const name = "network-policies"
	if len(args) == 0 {
		return errors.New(name + ": say on or off")
	}
	if args[0] != "on" && args[0] != "off" {
		return fmt.Errorf("%s: %q is neither on nor off", name, args[0])
	}
	c, err := newOptions(name).openStarted(args[1:])
	if err != nil {
		return err
	}
	unlock, err := c.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if args[0] == "off" {
		return c.IgnoreNetworkPolicies()
	}
	return c.EnforceNetworkPolicies(ctx)
}
