package builds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Kubernetes is one release of Kubernetes that the repository pins.
type Kubernetes struct {
	// Version is as in v1.37.2.
	Version string
	module  string
}

// olderModule is where an older minor version of Kubernetes is pinned, a folder for each.
const olderModule = "hack/tools/kubernetes-"

// FindKubernetes finds what the repository pins of a minor version, such as 1.37. Empty
// stands for the newest.
func FindKubernetes(repo, minor string) (Kubernetes, error) {
	newest, err := pinned(repo, kubernetesModule)
	if err != nil || minor == "" || strings.HasPrefix(newest.Version, "v"+minor+".") {
		return newest, err
	}
	older, err := pinned(repo, olderModule+minor)
	if errors.Is(err, fs.ErrNotExist) {
		return Kubernetes{}, fmt.Errorf("no Kubernetes %q is pinned in this source tree, only %s, and as older ones %s", minor, newest.Version, strings.Join(olderMinors(repo), ", "))
	}
	return older, err
}

func olderMinors(repo string) []string {
	folders, _ := filepath.Glob(filepath.Join(repo, olderModule+"*"))
	for i, folder := range folders {
		folders[i] = strings.TrimPrefix(folder, filepath.Join(repo, olderModule))
	}
	return folders
}

var requirement = regexp.MustCompile(`\bk8s\.io/kubernetes (v1\.\d+\.\d+)\b`)

func pinned(repo, module string) (Kubernetes, error) {
	file := filepath.Join(repo, module, "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return Kubernetes{}, err
	}
	match := requirement.FindSubmatch(text)
	if match == nil {
		return Kubernetes{}, fmt.Errorf("%s requires no release of k8s.io/kubernetes", file)
	}
	return Kubernetes{Version: string(match[1]), module: module}, nil
}

func (k Kubernetes) program(name string) Program {
	number := strings.Split(strings.TrimPrefix(k.Version, "v"), ".")
	// Without these clients see v0.0.0.
	flags := fmt.Sprintf("%[1]s -X %[2]s.gitVersion=%[3]s -X k8s.io/client-go/pkg/version.gitVersion=%[3]s -X %[2]s.gitMajor=%[4]s -X %[2]s.gitMinor=%[5]s",
		stripped, "k8s.io/component-base/version", k.Version, number[0], number[1])
	return Program{Name: name, Module: k.module, Package: "k8s.io/kubernetes/cmd/" + name, LDFlags: flags}
}

// Envtest is what a test needs to run an API server by itself.
func (k Kubernetes) Envtest() []Program {
	return []Program{
		{Name: "etcd", Module: kubernetesModule, Package: "go.etcd.io/etcd/server/v3", LDFlags: stripped},
		k.program("kube-apiserver"),
		k.program("kubectl"),
	}
}

// ControlPlane is what a cluster without a node runs.
func (k Kubernetes) ControlPlane() []Program {
	return append([]Program{k.program("kube-controller-manager"), k.program("kube-scheduler")}, k.Envtest()...)
}

// Node is what the node runs.
func (k Kubernetes) Node() []Program {
	return []Program{
		k.program("kubelet"),
		k.program("kube-proxy"),
		containerd("containerd"),
		containerd("containerd-shim-runc-v2"),
		containerd("ctr"),
		cni("main/ptp"),
		cni("main/loopback"),
		cni("ipam/host-local"),
		{Name: "pause", Module: kubernetesModule, Package: "./pause", LDFlags: stripped, Source: "pause"},
	}
}
