package state

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"
)

// Undone is what taking a trial back has changed, for the kernel to follow.
type Undone struct {
	Trial      Trial
	Decisions  []Decision // what is in force of each thing now
	Prefixes   []netip.Prefix
	Allows     bool
	Limits     bool
	Interfaces map[string]string // the mode in which each was attached; empty: it was not
	Config     *FileText         // the configuration that is to be in force again
}

// Undo puts back what was there before a trial, but for what a newer one has changed since. It can be
// done again: the trial ends only with EndTrial. Nobody may change what it is about meanwhile. Trials that
// were put back before, and have not ended yet, do not count as newer ones.
func (s *Store) Undo(id string, before ...string) (Undone, error) {
	s.mu.RLock()
	t := s.trials.find(id)
	if t == nil {
		s.mu.RUnlock()
		return Undone{}, &Error{Code: CodeNotFound, Field: "id", Value: clip(id), Detail: "is not on trial"}
	}
	r := restore{Store: s, out: Undone{Trial: t.Trial, Interfaces: map[string]string{}}}
	for _, u := range t.things {
		if s.trials.newer(u, before) == nil {
			r.things = append(r.things, u)
		}
	}
	s.mu.RUnlock()
	err := errors.Join(r.claims(), r.allows(), r.settings(), r.config())
	return r.out, err
}

// restore puts things back.
type restore struct {
	*Store
	things []*undo
	out    Undone
}

// decided notes what is in force of a thing; nothing if there is no such thing.
func (r *restore) decided(u *undo, subject string, there bool, claim *Claim) {
	d := Decision{About: u.About, Op: string(StatusRemoved), Subject: subject, Origin: u.Origin, Trial: r.out.Trial.ID}
	if there {
		d.Op, d.Claim = string(StatusChanged), claim
	}
	r.out.Decisions = append(r.out.Decisions, d)
}

func (r *restore) claims() error {
	q := &request{}
	for _, u := range r.things {
		if u.About != AboutBan {
			continue
		}
		p, err := netip.ParsePrefix(u.Name)
		if err != nil {
			return err
		}
		e, differs, known := r.entryOfClaim(p, u)
		if !known {
			continue // its origin has never spoken
		}
		if differs {
			q.undo = append(q.undo, e)
		}
		r.out.Prefixes = append(r.out.Prefixes, p)
		var claim *Claim
		if !e.remove {
			claim = &u.Claim.Claim
		}
		r.decided(u, PrefixString(p), !e.remove, claim)
	}
	if len(q.undo) == 0 {
		return nil
	}
	r.submit(q)
	return asError(q.err)
}

// entryOfClaim is what to write for a claim to be as it was, and whether it is not. One that has ended
// meanwhile stays ended.
func (s *Store) entryOfClaim(p netip.Prefix, u *undo) (e entry, differs, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list, known := s.numbers[u.Origin]
	if !known {
		return entry{}, false, false
	}
	e = entry{key: keyOf(p), list: list, boot: s.boot, expires: Forever}
	now := s.find(e.key, list)
	if u.Claim == nil {
		e.remove = true
		return e, now != nil, true
	}
	c := u.Claim
	e.monitor, e.created, e.words = c.Monitor, c.Created.UnixNano(), words{c.Actor, c.Reason}
	if c.Until != 0 {
		i := slices.IndexFunc(s.boots, func(b boot) bool { return b.id == c.Boot })
		if i >= 0 {
			e.boot, e.expires = uint16(i), c.Until
		} else {
			e.expires = uint64(max(c.Expires.UnixNano()-s.boots[s.boot].offset, 0))
		}
		if s.fromBoot(e.expires, e.boot) <= s.clock.Monotonic() {
			return entry{remove: true, key: e.key, list: list}, now != nil, true
		}
	}
	return e, now == nil || s.entryOf(now) != e, true
}

func (r *restore) allows() error {
	r.writer.Lock()
	defer r.writer.Unlock()
	var out []AllowOutcome
	next := maps.Clone(r.Store.allows.by[FromAPI])
	for _, u := range r.things {
		if u.About != AboutAllow {
			continue
		}
		p, err := netip.ParsePrefix(u.Name)
		if err != nil {
			return err
		}
		delete(next, p)
		if u.Allow != nil {
			a := u.Allow.Allow
			if a.boot = u.Allow.Boot; u.Allow.Until != 0 {
				if a.until = u.Allow.Until; a.boot != r.boots[r.boot].id {
					a.until = uint64(max(a.Expires.UnixNano()-r.boots[r.boot].offset, 1))
				}
			}
			if a.Until() > r.clock.Monotonic() {
				next[p] = a
			}
		}
		_, there := next[p]
		out = append(out, AllowOutcome{Prefix: p})
		r.decided(u, PrefixString(p), there, nil)
	}
	if len(out) == 0 {
		return nil
	}
	r.out.Allows = true
	return r.saveAllows(out, next)
}

