package cluster

import "testing"

func TestWhatOthersWroteOutlivesTheFirewall(t *testing.T) {
	const others = `*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
`
	const both = `*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-POD-FW-FVMPZ6LQ5XO6R3IV - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT
-A INPUT -j KUBE-FIREWALL
-A KUBE-ROUTER-INPUT -s 10.200.0.7/32 -j KUBE-POD-FW-FVMPZ6LQ5XO6R3IV
COMMIT
`
	if got := withoutFirewall(both); got != others {
		t.Errorf("got\n%swant\n%s", got, others)
	}
}
