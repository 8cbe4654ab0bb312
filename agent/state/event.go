package state

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Event is something that happened: a decision that is in force, or a packet that was sampled.
type Event struct {
	ID       EventID     `json:"id" doc:"Its place in the stream; give the last one that you had to go on behind it"`
	Time     time.Time   `json:"time"`
	Kind     EventKind   `json:"kind" enum:"decision,drop,lost"`
	Decision *Decision   `json:"decision,omitempty" doc:"Of a decision: what was decided"`
	Drop     *EventView  `json:"drop,omitempty" doc:"Of a drop: the packet"`
	Lost     *LostEvents `json:"lost,omitempty" doc:"Of lost: what the reader has missed"`
}

// EventKind is of what kind an event is.
type EventKind string

// The kinds of events.
const (
	EventDecision EventKind = "decision" // something changed, and is in force
	EventDrop     EventKind = "drop"     // a sampled packet that was dropped, or would have been
	EventLost     EventKind = "lost"     // the reader was too slow, or away for too long
)

// Decision is a change that is on disk and in the kernel.
type Decision struct {
	About   Subject `json:"about" enum:"ban,allow,limit,interface,panic,config"`
	Op      string  `json:"op" enum:"added,changed,removed,expired,on,off,reloaded"`
	Subject string  `json:"subject,omitempty" doc:"The prefix, the limit's name or the interface"`
	Origin  Origin  `json:"origin,omitempty" doc:"Of a ban: who speaks"`
	Actor   string  `json:"actor,omitempty" doc:"Who made the call; absent for what Levee does by itself"`
	Claim   *Claim  `json:"claim,omitempty" doc:"Of a ban that was added, changed or removed"`
	Trial   string  `json:"trial,omitempty" doc:"The trial, if this is what is in force again since it was taken back"`
	Many    int     `json:"many,omitempty" doc:"How many were decided on by one call, where they are too many to be told one by one"`
}

// Subject is what a decision is about.
type Subject string

// What decisions are about.
const (
	AboutBan       Subject = "ban"
	AboutAllow     Subject = "allow"
	AboutLimit     Subject = "limit"
	AboutInterface Subject = "interface"
	AboutPanic     Subject = "panic"
	AboutConfig    Subject = "config"
)

// What was done, where it is no Status.
const (
	OpExpired  = "expired"
	OpOn       = "on"
	OpOff      = "off"
	OpReloaded = "reloaded"
)

// LostEvents says how many events a reader has missed.
type LostEvents struct {
	Events uint64 `json:"events" doc:"How many; 0 if that is not known"`
	Why    string `json:"why"`
}

// EventID is an event's place in the stream of one run of the daemon: RUN-NUMBER. Numbers grow, and
// are not without gaps for a reader who asked for some kinds alone.
type EventID struct {
	Run    string
	Number uint64
}

// maxRun bounds what stands for a run.
const maxRun = 32

// ParseEventID reads an event's id.
func ParseEventID(s string) (EventID, error) {
	run, number, ok := strings.Cut(s, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil || run == "" || len(run) > maxRun || strings.Trim(run, "0123456789abcdef") != "" || strconv.FormatUint(n, 10) != number {
		return EventID{}, invalid("id", s, "is no event's id, such as 5f3a-17")
	}
	return EventID{run, n}, nil
}

// String is the text that ParseEventID reads.
func (id EventID) String() string {
	if id.Run == "" {
		return ""
	}
	return id.Run + "-" + strconv.FormatUint(id.Number, 10)
}

// MarshalText implements encoding.TextMarshaler.
func (id EventID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *EventID) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*id = EventID{}
		return nil
	}
	*id, err = ParseEventID(string(b))
	return err
}

// EventFilter says which events are wanted.
type EventFilter struct {
	Kinds  []EventKind  // none: all
	After  EventID      // those behind this one; zero: those from now on
	Within netip.Prefix // only those about prefixes and sources within this one, or around it; zero: all
}

// Wants tells whether an event is asked for.
func (f *EventFilter) Wants(e *Event) bool {
	if e.Kind == EventLost {
		return true
	}
	if len(f.Kinds) > 0 && !slices.Contains(f.Kinds, e.Kind) {
		return false
	}
	if !f.Within.IsValid() {
		return true
	}
	switch {
	case e.Drop != nil:
		return f.Within.Contains(e.Drop.Source)
	case e.Decision != nil:
		p, err := netip.ParsePrefix(e.Decision.Subject)
		return err == nil && f.Within.Overlaps(p)
	}
	return false
}
