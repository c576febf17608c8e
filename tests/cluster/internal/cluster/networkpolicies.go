package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"github.com/opensandbox/operator/tests/cluster/internal/builds"
	"github.com/opensandbox/operator/tests/cluster/internal/prereq"
	"github.com/opensandbox/operator/tests/cluster/internal/process"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

// EnforceNetworkPolicies starts the firewall in the node. Without it policies are stored
// and mean nothing: the CNI plugins only connect pods. Its rules are in the node's network
// namespace and end with it.
func (c *Cluster) EnforceNetworkPolicies(ctx context.Context) error {
	if c.ControlPlaneOnly {
		return errors.New("a cluster without a node has no traffic to filter")
	}
	if err := c.Host.Root("enforcing NetworkPolicies"); err != nil {
		return err
	}
	if err := c.Host.Programs(prereq.Iptables, prereq.Ipset); err != nil {
		return err
	}
	if err := c.Build(ctx, builds.Firewall); err != nil {
		return err
	}
	return c.launch(ctx, c.firewall(), c.firewallAnswers)
}

// IgnoreNetworkPolicies stops the firewall and takes its rules away.
func (c *Cluster) IgnoreNetworkPolicies() error {
	if c.ControlPlaneOnly {
		return nil
	}
	return c.step("firewall", func() (string, error) {
		if err := c.processes.Stop("firewall", stopGrace); err != nil {
			return "", err
		}
		rules, err := c.runInNode("", "iptables-save", "--table", "filter")
		if err != nil {
			return "", err
		}
		if _, err := c.runInNode(withoutFirewall(rules), "iptables-restore", "--table", "filter"); err != nil {
			return "", err
		}
		_, err = c.runInNode("", "ipset", "destroy")
		return "stopped", err
	})
}

func (c *Cluster) firewall() *process.Spec {
	return c.nodeSpec("firewall", "",
		"--kubeconfig="+c.Kubeconfig(),
		"--node="+settings.NodeName,
		"--services="+c.ServiceSubnet(),
	)
}

// firewallAnswers is true once the firewall has written its first rules.
func (c *Cluster) firewallAnswers(context.Context) error {
	_, err := c.runInNode("", "iptables", "--table", "filter", "--list-rules", "KUBE-NWPLCY-DEFAULT")
	return err
}

// firewallLine matches what concerns the firewall's chains in the output of iptables-save.
var firewallLine = regexp.MustCompile(`\bKUBE-(ROUTER|POD-FW|NWPLCY)-`)

// withoutFirewall leaves the rules of others, such as the kubelet's.
func withoutFirewall(rules string) string {
	var others strings.Builder
	for line := range strings.Lines(rules) {
		if !firewallLine.MatchString(line) {
			others.WriteString(line)
		}
	}
	return others.String()
}

// runInNode runs a program in the node's namespaces and returns what it prints.
func (c *Cluster) runInNode(input, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	if err := c.inNode(cmd.Run); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, &errs)
	}
	return out.String(), nil
}
