package bpf_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// longWay is the program as it is, but that every packet takes the long way.
func longWay(t *testing.T, p *ebpf.ProgramSpec) *ebpf.ProgramSpec {
	t.Helper()
	code := p.Instructions
	end := 1 + slices.IndexFunc(code[1:], func(ins asm.Instruction) bool { return ins.Symbol() != "" })
	if !slices.ContainsFunc(code[end:], func(ins asm.Instruction) bool { return ins.Symbol() == "long_way" }) {
		t.Fatal("the program has no long way")
	}
	p = p.Copy()
	p.Instructions = slices.Concat(asm.Instructions{
		asm.Call.Label("long_way").WithMetadata(code[0].Metadata).WithReference("long_way"),
		asm.Return(),
	}, p.Instructions[end:])
	return p
}

// circumstances are what a packet meets: a bit each.
func circumstances(r *rig.Rig, what uint32) {
	is := func(bit int) bool { return what>>bit&1 == 1 }
	v4, v6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")
	limit := func(number uint8, threshold bpf.Threshold, flags uint8) {
		l := rig.Limit{Flags: bpf.LimitCoarse | flags}
		for i := range l.Thresholds {
			l.Thresholds[i] = rig.Rate{PerSecond: 1, Burst: 1e6}
			if is(0) {
				l.Credit[i] = 2
			}
		}
		l.Thresholds[threshold] = hourly(3)
		if is(1) {
			l.Penalty = time.Hour
		}
		r.Limit(number, l)
	}
	r.Reset()
	limit(0, bpf.Threshold(what>>2&3), 0)
	if is(4) {
		limit(1, bpf.ThresholdSYN, bpf.LimitMonitor)
		r.BindService(6, 443, 1)
	}
	if is(5) {
		limit(2, bpf.ThresholdUDP, 0)
		r.BindService(17, 53, 2)
	}
	for _, p := range []netip.Prefix{v4, v6} {
		if is(6) && is(7) {
			limit(3, bpf.ThresholdBits, 0)
			r.BindSource(p, 3)
		}
		if is(8) && is(9) {
			r.Ban(rig.Ban{Prefix: p, List: 7, Monitor: is(10)})
		}
		if is(11) && is(12) {
			r.Allow(p, is(13), bpf.Forever)
		}
	}
	r.SetControl(func(c *bpf.Control) {
		c.SourceIdle = uint64(10 * time.Second)
		c.Monitor = what >> 14 & what >> 15 & 1
		c.Panic = what >> 16 & what >> 17 & what >> 18 & 1
	})
}

// TestShortWay sends random packets, plain ones and others, by the program and by its long way alone,
// while the clock stands still: all comes to the same, the verdicts, what is counted, and what each source
// is charged.
func TestShortWay(t *testing.T) {
	needKernel(t)
	onCPU(t, 0) // tabs are a CPU's own
	config := configOf(bpf.DefaultFeatures())
	config.Spec = stopped(t)
	config.Spec.Programs["long"] = longWay(t, config.Spec.Programs[bpf.LeveeProgLevee])
	r, err := rig.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	frames := seeds()
	for _, w := range worlds(t, r) {
		for range len(frames) / 2 { // so that half of them are plain
			frames = append(frames, tcp(w).Bytes(), udp(w).Bytes())
		}
	}
	rounds := 600
	if testing.Short() {
		rounds /= 8
	}
	short, long := r.Programs[bpf.LeveeProgLevee], r.Programs["long"]
	last := r.Snapshot()
	for range rounds {
		frame := mutate(random, frames)
		if len(frame) > rig.FirstBuffer {
			continue
		}
		what := random.Uint32()
		want, should := comesTo(t, r, &last, long, frame, what)
		got, moves := comesTo(t, r, &last, short, frame, what)
		if diff := moves.Compare(should); got != want || diff != "" {
			t.Fatalf("% x, %s, circumstances %#x:\n\t%s, by the long way\n\t%s%s", frame, r, what, got, want, diff)
		}
	}
}

// comesTo is what becomes of a packet that is sent a few times, and what that moves since the last snapshot.
func comesTo(t *testing.T, r *rig.Rig, last *rig.Snapshot, p *ebpf.Program, frame []byte, what uint32) (string, rig.Moves) {
	t.Helper()
	circumstances(r, what)
	r.Program = p
	before := r.Resource(*last)
	var verdicts []string
	for range 6 {
		verdicts = append(verdicts, action(run(t, r, frame)))
	}
	var charged [][bpf.ThresholdMax]uint64
	for source := range r.Sources() {
		for limit := range uint8(4) {
			if index, err := r.SourceIndex(source, limit); err == nil {
				charged = append(charged, r.SourceState(index).Tat)
			}
		}
	}
	*last = r.Reread(before)
	return fmt.Sprint(verdicts, charged), last.Since(before)
}
