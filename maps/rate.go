package maps

import (
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

// Rate is how much may pass: packets, or bits where a threshold counts bits. The zero Rate is not
// set and limits nothing.
type Rate struct {
	PerSecond float64 // packets: 1/h to 10 million; bits: 1000 to 100 billion
	Burst     float64 // at once; 0: one second's worth, at least one packet, or 64 KiB
}

// The ranges of what a limit says.
const (
	minPackets, maxPackets = 1.0 / 3600, 1e7
	minBits, maxBits       = 1e3, 1e11

	// No frame is larger that a limit in bits must let pass when nothing is owed.
	frameBytes     = 65535
	minBurstBits   = frameBytes * 8
	leastBurstBits = 64 << 10 * 8 // of the burst that is one second's worth

	maxDebt    = 365 * 24 * time.Hour // how long the whole burst takes to be earned again
	maxPenalty = 30 * 24 * time.Hour

	// The coarse clock serves a limit whose bursts are all at least so many ticks long.
	coarseTicks = 100
)

// packets returns the rate as the program computes with it: the cost of one packet in ns, which is
// rounded up, and a burst of exactly as many packets as fit the one that was asked for. So a source
// never gets more than its rate, and less by one ns a packet at most, which is 1 % at the highest
// rate. The zero Rate is the zero bpf.Rate.
func (r Rate) packets(what string) (bpf.Rate, error) {
	if r == (Rate{}) {
		return bpf.Rate{}, nil
	}
	if !(r.PerSecond >= minPackets && r.PerSecond <= maxPackets) {
		return bpf.Rate{}, &RangeError{what, show(r.PerSecond, "/s"), "1/h", "10M/s"}
	}
	burst := r.Burst
	if burst == 0 {
		burst = max(r.PerSecond, 1)
	}
	cost := costOf(r.PerSecond, 1)
	ns := ceilShift(cost)
	most := float64(uint64(maxDebt) / ns)
	if !(burst >= 1 && burst <= most) {
		return bpf.Rate{}, &RangeError{what + " burst", show(burst, ""), "1", show(most, "")}
	}
	return bpf.Rate{Cost: cost, Burst: uint64(burst) * ns}, nil
}

// bits returns the rate as the program computes with it: the cost of one byte, rounded up, and the
// burst in ns, rounded down. The program rounds each frame's cost up to a whole ns. So a source
// never gets more than its rate, and less by one ns a frame at most: that is 1 % where a frame
// takes 100 ns, as one of 64 bytes does at 5 Gbit/s and one of 1250 bytes at 100 Gbit/s.
func (r Rate) bits(what string) (bpf.Rate, error) {
	if r == (Rate{}) {
		return bpf.Rate{}, nil
	}
	if !(r.PerSecond >= minBits && r.PerSecond <= maxBits) {
		return bpf.Rate{}, &RangeError{what, show(r.PerSecond, "bit/s"), "1kbit/s", "100Gbit/s"}
	}
	burst := r.Burst
	if burst == 0 {
		burst = max(r.PerSecond, leastBurstBits)
	}
	most := r.PerSecond * maxDebt.Seconds()
	if !(burst >= minBurstBits && burst <= most) {
		return bpf.Rate{}, &RangeError{what + " burst", show(burst, "bit"),
			show(minBurstBits, "bit"), show(most, "bit")}
	}
	cost := costOf(r.PerSecond, 8)
	hi, lo := bits.Mul64(uint64(burst/8), cost)
	ns := hi<<(64-bpf.CostShift) | lo>>bpf.CostShift
	return bpf.Rate{Cost: cost, Burst: max(ns, ceilShift(cost*frameBytes))}, nil
}

// costOf returns what a unit costs at a rate, in ns << CostShift, rounded up from the exact value.
func costOf(perSecond float64, perUnit int64) uint64 {
	exact := new(big.Rat).SetInt64(perUnit * 1e9 << bpf.CostShift)
	exact.Quo(exact, new(big.Rat).SetFloat64(perSecond))
	cost, rest := new(big.Int).QuoRem(exact.Num(), exact.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		cost.Add(cost, big.NewInt(1))
	}
	return cost.Uint64()
}

// ceilShift is rate_cost of gcra.h for what costs so much: whole ns, rounded up.
func ceilShift(cost uint64) uint64 { return (cost + 1<<bpf.CostShift - 1) >> bpf.CostShift }

func show(v float64, unit string) string { return fmt.Sprintf("%.9g%s", v, unit) }

// encoded is a limit as the tables hold it.
type encoded struct {
	limit    bpf.Limit
	sources  []netip.Prefix
	services []Service
}

// encode checks a limit and returns it as the tables hold it.
func (l *Limits) encode(number uint8, limit Limit) (e encoded, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("limit %d: %w", number, err)
		}
	}()
	out := &e.limit
	out.Flags = bpf.LimitEnabled
	if limit.Monitor {
		out.Flags |= bpf.LimitMonitor
	}
	if limit.Derived {
		out.Flags |= bpf.LimitDerived
	}
	if limit.AggregateAlways {
		out.Flags |= bpf.LimitAggregate
	}
	for i, r := range limit.Thresholds {
		t := bpf.Threshold(i)
		if t == bpf.ThresholdBits {
			out.Threshold[i], err = r.bits(t.String())
		} else {
			out.Threshold[i], err = r.packets(t.String())
		}
		if err != nil {
			return e, err
		}
	}
	if out.Aggregate, err = limit.Aggregate.packets("aggregate"); err != nil {
		return e, err
	}
	if limit.Penalty < 0 || limit.Penalty > maxPenalty {
		return e, &RangeError{"penalty", limit.Penalty.String(), "0", maxPenalty.String()}
	}
	out.Penalty = uint64(limit.Penalty)
	for _, g := range []struct {
		what                   string
		to                     *uint8
		bits, least, most, use int
	}{
		{"IPv4 group", &out.Group4, limit.Group4, 8, 32, 32},
		{"IPv6 group", &out.Group6, limit.Group6, 16, 128, 64},
		{"IPv4 aggregate", &out.Aggregate4, limit.Aggregate4, 8, 32, 24},
		{"IPv6 aggregate", &out.Aggregate6, limit.Aggregate6, 16, 48, 48},
	} {
		if g.bits == 0 {
			g.bits = g.use
		}
		if g.bits < g.least || g.bits > g.most {
			return e, &RangeError{g.what, fmt.Sprintf("/%d", g.bits), fmt.Sprintf("/%d", g.least), fmt.Sprintf("/%d", g.most)}
		}
		*g.to = uint8(g.bits)
	}
	l.coarsen(out)

	if number == 0 && len(limit.Sources)+len(limit.Services) > 0 {
		return e, fmt.Errorf("the default limit applies to what no other does: nothing is bound to it")
	}
	for _, p := range limit.Sources {
		if p, err = normalPrefix(p); err != nil {
			return e, err
		}
		e.sources = append(e.sources, p)
	}
	for _, s := range limit.Services {
		if s.Port != 0 && s.Protocol != protoTCP && s.Protocol != protoUDP {
			return e, fmt.Errorf("%s: only TCP (6) and UDP (17) have ports here", s)
		}
	}
	slices.SortFunc(e.sources, netip.Prefix.Compare)
	e.sources = slices.Compact(e.sources)
	e.services = slices.Clone(limit.Services)
	slices.SortFunc(e.services, func(a, b Service) int {
		return int(a.Protocol)<<16 + int(a.Port) - int(b.Protocol)<<16 - int(b.Port)
	})
	e.services = slices.Compact(e.services)
	return e, nil
}

