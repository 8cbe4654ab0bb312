package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

// The lab's addresses. The server's link is 192.0.2.0/24 and 2001:db8:1::/64; the client and the
// attackers stand behind its gateway, as they do on the internet.
var (
	serverAddrs  = family[netip.Addr]{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:1::1")}
	gatewayAddrs = family[netip.Addr]{netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("2001:db8:1::fe")}
	clientAddrs  = family[netip.Addr]{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:2::10")}
)

// family is one thing for each IP version.
type family[T any] struct{ four, six T }

func (f family[T]) of(version int) T {
	if version == 6 {
		return f.six
	}
	return f.four
}

// network is a server's namespace and the world's, joined by a pair of virtual interfaces.
//
// One CPU plays the world: the client, the flood, and what a network card does, which is to take
// frames in and, where the shield is up, to run its program on them. What is left then goes to the
// queue (net.core.netdev_max_backlog, 1000 packets) of the other CPU, which plays the host: its
// kernel's network stack and its server. So the client's packets stand in the same line as the
// flood's, as they do behind a card with one queue and receive packet steering.
type network struct {
	host, world         *space.Space
	hostLink, worldLink string // the interfaces' names
	hostMAC, worldMAC   net.HardwareAddr
	hostCPU, worldCPU   int
	outside             uint64   // the namespace that the lab was started in, by inode
	notes               []string // what could not be had, in words
}

func newNetwork() (_ *network, err error) {
	outside, err := space.Netns()
	if err != nil {
		return nil, err
	}
	n := &network{
		outside:   outside,
		hostLink:  fmt.Sprintf("lv%ds", os.Getpid()),
		worldLink: fmt.Sprintf("lv%dw", os.Getpid()),
	}
	if n.hostCPU, n.worldCPU, err = space.CPUs(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.host, err = space.New("host", n.hostCPU); err != nil {
		return nil, err
	}
	if n.world, err = space.New("world", n.worldCPU); err != nil {
		return nil, err
	}
	if n.hostCPU == n.worldCPU {
		n.notes = append(n.notes, "one CPU alone: server, client and flood share it, and the figures suffer")
	}
	if err := n.join(); err != nil {
		return nil, err
	}
	if err := n.world.Do(n.raiseWorld); err != nil {
		return nil, fmt.Errorf("set up the world: %w", err)
	}
	if err := n.host.Do(n.raiseHost); err != nil {
		return nil, fmt.Errorf("set up the host: %w", err)
	}
	for _, name := range []string{n.hostLink, n.worldLink} {
		if err := pinReceiver(name, n.worldCPU); err != nil {
			n.notes = append(n.notes, err.Error())
		}
	}
	return n, nil
}

func (n *network) join() error {
	far, err := n.world.Handle()
	if err != nil {
		return err
	}
	defer far.Close()
	return n.host.Do(func() error {
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: n.hostLink, MTU: 1500, NumRxQueues: 1, NumTxQueues: 1, TxQLen: 1000},
			PeerName:      n.worldLink,
			PeerNamespace: netlink.NsFd(far.Fd()),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		return nil
	})
}

func (n *network) raiseHost() error {
	mac, err := raise(n.hostLink, serverAddrs)
	if err != nil {
		return err
	}
	n.hostMAC = mac
	if err := space.ReceiveOn(n.hostLink); err != nil {
		return err
	}
	if err := threaded(n.hostLink); err != nil {
		n.notes = append(n.notes, err.Error())
	}
	if err := receivePacketsOn(n.hostLink, n.hostCPU); err != nil {
		n.notes = append(n.notes, err.Error())
	}
	if err := swallow(n.hostLink); err != nil {
		n.notes = append(n.notes, err.Error())
	}
	for _, gw := range []netip.Addr{gatewayAddrs.four, gatewayAddrs.six} {
		if err := netlink.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("route by %s: %w", gw, err)
		}
	}
	return nil
}

func (n *network) raiseWorld() error {
	mac, err := raise(n.worldLink, gatewayAddrs)
	if err != nil {
		return err
	}
	n.worldMAC = mac
	for _, addrs := range []family[netip.Addr]{clientAddrs, strangerAddrs, probeAddrs} {
		if err := addAddrs(n.worldLink, addrs, true); err != nil {
			return err
		}
	}
	if err := space.ReceiveOn(n.worldLink); err != nil {
		return err
	}
	if err := threaded(n.worldLink); err != nil {
		n.notes = append(n.notes, err.Error())
	}
	return nil
}

// raise brings an interface up with its addresses, and says its MAC address.
func raise(name string, addrs family[netip.Addr]) (net.HardwareAddr, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring lo up: %w", err)
	}
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err := addAddrs(name, addrs, false); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return nil, fmt.Errorf("bring %s up: %w", name, err)
	}
	return nic.Attrs().HardwareAddr, nil
}

