package bpf_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// past and future are times on the program's clock, far enough from now that no test meets them.
func past() uint64   { return rig.Monotonic() - uint64(time.Second) }
func future() uint64 { return rig.Monotonic() + uint64(time.Hour) }

// kinds are packets of every kind that might find its way around a check of the source: what others
// pass before they look at the blocklist.
func kinds() []row {
	return []row{
		{name: "tcp", packet: tcp},
		{name: "syn", packet: func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN) }},
		{name: "udp", packet: udp},
		{name: "echo", packet: echo},
		{name: "sctp", packet: func(w *world) *packet.Packet { return w.ip().SCTP(1, 2) }},
		{name: "udp-lite", packet: func(w *world) *packet.Packet { return w.ip().UDPLite(1, 2) }},
		{name: "gre", packet: func(w *world) *packet.Packet { return w.ip().Raw(packet.GRE, 0, 0, 8, 0).IP(w.dst, w.src) }},
		{name: "esp", packet: func(w *world) *packet.Packet { return w.ip().Raw(packet.ESP, make([]byte, 24)...) }},
		{name: "ah", packet: func(w *world) *packet.Packet { return w.ip().Extension(packet.AH, 4).TCP(1, 2) }},
		{name: "ip in ip", packet: func(w *world) *packet.Packet { return w.ip().IP(w.dst, w.src).TCP(1, 2) }},
		{name: "igmp", packet: func(w *world) *packet.Packet { return w.ip().Raw(2, 0x11, 0, 0, 0) }},
		{name: "unknown protocol", packet: func(w *world) *packet.Packet { return w.ip().Raw(253, 1, 2, 3) }},
		{name: "no transport", packet: func(w *world) *packet.Packet { return w.ip() }},
		{name: "first fragment", packet: func(w *world) *packet.Packet { return w.ip().Fragment(0, true).UDP(1, 53) }},
		{name: "later fragment", packet: func(w *world) *packet.Packet { return w.ip().Fragment(1480, true).Raw(packet.UDPNumber, 1, 2, 3) }},
		{name: "icmp error", packet: func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 2).Payload(40) }},
		{name: "neighbour discovery", packet: func(w *world) *packet.Packet { return w.ip().HopLimit(255).ICMPv6(135, 0).Payload(16) }},
		{name: "malformed tcp", packet: func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }},
		{name: "transport cut off", packet: func(w *world) *packet.Packet { return w.ip().Raw(packet.TCPNumber) }},
		{name: "vlan", packet: func(w *world) *packet.Packet { return packet.New().VLAN(5).IP(w.src, w.dst).TCP(1, 2) }},
		{name: "qinq", packet: func(w *world) *packet.Packet { return packet.New().SVLAN(5).VLAN(6).IP(w.src, w.dst).TCP(1, 2) }},
		{name: "header options", only: only4, packet: func(w *world) *packet.Packet { return w.ip().Options(10).TCP(1, 2) }},
		{name: "an extension", only: only6, packet: func(w *world) *packet.Packet { return w.ip().Extension(packet.HopByHop, 0).TCP(1, 2) }},
		{name: "nine extensions", only: only6, packet: func(w *world) *packet.Packet {
			p := w.ip()
			for range 9 {
				p = p.Extension(packet.Routing, 0)
			}
			return p.TCP(1, 2)
		}},
		{name: "extension cut off", only: only6, packet: func(w *world) *packet.Packet { return w.ip().Raw(packet.Routing, 1) }},
		{name: "jumbogram", only: only6, packet: func(w *world) *packet.Packet {
			return w.ip().Length(0).Raw(packet.HopByHop, packet.NoNext, 0, 0xC2, 4, 0, 0, 0, 8)
		}},
	}
}

