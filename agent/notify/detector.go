package notify

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Thresholds say when an attack begins and ends. Between the two rates nothing changes.
type Thresholds struct {
	Start   float64       // packets dropped a second, from which on an attack begins
	After   time.Duration // for how long, without a break
	End     float64       // packets dropped a second, below which it ends
	Quiet   time.Duration // for how long, without a break
	Summary time.Duration // how often it is told that an attack goes on; 0: never
}

// Event is what a notification is about.
type Event string

// The events.
const (
	Start   Event = "attack_start"
	Summary Event = "attack_summary" // it goes on
	End     Event = "attack_end"
)

// most is how many reasons, interfaces and sources a notification names, each.
const most = 10

// Attack is what is known of an attack so far.
type Attack struct {
	ID         string      `json:"id"`
	Started    time.Time   `json:"started"`
	Ended      time.Time   `json:"ended,omitzero"` // when the rate fell below the end's threshold
	Seconds    float64     `json:"seconds"`        // that it has lasted
	Rate       float64     `json:"packets_per_second"`
	Peak       float64     `json:"peak_packets_per_second"`
	Packets    uint64      `json:"packets"` // dropped, or that would have been
	Bytes      uint64      `json:"bytes"`
	Monitored  uint64      `json:"monitored_packets"` // of these, those that passed because only monitored
	Reasons    []Share     `json:"reasons"`           // at most 10, the heaviest first
	Interfaces []Share     `json:"interfaces"`        // likewise
	Sources    []TopSource `json:"sources"`           // likewise, by what their limits dropped since the beginning
}

// Share is a part of an attack.
type Share struct {
	Name    string `json:"name"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// TopSource is a source whose limit dropped much of it. Source addresses can be forged.
type TopSource struct {
	Prefix  string `json:"prefix"`
	Limit   string `json:"limit"`
	Dropped uint64 `json:"dropped"`
}

// key tells counters apart.
type key struct{ iface, family, reason, action string }

type count struct{ packets, bytes uint64 }

// counts is a reading of what was dropped since the tables were made.
type counts map[key]count

func countsOf(list []state.Counted) counts {
	c := make(counts)
	for _, n := range list {
		if n.Action == state.ActionPass {
			continue
		}
		k := key{n.Interface, n.Family, n.Reason, n.Action}
		c[k] = count{c[k].packets + n.Packets, c[k].bytes + n.Bytes}
	}
	return c
}

// since is what was added to an earlier reading. A counter that went back has begun anew.
func (c counts) since(before counts) counts {
	grown := make(counts)
	for k, now := range c {
		was := before[k]
		if now.packets < was.packets || now.bytes < was.bytes {
			was = count{}
		}
		if now != was {
			grown[k] = count{now.packets - was.packets, now.bytes - was.bytes}
		}
	}
	return grown
}

func (c counts) total() (sum count) {
	for _, n := range c {
		sum.packets += n.packets
		sum.bytes += n.bytes
	}
	return sum
}

// shares adds up by a name, and returns the heaviest.
func (c counts) shares(name func(key) string) []Share {
	by := make(map[string]Share)
	for k, n := range c {
		s := by[name(k)]
		by[name(k)] = Share{name(k), s.Packets + n.packets, s.Bytes + n.bytes}
	}
	list := slices.SortedFunc(maps.Values(by), func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Name, b.Name))
	})
	return list[:min(len(list), most)]
}

// detector turns readings into events. Its time is monotonic, so that nobody who sets the clock makes or
// ends an attack.
type detector struct {
	Thresholds

	last   counts // the reading before
	at     time.Duration
	begun  bool // there was a reading
	since  time.Duration
	before counts // the reading when the rate rose above the start's threshold, or nil
	peak   float64

	attack  *Attack // that goes on
	start   counts  // the reading when it began
	from    time.Duration
	told    time.Duration // when it was last told
	calm    bool          // the rate is below the end's threshold
	ended   time.Time     // since when, by the wall
	settled time.Duration // likewise, monotonic
}

// observe takes a reading at a time, monotonic and by the wall, and returns what is to be told, or "".
// The attack is a copy.
func (d *detector) observe(now counts, mono time.Duration, wall time.Time) (Event, Attack) {
	last, at := d.last, d.at
	d.last, d.at = now, mono
	if !d.begun {
		d.begun, d.told = true, mono
		return "", Attack{}
	}
	took := (mono - at).Seconds()
	if took <= 0 {
		return "", Attack{}
	}
	rate := float64(now.since(last).total().packets) / took
	if d.attack == nil {
		return d.quietly(last, at, rate, mono, wall)
	}
	a := d.attack
	d.sum(now, rate, mono)
	if rate >= d.End {
		d.calm = false
	} else if !d.calm {
		d.calm, d.settled, d.ended = true, at, wall.Add(at-mono)
	}
	switch {
	case d.calm && mono-d.settled >= d.Quiet:
		a.Ended, a.Seconds = d.ended, (d.settled - d.from).Seconds()
		d.attack, d.before, d.calm = nil, nil, false
		return End, *a
	case d.Summary > 0 && mono-d.told >= d.Summary:
		d.told = mono
		return Summary, *a
	}
	return "", Attack{}
}

// quietly is observe while there is no attack.
func (d *detector) quietly(last counts, at time.Duration, rate float64, mono time.Duration, wall time.Time) (Event, Attack) {
	if rate < d.Start {
		d.before = nil
		return "", Attack{}
	}
	if d.before == nil {
		d.before, d.since, d.peak = last, at, 0
	}
	d.peak = max(d.peak, rate)
	if mono-d.since < d.After {
		return "", Attack{}
	}
	started := wall.Add(d.since - mono)
	var random [4]byte
	rand.Read(random[:]) // never fails
	d.attack = &Attack{ID: started.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(random[:]), Started: started, Peak: d.peak}
	d.start, d.from, d.told, d.calm = d.before, d.since, mono, false
	d.sum(d.last, rate, mono)
	return Start, *d.attack
}

// sum brings the attack's figures up to a reading.
func (d *detector) sum(now counts, rate float64, mono time.Duration) {
	a, grown := d.attack, now.since(d.start)
	total := grown.total()
	a.Seconds, a.Rate, a.Peak = (mono - d.from).Seconds(), rate, max(a.Peak, rate)
	a.Packets, a.Bytes, a.Monitored = total.packets, total.bytes, 0
	for k, n := range grown {
		if k.action == state.ActionMonitor {
			a.Monitored += n.packets
		}
	}
	a.Reasons = grown.shares(func(k key) string { return k.reason })
	a.Interfaces = grown.shares(func(k key) string { return k.iface })
}
