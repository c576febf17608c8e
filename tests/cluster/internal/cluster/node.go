package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/tests/cluster/internal/cgroup"
	"github.com/opensandbox/operator/tests/cluster/internal/image"
	"github.com/opensandbox/operator/tests/cluster/internal/process"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
	"github.com/opensandbox/operator/tests/cluster/internal/sysctl"
)

// PauseImage is the image that holds each pod's namespaces.
const PauseImage = "opensandbox.io/pause:dev"

func (c *Cluster) containerdSocket() string {
	return filepath.Join(c.RunDir(), "containerd", "containerd.sock")
}

// ctr runs containerd's own client on the namespace of the kubelet.
func (c *Cluster) ctr(args ...string) error {
	args = append([]string{"--address", c.containerdSocket(), "--namespace", "k8s.io"}, args...)
	out, err := exec.Command(c.Program("ctr"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// prepareNode makes the place for the node. The API server needs it too: it listens
// on the link to the node.
func (c *Cluster) prepareNode() error {
	return c.step("node namespaces", func() (string, error) {
		if err := c.claimSlot(); err != nil {
			return "", err
		}
		if err := sysctl.Raise(c.Path("sysctls.json")); err != nil {
			return "", fmt.Errorf("raise kernel limits: %w", err)
		}
		group, err := cgroup.Open(c.Name())
		if err != nil {
			return "", err
		}
		if err := group.Ensure(); err != nil {
			return "", err
		}
		return "ready", c.space().Ensure()
	})
}

// ownerPath says which state directory the slot's namespaces and control group
// belong to. It is in /run, so that it does not survive the machine's restart.
func (c *Cluster) ownerPath() string { return filepath.Join(c.RunDir(), "owner") }

func (c *Cluster) owner() (string, error) {
	data, err := os.ReadFile(c.ownerPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

func (c *Cluster) claimSlot() error {
	owner, err := c.owner()
	if err != nil || owner == c.State {
		return err
	}
	if owner != "" {
		other := process.Table{Run: filepath.Join(owner, "run")}
		for _, name := range other.Names() {
			if other.Alive(name) {
				return fmt.Errorf("slot %d is in use by the cluster in %s: stop that one or choose another --slot", c.Slot, owner)
			}
		}
	}
	if err := os.MkdirAll(c.RunDir(), 0o755); err != nil {
		return err
	}
	return os.WriteFile(c.ownerPath(), []byte(c.State), 0o644)
}

func (c *Cluster) startNode(ctx context.Context) error {
	containerd, err := c.containerd()
	if err != nil {
		return err
	}
	if err := c.launch(ctx, containerd, c.containerdAnswers); err != nil {
		return err
	}
	if err := c.step("pause image", c.ensurePause); err != nil {
		return err
	}
	kubeletSpec, err := c.kubelet()
	if err != nil {
		return err
	}
	if err := c.launch(ctx, kubeletSpec, c.kubeletAnswers); err != nil {
		return err
	}
	proxy, err := c.kubeProxy()
	if err != nil {
		return err
	}
	return c.launch(ctx, proxy, c.kubeProxyAnswers)
}

// nodeSpec is a program that runs in the node: in its namespaces and its control
// group, which its children (shims, containers) inherit.
func (c *Cluster) nodeSpec(name, version string, args ...string) *process.Spec {
	spec := c.spec(name, version, args...)
	// containerd looks for its shim on the PATH.
	spec.Env = []string{"PATH=" + c.Bin + ":" + os.Getenv("PATH")}
	spec.Around = c.inNode
	spec.Started = func(pid int) error {
		group, err := cgroup.Open(c.Name())
		if err != nil {
			return err
		}
		return group.Adopt(pid)
	}
	return spec
}

func (c *Cluster) registry() *process.Spec {
	return &process.Spec{
		Name:    "registry",
		Path:    c.Program("cluster"),
		Version: c.builder.Key("cluster"),
		Args: []string{
			"registry", "--listen", c.RegistryAddress(), "--images", c.Images(),
			"--allow", c.HostIP() + "," + c.NodeIP(),
		},
	}
}

func (c *Cluster) containerd() (*process.Spec, error) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		return nil, err
	}
	v := c.values()
	if v.Runc, err = filepath.Abs(runc); err != nil {
		return nil, err
	}
	if v.Snapshotter, err = c.snapshotter(); err != nil {
		return nil, err
	}
	config := c.Path("etc", "containerd.toml")
	var version string
	for path, name := range map[string]string{
		config:                          "containerd.toml",
		c.Path("etc/cni/pods.conflist"): "cni.conflist",
		c.Path("etc/registries/_default/hosts.toml"): "hosts.toml",
		c.Path("etc/runsc.toml"):                     "runsc.toml",
	} {
		fingerprint, err := write(path, name, v)
		if err != nil {
			return nil, err
		}
		if path == config {
			version = fingerprint
		}
	}
	return c.nodeSpec("containerd", version, "--config", config), nil
}

// snapshotter is overlayfs where the state directory's file system supports it. Inside of a
// container it often does not.
func (c *Cluster) snapshotter() (string, error) {
	probe := c.Path("overlay-probe")
	defer os.RemoveAll(probe)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(probe, name), 0o755); err != nil {
			return "", err
		}
	}
	merged := filepath.Join(probe, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", probe)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return "native", nil
	}
	return "overlayfs", unix.Unmount(merged, 0)
}

// ensurePause puts the pause image into the image store and onto the node.
func (c *Cluster) ensurePause() (string, error) {
	store := image.Store{Dir: c.Images()}
	key := c.builder.Key("pause")
	if store.Key(PauseImage) != key {
		pause, err := image.FromBinary(image.Binary{Path: c.Program("pause"), Entrypoint: "/pause", User: "65535"})
		if err != nil {
			return "", err
		}
		if err := store.Put(PauseImage, pause, key); err != nil {
			return "", err
		}
	}
	return "on the node", c.Pull(PauseImage)
}

// Pull makes the node fetch an image from the cluster's registry. The node then has the image
// that the tag names now, whatever the pods' pull policy is.
func (c *Cluster) Pull(ref string) error {
	full, err := image.FullName(ref)
	if err != nil {
		return err
	}
	return c.ctr("images", "pull", "--local", "--hosts-dir", c.Path("etc", "registries"), full)
}

// NodeRuns says whether the node can take images.
func (c *Cluster) NodeRuns() bool { return c.processes.Alive("containerd") }

func (c *Cluster) kubelet() (*process.Spec, error) {
	config := c.Path("etc", "kubelet.yaml")
	version, err := write(config, "kubelet.yaml", c.values())
	if err != nil {
		return nil, err
	}
	return c.nodeSpec("kubelet", version,
		"--config="+config,
		"--kubeconfig="+c.Path("pki", kubelet.File+".kubeconfig"),
		"--hostname-override="+settings.NodeName,
		"--node-ip="+c.NodeIP(),
	), nil
}

func (c *Cluster) kubeProxy() (*process.Spec, error) {
	config := c.Path("etc", "kube-proxy.yaml")
	version, err := write(config, "kube-proxy.yaml", c.values())
	if err != nil {
		return nil, err
	}
	return c.nodeSpec("kube-proxy", version, "--config="+config), nil
}
