package maps

import (
	"errors"
	"math"
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levee-xdp/levee/bpf"
)

// admit is gcra.h in plain words: how many of n frames of a size that arrive at once pass, when
// nothing is owed.
func admit(r bpf.Rate, units uint64, n int) (passed int) {
	var tat uint64
	for range n {
		cost := ceilShift(r.Cost * units)
		if tat+cost <= r.Burst {
			tat += cost
			passed++
		}
	}
	return passed
}

func logUniform(low, high float64) *rapid.Generator[float64] {
	return rapid.Custom(func(t *rapid.T) float64 {
		return min(high, max(low, math.Exp(rapid.Float64Range(math.Log(low), math.Log(high)).Draw(t, "log"))))
	})
}

// TestPacketRates checks that no rate lets more pass than it says, nor 1 % less.
func TestPacketRates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Rate{PerSecond: logUniform(minPackets, maxPackets).Draw(t, "rate")}
		if rapid.Bool().Draw(t, "burst given") {
			most := maxDebt.Seconds() * want.PerSecond
			want.Burst = logUniform(1, max(1, min(most/1.02, 1e9))).Draw(t, "burst")
		}
		r, err := want.packets("packets")
		if err != nil {
			t.Fatal(err)
		}
		ns := ceilShift(r.Cost)
		got := 1e9 / float64(ns)
		if got > want.PerSecond*(1+1e-12) || got < want.PerSecond*0.99 {
			t.Fatalf("%v/s: a packet costs %d ns, that is %v/s", want.PerSecond, ns, got)
		}
		// Exactly, too: cost >= 1e9<<20 / rate.
		exact := new(big.Rat).Mul(new(big.Rat).SetFloat64(want.PerSecond), new(big.Rat).SetInt(new(big.Int).SetUint64(r.Cost)))
		if exact.Cmp(new(big.Rat).SetInt64(1e9<<20)) < 0 {
			t.Fatalf("%v/s: cost %d is less than the rate's", want.PerSecond, r.Cost)
		}
		burst := want.Burst
		if burst == 0 {
			burst = max(1, want.PerSecond)
		}
		if passed := r.Burst / ns; passed != uint64(burst) {
			t.Fatalf("burst of %v lets %d pass", burst, passed)
		}
		if r.Burst > uint64(maxDebt) {
			t.Fatalf("burst of %v takes %v", burst, time.Duration(r.Burst))
		}
	})
}

func TestBitRates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Rate{PerSecond: logUniform(minBits, maxBits).Draw(t, "rate")}
		if rapid.Bool().Draw(t, "burst given") {
			want.Burst = logUniform(minBurstBits, min(1e13, want.PerSecond*maxDebt.Seconds())).Draw(t, "burst")
		}
		r, err := want.bits("bits")
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []uint64{60, 576, 1514, 9014, 65535} {
			ns := float64(ceilShift(r.Cost * size))
			got, exact := float64(size*8)*1e9/ns, float64(size*8)*1e9/want.PerSecond
			if got > want.PerSecond*(1+1e-12) || got < want.PerSecond*0.99 && ns > exact+1 {
				t.Fatalf("%v bit/s in frames of %d bytes: %v bit/s", want.PerSecond, size, got)
			}
		}
		burst := want.Burst
		if burst == 0 {
			burst = max(want.PerSecond, leastBurstBits)
		}
		// The largest frame passes when nothing is owed, and no more than the burst does (and a ns).
		if admit(r, frameBytes, 1) != 1 {
			t.Fatalf("burst of %v: a frame of 65535 bytes never passes", burst)
		}
		most := (float64(r.Burst) + 1) / (float64(r.Cost) / (1 << 20)) * 8
		if float64(r.Burst-1)/(float64(r.Cost)/(1<<20))*8 > burst*(1+1e-9) || most < burst*0.99 {
			t.Fatalf("burst of %v lets %v pass", burst, most)
		}
	})
}

