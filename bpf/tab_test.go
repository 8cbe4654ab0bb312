package bpf_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
	"github.com/levee-xdp/levee/bpf/internal/wrapper"
)

// TestTab sends packets of different kinds while the clocks stand still within a tick, when a tab answers for
// its source: only what it was asked before, and at most what is due.
func TestTab(t *testing.T) {
	needKernel(t)
	onCPU(t, 0) // tabs are a CPU's own
	config := configOf(bpf.DefaultFeatures())
	config.Spec = stopped(t)
	r, err := rig.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	coarse := func(set func(l *rig.Limit), credit uint8) rig.Limit {
		l := rig.Limit{Flags: bpf.LimitCoarse}
		set(&l)
		for i := range l.Credit {
			l.Credit[i] = credit
		}
		return l
	}
	only := func(l rig.Limit, t bpf.Threshold) rig.Limit {
		for i := range l.Credit {
			if bpf.Threshold(i) != t {
				l.Credit[i] = 0
			}
		}
		return l
	}
	packets := func(n float64) func(l *rig.Limit) {
		return func(l *rig.Limit) { l.Thresholds[bpf.ThresholdPackets] = hourly(n) }
	}
	for _, w := range worlds(t, r) {
		tcp, udp := tcp(w).Bytes(), udp(w)
		syn := packet.New().IP(w.src, w.dst).TCP(40000, 443).Flags(packet.SYN).Bytes()
		long, short := udp.Pad(1000).Truncate(1000).Bytes(), udp.Pad(100).Truncate(100).Bytes()
		for _, c := range []struct {
			name    string
			limit   rig.Limit
			first   []byte
			n       int
			then    []byte
			m       int
			verdict uint32 // of the last
		}{
			{"what was refused stays so", coarse(packets(3), 0), tcp, 4, tcp, 1, xdpDrop},
			{"a long packet is refused, a short one is not",
				coarse(func(l *rig.Limit) { l.Thresholds[bpf.ThresholdBits] = rig.Rate{PerSecond: 0.1, Burst: 1500} }, 0), long, 3, short, 1, xdpPass},
			{"a SYN is refused, another packet is not",
				coarse(func(l *rig.Limit) { l.Thresholds[bpf.ThresholdSYN] = hourly(1) }, 0), syn, 3, tcp, 1, xdpPass},
			{"credit is for what it was given for",
				only(coarse(func(l *rig.Limit) { packets(100)(l); l.Thresholds[bpf.ThresholdSYN] = hourly(1) }, 4), bpf.ThresholdPackets), tcp, 3, syn, 2, xdpDrop},
			{"credit ends, and is owed", coarse(packets(4), 2), tcp, 5, tcp, 1, xdpDrop},
			{"credit passes no more than it has", coarse(packets(4), 2), tcp, 4, tcp, 1, xdpPass},
			{"what passed on credit is owed by others, too",
				coarse(func(l *rig.Limit) { packets(4)(l); l.Thresholds[bpf.ThresholdSYN] = hourly(9) }, 2), tcp, 4, syn, 1, xdpDrop},
			{"an aggregate counts every packet", func() rig.Limit {
				l := coarse(packets(100), 7)
				l.Flags |= bpf.LimitAggregate
				l.Aggregate = hourly(3)
				return l
			}(), tcp, 3, tcp, 1, xdpDrop},
		} {
			r.Reset()
			w.baseline()
			r.Limit(0, c.limit)
			if _, err := r.Repeat(c.first, c.n); err != nil {
				t.Fatal(err)
			}
			if got, err := r.Repeat(c.then, c.m); err != nil || got != c.verdict {
				t.Errorf("%s, %s: verdict %d, want %d; %v", c.name, w.family, got, c.verdict, err)
			}
		}
	}
}

// stopped is the program with a coarse clock and jiffies that stand still.
func stopped(tb testing.TB) *ebpf.CollectionSpec {
	tb.Helper()
	s, err := bpf.LoadLevee()
	if err != nil {
		tb.Fatal(err)
	}
	s.Programs[bpf.LeveeProgLevee] = at(tb, s.Programs[bpf.LeveeProgLevee], 1<<30, 1<<20)
	return s
}