// coarsen lets a limit tell the time by the coarse clock, if all of its bursts are long. That clock
// is late by up to a tick, so a tick's worth more would pass: the bursts become a tick shorter.
// Where a packet costs a tick or more, that would take a whole packet for a part of one: these stay,
// and admit no more than the one packet by which any window of the algorithm may exceed its rate.
func (l *Limits) coarsen(limit *bpf.Limit) {
	rates := append(limit.Threshold[:], limit.Aggregate)
	for i, r := range rates {
		if r.Burst == 0 {
			continue
		}
		least := 2 * ceilShift(r.Cost)
		if bpf.Threshold(i) == bpf.ThresholdBits {
			least = ceilShift(r.Cost*frameBytes) + l.tick
		}
		if r.Burst < max(least, coarseTicks*l.tick) {
			return
		}
	}
	for i, r := range limit.Threshold {
		credit := l.creditFor(bpf.Threshold(i), r)
		limit.Credit[i/2] |= credit << (i % 2 * 4)
		limit.Threshold[i].Burst -= l.shortened(r) + l.given(bpf.Threshold(i), r, credit)
	}
	limit.Aggregate.Burst -= l.shortened(limit.Aggregate)
	limit.Flags |= bpf.LimitCoarse
}

// creditShare is the part of a burst that the CPUs may let pass on credit: what they give and have
// not charged yet may pass beyond the burst, which is shorter by so much.
const creditShare = 16

