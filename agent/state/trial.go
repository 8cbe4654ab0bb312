package state

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// A trial is a change that is taken back unless somebody confirms it in time. What was there before is
// on disk before the change is made, so no crash makes it permanent.
//
// A thing belongs to the newest trial that changed it, and what there was before the first of them is
// what comes back. A plain change takes its things out of every trial: what is said last, and not on
// trial, stays.

// Subjects of trials are ban, allow, limit, interface and config.

// The shortest and the longest trial.
const (
	ShortestTrial = time.Second
	LongestTrial  = 24 * time.Hour
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
}

// Thing is what a change is about: the claim of an origin on a prefix, an allow entry, a limit, an
// interface, the configuration.
type Thing struct {
	About  Subject `json:"about"`
	Name   string  `json:"name,omitempty"` // the prefix, or a name
	Origin Origin  `json:"origin,omitempty"`
}

// undo is a thing as it was; without anything: there was no such thing.
type undo struct {
	Thing
	Claim     *savedClaim `json:"claim,omitempty"`
	Allow     *savedAllow `json:"allow,omitempty"`
	Limit     *savedLimit `json:"limit,omitempty"`
	Interface *Interface  `json:"interface,omitempty"`
	Attached  string      `json:"attached,omitempty"` // the mode in which it was attached; empty: it was not
	Config    *FileText   `json:"config,omitempty"`
}

type savedClaim struct {
	Claim
	Boot  string `json:"boot,omitempty"`
	Until uint64 `json:"until,omitempty"` // of the boot's clock; 0: forever
}

// FileText is a configuration file as it was, and which one was tried in its stead.
type FileText struct {
	Text  []byte `json:"text,omitempty"`
	None  bool   `json:"none,omitempty"` // there was no file
	Tried string `json:"tried"`          // names the text that was tried
}

type trial struct {
	Trial
	Number uint64 `json:"number"`
	Boot   string `json:"boot"`
	Until  uint64 `json:"until"` // of the boot's clock
	Undo   []undo `json:"undo"`
}

// trials is what waits to be confirmed, and the configuration that was not.
type trials struct {
	list     []*trial // the oldest first
	next     uint64
	rejected *FileText
}

var (
	bucketTrials = []byte("trials") // made when it is needed: it is in no schema
	keyNext      = []byte("next")
	keyRejected  = []byte("rejected")
)

func trialKey(id string) []byte { return []byte("trial:" + id) }

