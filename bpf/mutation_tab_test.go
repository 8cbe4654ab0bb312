package bpf_test

import (
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// tabRows are of sources whose last packet was answered in the same tick of the coarse clock. A tick
// that ends within a row changes nothing of what is right, only whether the tab was asked.
func tabRows() []row {
	syn := func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN) }
	sized := func(n int) build {
		return func(w *world) *packet.Packet { return udp(w).Pad(n).Truncate(n) }
	}
	coarse := func(t bpf.Threshold, r rig.Rate, credit uint8) rig.Limit {
		l := rig.Limit{Flags: bpf.LimitCoarse}
		l.Thresholds[t], l.Credit[t] = r, credit
		return l
	}
	after := func(l rig.Limit, sent ...build) func(w *world) {
		return func(w *world) {
			w.Limit(0, l)
			for _, b := range sent {
				w.send(b(w))
			}
		}
	}
	neighbour := func(w *world) *packet.Packet { return packet.New().IP(w.SharesTab(w.group()), w.dst).TCP(1, 2) }
	packets := coarse(bpf.ThresholdPackets, hourly(3), 0)
	return []row{
		{name: "refused once, refused for the tick", packet: tcp, setup: after(packets), want: []outcome{clean.times(3), overPackets.times(4)}},
		{name: "a long packet that was refused, and a short one", packet: sized(100),
			setup: after(coarse(bpf.ThresholdBits, rig.Rate{PerSecond: 0.1, Burst: 1500}, 0), sized(1000), sized(1000), sized(1000)), want: []outcome{clean.times(5)}},
		{name: "a SYN that was refused, and another packet", packet: tcp,
			setup: after(coarse(bpf.ThresholdSYN, hourly(1), 0), syn, syn, syn), want: []outcome{clean.times(3)}},
		{name: "another that was refused, and a SYN", packet: syn, setup: func(w *world) {
			l := packets
			l.Thresholds[bpf.ThresholdSYN] = hourly(1)
			after(l, tcp, tcp, tcp, tcp)(w)
		}, want: []outcome{overPackets.times(2)}},
		{name: "credit is for what it was given for", packet: syn, setup: func(w *world) {
			l := coarse(bpf.ThresholdPackets, hourly(100), 4)
			l.Thresholds[bpf.ThresholdSYN] = hourly(1)
			after(l, tcp, tcp, tcp)(w)
		}, want: []outcome{clean, overSYN.times(2)}},
		{name: "credit for a packet takes no more than it has", packet: sized(2100), setup: after(coarse(bpf.ThresholdPackets, hourly(4), 1), sized(100)),
			want: []outcome{clean.times(3), overPackets}},
		{name: "refused, and another source with its tab", packet: tcp, setup: func(w *world) {
			after(packets)(w)
			for range 5 {
				w.send(neighbour(w))
			}
		}, want: []outcome{clean.times(3), overPackets}},
		{name: "credit, and another source with its tab", packet: tcp, setup: func(w *world) {
			after(coarse(bpf.ThresholdPackets, hourly(100), 3))(w)
			for range 3 {
				w.send(neighbour(w))
			}
		}, want: []outcome{clean.times(9)}},
		{name: "refused under one limit, and another limit", packet: tcp, setup: func(w *world) {
			after(packets, tcp, tcp, tcp, tcp)(w)
			w.Limit(64, coarse(bpf.ThresholdPackets, hourly(5), 0)) // its tab is the same
			w.BindSource(w.net(32), 64)
		}, want: []outcome{clean.of(64).times(5), overPackets.of(64)}},
	}
}
