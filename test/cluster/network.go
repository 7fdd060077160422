package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	controlIP    = "10.89.0.1"
	servicesNet  = "10.96.0.0/16"
	apiServiceIP = "10.96.0.1"
	podsNet      = "10.244.0.0/16"
	apiURL       = "https://" + controlIP + ":6443"
	// RegistryAddress is where the registry is, in the cluster and for Transport.
	RegistryAddress = controlIP + ":5000"

	maxNodes   = 9
	bridgeName = "nodes"
)

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }
func nodeIP(i int) string   { return fmt.Sprintf("10.89.0.%d", 10+i) }
func podNet(i int) string   { return fmt.Sprintf("10.244.%d.0/24", i) }

// bridge makes what the nodes are to be connected to.
func (c *Cluster) bridge() error {
	h, err := netlink.NewHandleAt(netns.NsHandle(c.space.fd))
	if err != nil {
		return err
	}
	defer h.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := h.LinkAdd(br); err != nil {
		return err
	}
	if err := address(h, bridgeName, controlIP+"/24"); err != nil {
		return err
	}
	if err := up(h, "lo"); err != nil {
		return err
	}
	// /proc/sys/net is that of the thread which opens it.
	return c.space.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
}

// connect connects the node i, whose first process is pid, to the bridge. The
// connection goes when the node does.
func (c *Cluster) connect(i, pid int) error {
	control, err := netlink.NewHandleAt(netns.NsHandle(c.space.fd))
	if err != nil {
		return err
	}
	defer control.Close()
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }() // the node has it
	node, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer node.Close()
	if err := c.wire(control, ns, i); err != nil {
		return fmt.Errorf("the link of %s: %w", nodeName(i), err)
	}
	if err := address(node, "eth0", nodeIP(i)+"/24"); err != nil {
		return err
	}
	if err := up(node, "lo"); err != nil {
		return err
	}
	if err := route(node, "0.0.0.0/0", controlIP); err != nil {
		return err
	}
	for j := 1; j <= c.o.Nodes; j++ {
		if j == i {
			continue
		}
		if err := route(node, podNet(j), nodeIP(j)); err != nil {
			return err
		}
	}
	if err := route(control, podNet(i), nodeIP(i)); err != nil {
		return err
	}
	if i != 1 {
		return nil
	}
	return route(control, servicesNet, nodeIP(1)) // where kube-proxy knows what to do
}

// wire makes the pair of interfaces of node i.
func (c *Cluster) wire(control *netlink.Handle, ns netns.NsHandle, i int) error {
	outside := fmt.Sprintf("node%d", i)
	// That of the node before a power cut goes with its namespace, a little later.
	if old, err := control.LinkByName(outside); err == nil {
		if err := control.LinkDel(old); err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			return err
		}
	}
	br, err := control.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	return control.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: outside, MasterIndex: br.Attrs().Index, Flags: net.FlagUp},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(ns),
	})
}

// address gives a link an address and takes it up.
func address(h *netlink.Handle, link, cidr string) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(l, addr); err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

func up(h *netlink.Handle, link string) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

// route sends what is for the network cidr to the address via.
func route(h *netlink.Handle, cidr, via string) error {
	_, to, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	if err := h.RouteReplace(&netlink.Route{Dst: to, Gw: net.ParseIP(via)}); err != nil {
		return fmt.Errorf("route to %s: %w", cidr, err)
	}
	return nil
}