func (s *Store) loadTrials(tx *bbolt.Tx) error {
	s.trials = trials{next: 1}
	b := tx.Bucket(bucketTrials)
	if b == nil {
		return nil
	}
	now := s.clock.Monotonic()
	err := b.ForEach(func(k, v []byte) error {
		switch name := string(k); {
		case name == string(keyNext):
			return json.Unmarshal(v, &s.trials.next)
		case name == string(keyRejected):
			return json.Unmarshal(v, &s.trials.rejected)
		case !strings.HasPrefix(name, "trial:"):
			return nil
		}
		t := &trial{}
		if err := json.Unmarshal(v, t); err != nil {
			return fmt.Errorf("trial %q makes no sense: %w", k, err)
		}
		if t.Boot != s.boots[s.boot].id {
			// What is left by the wall clock, but no more than it ever was.
			left := min(t.Expires.UnixNano()-s.boots[s.boot].offset-int64(now), int64(t.Expires.Sub(t.Created)))
			t.Boot, t.Until = s.boots[s.boot].id, now+uint64(max(left, 0))
		}
		s.trials.list = append(s.trials.list, t)
		return nil
	})
	slices.SortFunc(s.trials.list, func(a, b *trial) int { return cmp.Compare(a.Number, b.Number) })
	return err
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

// NextTrial returns the trial that ends first, and when, in ns of CLOCK_MONOTONIC; Forever if there is
// none.
func (s *Store) NextTrial() (id string, at uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at = Forever
	for _, t := range s.trials.list {
		if t.Until < at {
			id, at = t.ID, t.Until
		}
	}
	return id, at
}

// BeginTrial notes what things are now, before they are changed on trial. The modes are those in which
// interfaces are attached, by name.
func (s *Store) BeginTrial(t Trial, d Duration, things []Thing, attached map[string]string, text *FileText) (Trial, error) {
	if err := CheckTrial(d); err != nil {
		return Trial{}, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	now := s.clock.Monotonic()
	next := &trial{Trial: t, Number: s.trials.next, Boot: s.boots[s.boot].id, Until: now + uint64(d)}
	next.ID = fmt.Sprintf("t%d", next.Number)
	next.Created, next.Expires = s.clock.Now().UTC(), s.wallTime(next.Until)
	for _, thing := range things {
		if earlier := s.trials.holder(thing); earlier != nil {
			next.Undo = append(next.Undo, *earlier.of(thing)) // what was there before any trial
			continue
		}
		u, err := s.asItIs(thing)
		if err != nil {
			return Trial{}, err
		}
		if thing.About == AboutInterface {
			u.Attached = attached[thing.Name]
		}
		if thing.About == AboutConfig {
			u.Config = text
		}
		next.Undo = append(next.Undo, u)
	}
	err := s.write("note what was there before the trial", func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketTrials)
		if err != nil {
			return err
		}
		if err := putJSON(b, keyNext, next.Number+1); err != nil {
			return err
		}
		return putJSON(b, trialKey(next.ID), next)
	})
	if err != nil {
		return Trial{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trials.list, s.trials.next = append(s.trials.list, next), next.Number+1
	return next.Trial, nil
}

func putJSON(b *bbolt.Bucket, key []byte, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, text)
}

// holder returns the newest trial that holds a thing.
func (t *trials) holder(thing Thing) *trial {
	for _, one := range slices.Backward(t.list) {
		if one.of(thing) != nil {
			return one
		}
	}
	return nil
}

func (t *trial) of(thing Thing) *undo {
	for i := range t.Undo {
		if t.Undo[i].Thing == thing {
			return &t.Undo[i]
		}
	}
	return nil
}

// asItIs notes what a thing is now.
func (s *Store) asItIs(thing Thing) (undo, error) {
	u := undo{Thing: thing}
	switch thing.About {
	case AboutBan:
		p, err := netip.ParsePrefix(thing.Name)
		if err != nil {
			return u, AsError(err, CodeInvalid)
		}
		list, known := s.numbers[thing.Origin]
		if !known {
			return u, nil
		}
		if r := s.find(keyOf(p), list); r != nil {
			e := s.entryOf(r)
			u.Claim = &savedClaim{Claim: s.claimOf(r), Boot: s.boots[e.boot].id, Until: e.expires}
			if e.expires == Forever {
				u.Claim.Until = 0
			}
		}
	case AboutAllow:
		p, err := netip.ParsePrefix(thing.Name)
		if err != nil {
			return u, AsError(err, CodeInvalid)
		}
		if a, ok := s.allows.by[FromAPI][p]; ok {
			u.Allow = &savedAllow{a, a.boot, a.until}
		}
	case AboutLimit:
		if l, ok := s.limits.api[thing.Name]; ok {
			u.Limit = &l
		}
	case AboutInterface:
		if i, ok := s.interfaces[thing.Name]; ok {
			u.Interface = &i
		}
	case AboutConfig, AboutPanic:
	default:
	}
	return u, nil
}

// EndTrials ends trials whose changes stay, or have been taken back; all of them if none is named. What
// they held is no longer on an older trial, either. They are
// returned. Returns an *Error of CodeNotFound, and ends none, if one is not on trial.
func (s *Store) EndTrials(ids ...string) ([]Trial, error) {
	s.writer.Lock()
	defer s.writer.Unlock()
	var ended []Trial
	var left []*trial
	settled := map[Thing]bool{} // by a newer trial
	for _, t := range slices.Backward(s.trials.list) {
		if len(ids) == 0 || slices.Contains(ids, t.ID) {
			ended = append(ended, t.Trial)
			for i := range t.Undo {
				settled[t.Undo[i].Thing] = true
			}
		} else if one := t.without(settled); one != nil {
			left = append(left, one)
		}
	}
	slices.Reverse(ended)
	slices.Reverse(left)
	for _, id := range ids {
		if !slices.ContainsFunc(ended, func(t Trial) bool { return t.ID == id }) {
			return nil, &Error{Code: CodeNotFound, Field: "id", Value: clip(id), Detail: "is not on trial: it was confirmed or taken back, or never there; levee status shows what is"}
		}
	}
	if len(ended) == 0 {
		return nil, nil
	}
	return ended, s.saveTrials(left)
}

// without returns the trial without some things; nil if it holds no other.
func (t *trial) without(gone map[Thing]bool) *trial {
	one := *t
	one.Undo = slices.DeleteFunc(slices.Clone(t.Undo), func(u undo) bool { return gone[u.Thing] })
	if len(one.Undo) == 0 {
		return nil
	}
	return &one
}

// Release takes things out of all trials: somebody has changed them, and not on trial.
func (s *Store) Release(things []Thing) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if len(s.trials.list) == 0 {
		return nil
	}
	gone := make(map[Thing]bool, len(things))
	for _, thing := range things {
		gone[thing] = true
	}
	var left []*trial
	changed := false
	for _, t := range s.trials.list {
		one := t.without(gone)
		changed = changed || one == nil || len(one.Undo) != len(t.Undo)
		if one != nil {
			left = append(left, one)
		}
	}
	if !changed {
		return nil
	}
	return s.saveTrials(left)
}

// Trim leaves of a trial only the things that it did change.
func (s *Store) Trim(id string, changed []Thing) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	keep := make(map[Thing]bool, len(changed))
	for _, thing := range changed {
		keep[thing] = true
	}
	var left []*trial
	for _, t := range s.trials.list {
		one := *t
		if t.ID == id {
			one.Undo = slices.DeleteFunc(slices.Clone(t.Undo), func(u undo) bool { return !keep[u.Thing] })
		}
		if len(one.Undo) > 0 {
			left = append(left, &one)
		}
	}
	return s.saveTrials(left)
}

// saveTrials writes the trials as they are to be. The caller holds the writer's lock.
func (s *Store) saveTrials(left []*trial) error {
	err := s.write("write the trials", func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketTrials)
		if err != nil {
			return err
		}
		for _, t := range s.trials.list {
			if err := b.Delete(trialKey(t.ID)); err != nil {
				return err
			}
		}
		for _, t := range left {
			if err := putJSON(b, trialKey(t.ID), t); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trials.list = left
	return nil
}