func addAddrs(name string, addrs family[netip.Addr], alone bool) error {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range []struct {
		addr netip.Addr
		bits int
	}{{addrs.four, 24}, {addrs.six, 64}} {
		if alone {
			a.bits = a.addr.BitLen()
		}
		addr := &netlink.Addr{
			IPNet: &net.IPNet{IP: a.addr.AsSlice(), Mask: net.CIDRMask(a.bits, a.addr.BitLen())},
		}
		if a.addr.Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(nic, addr); err != nil {
			return fmt.Errorf("give %s to %s: %w", a.addr, name, err)
		}
	}
	return nil
}

// swallow makes the internet out of an interface's way out: what leaves for addresses that nobody
// has is gone.
func swallow(name string) error {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	spec, err := loadFlood()
	if err != nil {
		return err
	}
	var vars floodVariableSpecs
	if err := spec.Assign(&vars); err != nil {
		return err
	}
	var ours4 [4][4]byte
	var ours6 [4][8]byte
	for i, addrs := range []family[netip.Addr]{gatewayAddrs, clientAddrs, strangerAddrs, probeAddrs} {
		ours4[i] = addrs.four.As4()
		six := addrs.six.As16()
		ours6[i] = [8]byte(six[:8])
	}
	if err := errors.Join(vars.CfgOurs4.Set(ours4), vars.CfgOurs6.Set(ours6)); err != nil {
		return err
	}
	var programs floodPrograms
	if err := spec.LoadAndAssign(&programs, nil); err != nil {
		return fmt.Errorf("load the way out: %w", err)
	}
	defer programs.Close()
	classifier := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: nic.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(classifier); err != nil {
		return fmt.Errorf("answers to forged addresses cost the other CPU, for there is no clsact: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: nic.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: programs.Leave.FD(), Name: "leave", DirectAction: true,
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return fmt.Errorf("answers to forged addresses cost the other CPU, for there is no cls_bpf: %w", err)
	}
	return nil
}

// receivePacketsOn makes a CPU do the stack's work for an interface (receive packet steering).
func receivePacketsOn(name string, cpu int) error {
	groups := make([]string, cpu/32+1) // 32 CPUs each, the highest first
	for i := range groups {
		groups[i] = "0"
	}
	groups[0] = strconv.FormatUint(1<<(cpu%32), 16)
	path := filepath.Join("/sys/class/net", name, "queues/rx-0/rps_cpus")
	if err := os.WriteFile(path, []byte(strings.Join(groups, ",")), 0); err != nil {
		return fmt.Errorf("the host shares a CPU with the flood, for receive packet steering is not to be had: %w", err)
	}
	return nil
}

// threaded gives an interface's receiver a kernel thread of its own, which can be bound to a CPU.
// Without it, whoever sends would do the receiver's work.
func threaded(name string) error {
	if err := os.WriteFile(filepath.Join("/sys/class/net", name, "threaded"), []byte("1"), 0); err != nil {
		return fmt.Errorf("no receive thread for %s, so the sender does its work: %w", name, err)
	}
	return nil
}

// pinReceiver binds an interface's receive threads to a CPU, and lets them go before what else runs
// there: a wire does not wait for the flood at its other end. They are called napi/NAME-NUMBER, cut
// to 15 bytes on old kernels.
func pinReceiver(name string, cpu int) error {
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	want := "napi/" + name
	found := false
	for _, path := range comms {
		comm, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(comm), want[:min(len(want), 15)]) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		first := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
		if err := errors.Join(space.Pin(pid, cpu), unix.SchedSetAttr(pid, &first, 0)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("receive thread of %s: %w", name, err)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("the receive thread of %s is not to be seen, so the flood takes its time, and the figures say nothing: in a container run it with the host's process numbers", name)
	}
	return nil
}

// close takes the network down. It is safe on one that is half made.
func (n *network) close() {
	for _, s := range []*space.Space{n.host, n.world} {
		if s != nil {
			s.Close()
		}
	}
}
