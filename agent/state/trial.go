package state

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A trial is a change that is taken back unless somebody confirms it in time. What was there before is
// on disk before the change is made, so no crash makes it permanent.
//
// Of each thing the changes form a pile: at its bottom what is meant to stay, on it the changes that are
// on trial, the newest on top. The top is in force.
//
//   - A change on trial is put on top.
//   - One that is not on trial, a removal too, becomes the pile: it stays, and no trial holds the thing
//     any more.
//   - A trial that is confirmed is from then on as if it had never been one: its change is the bottom,
//     and what lay below is gone. What newer trials put on top stays on trial, and goes back to it.
//   - A trial that is taken back takes its change out of the pile, wherever it lies, and no other.
//
// So the order in which trials end does not matter, and none undoes what another one has done. A trial
// holds the things that it has changed; without any left it is over. From its time on it can't be
// confirmed: it is being taken back, however long that takes.

// Subjects of trials are ban, allow, limit, interface and config.

// The shortest and the longest trial.
const (
	ShortestTrial = time.Second
	LongestTrial  = 24 * time.Hour
)

// How many trials there may be, and how many things they may hold together. Root at the Unix socket
// is bound by the whole alone, and finds places that nobody else can take.
const (
	MaxTrials      = 64
	MaxThings      = 20_000
	maxTrialsEach  = 8 // of one actor
	maxThingsEach  = 10_000
	maxTrialsOther = 48 // of all but root
	maxThingsOther = 15_000
)

// CheckTrial checks how long a trial is to be; 0 is none.
func CheckTrial(d Duration) *Error {
	if d != 0 && (time.Duration(d) < ShortestTrial || time.Duration(d) > LongestTrial) {
		return invalid("confirm", d.String(), "is not within 1s to 24h")
	}
	return nil
}

// Trial is a change that waits to be confirmed.
type Trial struct {
	ID      string    `json:"id" example:"t7"`
	About   Subject   `json:"about" enum:"ban,allow,limit,interface,config"`
	What    string    `json:"what" doc:"What was changed, in words"`
	Actor   string    `json:"actor,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires" doc:"When it is taken back, unless it is confirmed before"`
	Problem string    `json:"problem,omitempty" doc:"Why it could not be taken back yet, though its time is over; it is tried again"`
}

// EndedTrial is a trial that was taken back.
type EndedTrial struct {
	Trial
	Ended time.Time `json:"ended" doc:"When it was taken back"`
	Why   string    `json:"why"`
}

// Attempt is a change that is about to be made on trial.
type Attempt struct {
	By     Actor
	About  Subject
	What   string // in words
	For    Duration
	Things []Thing
	Modes  map[string]string // in which interfaces are attached, by name
	Config *FileText         // that is in force
}

// Thing is what a change is about: the claim of an origin on a prefix, an allow entry, a limit, an
// interface, the configuration.
type Thing struct {
	About  Subject `json:"about"`
	Name   string  `json:"name,omitempty"` // the prefix, or a name
	Origin Origin  `json:"origin,omitempty"`
}

// FileText is a configuration file as it was, and which ones were tried in its stead.
type FileText struct {
	Text  []byte   `json:"text,omitempty"`
	None  bool     `json:"none,omitempty"` // there was no file
	Tried string   `json:"tried"`          // names the text that was tried
	Also  []string `json:"also,omitempty"` // and those that were tried before it, and rejected

	Interfaces []string `json:"interfaces,omitempty"` // that were attached for any of them
}

// Has tells whether a text is among those that were tried.
func (f *FileText) Has(sum string) bool {
	return f != nil && (f.Tried == sum || slices.Contains(f.Also, sum))
}

// after returns the text with what was tried before it, as far as that is another.
func (f *FileText) after(earlier *FileText) *FileText {
	if f == nil || earlier == nil {
		return f
	}
	out := *f
	out.Also, out.Interfaces = slices.Clone(f.Also), slices.Clone(f.Interfaces)
	for _, sum := range append([]string{earlier.Tried}, earlier.Also...) {
		if !out.Has(sum) && len(out.Also) < MaxTrials {
			out.Also = append(out.Also, sum)
		}
	}
	for _, name := range earlier.Interfaces {
		if !slices.Contains(out.Interfaces, name) {
			out.Interfaces = append(out.Interfaces, name)
		}
	}
	return &out
}

// trial is a trial as memory holds it, and on disk but for its things.
type trial struct {
	Trial
	Number uint64 `json:"number"`
	Boot   string `json:"boot"`
	Until  uint64 `json:"until"`          // of the boot's clock
	Root   bool   `json:"root,omitempty"` // who made it is root at the Unix socket

	things []*undo
}

// undo is a thing as it was before a trial changed it; without anything: there was no such thing.
type undo struct {
	Thing
	Claim     *savedClaim `json:"claim,omitempty"`
	Allow     *savedAllow `json:"allow,omitempty"`
	Limit     *savedLimit `json:"limit,omitempty"`
	Interface *Interface  `json:"interface,omitempty"`
	Attached  string      `json:"attached,omitempty"` // the mode in which it was attached; empty: it was not
	Config    *FileText   `json:"config,omitempty"`

	of *trial
	at uint32 // its number within the trial
}

type savedClaim struct {
	Claim
	Boot  string `json:"boot,omitempty"`
	Until uint64 `json:"until,omitempty"` // of the boot's clock; 0: forever
}

// trials is what waits to be confirmed, and the configuration that was not.
type trials struct {
	list     []*trial           // the oldest first
	held     map[Thing][]*undo  // of each thing that is on trial, the oldest first
	claims   map[string][]Thing // those that are claims, by prefix
	next     uint64
	rejected *FileText
}

