package bpf_test

import (
	"fmt"
	"net/netip"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
)

const (
	only4 = bpf.FamilyIPv4
	only6 = bpf.FamilyIPv6
)

// tcp is the golden packet that most rows start from.
func tcp(w *world) *packet.Packet { return w.ip().TCP(40000, 443) }

func udp(w *world) *packet.Packet { return w.ip().UDP(40000, 53).Payload(20) }

func echo(w *world) *packet.Packet { return w.icmp(w.ip(), 8, 128).Payload(56) }

// pass and drop make a row of one packet that meets the baseline.
func pass(name string, p build) row                        { return row{name: name, packet: p, want: []outcome{clean}} }
func ends(name string, p build, o outcome) row             { return row{name: name, packet: p, want: []outcome{o}} }
func (r row) in(family bpf.Family) row                     { r.only = family; return r }
func (r row) given(setup func(w *world)) row               { r.setup = setup; return r }
func (r row) wantsAll(expect func(w *world) []outcome) row { r.expect = expect; return r }
func (r row) wants(expect func(w *world) outcome) row {
	return r.wantsAll(func(w *world) []outcome { return []outcome{expect(w)} })
}

func ethernetRows() []row {
	rows := []row{
		pass("tcp", tcp),
		pass("udp", udp),
		pass("echo request", echo),
		pass("frame padded to 60 bytes", func(w *world) *packet.Packet { return w.ip().TCP(40000, 443).Pad(60) }),
		pass("udp padded far behind its end", func(w *world) *packet.Packet { return udp(w).Pad(1500) }),
		pass("vlan tag", func(w *world) *packet.Packet { return packet.New().VLAN(7).IP(w.src, w.dst).TCP(1, 2) }),
		pass("priority tag, vlan 0", func(w *world) *packet.Packet { return packet.New().VLAN(0xE000).IP(w.src, w.dst).TCP(1, 2) }),
		pass("service tag alone", func(w *world) *packet.Packet { return packet.New().SVLAN(7).IP(w.src, w.dst).TCP(1, 2) }),
		pass("two 802.1Q tags", func(w *world) *packet.Packet { return packet.New().VLAN(7).VLAN(8).IP(w.src, w.dst).UDP(1, 2) }),
		pass("802.1ad and 802.1Q tags", func(w *world) *packet.Packet { return packet.New().SVLAN(7).VLAN(8).IP(w.src, w.dst).TCP(1, 2) }),
		pass("two service tags", func(w *world) *packet.Packet { return packet.New().SVLAN(7).SVLAN(8).IP(w.src, w.dst).TCP(1, 2) }),
		ends("third tag", func(w *world) *packet.Packet {
			return packet.New().SVLAN(7).VLAN(8).VLAN(9).IP(w.src, w.dst).TCP(1, 2)
		}, cutEthernet),
		ends("three priority tags", func(w *world) *packet.Packet {
			return packet.New().VLAN(0).VLAN(0).VLAN(0).IP(w.src, w.dst).TCP(1, 2)
		}, cutEthernet),
		ends("arp behind two tags", func(w *world) *packet.Packet {
			return packet.New().SVLAN(7).VLAN(8).ARP(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
		}, arp),
		ends("tag that is cut off", func(w *world) *packet.Packet { return packet.New().VLAN(7).Truncate(16) }, cutEthernet),
		ends("tag announced at the frame's end", func(w *world) *packet.Packet { return packet.New().Type(packet.TypeVLAN) }, cutEthernet),
		ends("second tag announced at the frame's end", func(w *world) *packet.Packet {
			return packet.New().VLAN(7).Type(packet.TypeSVLAN)
		}, cutEthernet),
		ends("third tag announced at the frame's end", func(w *world) *packet.Packet {
			return packet.New().VLAN(7).VLAN(8).Type(packet.TypeVLAN)
		}, cutEthernet),
		ends("IP type and nothing else", func(w *world) *packet.Packet {
			if w.v6() {
				return packet.New().Type(packet.TypeIPv6)
			}
			return packet.New().Type(packet.TypeIPv4)
		}, malformedL3),
		ends("the other family's type", func(w *world) *packet.Packet {
			if w.v6() { // the counters go by the type
				return packet.New().Type(packet.TypeIPv6).IP(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")).TCP(1, 2).Pad(80)
			}
			return packet.New().Type(packet.TypeIPv4).IP(netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")).TCP(1, 2)
		}, malformedL3),
	}
	for _, t := range []struct {
		name  string
		ether uint16
	}{
		{"lldp", 0x88CC}, {"802.1X", 0x888E}, {"pppoe session", 0x8864}, {"mpls", 0x8847}, {"reverse arp", 0x8035},
		{"macsec", 0x88E5}, {"fcoe", 0x8906}, {"802.3 length (spanning tree)", 38}, {"the old QinQ type 0x9100", 0x9100},
		{"0xFFFF", 0xFFFF}, {"0", 0}, {"trill", 0x22F3}, {"IPX", 0x8137}, {"loopback test", 0x9000},
	} {
		// An IP packet follows: the type alone decides.
		rows = append(rows, ends("type "+t.name, func(w *world) *packet.Packet {
			return packet.New().Type(t.ether).IP(w.src, w.dst).TCP(1, 2)
		}, nonIP))
	}
	return rows
}

func ipRows() []row {
	rows := []row{
		pass("header options", func(w *world) *packet.Packet { return w.ip().Options(3).TCP(1, 2) }).in(only4),
		pass("header options, the most", func(w *world) *packet.Packet { return w.ip().Options(10).UDP(1, 2) }).in(only4),
		ends("header options before a transport that is cut off", func(w *world) *packet.Packet {
			return w.ip().Options(10).Raw(packet.TCPNumber, make([]byte, 19)...)
		}, malformedL4).in(only4),
		ends("length of nothing", func(w *world) *packet.Packet {
			return w.ip().Length(0).TCP(1, 2)
		}, malformedL3).in(only4),
		ends("payload length of nothing", func(w *world) *packet.Packet {
			return w.ip().Length(0).TCP(1, 2)
		}, malformedL4).in(only6), // the host trims it to no TCP header at all
		ends("length shorter than the header", func(w *world) *packet.Packet { return w.ip().Length(19).TCP(1, 2) }, malformedL3).in(only4),
		ends("length of the header alone", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().Length(0).TCP(1, 2)
			}
			return w.ip().Length(20).TCP(1, 2)
		}, malformedL4),
		ends("length shorter than options", func(w *world) *packet.Packet { return w.ip().Options(2).Length(27).TCP(1, 2) }, malformedL3).in(only4),
		ends("length cuts the transport header", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().Length(19).TCP(1, 2)
			}
			return w.ip().Length(39).TCP(1, 2)
		}, malformedL4),
		ends("length one byte past the frame", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().Length(21).TCP(1, 2)
			}
			return w.ip().Length(41).TCP(1, 2)
		}, malformedL3),
		ends("length of 65535", func(w *world) *packet.Packet { return w.ip().Length(65535).TCP(1, 2) }, malformedL3),
		pass("length shorter than the frame", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().Length(20).TCP(1, 2).Payload(100)
			}
			return w.ip().Length(40).TCP(1, 2).Payload(100)
		}),
		pass("no transport at all", func(w *world) *packet.Packet { return w.ip().Next(packet.NoNext).Pad(60) }),
		pass("hop limit 0", func(w *world) *packet.Packet { return w.ip().HopLimit(0).TCP(1, 2) }),
		pass("wrong header checksum", func(w *world) *packet.Packet { // the host checks it; a sum over 60 bytes is not for a flood
			return w.ip().Checksum(0xBAD).TCP(1, 2)
		}).in(only4),
	}
	for v := range uint8(16) {
		p := func(w *world) *packet.Packet { return w.ip().Version(v).TCP(40000, 443) }
		for _, family := range []bpf.Family{only4, only6} {
			o := malformedL3
			if family == only4 && v == 4 || family == only6 && v == 6 {
				o = clean
			}
			rows = append(rows, ends(fmt.Sprintf("version %d in %s", v, family), p, o).in(family))
		}
	}
	for ihl := range uint8(16) {
		// 40 bytes of packet: behind 20 bytes of header there are 20 of TCP, and less behind more.
		o := malformedL4
		switch {
		case ihl < 5 || ihl > 10:
			o = malformedL3
		case ihl == 5:
			o = clean
		}
		rows = append(rows, ends(fmt.Sprintf("ihl %d", ihl), func(w *world) *packet.Packet {
			return w.ip().IHL(ihl).TCP(40000, 443)
		}, o).in(only4))
	}

	fragments := []struct {
		name string
		p    build
		o    outcome
	}{
		{"first", func(w *world) *packet.Packet { return w.ip().Fragment(0, true).UDP(1, 53).Length(3000).Payload(64) }, clean},
		{"first, tcp", func(w *world) *packet.Packet { return w.ip().Fragment(0, true).TCP(1, 53).Payload(64) }, clean},
		{"first, options longer than it", func(w *world) *packet.Packet {
			return w.ip().Fragment(0, true).TCP(1, 53).DataOffset(15)
		}, clean},
		{"first, 8 bytes of a tcp header", func(w *world) *packet.Packet {
			return w.ip().Fragment(0, true).Raw(packet.TCPNumber, 0, 1, 0, 2, 0, 0, 0, 0)
		}, clean},
		{"first, tcp data offset 4", func(w *world) *packet.Packet { return w.ip().Fragment(0, true).TCP(1, 53).DataOffset(4) }, malformedL4},
		{"first, udp length 7", func(w *world) *packet.Packet { return w.ip().Fragment(0, true).UDP(1, 53).Length(7).Payload(64) }, malformedL4},
		{"middle", func(w *world) *packet.Packet {
			return w.ip().Fragment(1480, true).Raw(packet.UDPNumber, make([]byte, 64)...)
		}, clean},
		{"last", func(w *world) *packet.Packet {
			return w.ip().Fragment(2960, false).Raw(packet.UDPNumber, make([]byte, 9)...)
		}, clean},
		{"last, where a tcp header would be malformed", func(w *world) *packet.Packet {
			return w.ip().Fragment(8, false).Raw(packet.TCPNumber, make([]byte, 20)...)
		}, clean},
		{"last, at the highest offset", func(w *world) *packet.Packet {
			return w.ip().Fragment(65528, false).Raw(packet.UDPNumber, make([]byte, 8)...)
		}, clean},
		{"middle, empty", func(w *world) *packet.Packet { return w.ip().Fragment(1480, true).Raw(packet.UDPNumber) }, clean},
		{"atomic", func(w *world) *packet.Packet { return w.ip().Fragment(0, false).TCP(1, 2) }, clean},
		{"atomic, and a transport that is cut off", func(w *world) *packet.Packet {
			return w.ip().Fragment(0, false).Raw(packet.TCPNumber, make([]byte, 19)...)
		}, malformedL4},
		{"of a packet too big", func(w *world) *packet.Packet { return w.icmp(w.ip().Fragment(0, true), 3, 2).Payload(64) }, clean},
	}
	for _, f := range fragments {
		rows = append(rows, ends("fragment "+f.name, f.p, f.o))
	}
	return append(rows,
		pass("don't fragment", func(w *world) *packet.Packet { return w.ip().Put16(6, 0x4000).TCP(1, 2) }).in(only4),
		pass("reserved (evil) bit", func(w *world) *packet.Packet { return w.ip().Put16(6, 0x8000).TCP(1, 2) }).in(only4),
	)
}