// settings puts limits and interfaces back.
func (r *restore) settings() error {
	r.writer.Lock()
	defer r.writer.Unlock()
	limits, interfaces, newest := r.cloneLimits(), maps.Clone(r.interfaces), ""
	for _, u := range r.things {
		switch u.About {
		case AboutLimit:
			r.out.Limits, newest = true, u.Name
			delete(limits.api, u.Name)
			if u.Limit != nil {
				limits.api[u.Name] = *u.Limit
			}
			_, there := limits.specs()[u.Name]
			r.decided(u, u.Name, there, nil)
		case AboutInterface:
			r.out.Interfaces[u.Name] = u.Attached
			i := interfaces[u.Name]
			i.Name, i.API, i.Detached = u.Name, "", false
			if u.Interface != nil {
				i.API, i.Detached = u.Interface.API, u.Interface.Detached
			}
			if interfaces[u.Name] = i; i.API == "" && i.Config == "" {
				delete(interfaces, u.Name)
			}
			r.decided(u, u.Name, u.Attached != "", nil)
		case AboutBan, AboutAllow, AboutConfig, AboutPanic:
		}
	}
	if !r.out.Limits && len(r.out.Interfaces) == 0 {
		return nil
	}
	failed := r.save(limits, interfaces, newest)
	if failed != nil && failed.Code == CodeConflict {
		advised := *failed
		advised.Detail += "; to have the trial taken back, remove the other limit"
		failed = &advised
	}
	return asError(failed)
}

func (r *restore) config() error {
	for _, u := range r.things {
		if u.About != AboutConfig || u.Config == nil {
			continue
		}
		// What was rejected before is no newer word than this, should the file still say it.
		text := u.Config.after(r.Rejected())
		if err := r.Reject(text); err != nil {
			return err
		}
		r.out.Config = text
		r.out.Decisions = append(r.out.Decisions, Decision{About: AboutConfig, Op: OpReloaded, Trial: r.out.Trial.ID})
	}
	return nil
}

// EndTrial ends a trial that was taken back. What it has noted, a newer trial of the same thing goes
// back to.
func (s *Store) EndTrial(id string) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	t := s.trials.find(id)
	if t == nil {
		return nil
	}
	heirs := map[*undo]*undo{}
	for _, u := range t.things {
		newer := s.trials.newer(u, nil)
		if newer == nil {
			continue
		}
		next := *u
		next.of, next.at = newer.of, newer.at
		if u.Config != nil && newer.Config != nil {
			next.Config = &FileText{Text: u.Config.Text, None: u.Config.None, Tried: newer.Config.Tried, Also: newer.Config.Also, Interfaces: newer.Config.Interfaces}
			next.Config = next.Config.after(u.Config)
		}
		heirs[newer] = &next
	}
	return asError(s.endThings("end the trial", slices.Clone(t.things), heirs))
}

// Tried tells whether a text of the configuration file is the one on trial, or one that was rejected;
// and whether any is on trial.
func (s *Store) Tried(sum string) (tried, any bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pile := s.trials.held[Thing{About: AboutConfig}]
	if len(pile) == 0 {
		return s.trials.rejected.Has(sum), false
	}
	return pile[len(pile)-1].Config.Has(sum) || s.trials.rejected.Has(sum), true
}

// Rejected returns the configuration that is in force instead of one that was tried and not confirmed;
// nil if there is none.
func (s *Store) Rejected() *FileText {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.trials.rejected
}

// Reject notes which configuration is to be in force instead of one that was not confirmed; nil if none
// is any more.
func (s *Store) Reject(f *FileText) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if f == nil && s.trials.rejected == nil {
		return nil
	}
	err := s.write("note the configuration", func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketTrials)
		if err != nil {
			return err
		}
		if f == nil {
			return b.Delete(keyRejected)
		}
		return putJSON(b, keyRejected, f)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trials.rejected = f
	return nil
}