func banRows() []row {
	ban := func(b rig.Ban) func(w *world) {
		return func(w *world) {
			b := b
			b.Prefix = w.net(b.Prefix.Bits()) // the length alone is meant
			w.Ban(b)
		}
	}
	length := func(n int) netip.Prefix { return netip.PrefixFrom(netip.IPv4Unspecified(), n) }

	var rows []row
	for _, kind := range kinds() {
		for _, n := range []int{32, 24, 16} {
			r := kind.given(ban(rig.Ban{Prefix: length(n), List: uint16(n)}))
			r.name = fmt.Sprintf("banned by /%d: %s", n, kind.name)
			r.want = []outcome{banned.on(uint16(n))}
			rows = append(rows, r)
		}
	}
	// Every length: two addresses of the prefix that differ right behind it, and one beside it.
	for _, family := range []bpf.Family{only4, only6} {
		bits := 32
		if family == only6 {
			bits = 128
		}
		for n := 1; n <= bits; n++ {
			rows = append(rows,
				ends(fmt.Sprintf("%s banned by /%d", family, n), tcp, banned.on(7)).in(family).given(func(w *world) {
					w.Ban(rig.Ban{Prefix: w.prefix(n), List: 7})
				}),
				ends(fmt.Sprintf("%s banned by /%d, another address", family, n), func(w *world) *packet.Packet {
					return packet.New().IP(w.sibling(min(n, bits-1)), w.dst).TCP(1, 2)
				}, banned.on(7)).in(family).given(func(w *world) {
					w.Ban(rig.Ban{Prefix: netip.PrefixFrom(w.sibling(min(n, bits-1)), n).Masked(), List: 7})
				}),
				ends(fmt.Sprintf("%s beside a ban of /%d", family, n), tcp, clean).in(family).given(func(w *world) {
					w.Ban(rig.Ban{Prefix: netip.PrefixFrom(w.sibling(n-1), n).Masked(), List: 7})
				}))
		}
	}
	return append(rows,
		ends("banned by 0.0.0.0/0", tcp, banned.on(7)).in(only4).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("0.0.0.0/0"), List: 7})
		}),
		ends("banned by both halves of ::/0", tcp, banned.on(8)).in(only6).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("8000::/1"), List: 7})
			w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("::/1"), List: 8})
		}),
		ends("banned on the last list", tcp, banned.on(1023)).given(ban(rig.Ban{Prefix: length(32), List: 1023})),
		ends("banned on list 0", tcp, banned.on(0)).given(ban(rig.Ban{Prefix: length(32)})),
		ends("ban that has expired", tcp, clean).given(func(w *world) { ban(rig.Ban{Prefix: length(32), Expires: past()})(w) }),
		ends("ban that expired at the beginning of time", tcp, clean).given(ban(rig.Ban{Prefix: length(24), Expires: 1})),
		ends("ban that has expired, wide", tcp, clean).given(func(w *world) { ban(rig.Ban{Prefix: length(12), Expires: past()})(w) }),
		ends("ban that will expire", tcp, banned.on(3)).given(func(w *world) { ban(rig.Ban{Prefix: length(32), List: 3, Expires: future()})(w) }),
		ends("ban that will expire, wide", tcp, banned.on(3)).given(func(w *world) { ban(rig.Ban{Prefix: length(12), List: 3, Expires: future()})(w) }),
		ends("expired ban within one that lives", tcp, banned.on(4)).given(func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3, Expires: past()})(w)
			ban(rig.Ban{Prefix: length(24), List: 4})(w)
		}),
		ends("expired ban around one that lives", tcp, banned.on(3)).given(func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3})(w)
			ban(rig.Ban{Prefix: length(24), List: 4, Expires: past()})(w)
		}),
		ends("the longest ban names the list", tcp, banned.on(3)).given(func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3})(w)
			ban(rig.Ban{Prefix: length(24), List: 4})(w)
			ban(rig.Ban{Prefix: length(12), List: 5})(w)
		}),
		ends("the longest of two wide bans names the list", tcp, banned.on(3)).given(func(w *world) {
			ban(rig.Ban{Prefix: length(8), List: 5})(w)
			ban(rig.Ban{Prefix: length(16), List: 3})(w)
		}),
		ends("ban that monitors", tcp, banned.on(6).monitor().charged()).given(ban(rig.Ban{Prefix: length(32), List: 6, Monitor: true})),
		ends("wide ban that monitors", tcp, banned.on(6).monitor().charged()).given(ban(rig.Ban{Prefix: length(12), List: 6, Monitor: true})),
		ends("ban that monitors, expired", tcp, clean).given(func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 6, Monitor: true, Expires: past()})(w)
		}),
		ends("a wider ban enforces where a longer one monitors", tcp, banned.on(4)).given(func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3, Monitor: true})(w)
			ban(rig.Ban{Prefix: length(24), List: 4})(w)
		}),
		ends("a wide ban enforces where a longer one monitors", tcp, banned.on(4)).given(func(w *world) {
			ban(rig.Ban{Prefix: length(24), List: 3, Monitor: true})(w)
			ban(rig.Ban{Prefix: length(12), List: 4})(w)
		}),
		ends("a longer ban enforces where a wider one monitors", tcp, banned.on(3)).given(func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3})(w)
			ban(rig.Ban{Prefix: length(12), List: 4, Monitor: true})(w)
		}),
		ends("of two bans that monitor, the longest names the list", tcp, banned.on(3).monitor().charged()).given(func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3, Monitor: true})(w)
			ban(rig.Ban{Prefix: length(12), List: 4, Monitor: true})(w)
		}),
		ends("a ban that monitors does not save what is malformed", func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, malformedL4).
			given(ban(rig.Ban{Prefix: length(32), List: 3, Monitor: true})),
		ends("a ban that monitors is what an icmp error is counted as", func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 1) },
			banned.on(3).monitor()).given(ban(rig.Ban{Prefix: length(32), List: 3, Monitor: true})),
		row{name: "a ban that monitors does not save from a limit", packet: tcp, setup: func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3, Monitor: true})(w)
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 2)})
		}, want: []outcome{banned.on(3).monitor().charged().times(2), overPackets.times(2)}},
		row{name: "a ban that monitors before a limit that monitors", packet: tcp, setup: func(w *world) {
			ban(rig.Ban{Prefix: length(32), List: 3, Monitor: true})(w)
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 2), Flags: bpf.LimitMonitor})
		}, want: []outcome{banned.on(3).monitor().charged().times(2), overPackets.monitor().times(2)}},
		ends("a ban of the other family", tcp, clean).in(only6).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("0.0.0.0/0"), List: 7})
		}),
		ends("a ban of all IPv6 is none of IPv4", tcp, clean).in(only4).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("::/1"), List: 7})
			w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("8000::/1"), List: 7})
		}),
		ends("a destination is not banned", func(w *world) *packet.Packet { return packet.New().IP(w.dst, w.src).TCP(1, 2) }, outcome{}).
			given(ban(rig.Ban{Prefix: length(24), List: 7})).wants(func(w *world) outcome {
			return clean.to(groupOf(w.dst).String())
		}),
		ends("malformed comes before banned: its source can't be trusted to be one", func(w *world) *packet.Packet {
			return w.ip().Version(5).TCP(1, 2)
		}, malformedL3).given(ban(rig.Ban{Prefix: length(32), List: 7})),
		ends("banned comes before martian", func(w *world) *packet.Packet { return w.from("224.0.0.9").UDP(1, 2) }, banned.on(7)).in(only4).
			given(func(w *world) { w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("224.0.0.0/4"), List: 7}) }),
	)
}

