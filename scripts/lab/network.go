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
	"unsafe"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
type network struct {
	host, world         *space
	hostLink, worldLink string // the interfaces' names
	hostMAC, worldMAC   net.HardwareAddr
	worldIndex          int
	sink                link.Link
	outside             uint64   // the namespace that the lab was started in, by inode
	notes               []string // what could not be had, in words
}

func newNetwork() (n *network, err error) {
	hostCPU, worldCPU, err := cpus()
	if err != nil {
		return nil, err
	}
	outside, err := netns()
	if err != nil {
		return nil, err
	}
	n = &network{
		outside:   outside,
		hostLink:  fmt.Sprintf("lv%ds", os.Getpid()),
		worldLink: fmt.Sprintf("lv%dw", os.Getpid()),
	}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.host, err = newSpace("host", hostCPU); err != nil {
		return nil, err
	}
	if n.world, err = newSpace("world", worldCPU); err != nil {
		return nil, err
	}
	if hostCPU == worldCPU {
		n.notes = append(n.notes, "one CPU alone: server, client and flood share it, and the figures suffer")
	}
	if err := n.join(); err != nil {
		return nil, err
	}
	if err := n.world.do(n.raiseWorld); err != nil {
		return nil, fmt.Errorf("set up the world: %w", err)
	}
	if err := n.host.do(n.raiseHost); err != nil {
		return nil, fmt.Errorf("set up the host: %w", err)
	}
	for name, cpu := range map[string]int{n.worldLink: worldCPU} {
		if err := pinReceiver(name, cpu); err != nil {
			n.notes = append(n.notes, err.Error())
		}
	}
	return n, nil
}

func (n *network) join() error {
	far, err := n.world.handle()
	if err != nil {
		return err
	}
	defer far.Close()
	return n.host.do(func() error {
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
	mac, _, err := raise(n.hostLink, serverAddrs)
	if err != nil {
		return err
	}
	n.hostMAC = mac
	if err := receiveOn(n.hostLink, true); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/class/net/"+n.hostLink+"/queues/rx-0/rps_cpus", []byte("1"), 0); err != nil {
		return err
	}
	for _, gw := range []netip.Addr{gatewayAddrs.four, gatewayAddrs.six} {
		if err := netlink.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("route by %s: %w", gw, err)
		}
	}
	return nil
}

func (n *network) raiseWorld() error {
	mac, index, err := raise(n.worldLink, gatewayAddrs)
	if err != nil {
		return err
	}
	n.worldMAC, n.worldIndex = mac, index
	if err := addAddrs(n.worldLink, clientAddrs, true); err != nil {
		return err
	}
	spec, err := loadFlood()
	if err != nil {
		return err
	}
	var vars floodVariableSpecs
	if err := spec.Assign(&vars); err != nil {
		return err
	}
	four := func(a netip.Addr) [4]byte { return a.As4() }
	six := func(a netip.Addr) [8]byte { b := a.As16(); return [8]byte(b[:8]) }
	err = errors.Join(
		vars.CfgMine4.Set([2][4]byte{four(gatewayAddrs.four), four(clientAddrs.four)}),
		vars.CfgMine6.Set([2][8]byte{six(gatewayAddrs.six), six(clientAddrs.six)}),
	)
	if err != nil {
		return err
	}
	var progs floodPrograms
	if err := spec.LoadAndAssign(&progs, nil); err != nil {
		return fmt.Errorf("load the sink: %w", err)
	}
	defer progs.Close()
	n.sink, err = link.AttachXDP(link.XDPOptions{Program: progs.Sink, Interface: index, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach the sink: %w", err)
	}
	if err := threaded(n.worldLink); err != nil {
		n.notes = append(n.notes, err.Error())
	}
	return nil
}

// raise brings an interface up with its addresses, and says its MAC address and index.
func raise(name string, addrs family[netip.Addr]) (net.HardwareAddr, int, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, 0, err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, 0, fmt.Errorf("bring lo up: %w", err)
	}
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return nil, 0, fmt.Errorf("find %s: %w", name, err)
	}
	if err := addAddrs(name, addrs, false); err != nil {
		return nil, 0, err
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return nil, 0, fmt.Errorf("bring %s up: %w", name, err)
	}
	return nic.Attrs().HardwareAddr, nic.Attrs().Index, nil
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

// receiveOn turns GRO on or off. A veth interface takes frames that XDP sends it only if it has a
// receiver that is polled (NAPI), and GRO is what gives it one where no program is attached.
func receiveOn(name string, on bool) error {
	type ethtoolValue struct{ command, data uint32 }
	const setGRO = 0x2c // ETHTOOL_SGRO

	value := ethtoolValue{command: setGRO}
	if on {
		value.data = 1
	}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	request.data = unsafe.Pointer(&value)

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("turn GRO on at %s: %w", name, errno)
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

// pinReceiver binds an interface's receive threads to a CPU. They are called napi/NAME-NUMBER, cut
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
		if err := pin(pid, cpu); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("receive thread of %s: %w", name, err)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("receive thread of %s: not found", name)
	}
	return nil
}

// close takes the network down. It is safe on one that is half made.
func (n *network) close() {
	if n.sink != nil {
		_ = n.sink.Close()
	}
	for _, s := range []*space{n.host, n.world} {
		if s != nil {
			s.close()
		}
	}
}