func extensionRows() []row {
	var rows []row
	for _, e := range []struct {
		name   string
		number uint8
	}{
		{"hop-by-hop", packet.HopByHop}, {"routing", packet.Routing}, {"destination options", packet.DestOptions}, {"ah", packet.AH},
		{"mobility", packet.Mobility}, {"hip", packet.HIP}, {"shim6", packet.Shim6},
	} {
		rows = append(rows,
			pass("extension "+e.name, func(w *world) *packet.Packet { return w.ip().Extension(e.number, 2).TCP(1, 2) }).in(only6),
			pass("extension "+e.name+" twice", func(w *world) *packet.Packet {
				return w.ip().Extension(e.number, 2).Extension(e.number, 0).UDP(1, 2)
			}).in(only6),
			pass("extension "+e.name+" of the greatest length", func(w *world) *packet.Packet {
				return w.ip().Extension(e.number, 255).TCP(1, 2)
			}).in(only6),
			ends("extension "+e.name+" longer than the packet", func(w *world) *packet.Packet {
				return w.ip().Extension(e.number, 1).Put8(1, 200).TCP(1, 2)
			}, malformedL4).in(only6),
			ends("extension "+e.name+" of which 7 bytes are left", func(w *world) *packet.Packet {
				return w.ip().Raw(e.number, make([]byte, 7)...).Pad(80)
			}, malformedL4).in(only6),
			ends("extension "+e.name+" before a transport that is cut off", func(w *world) *packet.Packet {
				return w.ip().Extension(e.number, 0).Raw(packet.TCPNumber, make([]byte, 19)...)
			}, malformedL4).in(only6),
			pass("extension "+e.name+" and nothing behind it", func(w *world) *packet.Packet {
				return w.ip().Extension(e.number, 1)
			}).in(only6),
			ends("extension "+e.name+" announces a tcp header that is not there", func(w *world) *packet.Packet {
				return w.ip().Extension(e.number, 1).Next(packet.TCPNumber)
			}, malformedL4).in(only6),
		)
	}
	chain := func(p *packet.Packet, n int) *packet.Packet {
		for range n {
			p = p.Extension(packet.DestOptions, 0)
		}
		return p
	}
	rows = append(rows,
		pass("ah", func(w *world) *packet.Packet { return w.ip().Extension(packet.AH, 4).TCP(1, 2) }),
		ends("ah before a transport that is cut off", func(w *world) *packet.Packet {
			return w.ip().Extension(packet.AH, 4).Raw(packet.TCPNumber, make([]byte, 19)...)
		}, malformedL4),
		ends("ah longer than the packet", func(w *world) *packet.Packet {
			return w.ip().Extension(packet.AH, 4).Put8(1, 200).TCP(1, 2)
		}, malformedL4),
		pass("the usual chain", func(w *world) *packet.Packet {
			return w.ip().Extension(packet.HopByHop, 0).Extension(packet.DestOptions, 1).Extension(packet.Routing, 2).
				Fragment(0, true).Extension(packet.AH, 4).Extension(packet.DestOptions, 0).TCP(1, 2)
		}).in(only6),
		pass("hop-by-hop not first", func(w *world) *packet.Packet {
			return w.ip().Extension(packet.DestOptions, 0).Extension(packet.HopByHop, 0).TCP(1, 2)
		}).in(only6),
		pass("eight extensions", func(w *world) *packet.Packet { return chain(w.ip(), 8).TCP(1, 2) }).in(only6),
		ends("eight extensions before a transport that is cut off", func(w *world) *packet.Packet {
			return chain(w.ip(), 8).Raw(packet.TCPNumber, make([]byte, 19)...)
		}, malformedL4).in(only6),
		pass("nine extensions", func(w *world) *packet.Packet { return chain(w.ip(), 9).TCP(1, 2) }).in(only6),
		pass("nine extensions before what can't be judged", func(w *world) *packet.Packet {
			return chain(w.ip(), 9).Raw(packet.TCPNumber, make([]byte, 19)...)
		}).in(only6),
		pass("a hundred extensions", func(w *world) *packet.Packet { return chain(w.ip(), 100).TCP(1, 2) }).in(only6),
		pass("fragment, then another at an offset", func(w *world) *packet.Packet {
			return w.ip().Fragment(0, true).Fragment(8, false).Raw(packet.TCPNumber, make([]byte, 4)...)
		}).in(only6),
		pass("fragment with its extensions cut off", func(w *world) *packet.Packet {
			return w.ip().Fragment(0, true).Extension(packet.DestOptions, 0).Put8(1, 100)
		}).in(only6),
		ends("atomic fragment with its extensions cut off", func(w *world) *packet.Packet {
			return w.ip().Fragment(0, false).Extension(packet.DestOptions, 0).Put8(1, 100)
		}, malformedL4).in(only6),
		ends("fragment header that is cut off", func(w *world) *packet.Packet {
			return w.ip().Raw(packet.Fragmented, packet.TCPNumber, 0, 0, 0, 0, 0, 0)
		}, malformedL4).in(only6),
		pass("no next header, and bytes behind it", func(w *world) *packet.Packet {
			return w.ip().Extension(packet.HopByHop, 0).Raw(packet.NoNext, make([]byte, 30)...)
		}).in(only6),
		pass("jumbogram", func(w *world) *packet.Packet {
			return w.ip().Length(0).Raw(packet.HopByHop, packet.TCPNumber, 0, 0xC2, 4, 0, 0, 0, 28).TCP(1, 2)
		}).in(only6),
		ends("jumbogram with its tcp header cut off", func(w *world) *packet.Packet {
			return w.ip().Length(0).Raw(packet.HopByHop, packet.TCPNumber, 0, 0xC2, 4, 0, 0, 0, 28).TCP(1, 2).Truncate(14 + 40 + 8 + 19)
		}, malformedL4).in(only6),
		ends("extensions' numbers in IPv4 are protocols", func(w *world) *packet.Packet {
			return w.ip().Raw(packet.DestOptions, packet.TCPNumber, 255, 0, 0)
		}, clean).in(only4),
	)
	return rows
}