// groupOf is whom an address is charged to by default.
func groupOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	return netip.PrefixFrom(a, 64).Masked().Addr()
}

func allowRows() []row {
	banned32 := func(then func(w *world)) func(w *world) {
		return func(w *world) {
			w.Ban(rig.Ban{Prefix: w.net(32), List: 7})
			then(w)
		}
	}
	limited := func(then func(w *world)) func(w *world) {
		return func(w *world) {
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 2)})
			then(w)
		}
	}
	allow := func(length int, noLimit bool) func(w *world) {
		return func(w *world) { w.Allow(w.net(length), noLimit, 0) }
	}
	return []row{
		ends("allow without a ban", tcp, clean).given(allow(32, false)),
		ends("allow over a ban", tcp, allowed).given(banned32(allow(32, false))),
		ends("wider allow over a ban", tcp, allowed).given(banned32(allow(24, false))),
		ends("allow of nearly everything over a ban", tcp, allowed).given(banned32(allow(1, false))),
		ends("allow that is exempt from limits, over a ban", tcp, allowed).given(banned32(allow(32, true))),
		ends("longer allow over a wider ban", tcp, allowed).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: w.net(12), List: 7})
			w.Allow(w.net(32), false, 0)
		}),
		ends("allow over a ban that monitors", tcp, allowed).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: w.net(32), List: 7, Monitor: true})
			w.Allow(w.net(32), false, 0)
		}),
		ends("allow of a neighbour", tcp, banned.on(7)).given(banned32(func(w *world) {
			w.Allow(netip.PrefixFrom(w.sibling(w.src.BitLen()-1), w.src.BitLen()), false, 0)
		})),
		ends("allow that has expired", tcp, banned.on(7)).given(banned32(func(w *world) { w.Allow(w.net(32), false, past()) })),
		ends("allow that will expire", tcp, allowed).given(banned32(func(w *world) { w.Allow(w.net(32), false, future()) })),
		ends("allowed, and malformed", func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, malformedL4).given(banned32(allow(32, false))),
		ends("allowed fragment", func(w *world) *packet.Packet { return w.ip().Fragment(800, true).Raw(packet.UDPNumber, 1) }, allowed).
			given(banned32(allow(32, false))),
		ends("allowed icmp error", func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 1) }, allowed.nobody()).given(banned32(allow(32, false))),
		{name: "a limit holds for who is allowed", packet: tcp, setup: limited(allow(32, false)),
			want: []outcome{clean.times(2), overPackets.times(2)}},
		{name: "a limit holds for who is banned and allowed", packet: tcp, setup: limited(banned32(allow(32, false))),
			want: []outcome{allowed.times(2), overPackets.times(2)}},
		{name: "allow that is exempt from limits", packet: tcp, setup: limited(allow(32, true)),
			want: []outcome{clean.times(2), exempt.times(2)}},
		{name: "wider allow that is exempt from limits", packet: tcp, setup: limited(allow(24, true)),
			want: []outcome{clean.times(2), exempt.times(2)}},
		{name: "banned, allowed and exempt", packet: tcp, setup: limited(banned32(allow(32, true))), want: []outcome{allowed.times(4)}},
		{name: "exemption that has expired", packet: tcp, setup: limited(func(w *world) { w.Allow(w.net(32), true, past()) }),
			want: []outcome{clean.times(2), overPackets.times(2)}},
		{name: "the longest allow decides on the exemption", packet: tcp, setup: limited(func(w *world) {
			w.Allow(w.net(24), true, 0)
			w.Allow(w.net(32), false, 0)
		}), want: []outcome{clean.times(2), overPackets.times(2)}},
		{name: "exempt from an aggregate", packet: tcp, setup: func(w *world) {
			w.Limit(0, rig.Limit{Aggregate: hourly(2), Flags: bpf.LimitAggregate})
			w.Allow(w.net(32), true, 0)
		}, want: []outcome{clean.times(2), exempt.times(2)}},
		{name: "exempt where there is no room to track", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.Limit(0, rig.Limit{Aggregate: hourly(2)})
			w.Allow(w.net(32), true, 0)
		}, want: []outcome{untracked.times(2), exempt.nobody().times(2)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 4}},
		{name: "exempt from a penalty", packet: tcp, setup: func(w *world) {
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 2), Penalty: time.Hour})
			w.Allow(w.net(32), true, 0)
		}, want: []outcome{clean.times(2), exempt.times(2)}},
	}
}

