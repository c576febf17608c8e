package cluster

import (
	"bytes"
	"strings"
	"testing"

	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

func TestAnOlderKubernetesIsConfiguredAsItKnows(t *testing.T) {
	const gate, cgroups = "NFTablesProxyMode: true}\nbindAddress:", "\nfailCgroupV1: false\n#"
	for kubernetes, want := range map[string][2]bool{
		"":     {false, true},
		"1.30": {true, false},
		"1.31": {false, true},
		"1.37": {false, true},
	} {
		c := &Cluster{Cluster: &settings.Cluster{Choice: settings.Choice{Kubernetes: kubernetes}}}
		var proxy, kubelet bytes.Buffer
		for name, out := range map[string]*bytes.Buffer{"kube-proxy.yaml": &proxy, "kubelet.yaml": &kubelet} {
			if err := templates.ExecuteTemplate(out, name, c.values()); err != nil {
				t.Fatal(err)
			}
		}
		if got := [2]bool{strings.Contains(proxy.String(), gate), strings.Contains(kubelet.String(), cgroups)}; got != want {
			t.Errorf("%q: got %v, want %v\n%s\n%s", kubernetes, got, want, &proxy, &kubelet)
		}
	}
}