func transportRows() []row {
	rows := []row{
		pass("esp", func(w *world) *packet.Packet { return w.ip().Raw(packet.ESP, make([]byte, 40)...) }),
		pass("gre", func(w *world) *packet.Packet { return w.ip().Raw(packet.GRE, 0, 0, 8, 0).IP(w.dst, w.src).TCP(1, 2) }),
		pass("ip in ip", func(w *world) *packet.Packet { return w.ip().IP(w.dst, w.src).TCP(1, 2) }),
		pass("the other family in ip", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().IP(netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")).UDP(1, 2)
			}
			return w.ip().IP(netip.MustParseAddr("::1"), netip.MustParseAddr("2001:db8::1")).UDP(1, 2)
		}),
		pass("ip in ip that is cut off", func(w *world) *packet.Packet { return w.ip().Raw(packet.IPinIP, 0x45, 0) }),
		pass("the other family's icmp", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().ICMP(3, 4)
			}
			return w.ip().ICMPv6(2, 0)
		}),
		pass("the other family's icmp, cut off", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().Raw(packet.ICMPv4Number, 3)
			}
			return w.ip().Raw(packet.ICMPv6Number, 2)
		}),
		pass("the other family's neighbour discovery", func(w *world) *packet.Packet {
			return w.ip().HopLimit(255).ICMPv6(135, 0)
		}).in(only4),
		pass("protocol 253", func(w *world) *packet.Packet { return w.ip().Raw(253, 1, 2, 3) }),
		pass("protocol 255", func(w *world) *packet.Packet { return w.ip().Raw(255) }),
		pass("igmp", func(w *world) *packet.Packet { return w.ip().Raw(2, 0x11, 0, 0, 0) }).in(only4),
		pass("multicast listener report", func(w *world) *packet.Packet {
			return w.ip().HopLimit(1).Extension(packet.HopByHop, 0).ICMPv6(143, 0)
		}).in(only6),

		pass("sctp", func(w *world) *packet.Packet { return w.ip().SCTP(1, 2).Payload(16) }),
		pass("sctp, ports and verification tag alone", func(w *world) *packet.Packet { return w.ip().Raw(packet.SCTPNumber, make([]byte, 8)...) }),
		ends("sctp cut off", func(w *world) *packet.Packet { return w.ip().Raw(packet.SCTPNumber, make([]byte, 7)...) }, malformedL4),
		pass("udp-lite", func(w *world) *packet.Packet { return w.ip().UDPLite(1, 2).Payload(16) }),
		pass("udp-lite, coverage of all", func(w *world) *packet.Packet { return w.ip().UDPLite(1, 2).Put16(4, 0).Payload(16) }),
		ends("udp-lite cut off", func(w *world) *packet.Packet { return w.ip().Raw(packet.UDPLite, make([]byte, 7)...) }, malformedL4),

		pass("tcp options", func(w *world) *packet.Packet { return tcp(w).Options(10).Payload(5) }),
		ends("tcp empty", func(w *world) *packet.Packet { return w.ip().Raw(packet.TCPNumber) }, malformedL4),
		ends("tcp of 19 bytes", func(w *world) *packet.Packet { return w.ip().Raw(packet.TCPNumber, make([]byte, 19)...) }, malformedL4),
		ends("tcp of 19 bytes, padded", func(w *world) *packet.Packet { return w.ip().Raw(packet.TCPNumber, make([]byte, 19)...).Pad(90) }, malformedL4),
		pass("tcp data offset as long as the segment", func(w *world) *packet.Packet { return tcp(w).DataOffset(15).Payload(40) }),
		ends("tcp data offset a word past the segment", func(w *world) *packet.Packet { return tcp(w).DataOffset(15).Payload(36) }, malformedL4),
		ends("tcp data offset into the padding", func(w *world) *packet.Packet { return tcp(w).DataOffset(6).Pad(100) }, malformedL4),
		pass("tcp port 0", func(w *world) *packet.Packet { return w.ip().TCP(0, 0) }),

		pass("udp exact", func(w *world) *packet.Packet { return w.ip().UDP(1, 2) }),
		ends("udp empty", func(w *world) *packet.Packet { return w.ip().Raw(packet.UDPNumber) }, malformedL4),
		ends("udp of 7 bytes", func(w *world) *packet.Packet { return w.ip().Raw(packet.UDPNumber, make([]byte, 7)...) }, malformedL4),
		ends("udp length 0", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(0).Payload(20) }, malformedL4).in(only4),
		pass("udp length 0 in IPv6", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(0).Payload(20) }).in(only6),
		ends("udp length 7", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(7).Payload(20) }, malformedL4),
		pass("udp length 8, and bytes behind it", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(8).Payload(20) }),
		pass("udp length exact", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(28).Payload(20) }),
		ends("udp length a byte long", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(29).Payload(20) }, malformedL4),
		ends("udp length into the padding", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(29).Payload(20).Pad(100) }, malformedL4),
		ends("udp length 65535", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(65535).Payload(20) }, malformedL4),

		pass("icmp of 8 bytes", func(w *world) *packet.Packet { return w.icmp(w.ip(), 8, 128) }),
		ends("icmp of 7 bytes", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().Raw(packet.ICMPv6Number, make([]byte, 7)...)
			}
			return w.ip().Raw(packet.ICMPv4Number, make([]byte, 7)...)
		}, malformedL4),
		ends("icmp empty", func(w *world) *packet.Packet {
			if w.v6() {
				return w.ip().Raw(packet.ICMPv6Number)
			}
			return w.ip().Raw(packet.ICMPv4Number)
		}, malformedL4),
	}
	for offset := range uint8(16) {
		o := malformedL4
		if offset == 5 {
			o = clean
		}
		rows = append(rows, ends(fmt.Sprintf("tcp data offset %d", offset), func(w *world) *packet.Packet { return tcp(w).DataOffset(offset) }, o))
	}
	for _, f := range []struct {
		name  string
		flags uint8
	}{
		{"none", 0}, {"fin", packet.FIN}, {"rst", packet.RST}, {"ack", packet.ACK}, {"syn", packet.SYN}, {"syn ack", packet.SYN | packet.ACK},
		{"syn fin", packet.SYN | packet.FIN}, {"syn rst", packet.SYN | packet.RST}, {"xmas", packet.FIN | packet.PSH | packet.URG}, {"all", 0xFF},
	} {
		rows = append(rows, pass("tcp flags "+f.name, func(w *world) *packet.Packet { return tcp(w).Flags(f.flags) }))
	}
	return rows
}