// hourly is a rate of one an hour, so that a test sees its burst alone.
func hourly(burst float64) rig.Rate { return rig.Rate{PerSecond: 1.0 / 3600, Burst: burst} }

// slow is a limit's thresholds of which one is set, to a burst and one an hour.
func slow(t bpf.Threshold, burst float64) (all [bpf.ThresholdMax]rig.Rate) {
	all[t] = hourly(burst)
	return all
}

func limitRows() []row {
	limit := func(l rig.Limit) func(w *world) { return func(w *world) { w.Limit(0, l) } }
	syn := func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN) }
	frag := func(w *world) *packet.Packet { return w.ip().Fragment(0, true).UDP(1, 2).Length(3000) }
	later := func(w *world) *packet.Packet { return w.ip().Fragment(1480, true).Raw(packet.UDPNumber, 1, 2, 3) }
	lite := func(w *world) *packet.Packet { return w.ip().UDPLite(1, 2) }

	// Each threshold, and what it measures.
	thresholds := []struct {
		name string
		t    bpf.Threshold
		o    outcome
		hits map[string]build
		free map[string]build
	}{
		{"packets", bpf.ThresholdPackets, overPackets, map[string]build{
			"tcp": tcp, "udp": udp, "echo": echo, "later fragment": later,
			"unknown protocol": func(w *world) *packet.Packet { return w.ip().Raw(253) },
		}, nil},
		{"syn", bpf.ThresholdSYN, overSYN, map[string]build{
			"syn":     syn,
			"syn fin": func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN | packet.FIN) },
			"syn rst": func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN | packet.RST) },
		}, map[string]build{
			"ack": tcp, "udp": udp,
			"syn ack": func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN | packet.ACK) },
		}},
		{"udp", bpf.ThresholdUDP, overUDP, map[string]build{"udp": udp, "udp-lite": lite, "later fragment": later, "first fragment": frag},
			map[string]build{"tcp": tcp, "echo": echo, "sctp": func(w *world) *packet.Packet { return w.ip().SCTP(1, 2) }}},
		{"icmp", bpf.ThresholdICMP, overICMP, map[string]build{
			"echo": echo,
			"the other family's": func(w *world) *packet.Packet {
				return w.ip().Raw(uint8(map[bool]int{true: 1, false: 58}[w.v6()]), 8, 0)
			},
		}, map[string]build{"tcp": tcp, "udp": udp}},
		{"fragments", bpf.ThresholdFragments, overFrags, map[string]build{"first": frag, "later": later},
			map[string]build{"whole": udp, "atomic": func(w *world) *packet.Packet { return w.ip().Fragment(0, false).TCP(1, 2) }}},
	}
	var rows []row
	for _, th := range thresholds {
		for name, p := range th.hits {
			rows = append(rows, row{name: "limit of " + th.name + ": " + name, packet: p, setup: limit(rig.Limit{Thresholds: slow(th.t, 3)}),
				want: []outcome{clean.times(3), th.o.times(3)}})
		}
		for name, p := range th.free {
			rows = append(rows, row{name: "limit of " + th.name + " is not for: " + name, packet: p, setup: limit(rig.Limit{Thresholds: slow(th.t, 1)}),
				want: []outcome{clean.times(4)}})
		}
	}

	bytesOf := func(n int) rig.Limit {
		var l rig.Limit
		l.Thresholds[bpf.ThresholdBits] = rig.Rate{PerSecond: 0.1, Burst: float64(n)}
		return l
	}
	sized := func(w *world) *packet.Packet { return udp(w).Pad(200).Truncate(200) }
	src32 := func(w *world) { w.BindSource(w.net(32), 3) }
	three := rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 3)}
	return append(rows,
		row{name: "limit of bits: the frame counts, to the byte", packet: sized, setup: limit(bytesOf(600)), want: []outcome{clean.times(3), overBits.times(2)}},
		row{name: "limit of bits: a byte short", packet: sized, setup: limit(bytesOf(599)), want: []outcome{clean.times(2), overBits.times(2)}},
		row{name: "burst of one", packet: tcp, setup: limit(rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1)}), want: []outcome{clean, overPackets.times(2)}},
		row{name: "burst of less than one packet", packet: tcp, setup: limit(rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 0.5)}), want: []outcome{overPackets.times(2)}},
		row{name: "the first threshold that is broken speaks", packet: syn, setup: func(w *world) {
			l := three
			l.Thresholds[bpf.ThresholdSYN] = hourly(3)
			w.Limit(0, l)
		}, want: []outcome{clean.times(3), overPackets.times(2)}},
		row{name: "the lowest threshold speaks", packet: syn, setup: func(w *world) {
			l := three
			l.Thresholds[bpf.ThresholdSYN] = hourly(1)
			w.Limit(0, l)
		}, want: []outcome{clean, overSYN.times(3)}},
		row{name: "what breaks one threshold is not charged to another", packet: tcp, setup: func(w *world) {
			l := three
			l.Thresholds[bpf.ThresholdUDP] = hourly(1)
			w.Limit(0, l)
			for range 5 { // one passes, four are over
				w.send(udp(w))
			}
		}, want: []outcome{clean.times(2), overPackets.times(2)}},
		row{name: "limit that is off", packet: tcp, setup: func(w *world) { w.NoLimit(0) }, want: []outcome{clean.nobody().times(3)}},
		row{name: "limit without thresholds", packet: tcp, setup: limit(rig.Limit{}), want: []outcome{clean.times(3)}},
		row{name: "limit by the coarse clock", packet: tcp, setup: func(w *world) {
			l := three
			l.Flags = bpf.LimitCoarse
			w.Limit(0, l)
		}, want: []outcome{clean.times(3), overPackets.times(2)}},
		row{name: "malformed is not charged", packet: func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, setup: limit(three), want: []outcome{malformedL4.times(5)}},
		row{name: "icmp errors are not charged", packet: func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 2) }, setup: limit(three), want: []outcome{control.times(5)}},

		// refill
		row{name: "what was owed is paid by time", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			for range 3 {
				w.send(tcp(w))
			}
			w.rewrite(func(s *bpf.SourceState) { s.Tat[bpf.ThresholdPackets] -= 2 * uint64(time.Hour) })
		}, want: []outcome{clean.times(2), overPackets.times(2)}},
		row{name: "no more is saved up than the burst", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			w.send(tcp(w))
			w.rewrite(func(s *bpf.SourceState) { s.Tat[bpf.ThresholdPackets] = 1 })
		}, want: []outcome{clean.times(3), overPackets.times(2)}},

		// monitor
		row{name: "limit that monitors", packet: tcp, setup: func(w *world) {
			l := three
			l.Flags = bpf.LimitMonitor
			w.Limit(0, l)
		}, want: []outcome{clean.times(3), overPackets.monitor().times(3)}},
		row{name: "limit under global monitor", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			w.SetControl(func(c *bpf.Control) { c.Monitor = 1 })
		}, want: []outcome{clean.times(3), overPackets.monitor().times(3)}},
		row{name: "aggregate of a limit that monitors", packet: tcp, setup: limit(rig.Limit{
			Aggregate: hourly(2), Flags: bpf.LimitAggregate | bpf.LimitMonitor,
		}), want: []outcome{clean.times(2), overTogether.monitor().times(2)}},

		// penalty
		row{name: "penalty", packet: tcp, setup: func(w *world) {
			l := three
			l.Penalty = time.Hour
			w.Limit(0, l)
		}, want: []outcome{clean.times(3), overPackets, penalty.times(3)}},
		row{name: "penalty for another threshold's excess", packet: syn, setup: limit(rig.Limit{
			Thresholds: slow(bpf.ThresholdSYN, 2), Penalty: time.Hour,
		}), want: []outcome{clean.times(2), overSYN, penalty.times(3)}},
		row{name: "penalty holds for every kind of packet", packet: udp, setup: func(w *world) {
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdSYN, 1), Penalty: time.Hour})
			w.send(syn(w))
			w.send(syn(w))
		}, want: []outcome{penalty.times(2)}},
		row{name: "penalty that monitors", packet: tcp, setup: func(w *world) {
			l := three
			l.Penalty, l.Flags = time.Hour, bpf.LimitMonitor
			w.Limit(0, l)
		}, want: []outcome{clean.times(3), overPackets.monitor(), penalty.monitor().times(3)}},
		row{name: "penalty is the source's alone", packet: tcp, setup: func(w *world) {
			l := three
			l.Penalty = time.Hour
			w.Limit(0, l)
			for range 5 {
				w.send(packet.New().IP(w.sibling(w.groupLength()-1), w.dst).TCP(1, 2))
			}
		}, want: []outcome{clean.times(3), overPackets}},
		row{name: "an aggregate's excess is no penalty", packet: tcp, setup: limit(rig.Limit{
			Thresholds: slow(bpf.ThresholdPackets, 9), Aggregate: hourly(2), Flags: bpf.LimitAggregate, Penalty: time.Hour,
		}), want: []outcome{clean.times(2), overTogether.times(3)}},
		row{name: "penalty that is over leaves what time has paid for", packet: tcp, setup: func(w *world) {
			w.penalize(4*time.Hour, rig.Monotonic()-uint64(time.Millisecond))
		}, want: []outcome{clean.times(3), overPackets, penalty}},
		row{name: "penalty that was short leaves the debt", packet: tcp, setup: func(w *world) {
			// began an hour ago and a little, in debt by three: one is paid
			w.penalize(time.Hour, rig.Monotonic()-uint64(time.Millisecond))
		}, want: []outcome{clean, overPackets, penalty}},
		row{name: "penalty that is nearly over", packet: tcp, setup: func(w *world) {
			w.penalize(4*time.Hour, rig.Monotonic()+uint64(time.Minute))
		}, want: []outcome{penalty.times(3)}},
		row{name: "penalty is no longer asked for", packet: tcp, setup: func(w *world) {
			w.penalize(4*time.Hour, rig.Monotonic()+uint64(2*time.Hour))
			w.Limit(0, three)
			w.send(tcp(w)) // is over the limit, as the debt counts from now
			w.rewrite(func(s *bpf.SourceState) { s.Tat[bpf.ThresholdPackets] -= uint64(time.Hour) })
		}, want: []outcome{clean, overPackets.times(2)}},
		row{name: "penalty is shorter now", packet: tcp, setup: func(w *world) {
			w.penalize(4*time.Hour, rig.Monotonic()+uint64(2*time.Hour))
			l := three
			l.Penalty = time.Hour
			w.Limit(0, l)
		}, want: []outcome{overPackets, penalty.times(2)}},
		row{name: "burst that was made smaller is no penalty", packet: tcp, setup: func(w *world) {
			l := three
			l.Penalty = 4 * time.Hour
			w.Limit(0, l)
			for range 3 {
				w.send(tcp(w))
			}
			l.Thresholds = slow(bpf.ThresholdPackets, 1)
			w.Limit(0, l)
		}, want: []outcome{overPackets, penalty.times(2)}},

		// aggregate
		row{name: "aggregate of every packet", packet: tcp, setup: limit(rig.Limit{Aggregate: hourly(2), Flags: bpf.LimitAggregate}),
			want: []outcome{clean.times(2), overTogether.times(3)}},
		row{name: "aggregate is of the untracked alone, unless it says otherwise", packet: tcp, setup: limit(rig.Limit{Aggregate: hourly(2)}),
			want: []outcome{clean.times(5)}},
		row{name: "aggregate is the prefix's", packet: tcp, setup: func(w *world) {
			w.Limit(0, rig.Limit{Aggregate: hourly(2), Flags: bpf.LimitAggregate})
			w.send(packet.New().IP(w.sibling(w.aggregateLength()), w.dst).TCP(1, 2))
		}, want: []outcome{clean, overTogether.times(2)}},
		row{name: "aggregate is not the next prefix's", packet: tcp, setup: func(w *world) {
			w.Limit(0, rig.Limit{Aggregate: hourly(2), Flags: bpf.LimitAggregate})
			for range 4 {
				w.send(packet.New().IP(w.sibling(w.aggregateLength()-1), w.dst).TCP(1, 2))
			}
		}, want: []outcome{clean.times(2), overTogether.times(2)}},
		row{name: "aggregate of another length", packet: tcp, setup: func(w *world) {
			w.Limit(0, rig.Limit{Aggregate: hourly(2), Flags: bpf.LimitAggregate, Aggregate4: 16, Aggregate6: 32})
			w.send(packet.New().IP(w.sibling(w.aggregateLength()-8), w.dst).TCP(1, 2)) // bit 16 or 40
		}, want: []outcome{clean, overTogether}},

		// untracked
		row{name: "no room", packet: tcp, setup: func(w *world) { w.Fill() }, want: []outcome{untracked.times(3)},
			stats: map[bpf.Stat]uint64{bpf.StatUntracked: 3}},
		row{name: "no room, under the aggregate", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1), Aggregate: hourly(2)})
		}, want: []outcome{untracked.times(2), overTogether.nobody().times(3)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 5}},
		row{name: "no room and no aggregate: the packets' threshold is the prefix's", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.Limit(0, three)
		}, want: []outcome{untracked.times(3), overTogether.nobody().times(2)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 5}},
		row{name: "no room and a rate for connections alone", packet: syn, setup: func(w *world) {
			w.Fill()
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdSYN, 1)})
		}, want: []outcome{untracked, overTogether.nobody().times(2)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 3}},
		row{name: "no room and no rate that fits", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdSYN, 1)})
		}, want: []outcome{untracked.times(3)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 3}},
		row{name: "a raised limit frees whom the old one blocked", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			for range 3 {
				w.send(tcp(w))
			}
			l := rig.Limit{}
			l.Thresholds[bpf.ThresholdPackets] = rig.Rate{PerSecond: 10e6, Burst: 1000}
			w.Limit(0, l)
		}, want: []outcome{overPackets, clean.times(3)}},
		row{name: "no room, monitored", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.Limit(0, rig.Limit{Aggregate: hourly(2), Flags: bpf.LimitMonitor})
		}, want: []outcome{untracked.times(2), overTogether.nobody().monitor().times(2)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 4}},
		row{name: "no room, and none for the prefix", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.FillAggregates()
			w.Limit(0, three)
		}, want: []outcome{untracked.times(5)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 5, bpf.StatAggregateFull: 5}},
		row{name: "no room for a newcomer, room for who is known", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			w.send(tcp(w))
			index, err := w.SourceIndex(w.group(), 0)
			if err != nil {
				w.tb.Fatal(err)
			}
			w.FillBut(index)
		}, want: []outcome{clean.times(2), overPackets.times(2)}},
		row{name: "an idle source makes room", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.Age(13 * time.Second)
		}, want: []outcome{clean.times(3)}, stats: map[bpf.Stat]uint64{bpf.StatEvicted: 1}},
		row{name: "a source that is not idle long enough makes none", packet: tcp, setup: func(w *world) {
			w.Fill()
			w.Age(9 * time.Second)
		}, want: []outcome{untracked.times(3)}, stats: map[bpf.Stat]uint64{bpf.StatUntracked: 3}},
		row{name: "a slot that is being filled by another", packet: tcp, setup: func(w *world) { w.Busy(w.group(), 0) },
			want: []outcome{contended.times(2)}, stats: map[bpf.Stat]uint64{bpf.StatContended: 2}},

		row{name: "a source of the same bucket and fingerprint is another", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			for range 4 {
				w.send(packet.New().IP(w.Alike(w.group()), w.dst).TCP(1, 2))
			}
		}, want: []outcome{clean.times(3), overPackets.times(2)}},

		row{name: "a source whose fingerprint is 0 is one like any other", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			for range 4 {
				w.send(packet.New().IP(w.Faceless(w.group()), w.dst).TCP(1, 2))
			}
			if got := len(w.Sources()); got != 1 {
				panic(fmt.Sprintf("%d sources are tracked, want the one whose fingerprint is 0", got))
			}
		}, want: []outcome{clean.times(3), overPackets.times(2)}},

		// grouping
		row{name: "grouped by a shorter prefix", packet: tcp, setup: func(w *world) {
			l := three
			l.Group4, l.Group6 = 24, 48
			w.Limit(0, l)
			w.send(packet.New().IP(w.sibling(map[bool]int{false: 24, true: 48}[w.v6()]), w.dst).TCP(1, 2))
		}}.wantsAll(func(w *world) []outcome {
			to := w.prefix(map[bool]int{false: 24, true: 48}[w.v6()]).Addr().String()
			return []outcome{clean.to(to).times(2), overPackets.to(to)}
		}),
		row{name: "not grouped with the next prefix", packet: tcp, setup: func(w *world) {
			l := three
			l.Group4, l.Group6 = 24, 48
			w.Limit(0, l)
			for range 4 {
				w.send(packet.New().IP(w.sibling(map[bool]int{false: 23, true: 47}[w.v6()]), w.dst).TCP(1, 2))
			}
		}}.wantsAll(func(w *world) []outcome {
			to := w.prefix(map[bool]int{false: 24, true: 48}[w.v6()]).Addr().String()
			return []outcome{clean.to(to).times(3), overPackets.to(to)}
		}),
		row{name: "an IPv6 /64 is one source", only: only6, packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			w.send(packet.New().IP(w.sibling(64), w.dst).TCP(1, 2))
			w.send(packet.New().IP(w.sibling(126), w.dst).TCP(1, 2))
		}, want: []outcome{clean, overPackets}},
		row{name: "an IPv6 /128 may be one source", only: only6, packet: tcp, setup: func(w *world) {
			l := three
			l.Group6 = 128
			w.Limit(0, l)
			w.send(packet.New().IP(w.sibling(126), w.dst).TCP(1, 2))
		}}.wantsAll(func(w *world) []outcome {
			return []outcome{clean.to(w.src.String()).times(3), overPackets.to(w.src.String())}
		}),
		row{name: "grouped by /8 and /16", packet: tcp, setup: func(w *world) {
			l := three
			l.Group4, l.Group6 = 8, 16
			w.Limit(0, l)
			w.send(packet.New().IP(w.sibling(map[bool]int{false: 8, true: 16}[w.v6()]), w.dst).TCP(1, 2))
		}}.wantsAll(func(w *world) []outcome {
			to := w.prefix(map[bool]int{false: 8, true: 16}[w.v6()]).Addr().String()
			return []outcome{clean.to(to).times(2), overPackets.to(to)}
		}),

		// which limit
		row{name: "limit of a source", packet: tcp, setup: func(w *world) { w.Limit(3, three); src32(w) },
			want: []outcome{clean.of(3).times(3), overPackets.of(3).times(2)}},
		row{name: "limit of a wider source", packet: tcp, setup: func(w *world) { w.Limit(3, three); w.BindSource(w.net(12), 3) },
			want: []outcome{clean.of(3).times(3), overPackets.of(3).times(2)}},
		row{name: "the longest source's limit", packet: tcp, setup: func(w *world) {
			w.Limit(3, three)
			w.Limit(4, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1)})
			w.BindSource(w.net(12), 4)
			w.BindSource(w.net(24), 3)
		}, want: []outcome{clean.of(3).times(3), overPackets.of(3).times(2)}},
		row{name: "limit of another source", packet: tcp, setup: func(w *world) {
			w.Limit(3, three)
			w.BindSource(netip.PrefixFrom(w.sibling(20), 24).Masked(), 3)
		}, want: []outcome{clean.times(5)}},
		row{name: "limit of a source that is off", packet: tcp, setup: src32, want: []outcome{clean.nobody().times(3)}},
		row{name: "the last limit", packet: tcp, setup: func(w *world) { w.Limit(255, three); w.BindSource(w.net(32), 255) },
			want: []outcome{clean.of(255).times(3), overPackets.of(255).times(2)}},
		row{name: "limit of a tcp port", packet: tcp, setup: func(w *world) { w.Limit(3, three); w.BindService(6, 443, 3) },
			want: []outcome{clean.of(3).times(3), overPackets.of(3).times(2)}},
		row{name: "limit of a udp port", packet: udp, setup: func(w *world) { w.Limit(3, three); w.BindService(17, 53, 3) },
			want: []outcome{clean.of(3).times(3), overPackets.of(3).times(2)}},
		row{name: "limit of another tcp port", packet: tcp, setup: func(w *world) {
			w.Limit(3, three)
			w.BindService(6, 442, 3)
			w.BindService(6, 444, 3)
			w.BindService(6, 40000, 3) // the source's port
		}, want: []outcome{clean.times(4)}},
		row{name: "limit of a tcp port is not for udp", packet: func(w *world) *packet.Packet { return w.ip().UDP(1, 443) },
			setup: func(w *world) { w.Limit(3, three); w.BindService(6, 443, 3) }, want: []outcome{clean.times(4)}},
		row{name: "limit of the last ports", packet: func(w *world) *packet.Packet { return w.ip().UDP(1, 65535) },
			setup: func(w *world) { w.Limit(3, three); w.BindService(17, 65535, 3) }, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "limit of a port, and a fragment without ports", packet: later,
			setup: func(w *world) { w.Limit(3, three); w.BindService(17, 2, 3) }, want: []outcome{clean.times(4)}},
		row{name: "limit of a port, and a first fragment", packet: frag,
			setup: func(w *world) { w.Limit(3, three); w.BindService(17, 2, 3) }, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "limit of a port behind extensions", packet: func(w *world) *packet.Packet { return w.ip().Extension(packet.AH, 4).TCP(1, 443) },
			setup: func(w *world) { w.Limit(3, three); w.BindService(6, 443, 3) }, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "limit of a protocol", packet: func(w *world) *packet.Packet { return w.ip().Raw(packet.GRE, 0, 0, 8, 0) },
			setup: func(w *world) { w.Limit(3, three); w.BindService(packet.GRE, 0, 3) }, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "limit of a protocol, and its fragments", packet: later,
			setup: func(w *world) { w.Limit(3, three); w.BindService(17, 0, 3) }, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "limit of another protocol", packet: tcp, setup: func(w *world) {
			w.Limit(3, three)
			w.BindService(7, 0, 3)
			w.BindService(5, 0, 3)
		}, want: []outcome{clean.times(4)}},
		row{name: "limit of the unknown", only: only6, packet: func(w *world) *packet.Packet {
			p := w.ip()
			for range 9 {
				p = p.Extension(packet.DestOptions, 0)
			}
			return p.TCP(1, 443)
		}, setup: func(w *world) {
			w.Limit(3, three)
			w.Limit(4, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1)})
			w.BindService(6, 443, 4)
			w.BindService(255, 0, 3)
		}, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "a port comes before its protocol", packet: tcp, setup: func(w *world) {
			w.Limit(3, three)
			w.Limit(4, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1)})
			w.BindService(6, 0, 4)
			w.BindService(6, 443, 3)
		}, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "a source comes before a port", packet: tcp, setup: func(w *world) {
			w.Limit(3, three)
			w.Limit(4, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1)})
			w.BindService(6, 443, 4)
			src32(w)
		}, want: []outcome{clean.of(3).times(3), overPackets.of(3)}},
		row{name: "one limit's excess is not another's", packet: tcp, setup: func(w *world) {
			w.Limit(0, three)
			w.Limit(3, three)
			w.BindService(17, 0, 3)
			for range 5 {
				w.send(udp(w))
			}
		}, want: []outcome{clean.times(3), overPackets}},
	)
}

