package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

const (
	testFrom = "02:00:00:00:00:01"
	testTo   = "02:00:00:00:00:02"
	redirect = 4 // XDP_REDIRECT
)

// frames runs the flood's program without sending, each time on the frame before, as the kernel
// recycles them, and with headers that the stack has changed.
func frames(t *testing.T, order floodOrder, count int) [][]byte {
	t.Helper()
	order.From, order.To = testFrom, testTo
	objects, frame, err := loadGenerator(order, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = objects.Close() })
	if err := objects.Stop.Set(^uint64(0)); err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for len(all) < count {
		out := make([]byte, len(frame))
		action, err := objects.Flood.Run(&ebpf.RunOptions{Data: frame, DataOut: out})
		if err != nil {
			t.Fatal(err)
		}
		if action != redirect { // too early for the pace
			continue
		}
		all = append(all, out)
		frame = bytes.Clone(out)
		for i := range frame[:48] {
			frame[i] ^= byte(i)
		}
	}
	return all
}

// TestFrames checks every frame that a flood may consist of: the kernel takes only those whose
// checksums are right.
func TestFrames(t *testing.T) {
	privileged(t)
	for _, k := range []kind{kindACK, kindSYN, kindUDP, kindICMP, kindFragments} {
		for _, version := range []int{4, 6} {
			for _, sources := range []int{0, 1, few} {
				order := floodOrder{Kind: k, Version: version, Sources: sources, Seed: 1, Rate: maxRate}
				members := botnet(order.Seed, sources, version)
				seen := map[netip.Addr]bool{}
				for _, frame := range frames(t, order, 50) {
					source := checkFrame(t, k, version, frame)
					seen[source] = true
					if sources > 0 && !slices.Contains(members, source) {
						t.Fatalf("%s IPv%d: %s is not among the sources", k, version, source)
					}
				}
				if want := []int{1, 1, 10}[slices.Index([]int{1, 1, few}, max(sources, 1))]; len(seen) < want {
					t.Errorf("%s IPv%d: %d sources of %d", k, version, len(seen), sources)
				}
				if sources == 0 && len(seen) != 50 {
					t.Errorf("%s IPv%d: %d random sources in 50 packets", k, version, len(seen))
				}
			}
		}
	}
}

// checkFrame parses a frame by itself, checks its lengths and checksums, and returns its source.
func checkFrame(t *testing.T, k kind, version int, frame []byte) netip.Addr {
	t.Helper()
	ip := frame[ethLength:]
	var source netip.Addr
	var pseudo uint32
	var payload []byte
	if version == 4 {
		if sum(0, ip[:ip4Length]) != 0xffff {
			t.Fatalf("%s IPv4: header checksum: %x", k, ip)
		}
		if int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
			t.Fatalf("%s IPv4: length: %x", k, ip)
		}
		source = netip.AddrFrom4([4]byte(ip[12:16]))
		payload = ip[ip4Length:]
		pseudo = sum(sum(0, ip[12:20]), []byte{0, ip[9], 0, byte(len(payload))})
	} else {
		if int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-ip6Length {
			t.Fatalf("%s IPv6: length: %x", k, ip)
		}
		source = netip.AddrFrom16([16]byte(ip[8:24]))
		payload = ip[ip6Length:]
		pseudo = sum(sum(0, ip[8:40]), []byte{0, ip[6], 0, byte(len(payload))})
	}
	if k == kindICMP && version == 4 {
		pseudo = 0
	}
	if k != kindFragments && sum(pseudo, payload) != 0xffff {
		t.Fatalf("%s IPv%d: transport checksum: %x", k, version, ip)
	}
	return source
}

