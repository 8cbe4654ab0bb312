package bpf_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
)

const oddPath = "../docs/odd-packets.md"

// odd is one row of docs/odd-packets.md.
type odd struct {
	name   string
	only   bpf.Family
	packet build
	why    string
}

type chapter struct {
	title string
	rows  []odd
}

func chapters() []chapter {
	arp := func(*world) *packet.Packet {
		return packet.New().ARP(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
	}
	ether := func(t uint16) build { return func(*world) *packet.Packet { return packet.New().Type(t).Payload(46) } }
	from := func(src4, src6 string) build {
		return func(w *world) *packet.Packet {
			if w.v6() {
				return w.from(src6).UDP(68, 67)
			}
			return w.from(src4).UDP(68, 67)
		}
	}
	nd := func(hops, kind uint8) build {
		return func(w *world) *packet.Packet { return w.ip().HopLimit(hops).ICMPv6(kind, 0).Payload(16) }
	}
	return []chapter{
		{"Not IP", []odd{
			{"ARP", 0, arp, "the link needs it; all ARP together has a cap"},
			{"LLDP, spanning tree, 802.1X, PPPoE, MPLS", 0, ether(0x88CC), "not Levee's to judge"},
			{"a third VLAN tag", 0, func(w *world) *packet.Packet {
				return packet.New().SVLAN(1).VLAN(2).VLAN(3).IP(w.src, w.dst).TCP(1, 2)
			}, "two are read, 802.1Q and 802.1ad in any order; Linux strips any number of priority tags, so passing a third would be a way around bans"},
			{"the QinQ type 0x9100", 0, ether(0x9100), "no standard, and the kernel does not read it either"},
			{"a VLAN tag that is cut off", 0, func(*world) *packet.Packet { return packet.New().VLAN(1).Truncate(16) }, "the kernel discards it"},
		}},
		{"Behind tags", []odd{
			{"one VLAN tag", 0, func(w *world) *packet.Packet { return packet.New().VLAN(1).IP(w.src, w.dst).TCP(1, 2) }, "read like any other"},
			{"802.1ad and 802.1Q", 0, func(w *world) *packet.Packet { return packet.New().SVLAN(1).VLAN(2).IP(w.src, w.dst).TCP(1, 2) }, "likewise"},
		}},
		{"IP headers", []odd{
			{"cut off", 0, func(w *world) *packet.Packet { return tcp(w).Truncate(30) }, "the kernel discards it"},
			{"wrong version", 0, func(w *world) *packet.Packet { return w.ip().Version(5).TCP(1, 2) }, "likewise"},
			{"header length below 5 words", only4, func(w *world) *packet.Packet { return w.ip().IHL(4).TCP(1, 2) }, "likewise"},
			{"options", only4, func(w *world) *packet.Packet { return w.ip().Options(10).TCP(1, 2) }, "skipped; the ports behind them are read"},
			{"length longer than the frame", 0, func(w *world) *packet.Packet { return w.ip().Length(1000).TCP(1, 2) }, "the kernel discards it"},
			{"length shorter than the header", only4, func(w *world) *packet.Packet { return w.ip().Length(19).TCP(1, 2) }, "likewise"},
			{"length shorter than the frame", 0, func(w *world) *packet.Packet { return tcp(w).Pad(100) }, "padding; the packet ends where its header says"},
			{"jumbogram", only6, func(w *world) *packet.Packet {
				return w.ip().Length(0).Raw(packet.HopByHop, packet.TCPNumber, 0, 0xC2, 4, 0, 0, 0, 28).TCP(1, 2)
			}, "its length is the frame's (RFC 2675)"},
			{"wrong header checksum", only4, func(w *world) *packet.Packet { return w.ip().Checksum(1).TCP(1, 2) }, "left to the kernel: a sum is no work for a flood"},
		}},
		{"Sources", []odd{
			{"0.0.0.0 and ::", 0, from("0.0.0.0", "::"), "DHCP and duplicate address detection"},
			{"link-local", 0, from("169.254.1.1", "fe80::1"), "neighbour discovery, and hosts without DHCP"},
			{"private and unique local", 0, from("10.1.2.3", "fc00::1"), "a network's own business"},
			{"240.0.0.0/4", only4, from("240.0.0.1", ""), "reserved, but some networks use it"},
			{"loopback", 0, from("127.0.0.1", "::1"), "cannot be on a wire; the program on `lo` itself does not ask"},
			{"multicast", 0, from("224.0.0.1", "ff02::1"), "nobody sends from a group"},
			{"255.255.255.255", only4, from("255.255.255.255", ""), "likewise"},
			{"IPv4-mapped IPv6", only6, from("", "::ffff:192.0.2.1"), "stands in programs, never on a wire; it would get around IPv4 bans"},
		}},
		{"Fragments", []odd{
			{"first", 0, func(w *world) *packet.Packet { return w.ip().Fragment(0, true).UDP(1, 53).Length(3000).Payload(64) }, "its ports are read; charged as a fragment"},
			{"later", 0, func(w *world) *packet.Packet {
				return w.ip().Fragment(1480, true).Raw(packet.UDPNumber, make([]byte, 64)...)
			}, "has no ports, and none are made up"},
			{"first, with half a TCP header", 0, func(w *world) *packet.Packet {
				return w.ip().Fragment(0, true).Raw(packet.TCPNumber, make([]byte, 8)...)
			}, "charged as a fragment; its ports are unknown"},
			{"first, with a TCP data offset below 5", 0, func(w *world) *packet.Packet { return w.ip().Fragment(0, true).TCP(1, 2).DataOffset(4) }, "no reassembly makes it right"},
			{"atomic", only6, func(w *world) *packet.Packet { return w.ip().Fragment(0, false).TCP(1, 2) }, "no fragment at all (RFC 6946)"},
		}},
		{"Extension headers", []odd{
			{"up to eight", only6, func(w *world) *packet.Packet {
				return w.ip().Extension(packet.HopByHop, 0).Extension(packet.DestOptions, 1).Extension(packet.Routing, 2).TCP(1, 2)
			}, "walked over"},
			{"nine or more", only6, func(w *world) *packet.Packet {
				p := w.ip()
				for range 9 {
					p = p.Extension(packet.DestOptions, 0)
				}
				return p.TCP(1, 2)
			}, "the protocol is unknown; its source is charged all the same"},
			{"cut off", only6, func(w *world) *packet.Packet { return w.ip().Extension(packet.DestOptions, 0).Put8(1, 200).TCP(1, 2) }, "the kernel discards it"},
			{"hop-by-hop options that are not first", only6, func(w *world) *packet.Packet {
				return w.ip().Extension(packet.DestOptions, 0).Extension(packet.HopByHop, 0).TCP(1, 2)
			}, "left to the kernel"},
			{"authentication header", 0, func(w *world) *packet.Packet { return w.ip().Extension(packet.AH, 4).TCP(1, 2) }, "walked over, in IPv4 too"},
		}},
		{"Transport", []odd{
			{"TCP header cut off", 0, func(w *world) *packet.Packet { return w.ip().Raw(packet.TCPNumber, make([]byte, 19)...) }, "the kernel discards it"},
			{"TCP data offset below 5", 0, func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, "likewise"},
			{"TCP data offset past the segment", 0, func(w *world) *packet.Packet { return tcp(w).DataOffset(6) }, "likewise"},
			{"TCP with SYN and FIN, or no flags", 0, func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN | packet.FIN) }, "left to the kernel; SYN without ACK counts as SYN, whatever else is set"},
			{"UDP length longer than the packet", 0, func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(100).Payload(20) }, "the kernel discards it"},
			{"UDP length below 8", 0, func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(7).Payload(20) }, "likewise"},
			{"UDP length shorter than the packet", 0, func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(8).Payload(20) }, "the kernel cuts it"},
			{"UDP length 0", 0, func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(0).Payload(20) }, "in IPv6 it means a jumbogram (RFC 2675)"},
			{"GRE, ESP, IP in IP, SCTP, UDP-Lite, unknown protocols", 0, func(w *world) *packet.Packet { return w.ip().Raw(packet.GRE, 0, 0, 8, 0) }, "charged to their source like all else; what they carry is not looked at"},
			{"the other family's ICMP", 0, func(w *world) *packet.Packet {
				if w.v6() {
					return w.ip().ICMP(3, 4)
				}
				return w.ip().ICMPv6(2, 0)
			}, "just a protocol; charged as ICMP"},
		}},
		{"ICMP", []odd{
			{"echo", 0, echo, "charged to its source"},
			{"fragmentation needed, packet too big", 0, func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 2) }, "path MTU discovery depends on it; all errors together have a cap"},
			{"time exceeded, parameter problem", 0, func(w *world) *packet.Packet { return w.icmp(w.ip(), 11, 3) }, "likewise"},
			{"redirect", 0, func(w *world) *packet.Packet { return w.icmp(w.ip().HopLimit(254), 5, 137) }, "charged to its source, unless it is neighbour discovery's"},
			{"neighbour discovery with hop limit 255", only6, nd(255, 135), "the link needs it; it has a cap"},
			{"neighbour discovery with another hop limit", only6, nd(64, 135), "came through a router, so it is not the link's (RFC 4861): the kernel discards it, here its source is charged"},
			{"ICMP header cut off", 0, func(w *world) *packet.Packet {
				if w.v6() {
					return w.ip().Raw(packet.ICMPv6Number, 128, 0)
				}
				return w.ip().Raw(packet.ICMPv4Number, 8, 0)
			}, "the kernel discards it"},
		}},
	}
}

