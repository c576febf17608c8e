package cluster

import "fmt"

// All that the configuration of an older Kubernetes says otherwise is decided here, by its
// minor version.

// NftablesIsGated says that kube-proxy's nftables mode is behind a feature gate.
func (v values) NftablesIsGated() bool { return v.before(31) }

// KnowsFailCgroupV1 says that the kubelet can be told to run with version 1 of control
// groups. Earlier ones run with it untold, and complain of what they do not know.
func (v values) KnowsFailCgroupV1() bool { return !v.before(31) }

func (v values) before(minor int) bool {
	var own int
	_, err := fmt.Sscanf(v.Kubernetes, "1.%d", &own)
	return err == nil && own < minor
}