// add puts a trial on top of all others.
func (t *trials) add(one *trial) {
	t.list = append(t.list, one)
	for _, u := range one.things {
		if u.About == AboutBan && len(t.held[u.Thing]) == 0 {
			t.claims[u.Name] = append(t.claims[u.Name], u.Thing)
		}
		t.held[u.Thing] = append(t.held[u.Thing], u)
	}
}

func (t *trials) find(id string) *trial {
	for _, one := range t.list {
		if one.ID == id {
			return one
		}
	}
	return nil
}

// newer returns what the next newer trial has noted of the same thing; nil if there is none. Some trials
// do not count.
func (t *trials) newer(u *undo, but []string) *undo {
	pile := t.held[u.Thing]
	for _, next := range pile[slices.Index(pile, u)+1:] {
		if !slices.Contains(but, next.of.ID) {
			return next
		}
	}
	return nil
}

// drop forgets things, and trials that hold none any more. It returns those.
func (t *trials) drop(gone []*undo) (over []*trial) {
	dropped := make(map[*undo]bool, len(gone))
	of := map[*trial]bool{}
	for _, u := range gone {
		dropped[u], of[u.of] = true, true
		pile := slices.DeleteFunc(slices.Clone(t.held[u.Thing]), func(o *undo) bool { return o == u })
		if t.held[u.Thing] = pile; len(pile) > 0 {
			continue
		}
		delete(t.held, u.Thing)
		if u.About == AboutBan {
			left := slices.DeleteFunc(slices.Clone(t.claims[u.Name]), func(o Thing) bool { return o == u.Thing })
			if t.claims[u.Name] = left; len(left) == 0 {
				delete(t.claims, u.Name)
			}
		}
	}
	for one := range of {
		if one.things = slices.DeleteFunc(one.things, func(u *undo) bool { return dropped[u] }); len(one.things) == 0 {
			over = append(over, one)
		}
	}
	t.list = slices.DeleteFunc(slices.Clone(t.list), func(one *trial) bool { return len(one.things) == 0 })
	return over
}

// isRoot tells whether an actor is root at the Unix socket, or the daemon itself.
func (a Actor) isRoot() bool {
	return a.Kind == ActorDaemon || a.Kind == ActorPeer && a.UID == 0 && a.May(ScopeAdmin)
}

// room tells whether an actor may put this many things more on trial.
func (t *trials) room(by Actor, things int) *Error {
	var all, other, mine [2]int
	count := func(n *[2]int, one *trial) { n[0]++; n[1] += len(one.things) }
	for _, one := range t.list {
		if count(&all, one); !one.Root {
			count(&other, one)
			if one.Actor == by.String() {
				count(&mine, one)
			}
		}
	}
	refuse := func(who string, n [2]int, most [2]int) *Error {
		return &Error{Code: CodeConflict, Field: "confirm", Detail: fmt.Sprintf("%s on trial: %d changes of %d things, and there is room for %d changes of %d things; "+
			"confirm some, wait until they are taken back, or make the change without confirm. Nothing was changed", who, n[0], n[1], most[0], most[1])}
	}
	over := func(n [2]int, trials, most int) bool { return n[0] >= trials || n[1]+things > most }
	switch {
	case over(all, MaxTrials, MaxThings):
		return refuse("too much is", all, [2]int{MaxTrials, MaxThings})
	case by.isRoot():
		return nil
	case over(mine, maxTrialsEach, maxThingsEach):
		return refuse("you have too much", mine, [2]int{maxTrialsEach, maxThingsEach})
	case over(other, maxTrialsOther, maxThingsOther):
		return refuse("too much is", other, [2]int{maxTrialsOther, maxThingsOther})
	}
	return nil
}

// MayTry tells whether an actor may put this many things more on trial.
func (s *Store) MayTry(by Actor, things int) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return asError(s.trials.room(by, things))
}

// Trials returns what waits to be confirmed, the oldest first.
func (s *Store) Trials() []Trial {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Trial, len(s.trials.list))
	for i, t := range s.trials.list {
		out[i] = t.Trial
	}
	return out
}

// OnTrial tells whether anything waits to be confirmed.
func (s *Store) OnTrial() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.trials.list) > 0
}

// Held returns which of some things are on trial, each once.
func (s *Store) Held(things []Thing) []Thing {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.trials.list) == 0 {
		return nil
	}
	var out []Thing
	seen := map[Thing]bool{}
	for _, thing := range things {
		if len(s.trials.held[thing]) > 0 && !seen[thing] {
			seen[thing] = true
			out = append(out, thing)
		}
	}
	return out
}

// HeldClaims returns the claims on a prefix that are on trial, of an origin, or with an empty one of all.
func (s *Store) HeldClaims(p netip.Prefix, o Origin) (out []Thing) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, thing := range s.trials.claims[p.String()] {
		if o == "" || thing.Origin == o {
			out = append(out, thing)
		}
	}
	return out
}

// HeldOf returns the claims of an origin that are on trial.
func (s *Store) HeldOf(o Origin) (out []Thing) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, things := range s.trials.claims {
		for _, thing := range things {
			if thing.Origin == o {
				out = append(out, thing)
			}
		}
	}
	return out
}

// NextTrial returns when the trial ends that ends first, in ns of CLOCK_MONOTONIC; Forever if there is
// none. Some do not count.
func (s *Store) NextTrial(but func(id string) bool) (at uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at = Forever
	for _, t := range s.trials.list {
		if t.Until < at && !but(t.ID) {
			at = t.Until
		}
	}
	return at
}

// DueTrials returns the trials whose time is over, the oldest first.
func (s *Store) DueTrials() (ids []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	now := s.clock.Monotonic()
	for _, t := range s.trials.list {
		if t.Until <= now {
			ids = append(ids, t.ID)
		}
	}
	return ids
}