// at is a program for which it is always the same time: by the coarse clock, in ns, and by jiffies.
func at(tb testing.TB, p *ebpf.ProgramSpec, coarse, jiffies int32) *ebpf.ProgramSpec {
	tb.Helper()
	p = p.Copy()
	clocks := map[asm.BuiltinFunc]int32{asm.FnKtimeGetCoarseNs: coarse, asm.FnJiffies64: jiffies}
	asked := make(map[asm.BuiltinFunc]int)
	for i, ins := range p.Instructions {
		clock := asm.BuiltinFunc(ins.Constant)
		if says, is := clocks[clock]; is && ins.IsBuiltinCall() {
			p.Instructions[i] = asm.Mov.Imm(asm.R0, says).WithMetadata(ins.Metadata) // as long as the call, for jumps count instructions
			asked[clock]++
		}
	}
	for clock := range clocks {
		if asked[clock] == 0 {
			tb.Fatalf("the program does not ask %s", clock)
		}
	}
	return p
}

// TestTick has jiffies move before the coarse clock, as they do for a moment of each tick: what is refused then is
// not refused for the rest of it.
func TestTick(t *testing.T) {
	needKernel(t)
	onCPU(t, 0) // tabs are a CPU's own
	const tick = 4 * time.Millisecond
	spec, err := bpf.LoadLevee()
	if err != nil {
		t.Fatal(err)
	}
	program := spec.Programs[bpf.LeveeProgLevee]
	times := []struct {
		name            string
		coarse, jiffies int32
	}{{bpf.LeveeProgLevee, 1 << 30, 7}, {"between", 1 << 30, 8}, {"later", 1<<30 + int32(tick), 8}}
	for _, c := range times {
		spec.Programs[c.name] = at(t, program, c.coarse, c.jiffies)
	}
	config := configOf(bpf.DefaultFeatures())
	config.Spec = spec
	r, err := rig.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, w := range worlds(t, r) {
		r.Reset()
		w.baseline()
		l := rig.Limit{Flags: bpf.LimitCoarse}
		l.Thresholds[bpf.ThresholdPackets] = rig.Rate{PerSecond: float64(time.Second / tick), Burst: 1}
		r.Limit(0, l)
		frame := tcp(w).Bytes()
		for i, step := range []struct {
			at   string
			want uint32
		}{
			{times[0].name, xdpPass},
			{times[0].name, xdpDrop},
			{times[1].name, xdpDrop}, // asked by the old time
			{times[1].name, xdpDrop},
			{times[2].name, xdpPass}, // as soon as it is due
			{times[2].name, xdpDrop},
		} {
			got, err := r.Programs[step.at].Run(&ebpf.RunOptions{Data: frame})
			if err != nil {
				t.Fatal(err)
			}
			if got != step.want {
				t.Errorf("%s, packet %d, %s: verdict %d, want %d", w.family, i, step.at, got, step.want)
			}
		}
	}
}

// TestTabShared has two sources, and one under two limits, meet on one tab in turn: each is counted and
// charged for itself.
func TestTabShared(t *testing.T) {
	r := loadDefault(t)
	const packets = 20
	for _, w := range worlds(t, r) {
		r.Reset()
		w.baseline()
		l := rig.Limit{Flags: bpf.LimitCoarse}
		l.Thresholds[bpf.ThresholdPackets], l.Credit[bpf.ThresholdPackets] = hourly(5), 2
		r.Limit(0, l)
		onCPU(t, 0) // a tab is a CPU's, and so is the list's cursor
		both := []netip.Addr{w.group(), r.SharesTab(w.group())}
		if _, err := wrap(t, r, wrapper.Config{List: []netip.Addr{both[0], both[0], both[0], both[1], both[1]}}).Run(tcp(w).Bytes(), 5*packets); err != nil {
			t.Fatal(err)
		}
		sources := r.Sources()
		for i, sent := range []uint64{3 * packets, 2 * packets} {
			s := sources[both[i]]
			if s.Packets+s.Dropped != sent {
				t.Errorf("%s: %d passed and %d dropped, %d were sent", both[i], s.Packets, s.Dropped, sent)
			}
			if s.Packets < 5 || s.Packets > 5+2 {
				t.Errorf("%s: %d packets passed, the limit is 5, and 2 on credit", both[i], s.Packets)
			}
		}
	}
}
