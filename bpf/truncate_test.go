package bpf_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// golden is a sound packet that is cut at every length.
type golden struct {
	name   string
	only   bpf.Family
	ip     int // index of the IP header among the packet's
	packet build
	needs  int     // bytes behind the IP header's first 20 or 40 without which a host discards it
	whole  outcome // if they are there
	short  outcome // if they are not
}

func goldens() []golden {
	// Options are part of the IP header: what is cut there is the IP header.
	return []golden{
		{"tcp", 0, 1, func(w *world) *packet.Packet { return tcp(w).Payload(30) }, 20, clean, malformedL4},
		{"tcp with options", 0, 1, func(w *world) *packet.Packet { return tcp(w).Options(5).Payload(7) }, 40, clean, malformedL4},
		{"udp", 0, 1, udp, 28, clean, malformedL4}, // its own length tells on every byte
		{"udp, short by its own length", 0, 1, func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(8).Payload(30) }, 8, clean, malformedL4},
		{"echo", 0, 1, echo, 8, clean, malformedL4},
		{"icmp error", 0, 1, func(w *world) *packet.Packet { return w.icmp(w.ip(), 11, 3).Payload(40) }, 8, control, malformedL4},
		{"sctp", 0, 1, func(w *world) *packet.Packet { return w.ip().SCTP(1, 2).Payload(20) }, 8, clean, malformedL4},
		{"esp", 0, 1, func(w *world) *packet.Packet { return w.ip().Raw(packet.ESP, make([]byte, 40)...) }, 0, clean, clean},
		{"vlan", 0, 2, func(w *world) *packet.Packet { return packet.New().VLAN(9).IP(w.src, w.dst).TCP(1, 2).Payload(9) }, 20, clean, malformedL4},
		{"qinq", 0, 3, func(w *world) *packet.Packet { return packet.New().SVLAN(9).VLAN(8).IP(w.src, w.dst).UDP(1, 2) }, 8, clean, malformedL4},
		{"header options", only4, 1, func(w *world) *packet.Packet { return w.ip().Options(6).Raw(packet.ESP, 1, 2, 3, 4) }, 24, clean, malformedL3},
		{"first fragment in IPv4", only4, 1, func(w *world) *packet.Packet { return w.ip().Fragment(0, true).UDP(1, 2).Payload(40) }, 0, clean, clean},
		{"later fragment in IPv4", only4, 1, func(w *world) *packet.Packet {
			return w.ip().Fragment(800, true).Raw(packet.UDPNumber, make([]byte, 40)...)
		}, 0, clean, clean},
		// the fragment header itself can't be fragmented
		{"first fragment in IPv6", only6, 1, func(w *world) *packet.Packet { return w.ip().Fragment(0, true).UDP(1, 2).Payload(40) }, 8, clean, malformedL4},
		{"later fragment in IPv6", only6, 1, func(w *world) *packet.Packet {
			return w.ip().Fragment(800, true).Raw(packet.UDPNumber, make([]byte, 40)...)
		}, 8, clean, malformedL4},
		{"ah", 0, 1, func(w *world) *packet.Packet { return w.ip().Extension(packet.AH, 4).TCP(1, 2) }, 24 + 20, clean, malformedL4},
		{"extensions", only6, 1, func(w *world) *packet.Packet {
			return w.ip().Extension(packet.HopByHop, 0).Extension(packet.Routing, 1).Extension(packet.DestOptions, 0).TCP(1, 2).Payload(5)
		}, 8 + 16 + 8 + 20, clean, malformedL4},
	}
}

// TestTruncations cuts every golden packet at every length, with the IP header's length as it was
// and with one that is honest about it.
func TestTruncations(t *testing.T) {
	r := loadDefault(t)
	rows := 0
	for _, g := range goldens() {
		for _, w := range worlds(t, r) {
			if g.only != bpf.FamilyOther && g.only != w.family {
				continue
			}
			t.Run(g.name+"/"+w.family.String(), func(t *testing.T) {
				w.tb = t
				p := g.packet(w)
				frame, l3 := p.Bytes(), p.Offsets()[g.ip]
				header := 20
				if w.v6() {
					header = 40
				}

				var cuts []cut
				for n := 14; n < len(frame); n++ {
					o := malformedL3
					if n < l3 {
						o = cutEthernet
					}
					cuts = append(cuts, cut{frame[:n], o})
				}
				for n := l3 + header; n <= len(frame); n++ {
					b := slices.Clone(frame[:n])
					if w.v6() {
						binary.BigEndian.PutUint16(b[l3+4:], uint16(n-l3-header))
					} else {
						binary.BigEndian.PutUint16(b[l3+2:], uint16(n-l3))
					}
					o := g.whole
					if n < l3+header+g.needs {
						o = g.short
					}
					cuts = append(cuts, cut{b, o})
				}
				w.checkCuts(cuts)
				rows += len(cuts)
			})
		}
	}
	t.Logf("%d frames", rows)
}

type cut struct {
	frame []byte
	want  outcome
}

// checkCuts runs frames and checks each one's verdict and counter, and in the end that nothing else
// was counted.
func (w *world) checkCuts(cuts []cut) {
	w.baseline()
	before := w.Snapshot()
	want := make(rig.Moves)
	tracked := false
	for _, c := range cuts {
		family := w.family
		if c.want.other {
			family = bpf.FamilyOther
		}
		was := w.Count(c.want.reason, family, false)
		verdict := run(w.tb, w.Rig, c.frame)
		now := w.Count(c.want.reason, family, false)
		if (verdict == xdpPass) != c.want.passes() || now.Packets != was.Packets+1 || now.Bytes != was.Bytes+uint64(len(c.frame)) {
			w.tb.Errorf("%d bytes: %s, and %d packets of %d bytes counted as %s\n% x", len(c.frame), action(verdict),
				now.Packets-was.Packets, now.Bytes-was.Bytes, c.want.reason, c.frame)
		}
		w.moves(want, c.want, uint64(len(c.frame)))
		tracked = tracked || !c.want.uncharged
	}
	if tracked {
		want.Stat(bpf.StatTracked, 1)
	}
	if diff := w.Snapshot().Since(before).Compare(want); diff != "" {
		w.tb.Error(diff)
	}
}
