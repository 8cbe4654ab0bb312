package bpf_test

import (
	"bytes"
	"math"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// onCPU keeps the test on one CPU, as the program sees it.
func onCPU(tb testing.TB, cpu int) {
	tb.Helper()
	runtime.LockOSThread()
	var old, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		tb.Fatal(err)
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &old); err != nil {
			tb.Error(err)
		}
		runtime.UnlockOSThread()
	})
}

func openEvents(tb testing.TB, r *rig.Rig) *rig.Events {
	tb.Helper()
	events, err := r.Events()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { events.Close() })
	drain(tb, events)
	return events
}

func drain(tb testing.TB, events *rig.Events) []bpf.Event {
	tb.Helper()
	all, err := events.Drain()
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// TestEvents checks what an event says, field by field.
func TestEvents(t *testing.T) {
	r := loadDefault(t)
	events := openEvents(t, r)
	ban := func(monitor bool) func(w *world) {
		return func(w *world) { w.Ban(rig.Ban{Prefix: w.net(24), List: 77, Monitor: monitor}) }
	}
	for _, c := range []struct {
		name   string
		only   bpf.Family
		setup  func(w *world)
		packet build
		want   bpf.Event // without time, addresses, length and capture
		nobody bool      // no addresses: what is malformed has none
	}{
		{name: "banned", setup: ban(false), packet: tcp, want: bpf.Event{Reason: uint8(bpf.ReasonBanned), List: 77, Protocol: 6, Sport: 40000, Dport: 443}},
		{name: "banned, monitored", setup: ban(true), packet: tcp,
			want: bpf.Event{Reason: uint8(bpf.ReasonBanned), List: 77, Protocol: 6, Sport: 40000, Dport: 443, Monitored: 1}},
		{name: "over a limit", setup: func(w *world) {
			w.Limit(9, rig.Limit{Thresholds: never(bpf.ThresholdSYN)})
			w.BindService(6, 443, 9)
		}, packet: func(w *world) *packet.Packet { return tcp(w).Flags(packet.SYN) },
			want: bpf.Event{Reason: uint8(bpf.ReasonLimitSYN), Limit: 9, Protocol: 6, Sport: 40000, Dport: 443}},
		{name: "over a limit that monitors", setup: func(w *world) {
			w.Limit(0, rig.Limit{Thresholds: never(bpf.ThresholdUDP), Flags: bpf.LimitMonitor})
		}, packet: udp, want: bpf.Event{Reason: uint8(bpf.ReasonLimitUDP), Protocol: 17, Sport: 40000, Dport: 53, Monitored: 1}},
		{name: "malformed transport", packet: func(w *world) *packet.Packet { return tcp(w).DataOffset(3) },
			want: bpf.Event{Reason: uint8(bpf.ReasonMalformedL4), Protocol: 6, Sport: 40000, Dport: 443}},
		{name: "transport cut off", packet: func(w *world) *packet.Packet { return w.ip().Raw(packet.UDPNumber, 1, 2, 3) },
			want: bpf.Event{Reason: uint8(bpf.ReasonMalformedL4), Protocol: 17}},
		{name: "extensions cut off", only: only6, packet: func(w *world) *packet.Packet { return w.ip().Raw(packet.Routing, 1, 2, 3) },
			want: bpf.Event{Reason: uint8(bpf.ReasonMalformedL4), Protocol: 255}},
		{name: "malformed header", packet: func(w *world) *packet.Packet { return tcp(w).Truncate(30) },
			want: bpf.Event{Reason: uint8(bpf.ReasonMalformedL3)}, nobody: true},
		{name: "header cut to nothing", packet: func(w *world) *packet.Packet { return tcp(w).Truncate(14) },
			want: bpf.Event{Reason: uint8(bpf.ReasonMalformedL3)}, nobody: true},
		{name: "under global monitor", setup: func(w *world) { w.SetControl(func(c *bpf.Control) { c.Monitor = 1 }) },
			packet: func(w *world) *packet.Packet { return tcp(w).DataOffset(3) },
			want:   bpf.Event{Reason: uint8(bpf.ReasonMalformedL4), Protocol: 6, Sport: 40000, Dport: 443, Monitored: 1}},
		{name: "later fragment", setup: ban(true), packet: func(w *world) *packet.Packet { return w.ip().Fragment(800, true).Raw(packet.TCPNumber, 1, 2) },
			want: bpf.Event{Reason: uint8(bpf.ReasonBanned), List: 77, Protocol: 6, Monitored: 1}},
		{name: "behind tags", setup: ban(true), packet: func(w *world) *packet.Packet { return packet.New().SVLAN(1).VLAN(2).IP(w.src, w.dst).SCTP(5, 6) },
			want: bpf.Event{Reason: uint8(bpf.ReasonBanned), List: 77, Protocol: 132, Sport: 5, Dport: 6, Monitored: 1}},
	} {
		for _, w := range worlds(t, r) {
			if c.only != bpf.FamilyOther && c.only != w.family {
				continue
			}
			w.baseline()
			w.SetControl(func(c *bpf.Control) { c.EventBudget = math.MaxUint32 })
			if c.setup != nil {
				c.setup(w)
			}
			frame := c.packet(w).Bytes()
			before := rig.Monotonic()
			run(t, r, frame)
			after := rig.Monotonic()
			all := drain(t, events)
			if len(all) != 1 {
				t.Errorf("%s, %s: %d events", c.name, w.family, len(all))
				continue
			}
			got, want := all[0], c.want
			// The clock is the coarse one: late by a tick of 10 ms at most.
			if got.Time > after || got.Time+20e6 < before {
				t.Errorf("%s, %s: at %d, sent between %d and %d", c.name, w.family, got.Time, before, after)
			}
			want.Time = got.Time
			want.Family = uint8(w.family)
			want.Length = uint32(len(frame))
			want.Ifindex = 1 // test runs come in on lo
			want.Captured = uint8(copy(want.Packet[:], frame))
			if got != want {
				addresses := bpf.Event{Src: got.Src, Dst: got.Dst}
				want.Src, want.Dst = addresses.Src, addresses.Dst
			}
			if got != want {
				t.Errorf("%s, %s:\ngot  %+v\nwant %+v", c.name, w.family, got, want)
			}
			src, dst := rig.Address(w.family, got.Src[0], got.Src[1]), rig.Address(w.family, got.Dst[0], got.Dst[1])
			if c.nobody {
				if got.Src != [2]uint64{} || got.Dst != [2]uint64{} {
					t.Errorf("%s, %s: from %s to %s", c.name, w.family, src, dst)
				}
			} else if src != w.src || dst != w.dst {
				t.Errorf("%s, %s: from %s to %s, want from %s to %s", c.name, w.family, src, dst, w.src, w.dst)
			}
		}
	}
}

// TestEventCapture checks how much of a frame is captured, at every length around the most.
func TestEventCapture(t *testing.T) {
	r := loadDefault(t)
	events := openEvents(t, r)
	for _, w := range worlds(t, r) {
		w.baseline()
		w.Ban(rig.Ban{Prefix: w.net(24), List: 77})
		w.SetControl(func(c *bpf.Control) { c.EventBudget = math.MaxUint32 })
		whole := w.ip().UDP(1, 2).Payload(150).Bytes()
		for n := 14; n <= len(whole); n++ {
			run(t, r, whole[:n])
			all := drain(t, events)
			if len(all) != 1 {
				t.Fatalf("%d bytes: %d events", n, len(all))
			}
			want := whole[:min(n, int(bpf.EventBytes))]
			if e := all[0]; int(e.Captured) != len(want) || !bytes.Equal(e.Packet[:e.Captured], want) || e.Length != uint32(n) {
				t.Errorf("%d bytes: %d captured of %d\n% x", n, e.Captured, e.Length, e.Packet[:e.Captured])
			}
		}
	}
}

// TestNoEvents checks that what passes is not sampled, and nothing at all without a budget.
func TestNoEvents(t *testing.T) {
	r := loadDefault(t)
	events := openEvents(t, r)
	for _, w := range worlds(t, r) {
		for _, budget := range []uint32{0, math.MaxUint32} {
			w.baseline()
			w.SetControl(func(c *bpf.Control) { c.EventBudget = budget })
			before := r.Stats()
			run(t, r, tcp(w).Bytes())
			run(t, r, w.icmp(w.ip(), 3, 1).Bytes())
			run(t, r, packet.New().Type(0x88CC).Payload(50).Bytes())
			if budget == 0 {
				w.Ban(rig.Ban{Prefix: w.net(24)})
				run(t, r, tcp(w).Bytes())
			}
			if all := drain(t, events); len(all) != 0 {
				t.Errorf("budget %d, %s: %+v", budget, w.family, all)
			}
			before[bpf.StatTracked] = r.Stats()[bpf.StatTracked]
			if after := r.Stats(); after != before {
				t.Errorf("budget %d, %s: stats %v, before %v", budget, w.family, after, before)
			}
		}
	}
}

// TestEventBudget checks that a CPU writes its budget of events in a second, and counts the rest.
func TestEventBudget(t *testing.T) {
	r := loadDefault(t)
	events := openEvents(t, r)
	onCPU(t, 0)
	w := worlds(t, r)[0]
	w.baseline()
	w.Ban(rig.Ban{Prefix: w.net(24)})
	w.SetControl(func(c *bpf.Control) { c.EventBudget = 5 })
	frame := tcp(w).Bytes()
	for try := 0; ; try++ {
		r.Reset()
		w.Ban(rig.Ban{Prefix: w.net(24)})
		w.SetControl(func(c *bpf.Control) { c.EventBudget = 5 })
		before := r.Stats()
		// The coarse clock is late: a second that begins meanwhile may show a tick later.
		second := (rig.Monotonic() - 20e6) >> 30
		for range 12 {
			run(t, r, frame)
		}
		after := r.Stats()
		got := drain(t, events)
		if rig.Monotonic()>>30 != second && try < 5 {
			continue // a new second began
		}
		written, over := after[bpf.StatEvents]-before[bpf.StatEvents], after[bpf.StatEventsOverBudget]-before[bpf.StatEventsOverBudget]
		if len(got) != 5 || written != 5 || over != 7 || after[bpf.StatEventsLost] != before[bpf.StatEventsLost] {
			t.Errorf("%d events, %d written, %d over budget, of 12 with a budget of 5", len(got), written, over)
		}
		return
	}
}

// TestEventsLost stops reading: the program goes on dropping and counts what found no room.
func TestEventsLost(t *testing.T) {
	r := loadDefault(t)
	events := openEvents(t, r)
	w := worlds(t, r)[0]
	w.baseline()
	w.Ban(rig.Ban{Prefix: w.net(24)})
	w.SetControl(func(c *bpf.Control) { c.EventBudget = math.MaxUint32 })
	const sent = 10_000
	before := r.Stats()
	banned := r.Count(bpf.ReasonBanned, w.family, false)
	verdict, err := r.Repeat(tcp(w).Bytes(), sent)
	if err != nil {
		t.Fatal(err)
	}
	after := r.Stats()
	dropped := r.Count(bpf.ReasonBanned, w.family, false).Packets - banned.Packets
	written, lost := after[bpf.StatEvents]-before[bpf.StatEvents], after[bpf.StatEventsLost]-before[bpf.StatEventsLost]
	if verdict != xdpDrop || dropped < sent || lost == 0 || written+lost != dropped {
		t.Errorf("%s, %d dropped; %d events written and %d lost of %d packets", action(verdict), dropped, written, lost, sent)
	}
	if got := drain(t, events); uint64(len(got)) != written {
		t.Errorf("%d events read, %d written", len(got), written)
	}
	run(t, r, tcp(w).Bytes())
	if got := drain(t, events); len(got) != 1 {
		t.Errorf("%d events of one packet after the reader has caught up", len(got))
	}
}
