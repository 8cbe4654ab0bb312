package maps

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

// Control is the run-time switches. Each is one atomic store, and the next packet sees it.
type Control struct{ c *bpf.Control }

// SetPanic makes every packet pass at once, malformed and banned ones too, or ends that.
func (c *Control) SetPanic(on bool) { atomic.StoreUint32(&c.c.Panic, flag(on)) }

// Panic tells whether everything passes.
func (c *Control) Panic() bool { return atomic.LoadUint32(&c.c.Panic) != 0 }

// SetMonitor makes the program count what it would drop and pass it, or ends that.
func (c *Control) SetMonitor(on bool) { atomic.StoreUint32(&c.c.Monitor, flag(on)) }

// Monitor tells whether nothing is dropped, only counted.
func (c *Control) Monitor() bool { return atomic.LoadUint32(&c.c.Monitor) != 0 }

// SetEventBudget sets how many dropped packets a CPU may report per second (of 2^30 ns); 0 for none.
func (c *Control) SetEventBudget(events uint32) { atomic.StoreUint32(&c.c.EventBudget, events) }

// EventBudget returns how many dropped packets a CPU may report per second.
func (c *Control) EventBudget() uint32 { return atomic.LoadUint32(&c.c.EventBudget) }

// SetControlCap caps ARP, neighbour discovery and ICMP errors, all sources of a family together, to
// so many packets per second and at once. A rate of 0 lifts the cap. A burst of 0 is one second's
// worth. Returns a *RangeError if a figure is out of its range.
func (c *Control) SetControlCap(perSecond, burst float64) error {
	if perSecond == 0 {
		atomic.StoreUint64(&c.c.ControlBurst, 0)
		return nil
	}
	r, err := Rate{perSecond, burst}.packets("control cap")
	if err != nil {
		return err
	}
	// This cost is in whole ns.
	storeRate(&c.c.ControlCost, &c.c.ControlBurst, bpf.Rate{Cost: ceilShift(r.Cost), Burst: r.Burst}, wholeNs)
	return nil
}

// SetSourceIdle sets how long a source must not have been heard of before a newcomer may take its
// slot. It ought to be longer than the bursts of the limits: what a source owes goes with its slot.
func (c *Control) SetSourceIdle(d time.Duration) error {
	if d <= 0 || d > maxPenalty {
		return &RangeError{"source idle time", d.String(), "1ns", maxPenalty.String()}
	}
	atomic.StoreUint64(&c.c.SourceIdle, uint64(d))
	return nil
}

// SourceIdle returns how long a source must not have been heard of before it may be replaced.
func (c *Control) SourceIdle() time.Duration {
	return time.Duration(min(atomic.LoadUint64(&c.c.SourceIdle), math.MaxInt64))
}

// Switches is the run-time switches but for panic, which is nobody's but an operator's.
type Switches struct {
	Monitor                     bool
	EventBudget                 uint32
	ControlCap, ControlCapBurst float64 // see SetControlCap
	SourceIdle                  time.Duration
}

// Sync makes the switches equal to wanted ones. Returns a *RangeError, and changes nothing, if a figure
// is out of its range.
func (c *Control) Sync(want Switches) (Changes, error) {
	next := bpf.Control{}
	to := Control{&next}
	if err := errors.Join(to.SetControlCap(want.ControlCap, want.ControlCapBurst), to.SetSourceIdle(want.SourceIdle)); err != nil {
		return Changes{}, err
	}
	var changes Changes
	count := func(same bool) {
		if same {
			changes.Kept++
		} else {
			changes.Updated++
		}
	}
	count(c.Monitor() == want.Monitor)
	c.SetMonitor(want.Monitor)
	count(c.EventBudget() == want.EventBudget)
	c.SetEventBudget(want.EventBudget)
	count(atomic.LoadUint64(&c.c.ControlBurst) == next.ControlBurst &&
		(next.ControlBurst == 0 || atomic.LoadUint64(&c.c.ControlCost) == next.ControlCost))
	storeRate(&c.c.ControlCost, &c.c.ControlBurst, bpf.Rate{Cost: next.ControlCost, Burst: next.ControlBurst}, wholeNs)
	count(atomic.LoadUint64(&c.c.SourceIdle) == next.SourceIdle)
	atomic.StoreUint64(&c.c.SourceIdle, next.SourceIdle)
	return changes, nil
}

func flag(on bool) uint32 {
	if on {
		return 1
	}
	return 0
}

// RangeError says which figure is out of its range.
type RangeError struct {
	What, Value, Min, Max string
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("%s: %s is not within %s to %s", e.What, e.Value, e.Min, e.Max)
}
