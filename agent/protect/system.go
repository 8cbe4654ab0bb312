package protect

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is the system that this runs on.
type Host struct{}

var _ System = Host{}

// Own returns the addresses of all interfaces.
func (Host) Own() ([]Found, error) {
	names, err := linkNames()
	if err != nil {
		return nil, err
	}
	list, err := again(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	var out []Found
	for _, a := range list {
		if a.IPNet == nil {
			continue
		}
		if p, ok := single(a.IP); ok && !p.Addr().IsLoopback() {
			out = append(out, Found{p, "this host's own address" + on(names[a.LinkIndex])})
		}
	}
	return out, nil
}

// Gateways returns the next hops of the default routes of every routing table.
func (Host) Gateways() ([]Found, error) {
	names, err := linkNames()
	if err != nil {
		return nil, err
	}
	var out []Found
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := again(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Dst: nil}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			hops := []hop{{r.Gw, r.Via, r.LinkIndex}}
			for _, n := range r.MultiPath {
				hops = append(hops, hop{n.Gw, n.Via, n.LinkIndex})
			}
			for _, h := range hops {
				if p, ok := h.prefix(); ok {
					out = append(out, Found{p, "a gateway of this host" + on(names[h.link])})
				}
			}
		}
	}
	return out, nil
}

// hop is a next hop; an IPv4 route may lead over an IPv6 one.
type hop struct {
	gateway net.IP
	via     netlink.Destination
	link    int
}

func (h hop) prefix() (netip.Prefix, bool) {
	if via, ok := h.via.(*netlink.Via); ok {
		return single(via.Addr)
	}
	return single(h.gateway)
}

func single(ip net.IP) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || a.IsUnspecified() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

func on(link string) string {
	if link == "" {
		return ""
	}
	return " (" + link + ")"
}

func linkNames() (map[int]string, error) {
	links, err := again(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

// again repeats a listing that a change in between has spoiled, a few times.
func again[T any](list func() ([]T, error)) (out []T, err error) {
	for range 5 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
	return out, err
}

// resolverFiles is where the resolvers stand: the file of the C library, and where it names a local
// service, those of the services.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"}

// Resolvers returns the name servers that the host asks.
func (Host) Resolvers() ([]Found, error) { return resolvers(resolverFiles) }

// maxResolvConf bounds what is read of such a file, in bytes.
const maxResolvConf = 64 << 10

func resolvers(files []string) ([]Found, error) {
	var out []Found
	for _, path := range files {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, a := range nameservers(text[:min(len(text), maxResolvConf)]) {
			if !a.IsLoopback() {
				out = append(out, Found{netip.PrefixFrom(a, a.BitLen()), "a DNS resolver of this host (" + path + ")"})
			}
		}
	}
	return out, nil
}

// nameservers reads a file as resolv.conf(5) describes it.
func nameservers(text []byte) (out []netip.Addr) {
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !a.IsUnspecified() {
			out = append(out, a.WithZone("").Unmap())
		}
	}
	return out
}
