package httpguard

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"time"
)

// Threshold is how many times within a time something makes an offence; 0 times: never. The time
// begins with the first of them.
type Threshold struct {
	Count int
	Per   time.Duration
}

func (t Threshold) validate() error {
	switch {
	case t == Threshold{}:
		return nil
	case t.Count < 1 || t.Per <= 0 || t.Per > maxSpan:
		return errors.New("is not a number of times within a time")
	}
	return nil
}

// String is "10 within 1m0s".
func (t Threshold) String() string { return fmt.Sprintf("%d within %s", t.Count, t.Per) }

// Ban is for how long an offender is refused: here, and by the kernel where there is a daemon.
type Ban struct {
	First   time.Duration // the first time; 10m if 0
	Factor  int           // by which it grows from time to time; 2 if 0
	Longest time.Duration // 24h if 0
	Forget  time.Duration // how long after a ban's end the next offence is a first one again; 24h if 0
}

func (b *Ban) complete() error {
	if b.First == 0 {
		b.First = 10 * time.Minute
	}
	if b.Factor == 0 {
		b.Factor = 2
	}
	if b.Longest == 0 {
		b.Longest = max(24*time.Hour, b.First)
	}
	if b.Forget == 0 {
		b.Forget = 24 * time.Hour
	}
	if b.First < time.Second || b.Factor < 1 || b.Longest < b.First || b.Longest > maxSpan || b.Forget < 0 || b.Forget > maxSpan {
		return errors.New("it has no sense: a ban lasts a second at least, up to Longest, and grows")
	}
	return nil
}

// length is how long the nth ban lasts.
func (b *Ban) length(n int) time.Duration {
	d := b.First
	for range n - 1 {
		if d > b.Longest/time.Duration(b.Factor) {
			return b.Longest
		}
		d *= time.Duration(b.Factor)
		if b.Factor == 1 {
			break
		}
	}
	return min(d, b.Longest)
}

// offender is what is remembered of one.
type offender struct {
	times int
	until int64 // of its ban
	known int64 // until when it is remembered
}

// counter finds who reaches a threshold.
type counter struct {
	threshold Threshold
	seen      *table[counted]
}

// counted is how often something happened since a time.
type counted struct {
	times int
	until int64
}

func newCounter(t Threshold, entries int) *counter {
	return &counter{threshold: t, seen: newTable(entries, func(c counted, now int64) bool { return c.times == 0 || c.until <= now })}
}

// count counts one more, and tells whether the threshold is reached. Then it begins anew. One that
// finds no room begins anew each time: nobody is banned for what others did.
func (c *counter) count(client netip.Prefix, now int64) (reached bool) {
	if c.threshold.Count == 0 {
		return false
	}
	c.seen.change(maphash.Comparable(c.seen.seed, client), now, false, func(n counted) counted {
		if n.until <= now {
			n = counted{until: now + int64(c.threshold.Per)}
		}
		if n.times++; n.times >= c.threshold.Count {
			reached = true
			return counted{}
		}
		return n
	})
	return reached
}
