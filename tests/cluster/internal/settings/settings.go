// Package settings says what one hermetic cluster looks like: where its files
// are, and which addresses and ports it uses. It starts nothing and reads
// nothing but its own record, cluster.json.
package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// MaxSlot is the highest slot: each slot has its own ports, addresses and names,
// so that several clusters can run on one machine.
const MaxSlot = 9

// NodeName is the name of the one node that is not simulated.
const NodeName = "opensandbox-node"

// Offsets of the ports within a slot; see Cluster.Port.
const (
	PortEtcd = iota
	PortEtcdPeer
	PortAPIServer
	PortControllerManager
	PortScheduler
	PortRegistry
	PortKwok
	PortEtcdMetrics
)

const (
	// firstPort is below the ranges of node ports (30000) and of ephemeral ports
	// (32768).
	firstPort    = 21000
	portsPerSlot = 20
)

// Choice is what the user chose for a cluster; it is kept in cluster.json.
type Choice struct {
	// Slot is 0 to MaxSlot.
	Slot int `json:"slot"`
	// ControlPlaneOnly leaves out the node: etcd, API server, controller manager
	// and scheduler only.
	ControlPlaneOnly bool `json:"controlPlaneOnly"`
	// FakeNodes is how many nodes kwok simulates.
	FakeNodes int `json:"fakeNodes"`
	// Fsync makes etcd durable, as in production.
	Fsync bool `json:"fsync"`
	// Kubernetes is a minor version, such as 1.37; empty stands for the newest that is pinned.
	Kubernetes string `json:"kubernetes,omitempty"`
	// GVisor lets pods choose gVisor, by the RuntimeClass of that name.
	GVisor bool `json:"gvisor"`
}

// Cluster is one cluster: the choice, and its places on disk.
type Cluster struct {
	Choice
	// Repo is the root of the operator's source tree.
	Repo string
	// State holds everything that belongs to this cluster.
	State string
	// Bin holds the built programs.
	Bin string
}

// Path joins names to the state directory.
func (c *Cluster) Path(names ...string) string {
	return filepath.Join(append([]string{c.State}, names...)...)
}

// Program returns the path of a built program.
func (c *Cluster) Program(name string) string { return filepath.Join(c.Bin, name) }

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.Path("kubeconfig") }

// Images is the folder of the image store (an OCI layout). It outlives the cluster.
func (c *Cluster) Images() string { return c.Path("images") }

// Name tells this slot's things apart on the machine: network namespace, control
// group, runtime folder.
func (c *Cluster) Name() string { return fmt.Sprintf("opensandbox-%d", c.Slot) }

// RunDir holds sockets and the node's namespaces. It is in /run because the paths
// of unix sockets must be shorter than 108 bytes.
func (c *Cluster) RunDir() string { return filepath.Join("/run", c.Name()) }

// Port returns the port of a component on the host.
func (c *Cluster) Port(offset int) int { return firstPort + portsPerSlot*c.Slot + offset }

// Subnet is the network of this slot: pods, services and the link between host
// and node are parts of it.
func (c *Cluster) Subnet() string { return c.address("0.0/16") }

// PodSubnet is where pods get their addresses.
func (c *Cluster) PodSubnet() string { return c.address("0.0/17") }

// ServiceSubnet is where services get their ClusterIP.
func (c *Cluster) ServiceSubnet() string { return c.address("128.0/18") }

// KubernetesServiceIP is the ClusterIP of the API server.
func (c *Cluster) KubernetesServiceIP() string { return c.address("128.1") }

// DNSServiceIP is reserved for a cluster DNS server. None is installed; the
// kubelet is told an address all the same because it otherwise writes one warning
// event for each pod.
func (c *Cluster) DNSServiceIP() string { return c.address("128.10") }

// HostIP is the host's end of the link to the node: the API server's address.
func (c *Cluster) HostIP() string { return c.address("192.1") }

// NodeIP is the node's end of the link.
func (c *Cluster) NodeIP() string { return c.address("192.2") }

// LinkBits is the prefix length of the link's subnet.
const LinkBits = 30

func (c *Cluster) address(rest string) string { return fmt.Sprintf("10.%d.%s", 200+c.Slot, rest) }

// APIServerIP is where the API server listens: on the link to the node, so that
// pods reach it, or on loopback when there is no node.
func (c *Cluster) APIServerIP() string {
	if c.ControlPlaneOnly {
		return "127.0.0.1"
	}
	return c.HostIP()
}

// APIServerURL is the API server's address for clients.
func (c *Cluster) APIServerURL() string {
	return fmt.Sprintf("https://%s:%d", c.APIServerIP(), c.Port(PortAPIServer))
}

// RegistryAddress is where the image registry listens.
func (c *Cluster) RegistryAddress() string {
	return fmt.Sprintf("%s:%d", c.HostIP(), c.Port(PortRegistry))
}

func (c *Cluster) record() string { return c.Path("cluster.json") }

// Load reads the recorded choice of a cluster that was started before. It says
// false when there is none.
func (c *Cluster) Load() (bool, error) {
	data, err := os.ReadFile(c.record())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, &c.Choice); err != nil {
		return false, fmt.Errorf("read %s: %w", c.record(), err)
	}
	return true, nil
}

// Save records the choice. Other commands may read the record at any moment, so it is
// replaced as a whole. The caller holds the lock.
func (c *Cluster) Save() error {
	data, err := json.MarshalIndent(c.Choice, "", "  ")
	if err != nil {
		return err
	}
	next := c.record() + ".new"
	if err := os.WriteFile(next, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(next, c.record())
}

// Forget removes the record.
func (c *Cluster) Forget() error {
	err := os.Remove(c.record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
