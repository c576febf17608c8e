package builds

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindKubernetes(t *testing.T) {
	repo := t.TempDir()
	for module, text := range map[string]string{
		"tests/cluster":               "require (\n\tk8s.io/kubernetes/x v1.1.1\n\tk8s.io/kubernetes v1.37.2 // indirect\n)",
		"hack/tools/kubernetes-1.30":  "require k8s.io/kubernetes v1.30.14",
		"hack/tools/kubernetes-1.3":   "require k8s.io/kubernetes v1.3.1",
		"hack/tools/kubernetes-empty": "",
	} {
		folder := filepath.Join(repo, module)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "go.mod"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for minor, want := range map[string]Kubernetes{
		"":     {"v1.37.2", "tests/cluster"},
		"1.37": {"v1.37.2", "tests/cluster"},
		"1.30": {"v1.30.14", "hack/tools/kubernetes-1.30"},
		"1.3":  {"v1.3.1", "hack/tools/kubernetes-1.3"},
	} {
		if got, err := FindKubernetes(repo, minor); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", minor, got, err, want)
		}
	}
	for minor, want := range map[string]string{
		"1.29":  `no Kubernetes "1.29" is pinned in this source tree, only v1.37.2, and as older ones 1.3, 1.30, empty`,
		"empty": "requires no release",
	} {
		if _, err := FindKubernetes(repo, minor); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", minor, err, want)
		}
	}
}

func TestProgramsTellTheirVersion(t *testing.T) {
	kubelet := Kubernetes{"v1.30.14", "folder"}.program("kubelet")
	for _, want := range []string{"version.gitVersion=v1.30.14", "version.gitMajor=1", "version.gitMinor=30"} {
		if !strings.Contains(kubelet.LDFlags+" ", want+" ") {
			t.Errorf("%s is not in %s", want, kubelet.LDFlags)
		}
	}
}
