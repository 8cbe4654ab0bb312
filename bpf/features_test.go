package bpf_test

import (
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// TestFeaturesOff loads the program without each stage: what it would have said is not said, and the
// other stages go on.
func TestFeaturesOff(t *testing.T) {
	needKernel(t)
	ban := func(w *world) { w.Ban(rig.Ban{Prefix: w.net(32), List: 7}) }
	limit := func(w *world) { w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1)}) }
	loopback := func(w *world) *packet.Packet {
		if w.v6() {
			return w.from("::1").UDP(1, 2)
		}
		return w.from("127.0.0.1").UDP(1, 2)
	}
	self := map[bpf.Family]string{only4: "127.0.0.1", only6: "::"}
	for _, c := range []struct {
		name   string
		change func(*bpf.Features)
		rows   []row
	}{
		{"bans", func(f *bpf.Features) { f.Bans = false }, []row{
			ends("banned", tcp, clean).given(ban),
			ends("malformed", func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, malformedL4),
			{name: "limited", packet: tcp, setup: limit, want: []outcome{clean, overPackets}},
		}},
		{"sanity", func(f *bpf.Features) { f.Sanity = false }, []row{
			ends("malformed transport", func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, clean),
			ends("malformed header", func(w *world) *packet.Packet { return w.ip().Version(5).TCP(1, 2) }, clean.nobody()),
			ends("martian", loopback, clean).wants(func(w *world) outcome { return clean.to(self[w.family]) }),
			ends("banned, malformed transport", func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, banned.on(7)).given(ban),
			{name: "limited", packet: tcp, setup: limit, want: []outcome{clean, overPackets}},
		}},
		{"martians", func(f *bpf.Features) { f.Martians = false }, []row{
			ends("martian", loopback, clean).wants(func(w *world) outcome { return clean.to(self[w.family]) }),
			ends("malformed", func(w *world) *packet.Packet { return tcp(w).DataOffset(4) }, malformedL4),
		}},
		{"limits", func(f *bpf.Features) { f.Limits = false }, []row{
			{name: "limited", packet: tcp, setup: limit, want: []outcome{clean.nobody().times(3)}},
			ends("banned", tcp, banned.on(7)).given(ban),
			ends("error", func(w *world) *packet.Packet { return w.icmp(w.ip(), 3, 1) }, control),
		}},
		{"events", func(f *bpf.Features) { f.Events = false }, []row{
			ends("banned", tcp, banned.on(7)).given(func(w *world) { // no event is counted
				ban(w)
				w.SetControl(func(c *bpf.Control) { c.EventBudget = 100 })
			}),
		}},
	} {
		features := bpf.DefaultFeatures()
		c.change(&features)
		r, err := rig.Load(configOf(features))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range worlds(t, r) {
			for _, row := range c.rows {
				t.Run("without "+c.name+"/"+row.name+"/"+w.family.String(), func(t *testing.T) {
					w.tb = t
					w.check(row)
				})
			}
		}
		r.Close()
	}
}

// TestSlots runs copies of the program for other interfaces: each counts in its own slot, the last
// one too.
func TestSlots(t *testing.T) {
	needKernel(t)
	for _, slot := range []uint32{0, 1, bpf.MaxInterfaces - 1} {
		r, err := rig.Load(rig.Config{Slot: slot})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range worlds(t, r) {
			w.check(pass("tcp", tcp))
			w.check(ends("banned", tcp, banned.on(7)).given(func(w *world) { w.Ban(rig.Ban{Prefix: w.net(32), List: 7}) }))
		}
		r.Close()
	}
}

// TestMultiBuffer runs frames that are longer than their first buffer: lengths are the whole
// frame's, and a header past the first buffer is unknown, not missing.
func TestMultiBuffer(t *testing.T) {
	r := loadFrags(t)
	long := func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Payload(9000) }
	past := func(w *world) *packet.Packet { // the transport begins in the second buffer
		return w.ip().Extension(packet.DestOptions, 255).Extension(packet.DestOptions, 250).TCP(1, 443).Flags(packet.SYN).Payload(200)
	}
	for _, w := range worlds(t, r) {
		for _, row := range []row{
			pass("long", long),
			ends("long and cut off", func(w *world) *packet.Packet { return long(w).Truncate(8000) }, malformedL3),
			ends("long, with a length that lies", func(w *world) *packet.Packet { return w.ip().UDP(1, 2).Length(9009).Payload(9000) }, malformedL4),
			ends("long, from a banned source", long, banned.on(7)).given(func(w *world) { w.Ban(rig.Ban{Prefix: w.net(24), List: 7}) }),
			{name: "long, its bits", packet: long, setup: func(w *world) {
				var l rig.Limit
				l.Thresholds[bpf.ThresholdBits] = rig.Rate{PerSecond: 10, Burst: 20000}
				w.Limit(0, l)
			}, want: []outcome{clean.times(2), overBits.times(2)}},
			{name: "transport past the first buffer is charged", only: only6, packet: past, setup: func(w *world) {
				l := rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 2), Penalty: time.Hour}
				l.Thresholds[bpf.ThresholdSYN] = hourly(1)
				w.Limit(0, l)
			}, want: []outcome{clean.times(2), overPackets, penalty}},
			ends("transport past the first buffer, cut off", func(w *world) *packet.Packet {
				return w.ip().Extension(packet.DestOptions, 255).Extension(packet.DestOptions, 250).Raw(packet.TCPNumber, make([]byte, 19)...)
			}, malformedL4).in(only6),
		} {
			if row.only != bpf.FamilyOther && row.only != w.family {
				continue
			}
			t.Run(row.name+"/"+w.family.String(), func(t *testing.T) {
				w.tb = t
				w.check(row)
			})
		}
	}
}