func TestRateExamples(t *testing.T) {
	for _, c := range []struct {
		rate   Rate
		cost   uint64 // ns
		passed int
	}{
		{Rate{PerSecond: 10}, 1e8, 10},
		{Rate{PerSecond: 20000}, 50000, 20000},
		{Rate{PerSecond: 1e7, Burst: 7}, 100, 7},
		{Rate{PerSecond: 1.0 / 3600}, 3600e9 + 1, 1}, // 1/3600 has no float64: the next is smaller,
		{Rate{PerSecond: 1.0 / 3600, Burst: 24 * 364}, 3600e9 + 1, 24 * 364},
		{Rate{PerSecond: 0.5, Burst: 2.9}, 2e9, 2},
		{Rate{PerSecond: 3}, 333333334, 3},
	} {
		r, err := c.rate.packets("packets")
		if err != nil {
			t.Errorf("%+v: %v", c.rate, err)
			continue
		}
		if got := ceilShift(r.Cost); got != c.cost {
			t.Errorf("%+v: a packet costs %d ns, want %d", c.rate, got, c.cost)
		}
		if got := admit(r, 1, c.passed+3); got != c.passed {
			t.Errorf("%+v: %d pass at once, want %d", c.rate, got, c.passed)
		}
	}
	if r, err := (Rate{}).packets("packets"); err != nil || r != (bpf.Rate{}) {
		t.Errorf("no rate: %+v, %v", r, err)
	}
}

func TestRatesOutOfRange(t *testing.T) {
	nan := math.NaN()
	for _, r := range []Rate{
		{PerSecond: 1e7 + 1}, {PerSecond: 1.0 / 3601}, {PerSecond: -1}, {PerSecond: nan}, {PerSecond: math.Inf(1)},
		{Burst: 5}, {PerSecond: 10, Burst: 0.5}, {PerSecond: 10, Burst: -1}, {PerSecond: 10, Burst: nan},
		{PerSecond: 1, Burst: 366 * 86400}, {PerSecond: 10, Burst: math.Inf(1)},
	} {
		var ranged *RangeError
		if _, err := r.packets("packets"); !errors.As(err, &ranged) {
			t.Errorf("%+v packets: %v", r, err)
		} else {
			t.Log(err)
		}
	}
	for _, r := range []Rate{
		{PerSecond: 999}, {PerSecond: 1.1e11}, {PerSecond: nan}, {PerSecond: -1e6}, {Burst: 1e6},
		{PerSecond: 1e6, Burst: minBurstBits - 1}, {PerSecond: 1e6, Burst: nan}, {PerSecond: 1e6, Burst: math.Inf(1)},
	} {
		var ranged *RangeError
		if _, err := r.bits("bits"); !errors.As(err, &ranged) {
			t.Errorf("%+v bits: %v", r, err)
		} else {
			t.Log(err)
		}
	}
}

