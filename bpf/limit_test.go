package bpf_test

import (
	"testing"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// A limit that monitors is measured, and the default holds as if it were not there.
func TestMonitoringLimitIsNoExemption(t *testing.T) {
	for _, w := range worlds(t, loadDefault(t)) {
		t.Run(w.family.String(), func(t *testing.T) {
			w.Reset()
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 3)})
			w.Limit(3, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 1), Flags: bpf.LimitMonitor})
			w.BindService(packet.TCPNumber, 443, 3)
			before := w.Snapshot() // other tests have counted, too
			for range 10 {
				w.send(tcp(w))
			}
			after := w.Snapshot()
			moved := func(reason bpf.Reason, monitored bool) uint64 {
				return after.Count(w.Slot, reason, w.family, monitored).Packets - before.Count(w.Slot, reason, w.family, monitored).Packets
			}
			passed := moved(bpf.ReasonClean, false)
			monitored := moved(bpf.ReasonLimitPackets, true)
			dropped := moved(bpf.ReasonLimitPackets, false)
			if passed != 1 || monitored != 2 || dropped != 7 {
				t.Errorf("of 10 packets %d passed, %d were monitored and %d dropped; want 1, 2 and 7", passed, monitored, dropped)
			}
		})
	}
}

// A source that owes for longer than an idle one keeps its slot does not come back with a fresh burst.
func TestDebtKeepsSlot(t *testing.T) {
	for _, w := range worlds(t, loadDefault(t)) {
		t.Run(w.family.String(), func(t *testing.T) {
			w.Reset()
			w.SetControl(func(c *bpf.Control) { c.SourceIdle = 0 })
			w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 3)})
			for range 3 {
				w.send(tcp(w))
			}
			index, err := w.SourceIndex(w.group(), 0)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 4096 { // each its own source, many to a bucket
				other := w.src
				for bit := range 12 {
					if i>>bit&1 != 0 {
						other = flip(other, w.groupLength()-1-bit)
					}
				}
				w.send(packet.New().IP(other, w.dst).TCP(1, 2))
			}
			if now, err := w.SourceIndex(w.group(), 0); err != nil || now != index {
				t.Errorf("the source had slot %d and has %d (%v) after 4,096 newcomers", index, now, err)
			}
			if run(t, w.Rig, tcp(w).Bytes()) != xdpDrop {
				t.Error("the source got a fresh burst")
			}
		})
	}
}
