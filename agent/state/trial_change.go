package state

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
)

// On disk a trial is a key of its own, and so is each thing that it holds: to forget one of ten
// thousand costs no more than that.
var (
	bucketTrials = []byte("trials") // made when it is needed: it is in no schema
	keyNext      = []byte("next")
	keyRejected  = []byte("rejected")
)

const (
	prefixTrial = "trial:"
	prefixThing = "undo:" // then the trial's number, 8 bytes, and the thing's in it, 4 bytes
)

func (t *trial) key() []byte { return []byte(prefixTrial + t.ID) }

func (u *undo) key() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64([]byte(prefixThing), u.of.Number), u.at)
}

func (s *Store) loadTrials(tx *bbolt.Tx) error {
	s.trials = trials{next: 1, held: map[Thing][]*undo{}, claims: map[string][]Thing{}}
	b := tx.Bucket(bucketTrials)
	if b == nil {
		return nil
	}
	byNumber := map[uint64]*trial{}
	err := b.ForEach(func(k, v []byte) error { // the trials come before their things
		switch name := string(k); {
		case name == string(keyNext):
			return json.Unmarshal(v, &s.trials.next)
		case name == string(keyRejected):
			return json.Unmarshal(v, &s.trials.rejected)
		case strings.HasPrefix(name, prefixTrial):
			t, err := s.loadTrial(v)
			if err != nil {
				return fmt.Errorf("trial %q makes no sense: %w", k, err)
			}
			byNumber[t.Number] = t
		case strings.HasPrefix(name, prefixThing) && len(k) == len(prefixThing)+12:
			u := &undo{of: byNumber[binary.BigEndian.Uint64(k[len(prefixThing):])], at: binary.BigEndian.Uint32(k[len(prefixThing)+8:])}
			if u.of == nil {
				return fmt.Errorf("%q is on no trial", k)
			}
			if err := json.Unmarshal(v, u); err != nil {
				return fmt.Errorf("what is on trial %s makes no sense: %w", u.of.ID, err)
			}
			u.of.things = append(u.of.things, u)
		}
		return nil
	})
	if err != nil {
		return err
	}
	list := make([]*trial, 0, len(byNumber))
	for _, t := range byNumber {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b *trial) int { return cmp.Compare(a.Number, b.Number) })
	for _, t := range list {
		s.trials.add(t)
	}
	return nil
}

func (s *Store) loadTrial(text []byte) (*trial, error) {
	t := &trial{}
	if err := json.Unmarshal(text, t); err != nil {
		return nil, err
	}
	now := s.clock.Monotonic()
	if t.Boot != s.boots[s.boot].id {
		// What is left by the wall clock, but no more than it ever was.
		left := min(t.Expires.UnixNano()-s.boots[s.boot].offset-int64(now), int64(t.Expires.Sub(t.Created)))
		t.Boot, t.Until = s.boots[s.boot].id, now+uint64(max(left, 0))
	}
	return t, nil
}

// BeginTrial notes what things are now, before they are changed on trial. Returns an *Error of
// CodeConflict if that would be too much.
func (s *Store) BeginTrial(a Attempt) (Trial, error) {
	if err := CheckTrial(a.For); err != nil {
		return Trial{}, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	now := s.clock.Monotonic()
	next := &trial{Trial: Trial{About: a.About, What: a.What, Actor: a.By.String()}, Number: s.trials.next, Boot: s.boots[s.boot].id,
		Until: now + uint64(a.For), Root: a.By.isRoot()}
	next.ID = fmt.Sprintf("t%d", next.Number)
	next.Created, next.Expires = s.clock.Now().UTC(), s.wallTime(next.Until)
	seen := make(map[Thing]bool, len(a.Things))
	for _, thing := range a.Things {
		if seen[thing] {
			continue
		}
		seen[thing] = true
		u, err := s.asItIs(thing)
		if err != nil {
			return Trial{}, err
		}
		u.of, u.at = next, uint32(len(next.things))
		switch thing.About {
		case AboutInterface:
			u.Attached = a.Modes[thing.Name]
		case AboutConfig:
			u.Config = a.Config
		case AboutBan, AboutAllow, AboutLimit, AboutPanic:
		}
		next.things = append(next.things, u)
	}
	if err := s.trials.room(a.By, len(next.things)); err != nil {
		return Trial{}, err
	}
	failed := s.write("note what was there before the trial", func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketTrials)
		if err != nil {
			return err
		}
		err = errors.Join(putJSON(b, keyNext, next.Number+1), putJSON(b, next.key(), next))
		for _, u := range next.things {
			err = errors.Join(err, putJSON(b, u.key(), u))
		}
		return err
	})
	if failed != nil {
		return Trial{}, failed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trials.next = next.Number + 1
	s.trials.add(next)
	return next.Trial, nil
}