func controlRows() []row {
	capped := func(w *world) {
		w.SetControl(func(c *bpf.Control) {
			c.ControlCost, c.ControlBurst = 3600e9, 2*3600e9 // two, then one an hour
		})
	}
	anARP := func(*world) *packet.Packet {
		return packet.New().ARP(netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("192.0.2.1"))
	}
	rows := []row{
		ends("arp", anARP, arp),
		ends("arp padded", func(w *world) *packet.Packet { return anARP(w).Pad(60) }, arp),
		ends("arp cut off", func(w *world) *packet.Packet { return anARP(w).Truncate(20) }, arp),
		{name: "arp over its cap", packet: anARP, setup: capped, want: []outcome{
			arp.times(2), {reason: bpf.ReasonControlCap, n: 3, other: true, uncharged: true}}},
		{name: "icmp errors over their cap", packet: func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 2).Payload(40) },
			setup: capped, want: []outcome{control.times(2), controlCap.times(3)}},
		{name: "neighbour discovery over its cap", only: only6, setup: capped,
			packet: func(w *world) *packet.Packet { return w.ip().HopLimit(255).ICMPv6(135, 0).Payload(16) },
			want:   []outcome{control.times(2), controlCap.times(3)}},
		{name: "the cap of one family does not spend the other's", packet: tcp, setup: func(w *world) {
			capped(w)
			for range 5 {
				w.send(anARP(w))
			}
		}, want: []outcome{clean}},
		{name: "errors do not spend neighbour discovery's cap", only: only6,
			packet: func(w *world) *packet.Packet { return w.ip().HopLimit(255).ICMPv6(135, 0).Payload(16) },
			setup: func(w *world) {
				capped(w)
				for range 5 {
					w.send(w.icmp(w.ip(), 3, 1))
				}
			}, want: []outcome{control}},
		{name: "errors pass while arp is over its cap", packet: func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 1) },
			setup: func(w *world) {
				capped(w)
				for range 5 {
					w.send(anARP(w))
				}
			}, want: []outcome{control}},
		{name: "an echo is not control, and has no cap", packet: echo, setup: capped, want: []outcome{clean.times(5)}},
		{name: "control is monitored over its cap", packet: func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 1) },
			setup: func(w *world) {
				capped(w)
				w.SetControl(func(c *bpf.Control) { c.Monitor = 1 })
			}, want: []outcome{control.times(2), controlCap.monitor().times(3)}},
		ends("error behind two tags", func(w *world) *packet.Packet {
			return w.icmp(packet.New().SVLAN(1).VLAN(2).IP(w.src, w.dst), 11, 3)
		}, control),
		ends("packet too big behind extensions", func(w *world) *packet.Packet {
			return w.ip().Extension(packet.DestOptions, 0).Fragment(0, false).ICMPv6(2, 0)
		}, control).in(only6),
	}
	for kind := range uint8(20) {
		o := clean
		if kind == 3 || kind == 11 || kind == 12 {
			o = control
		}
		rows = append(rows, ends(fmt.Sprintf("icmp type %d", kind), func(w *world) *packet.Packet { return w.ip().ICMP(kind, 4).Payload(8) }, o).in(only4))
	}
	for _, kind := range []uint8{0, 1, 2, 3, 4, 5, 127, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 143, 255} {
		for _, hops := range []uint8{255, 254, 64} {
			o := clean
			if kind >= 1 && kind <= 4 || kind >= 133 && kind <= 137 && hops == 255 {
				o = control
			}
			rows = append(rows, ends(fmt.Sprintf("icmpv6 type %d with hop limit %d", kind, hops), func(w *world) *packet.Packet {
				return w.ip().HopLimit(hops).ICMPv6(kind, 0).Payload(16)
			}, o).in(only6))
		}
	}
	return rows
}