// TestCoarse checks which limits may tell the time by the coarse clock, and that no window of such
// a limit admits more than a packet over its rate, however late that clock is.
func TestCoarse(t *testing.T) {
	l := &Limits{tick: 4e6, cpus: 4}
	encode := func(limit Limit) bpf.Limit {
		e, err := l.encode(1, limit)
		if err != nil {
			t.Fatal(err)
		}
		return e.limit
	}
	thresholds := func(packets, bits, syn Rate) (limit Limit) {
		limit.Thresholds[bpf.ThresholdPackets] = packets
		limit.Thresholds[bpf.ThresholdBits] = bits
		limit.Thresholds[bpf.ThresholdSYN] = syn
		return limit
	}
	for _, c := range []struct {
		name   string
		limit  Limit
		coarse bool
	}{
		{"usual", thresholds(Rate{PerSecond: 20000}, Rate{PerSecond: 2e8}, Rate{PerSecond: 200}), true},
		{"a short burst", thresholds(Rate{PerSecond: 20000, Burst: 1000}, Rate{}, Rate{}), false},
		{"one packet", thresholds(Rate{PerSecond: 1}, Rate{}, Rate{}), false},
		{"two packets", thresholds(Rate{PerSecond: 1, Burst: 2}, Rate{}, Rate{}), true},
		{"short in bits", thresholds(Rate{PerSecond: 20000}, Rate{PerSecond: 1e9, Burst: 1e8}, Rate{}), false},
		{"one frame", thresholds(Rate{}, Rate{PerSecond: 1e6, Burst: minBurstBits}, Rate{}), false},
		{"nothing", Limit{}, true},
	} {
		got := encode(c.limit)
		if coarse := got.Flags&bpf.LimitCoarse != 0; coarse != c.coarse {
			t.Errorf("%s: coarse %v, want %v", c.name, coarse, c.coarse)
		}
		for i, r := range c.limit.Thresholds {
			// A sixteenth of a burst, for four CPUs: of the usual ones that is 64 packets and more, 2 SYN.
			credit := got.Credit[i/2] >> (i % 2 * 4) & 15
			want := map[string][]uint8{"usual": {bpf.ThresholdPackets: 7, bpf.ThresholdBits: 7, bpf.ThresholdSYN: 2}}[c.name]
			if i < len(want) && credit != want[i] || i >= len(want) && credit != 0 {
				t.Errorf("%s: %v gives credit %d", c.name, r, credit)
			}
		}
		back := l.decode(&got)
		for i, r := range c.limit.Thresholds {
			b := back.Thresholds[i]
			if r.PerSecond != 0 && (b.PerSecond < 0.99*r.PerSecond || b.PerSecond > r.PerSecond*(1+1e-9)) {
				t.Errorf("%s: %v decodes to %v", c.name, r, b)
			}
			if r.Burst != 0 && math.Abs(b.Burst-r.Burst) > 8 {
				t.Errorf("%s: %v decodes to %v", c.name, r, b)
			}
		}
	}

	rapid.Check(t, func(t *rapid.T) {
		rate := logUniform(1, 1e6).Draw(t, "rate")
		limit := thresholds(Rate{PerSecond: rate, Burst: logUniform(1, 10*rate+1).Draw(t, "burst")}, Rate{}, Rate{})
		e, err := l.encode(1, limit)
		if err != nil || e.limit.Flags&bpf.LimitCoarse == 0 {
			return
		}
		r := e.limit.Threshold[bpf.ThresholdPackets]
		cost := ceilShift(r.Cost)
		// The clock stands just before a tick, all pass that can; it ticks; and so on for a while.
		var tat, passed uint64
		const ticks = 50
		for i := range uint64(ticks) {
			now := i * l.tick
			if next := max(tat, now); now+r.Burst > next {
				n := (now + r.Burst - next) / cost
				passed += n
				tat = next + n*cost
			}
		}
		// In truth the window was from just before the second tick to just after the last.
		window := float64((ticks - 2) * l.tick)
		if most := limit.Thresholds[0].Burst + window/1e9*rate + 1; float64(passed) > most {
			t.Fatalf("%v lets %d pass in %v ms, at most %v may", limit.Thresholds[0], passed, window/1e6, most)
		}
	})
}

func TestLimitsOutOfRange(t *testing.T) {
	l := &Limits{tick: 4e6, cpus: 4}
	for _, limit := range []Limit{
		{Penalty: -1}, {Penalty: 31 * 24 * time.Hour},
		{Group4: 7}, {Group4: 33}, {Group6: 15}, {Group6: 129}, {Aggregate4: 7}, {Aggregate6: 49}, {Aggregate6: -1},
		{Aggregate: Rate{PerSecond: 1e9}},
		{Services: []Service{{Protocol: 1, Port: 5}}},
	} {
		if _, err := l.encode(3, limit); err == nil {
			t.Errorf("%+v is taken", limit)
		} else {
			t.Log(err)
		}
	}
	if _, err := l.encode(0, Limit{Services: []Service{{Protocol: 6}}}); err == nil {
		t.Error("the default limit binds a service")
	}
}