func switchRows() []row {
	monitor := func(w *world) { w.SetControl(func(c *bpf.Control) { c.Monitor = 1 }) }
	panics := func(w *world) { w.SetControl(func(c *bpf.Control) { c.Panic = 1 }) }
	bad3 := func(w *world) *packet.Packet { return w.ip().Version(5).TCP(1, 2) }
	bad4 := func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }
	return []row{
		ends("panic", tcp, panicking).given(panics),
		ends("panic and a ban", tcp, panicking).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: w.net(32)})
			panics(w)
		}),
		ends("panic and a limit", tcp, panicking.times(5)).given(func(w *world) {
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1)})
			panics(w)
		}),
		ends("panic and what is malformed", bad3, panicking).given(panics),
		ends("panic and a transport that is malformed", bad4, panicking).given(panics),
		ends("panic and arp", func(*world) *packet.Packet {
			return packet.New().ARP(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
		}, outcome{reason: bpf.ReasonPanic, n: 1, other: true, uncharged: true}).given(panics),
		ends("panic before monitor", bad3, panicking).given(func(w *world) { panics(w); monitor(w) }),
		ends("monitor", tcp, clean).given(monitor),
		ends("monitor and a malformed header", bad3, malformedL3.monitor()).given(monitor),
		ends("monitor and a malformed transport", bad4, malformedL4.monitor()).given(monitor),
		ends("monitor and a martian", func(w *world) *packet.Packet {
			if w.v6() {
				return w.from("::1").UDP(1, 2)
			}
			return w.from("127.0.0.1").UDP(1, 2)
		}, martian.monitor()).given(monitor),
		ends("monitor and a ban", tcp, banned.on(7).monitor()).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: w.net(32), List: 7})
			monitor(w)
		}),
		ends("monitor and a ban that monitors", tcp, banned.on(7).monitor()).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: w.net(32), List: 7, Monitor: true})
			monitor(w)
		}),
		ends("monitor and a ban that is allowed", tcp, allowed).given(func(w *world) {
			w.Ban(rig.Ban{Prefix: w.net(32), List: 7})
			w.Allow(w.net(32), false, 0)
			monitor(w)
		}),
	}
}