const oddHead = `# Odd packets

What becomes of packets that are not plain TCP, UDP or ICMP, from a source that is neither banned nor
over a limit. A test writes this page by running each through the program
(` + "`go test ./bpf -run OddPackets -update`" + `). [reasons.md](reasons.md) explains the reasons.

A banned source's packets are dropped whichever of these they are, as long as its address can be read:
bans are asked before the transport is looked at.
`

// TestOddPackets writes docs/odd-packets.md, or fails if the program does otherwise than it says.
func TestOddPackets(t *testing.T) {
	r := loadDefault(t)
	twins := worlds(t, r)
	var b strings.Builder
	b.WriteString(oddHead)
	for _, c := range chapters() {
		fmt.Fprintf(&b, "\n## %s\n\n| packet | IPv4 | IPv6 | |\n|---|---|---|---|\n", c.title)
		for _, o := range c.rows {
			fmt.Fprintf(&b, "| %s |", o.name)
			for _, w := range twins {
				if o.only != bpf.FamilyOther && o.only != w.family {
					b.WriteString(" |")
					continue
				}
				fmt.Fprintf(&b, " %s |", w.fate(o.packet(w).Bytes()))
			}
			fmt.Fprintf(&b, " %s |\n", o.why)
		}
	}
	t.Log("\n" + b.String())
	if *update {
		if err := os.WriteFile(oddPath, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	page, err := os.ReadFile(oddPath)
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != b.String() {
		t.Errorf("%s says otherwise; run the test with -update and read what changed", oddPath)
	}
}

// fate says what becomes of a frame against the baseline.
func (w *world) fate(frame []byte) string {
	w.tb.Helper()
	w.baseline()
	before := w.Snapshot()
	verdict := run(w.tb, w.Rig, frame)
	after := w.Snapshot()
	for _, reason := range bpf.Reasons() {
		for family := range bpf.FamilyMax {
			if after.Reason(w.Slot, reason, family) != before.Reason(w.Slot, reason, family) {
				return fmt.Sprintf("%s: `%s`", action(verdict), reason)
			}
		}
	}
	return action(verdict) + ", not counted"
}