// creditFor returns how many packets of a source a CPU may let pass on credit: the most that a
// part of the burst covers on all CPUs together, as enum tab_geometry of types.h counts it.
func (l *Limits) creditFor(t bpf.Threshold, r bpf.Rate) (credit uint8) {
	if r.Burst == 0 {
		return 0
	}
	one := ceilShift(r.Cost)
	if t == bpf.ThresholdBits {
		one = ceilShift(r.Cost * frameBytes)
	}
	for int(credit) < bpf.CreditMax {
		given := l.given(t, r, credit+1)
		if given > r.Burst/creditShare || one+l.shortened(r)+given > r.Burst {
			break
		}
		credit++
	}
	return credit
}

// given is what all CPUs together may let pass on credit, in ns.
func (l *Limits) given(t bpf.Threshold, r bpf.Rate, credit uint8) uint64 {
	if credit == 0 {
		return 0
	}
	packet := ceilShift(r.Cost)
	if t == bpf.ThresholdBits {
		packet = ceilShift(r.Cost * uint64(bpf.CreditBytes))
	}
	return packet * l.cpus << (credit - 1)
}

// shortened is by how much the coarse clock makes a burst shorter.
func (l *Limits) shortened(r bpf.Rate) uint64 {
	if r.Burst == 0 || ceilShift(r.Cost) >= l.tick {
		return 0
	}
	return l.tick
}

// decode is the inverse of encode, without bindings.
func (l *Limits) decode(from *bpf.Limit) Limit {
	limit := Limit{
		AggregateAlways: from.Flags&bpf.LimitAggregate != 0,
		Monitor:         from.Flags&bpf.LimitMonitor != 0,
		Derived:         from.Flags&bpf.LimitDerived != 0,
		Penalty:         time.Duration(min(from.Penalty, math.MaxInt64)),
		Group4:          int(from.Group4),
		Group6:          int(from.Group6),
		Aggregate4:      int(from.Aggregate4),
		Aggregate6:      int(from.Aggregate6),
	}
	rate := func(r bpf.Rate, perUnit float64, given uint64) Rate {
		if r.Burst == 0 || r.Cost == 0 {
			return Rate{}
		}
		if from.Flags&bpf.LimitCoarse != 0 {
			r.Burst += l.shortened(r) + given
		}
		per := float64(r.Cost) / (1 << bpf.CostShift)
		burst := perUnit * float64(r.Burst) / per
		if perUnit == 1 {
			burst = float64(r.Burst / ceilShift(r.Cost)) // whole packets, as encode counts them
		}
		return Rate{perUnit * 1e9 / per, math.Round(burst)}
	}
	for i, r := range from.Threshold {
		perUnit := 1.0
		if bpf.Threshold(i) == bpf.ThresholdBits {
			perUnit = 8
		}
		credit := from.Credit[i/2] >> (i % 2 * 4) & 15
		limit.Thresholds[i] = rate(r, perUnit, l.given(bpf.Threshold(i), r, credit))
	}
	limit.Aggregate = rate(from.Aggregate, 1, 0)
	return limit
}
