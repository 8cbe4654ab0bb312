package maps

import (
	"slices"
	"sync/atomic"

	"github.com/levee-xdp/levee/bpf"
)

// storeRates changes the rates of a limit while packets are measured by it.
func storeRates(at, to *bpf.Limit) {
	for i := range at.Threshold {
		largest := ceilShift
		if bpf.Threshold(i) == bpf.ThresholdBits {
			largest = frameNs
		}
		storeRate(&at.Threshold[i].Cost, &at.Threshold[i].Burst, to.Threshold[i], largest)
	}
	storeRate(&at.Aggregate.Cost, &at.Aggregate.Burst, to.Aggregate, ceilShift)
}

// What the largest packet costs, in ns: by a cost of a byte, and by one that is in whole ns. For a
// packet's cost that is ceilShift.
func frameNs(cost uint64) uint64 { return ceilShift(cost * frameBytes) }
func wholeNs(cost uint64) uint64 { return cost }

// storeRate changes a rate while packets are measured by it, a word at a time: see rateSteps for what
// stands there in between. That takes well below a microsecond.
//
// A packet reads both words too, the burst first, and may read one before a step and the other after
// it. Where both words rise it may then be held to the old burst at the new cost, and be dropped though
// either rate would let it pass. Where both fall it may be held to the old burst at the new cost, too,
// and pass though neither would have let it. What passes is charged, so that is one packet of each CPU
// at a change, as long as its two reads are apart: some ns, or what an interrupt takes between them.
func storeRate(cost, burst *uint64, to bpf.Rate, largest func(cost uint64) uint64) {
	from := bpf.Rate{Cost: atomic.LoadUint64(cost), Burst: atomic.LoadUint64(burst)}
	for _, r := range rateSteps(from, to, largest) {
		if r.Cost != from.Cost {
			atomic.StoreUint64(cost, r.Cost)
		}
		if r.Burst != from.Burst {
			atomic.StoreUint64(burst, r.Burst)
		}
		from = r
	}
}

// rateSteps returns what leads from one rate to another, of which it is the last; each differs from the
// one before in one word. None is laxer than both rates: both its words lie between theirs, and no more
// packets of the largest size pass at once than by one of them. And none is so strict that no packet
// passes, if both let one pass. A burst of 0 means that there is no rate; its cost means nothing.
func rateSteps(from, to bpf.Rate, largest func(cost uint64) uint64) (steps []bpf.Rate) {
	switch {
	case to.Burst == 0:
		return []bpf.Rate{{Cost: from.Cost}}
	case from.Burst == 0 || (from.Cost <= to.Cost) != (from.Burst <= to.Burst):
		// One word makes the rate laxer, or both make it stricter: what is between lies between.
		return []bpf.Rate{{Cost: to.Cost, Burst: from.Burst}, to}
	case from.Cost <= to.Cost:
		return append(climb(from, to, largest), to)
	}
	steps = climb(to, from, largest)
	slices.Reverse(steps)
	return append(steps, to)
}

// climb returns what stands between a rate and one of both a higher cost and a higher burst. The old
// cost with the new burst would let pass what neither does, and the new cost with the old burst perhaps
// nothing at all. So the cost rises first, but only as far as the burst covers a packet; where it does
// not, both rise in turn, by a half at a time: too little for a second packet to pass.
func climb(low, high bpf.Rate, largest func(cost uint64) uint64) (steps []bpf.Rate) {
	for low.Cost != high.Cost {
		next := high.Cost
		if largest(next) > low.Burst {
			next = low.Cost + min(high.Cost-low.Cost, low.Cost/2+1)
		}
		if need := min(largest(next), high.Burst); need > low.Burst {
			low.Burst = need
			steps = append(steps, low)
		}
		low.Cost = next
		steps = append(steps, low)
	}
	return steps
}
