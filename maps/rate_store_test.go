package maps

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// All pairs of rates, so both words rise, fall, and stay, by little and by much: what stands between
// them is never laxer than both, nor lets nothing pass.
func TestRateSteps(t *testing.T) {
	longest := 0
	for what, c := range map[string]struct {
		largest func(uint64) uint64
		costs   []uint64 // the lowest and the highest, and some between
	}{
		"packets":     {ceilShift, []uint64{costOf(maxPackets, 1), costOf(1e6, 1), costOf(7, 1), costOf(5, 1), costOf(minPackets, 1)}},
		"bits":        {frameNs, []uint64{costOf(maxBits, 8), costOf(1e9, 8), costOf(5e4, 8), costOf(minBits, 8)}},
		"control cap": {wholeNs, []uint64{100, 101, 1e6, 1e9, 3600e9}},
	} {
		rates := []bpf.Rate{{}, {Cost: c.costs[1]}}
		for _, cost := range c.costs {
			for _, burst := range []uint64{1, 2, 3, 100, 5000} {
				rates = append(rates, bpf.Rate{Cost: cost, Burst: c.largest(cost) * burst}, bpf.Rate{Cost: cost, Burst: c.largest(cost)*burst + c.largest(cost)/2})
			}
		}
		for _, from := range rates {
			for _, to := range rates {
				steps := rateSteps(from, to, c.largest)
				longest = max(longest, len(steps))
				last, none := from, from.Burst == 0 || to.Burst == 0
				for i, r := range steps {
					if r.Cost != last.Cost && r.Burst != last.Burst {
						t.Errorf("%s, %v to %v: step %d of %v changes both words", what, from, to, i, steps)
					}
					last = r
					if none {
						// There is no rate, until there is the new one; or there is none right away.
						if r.Burst != 0 && (i < len(steps)-1 || r != to) {
							t.Errorf("%s, %v to %v: step %d of %v is a rate", what, from, to, i, steps)
						}
						continue
					}
					atOnce := r.Burst / c.largest(r.Cost)
					most := max(from.Burst/c.largest(from.Cost), to.Burst/c.largest(to.Cost))
					if r.Cost < min(from.Cost, to.Cost) || r.Burst > max(from.Burst, to.Burst) || atOnce > most {
						t.Errorf("%s, %v to %v: step %d of %v is laxer than both", what, from, to, i, steps)
					}
					if r.Cost > max(from.Cost, to.Cost) || r.Burst < min(from.Burst, to.Burst) || atOnce < 1 {
						t.Errorf("%s, %v to %v: step %d of %v is stricter than both", what, from, to, i, steps)
					}
				}
				if last.Burst != to.Burst || to.Burst != 0 && last != to {
					t.Errorf("%s, %v to %v: ends at %v", what, from, to, last)
				}
				if t.Failed() {
					return
				}
			}
		}
	}
	t.Logf("%d steps at most", longest)
}

// Whatever a limit's memory may hold: a rate is reached from it, in few steps.
func FuzzRateSteps(f *testing.F) {
	f.Add(uint64(0), uint64(1), uint64(1<<40), uint64(1<<50))
	f.Add(^uint64(0), ^uint64(0), uint64(1), uint64(1))
	f.Add(uint64(1), uint64(1), ^uint64(0), ^uint64(0))
	f.Fuzz(func(t *testing.T, cost, burst, toCost, toBurst uint64) {
		for _, largest := range []func(uint64) uint64{ceilShift, frameNs, wholeNs} {
			to := bpf.Rate{Cost: toCost, Burst: toBurst}
			steps := rateSteps(bpf.Rate{Cost: cost, Burst: burst}, to, largest)
			if last := steps[len(steps)-1]; len(steps) > 250 || last.Burst != toBurst || toBurst != 0 && last != to {
				t.Errorf("%d steps: %v", len(steps), steps)
			}
		}
	})
}

// TestStoreRate looks at a rate from another goroutine while it changes between rates with a burst
// of one packet: none of the states in between lets none pass.
func TestStoreRate(t *testing.T) {
	r := seeded(t)
	rate := make([]uint64, 2)
	var stop atomic.Bool
	var wg sync.WaitGroup
	storeRate(&rate[0], &rate[1], bpf.Rate{Cost: 1000, Burst: 1000}, wholeNs)
	wg.Go(func() {
		for !stop.Load() {
			ns := 100 + r.Uint64N(1e9)
			storeRate(&rate[0], &rate[1], bpf.Rate{Cost: ns, Burst: ns}, wholeNs)
		}
	})
	seen := 0
	for seen < 200000 {
		burst := atomic.LoadUint64(&rate[1])
		cost := atomic.LoadUint64(&rate[0])
		if atomic.LoadUint64(&rate[1]) != burst {
			continue // that was not one state
		}
		if seen++; cost > burst {
			t.Errorf("cost %d, burst %d", cost, burst)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}