func putJSON(b *bbolt.Bucket, key []byte, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, text)
}

// asItIs notes what a thing is now.
func (s *Store) asItIs(thing Thing) (*undo, error) {
	u := &undo{Thing: thing}
	switch thing.About {
	case AboutBan:
		p, err := netip.ParsePrefix(thing.Name)
		if err != nil {
			return nil, AsError(err, CodeInvalid)
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
			return nil, AsError(err, CodeInvalid)
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
	}
	return u, nil
}

// Confirm ends trials whose changes stay; all of them if none is named. They are returned. Returns an
// *Error of CodeNotFound if one is not on trial, of CodeConflict if its time is over, and ends none then.
func (s *Store) Confirm(ids ...string) ([]Trial, error) {
	s.writer.Lock()
	defer s.writer.Unlock()
	now := s.clock.Monotonic()
	var kept []Trial
	var gone []*undo
	for _, id := range ids {
		t := s.trials.find(id)
		switch {
		case t == nil:
			return nil, &Error{Code: CodeNotFound, Field: "id", Value: clip(id), Detail: "is not on trial: it was confirmed or taken back, or never there; levee status shows what is"}
		case t.Until <= now:
			return nil, &Error{Code: CodeConflict, Field: "id", Value: id, Detail: "was not confirmed in time, and is being taken back; make the change again if it is to stay"}
		}
	}
	for _, t := range s.trials.list {
		if t.Until <= now || len(ids) > 0 && !slices.Contains(ids, t.ID) {
			continue
		}
		kept = append(kept, t.Trial)
		for _, u := range t.things {
			pile := s.trials.held[u.Thing]
			gone = append(gone, pile[:slices.Index(pile, u)+1]...)
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	return kept, asError(s.endThings("note what was confirmed", unique(gone), nil))
}

// Release takes things out of all trials: somebody has changed them, and not on trial.
func (s *Store) Release(things []Thing) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	return asError(s.endThings("end the trial of what was changed", s.holding(things), nil))
}

// holding is what trials have noted of things.
func (s *Store) holding(things []Thing) (noted []*undo) {
	for _, thing := range things {
		noted = append(noted, s.trials.held[thing]...)
	}
	return unique(noted)
}

// Trim leaves of a trial only the things that it did change.
func (s *Store) Trim(id string, changed []Thing) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	t := s.trials.find(id)
	if t == nil {
		return nil
	}
	keep := make(map[Thing]bool, len(changed))
	for _, thing := range changed {
		keep[thing] = true
	}
	gone := slices.DeleteFunc(slices.Clone(t.things), func(u *undo) bool { return keep[u.Thing] })
	return asError(s.endThings("note what is not on trial", gone, nil))
}

// Hasten has a trial end now. It does so in memory alone: it is for one whose change failed and could
// not be put back, and then little can be written.
func (s *Store) Hasten(id string) {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.trials.find(id); t != nil {
		t.Until = min(t.Until, s.clock.Monotonic())
	}
}

func unique(list []*undo) []*undo {
	seen := make(map[*undo]bool, len(list))
	return slices.DeleteFunc(list, func(u *undo) bool {
		twice := seen[u]
		seen[u] = true
		return twice
	})
}

// endThings forgets things that are on trial, on disk and in memory, and the trials that hold none any
// more. What heirs have noted before is replaced. The caller holds the writer's lock.
func (s *Store) endThings(what string, gone []*undo, heirs map[*undo]*undo) *Error {
	if len(gone) == 0 {
		return nil
	}
	return s.endThingsWith(what, gone, heirs, func(*bbolt.Tx) error { return nil })
}

// endThingsWith is endThings, and does something else in the same transaction.
func (s *Store) endThingsWith(what string, gone []*undo, heirs map[*undo]*undo, also func(*bbolt.Tx) error) *Error {
	left := map[*trial]int{}
	for _, u := range gone {
		if _, ok := left[u.of]; !ok {
			left[u.of] = len(u.of.things)
		}
		left[u.of]--
	}
	failed := s.write(what, func(tx *bbolt.Tx) error {
		if err := also(tx); err != nil || len(gone) == 0 {
			return err
		}
		b, err := tx.CreateBucketIfNotExists(bucketTrials)
		if err != nil {
			return err
		}
		for _, u := range gone {
			err = errors.Join(err, b.Delete(u.key()))
		}
		for t, n := range left {
			if n == 0 {
				err = errors.Join(err, b.Delete(t.key()))
			}
		}
		for u, next := range heirs {
			err = errors.Join(err, putJSON(b, u.key(), next))
		}
		return err
	})
	if failed != nil {
		return failed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for u, next := range heirs {
		*u = *next
	}
	s.trials.drop(gone)
	return nil
}