func martianRows() []row {
	from := func(src string) build {
		return func(w *world) *packet.Packet { return w.from(src).UDP(68, 67).Payload(4) }
	}
	var rows []row
	for _, src := range []string{"127.0.0.0", "127.0.0.1", "127.255.255.255", "224.0.0.1", "232.1.2.3", "239.255.255.255", "255.255.255.255"} {
		rows = append(rows, ends("from "+src, from(src), martian).in(only4))
	}
	for _, src := range []string{"::1", "ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::ffff:192.0.2.77", "::ffff:0.0.0.0", "::ffff:255.255.255.255"} {
		rows = append(rows, ends("from "+src, from(src), martian).in(only6))
	}
	for _, src := range []string{
		"0.0.0.0", "0.0.0.1", "10.1.2.3", "126.255.255.255", "128.0.0.0", "169.254.1.1", "192.168.0.1", "223.255.255.255",
		"240.0.0.1", "255.255.255.254",
	} {
		o := clean.to(src)
		rows = append(rows, ends("from "+src, from(src), o).in(only4))
	}
	for _, pair := range [][2]string{
		{"::", "::"}, {"::2", "::"}, {"fe80::1", "fe80::"}, {"feff::1", "feff::"}, {"fc00::1", "fc00::"}, {"::192.0.2.77", "::"},
		{"::fffe:192.0.2.77", "::"}, {"::1:ffff:192.0.2.77", "::"}, {"0:0:0:1::1", "0:0:0:1::"}, {"64:ff9b::192.0.2.77", "64:ff9b::"},
		{"2002:c000:24d::1", "2002:c000:24d::"},
	} {
		rows = append(rows, ends("from "+pair[0], from(pair[0]), clean.to(pair[1])).in(only6))
	}
	return append(rows,
		ends("duplicate address detection", func(w *world) *packet.Packet {
			return w.from("::").HopLimit(255).ICMPv6(135, 0).Payload(16)
		}, control).in(only6),
		ends("martian before malformed", func(w *world) *packet.Packet {
			if w.v6() {
				return w.from("::1").Raw(packet.TCPNumber)
			}
			return w.from("127.0.0.1").Raw(packet.TCPNumber)
		}, martian),
		ends("martian fragment", func(w *world) *packet.Packet {
			if w.v6() {
				return w.from("ff02::1").Fragment(800, true).Raw(packet.UDPNumber)
			}
			return w.from("224.0.0.1").Fragment(800, true).Raw(packet.UDPNumber)
		}, martian),
		ends("martian icmp error", func(w *world) *packet.Packet {
			if w.v6() {
				return w.icmp(w.from("ff02::1"), 3, 1)
			}
			return w.icmp(w.from("224.0.0.1"), 3, 1)
		}, martian),
	)
}
