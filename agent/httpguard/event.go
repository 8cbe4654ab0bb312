package httpguard

import (
	"sync/atomic"
	"time"
)

// Kind is what an event is about.
type Kind string

// The kinds of events.
const (
	Rejected    Kind = "rejected"     // a request beyond a limit
	Blocked     Kind = "blocked"      // a request of an offender whose ban lasts
	Crowded     Kind = "crowded"      // a request was charged to a place that several keys share: the table is full
	LoginFailed Kind = "login_failed" // a failed login
	Offended    Kind = "offended"     // a client reached a threshold, and is refused from now on
	Banned      Kind = "banned"       // the daemon has had the kernel ban an offender
	Refused     Kind = "refused"      // the daemon did not grant the ban, as of a protected address
	Spared      Kind = "spared"       // the daemon was not asked, as for a client behind a proxy
	Overflowed  Kind = "overflowed"   // the daemon was not asked: too many wait, or the Guard is closed
	GivenUp     Kind = "given_up"     // the daemon did not answer for too long
)

// Event is something out of the ordinary.
type Event struct {
	Kind   Kind
	Client Client
	Limit  string        // of Rejected and Crowded
	Reason string        // of Offended and what follows from it; never what a client sent
	Times  int           // of Offended: the how manieth time it is
	For    time.Duration // of Offended: how long the ban lasts
	Took   time.Duration // of Banned: from the offence to the daemon's answer
}

// Stats is how often each kind of event was, and how full the tables are.
type Stats struct {
	Rejected, Blocked, Crowded, LoginsFailed, Offended uint64
	Banned, Refused, Spared, Overflowed, GivenUp       uint64
	Unknown                                            uint64         // requests whose proxy did not name the client
	Keys                                               map[string]int // by limit
	Offenders                                          int            // that are remembered
	Waiting                                            int            // bans that the daemon has not answered
}

type counters struct {
	kinds   [10]atomic.Uint64
	unknown atomic.Uint64
}

var places = map[Kind]int{Rejected: 0, Blocked: 1, Crowded: 2, LoginFailed: 3, Offended: 4, Banned: 5, Refused: 6, Spared: 7, Overflowed: 8, GivenUp: 9}

func (c *counters) count(e Event) { c.kinds[places[e.Kind]].Add(1) }

// Stats reads the counters.
func (g *Guard) Stats() Stats {
	n := func(k Kind) uint64 { return g.stats.kinds[places[k]].Load() }
	s := Stats{
		Rejected: n(Rejected), Blocked: n(Blocked), Crowded: n(Crowded), LoginsFailed: n(LoginFailed), Offended: n(Offended),
		Banned: n(Banned), Refused: n(Refused), Spared: n(Spared), Overflowed: n(Overflowed), GivenUp: n(GivenUp),
		Unknown: g.stats.unknown.Load(), Keys: map[string]int{}, Offenders: g.offenders.len(),
	}
	for _, l := range g.limits {
		s.Keys[l.Name] = l.paid.len()
	}
	if g.escalator != nil {
		s.Waiting = int(g.escalator.waiting.Load())
	}
	return s
}
