package nodespace

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network is the link between host and node: one pair of virtual interfaces, and
// one route on the host that leads to pods and services through the node.
type Network struct {
	// HostInterface is the name of the host's end. The node's is always eth0.
	HostInterface string
	HostIP        string
	NodeIP        string
	Bits          int
	// Subnet is everything behind the node.
	Subnet string
}

const nodeInterface = "eth0"

func (s *Space) ensureLink() error {
	net := s.Network
	if _, err := netlink.LinkByName(net.HostInterface); err == nil {
		return nil
	}
	if err := net.checkFree(); err != nil {
		return err
	}
	handle, err := unix.Open(s.netPath(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(handle)
	// Each end is created in its own namespace at once, so that a start that is interrupted
	// leaves no interface with a common name behind on the host.
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: net.HostInterface},
		PeerName:      nodeInterface,
		PeerNamespace: netlink.NsFd(handle),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("create virtual interfaces (does the kernel have veth?): %w", err)
	}
	err = s.inNetwork(net.configureNode)
	if err == nil {
		err = net.configureHost()
	}
	if err != nil {
		return errors.Join(err, s.removeLink())
	}
	return nil
}

// checkFree refuses a subnet that the host already uses for something else.
func (n Network) checkFree() error {
	_, subnet, err := net.ParseCIDR(n.Subnet)
	if err != nil {
		return err
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, route := range routes {
		if route.Dst == nil || isDefault(route.Dst) {
			continue
		}
		if subnet.Contains(route.Dst.IP) || route.Dst.Contains(subnet.IP) {
			return fmt.Errorf("this machine already has a route to %s, which overlaps the cluster's %s: choose another slot (--slot)", route.Dst, n.Subnet)
		}
	}
	return nil
}

func isDefault(dst *net.IPNet) bool {
	ones, _ := dst.Mask.Size()
	return ones == 0
}

func (n Network) configureNode() error {
	if err := linkUp("lo"); err != nil {
		return err
	}
	if err := addAddress(nodeInterface, n.NodeIP, n.Bits); err != nil {
		return err
	}
	// Only this network namespace forwards: the setting is not the host's.
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func (n Network) configureHost() error {
	if err := addAddress(n.HostInterface, n.HostIP, n.Bits); err != nil {
		return err
	}
	link, err := netlink.LinkByName(n.HostInterface)
	if err != nil {
		return err
	}
	_, subnet, err := net.ParseCIDR(n.Subnet)
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: subnet, Gw: net.ParseIP(n.NodeIP), Src: net.ParseIP(n.HostIP)}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route to %s: %w", n.Subnet, err)
	}
	return nil
}

func addAddress(name, ip string, bits int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	address, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", ip, bits))
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("address %s on %s: %w", ip, name, err)
	}
	return linkUp(name)
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// removeLink deletes the host's end; its address, its route and the node's end go
// with it.
func (s *Space) removeLink() error {
	link, err := netlink.LinkByName(s.Network.HostInterface)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// inNetwork calls f on a thread in the node's network namespace.
func (s *Space) inNetwork(f func() error) error {
	return onThrowawayThread(func() error {
		if err := setns(s.netPath(), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}