// TestKernelTakesThem sends some of each kind to a real kernel, and finds in its statistics that it
// worked for them: what it would throw away at once is no flood.
func TestKernelTakesThem(t *testing.T) {
	privileged(t)
	n := newTestNetwork(t)
	server, err := act(t.Context(), n.host, roleServer, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.end()
	for _, c := range []struct {
		kind    kind
		counter family[string]
	}{
		{kindACK, family[string]{"Tcp.OutRsts", "Tcp.OutRsts"}},
		{kindSYN, family[string]{"Tcp.OutSegs", "Tcp.OutSegs"}},
		{kindUDP, family[string]{"Udp.NoPorts", "Udp6NoPorts"}},
		{kindICMP, family[string]{"Icmp.OutEchoReps", "Icmp6OutEchoReplies"}},
		{kindFragments, family[string]{"Ip.ReasmOKs", "Ip6ReasmOKs"}},
	} {
		for _, version := range []int{4, 6} {
			name := fmt.Sprintf("%s IPv%d", c.kind, version)
			before := statistics(t, n.host)
			attack, err := act(t.Context(), n.world, roleFlood, floodOrder{
				Interface: n.worldLink, NotIn: n.outside, From: n.worldMAC.String(), To: n.hostMAC.String(),
				Kind: c.kind, Version: version, Sources: few, Seed: 1, Rate: 10_000, Duration: 200 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			var report floodReport
			if err := attack.report(&report); err != nil {
				t.Fatal(err)
			}
			if report.Sent < 50 || // a busy machine sends less
				report.Sent > 2100 {
				t.Errorf("%s: %d packets in 0.2 s at 10,000/s", name, report.Sent)
			}
			counter := c.counter.of(version)
			after := statistics(t, n.host)
			took := func() uint64 { return after[counter] - before[counter] }
			least := report.Sent * 4 / 10 // two fragments are one datagram
			for deadline := time.Now().Add(10 * time.Second); took() < least && time.Now().Before(deadline); {
				time.Sleep(20 * time.Millisecond)
				after = statistics(t, n.host)
			}
			if took() < least {
				t.Errorf("%s: of %d packets %d are in %s", name, report.Sent, took(), counter)
			}
			for _, bad := range []string{"Tcp.InErrs", "Udp.InCsumErrors", "Ip.InHdrErrors", "Ip6InHdrErrors", "Icmp.InCsumErrors", "Icmp6InCsumErrors"} {
				if after[bad] != before[bad] {
					t.Errorf("%s: %s is %d", name, bad, after[bad]-before[bad])
				}
			}
		}
	}
}

// statistics reads the kernel's counters of a namespace: Udp.NoPorts, Udp6NoPorts.
func statistics(t *testing.T, s *space.Space) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	err := s.Do(func() error {
		four, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(four)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := 1; j < len(names); j++ {
				all[strings.TrimSuffix(names[0], ":")+"."+names[j]], _ = strconv.ParseUint(values[j], 10, 64)
			}
		}
		six, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(six)) {
			if f := strings.Fields(line); len(f) == 2 {
				all[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestBotnet(t *testing.T) {
	for _, version := range []int{4, 6} {
		one, two := botnet(1, bots, version), botnet(1, bots, version)
		if !slices.Equal(one, two) {
			t.Errorf("IPv%d: the same seed gives others", version)
		}
		groups := map[netip.Prefix]bool{}
		for _, a := range one {
			if a.Is6() != (version == 6) || !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() {
				t.Fatalf("%s is nobody's address", a)
			}
			p, err := a.Prefix(min(a.BitLen(), 64))
			if err != nil {
				t.Fatal(err)
			}
			groups[p] = true
		}
		if len(groups) != bots {
			t.Errorf("IPv%d: %d sources, want %d", version, len(groups), bots)
		}
	}
}

// TestRefusals floods what must not be flooded.
func TestRefusals(t *testing.T) {
	privileged(t)
	n := newTestNetwork(t)
	other := ""
	for _, link := range []netlink.Link{&netlink.Dummy{}, &netlink.Ifb{}, &netlink.Bridge{}} { // which of them a kernel has differs
		link.Attrs().Name = "other"
		if n.world.Do(func() error { return netlink.LinkAdd(link) }) == nil {
			other = "other"
			break
		}
	}
	if other == "" {
		t.Fatal("no interface that is not veth can be made")
	}
	order := floodOrder{
		Interface: n.worldLink, NotIn: n.outside, From: testFrom, To: testTo,
		Kind: kindUDP, Version: 4, Sources: 1, Rate: 1000, Duration: time.Second,
	}
	for _, c := range []struct {
		name   string
		change func(*floodOrder)
		want   error
	}{
		{"lo", func(o *floodOrder) { o.Interface = "lo" }, errNotVeth},
		{"not veth", func(o *floodOrder) { o.Interface = other }, errNotVeth},
		{"no such interface", func(o *floodOrder) { o.Interface = "eth7" }, nil},
		{"the host's network", func(o *floodOrder) { o.NotIn = inode(t, n.world) }, errHostNet},
		{"no word on the host's network", func(o *floodOrder) { o.NotIn = 0 }, errHostNet},
		{"too fast", func(o *floodOrder) { o.Rate = maxRate + 1 }, nil},
		{"too slow", func(o *floodOrder) { o.Rate = 0 }, nil},
		{"too long", func(o *floodOrder) { o.Duration = maxFlood + 1 }, nil},
		{"unknown kind", func(o *floodOrder) { o.Kind = "smurf" }, nil},
	} {
		o := order
		c.change(&o)
		err := n.world.Do(func() error {
			_, err := flood(context.Background(), o, func() { t.Errorf("%s: it floods", c.name) })
			return err
		})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
}

func inode(t *testing.T, s *space.Space) (ino uint64) {
	t.Helper()
	err := s.Do(func() (err error) {
		ino, err = space.Netns()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ino
}

func newTestNetwork(t *testing.T) *network {
	t.Helper()
	n, err := newNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	return n
}
