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
	Prefixes   []netip.Prefix
	Allows     bool
	Limits     bool
	Interfaces map[string]string // the mode in which each was attached; empty: it was not
	Config     *FileText         // the configuration that is to be in force again
}

// Undo puts back what was there before a trial, but for what a newer one holds. It can be done again: the
// trial ends only with EndTrials.
func (s *Store) Undo(id string) (Undone, error) {
	out := Undone{Interfaces: map[string]string{}}
	s.writer.Lock()
	var mine []undo
	found := false
	for i, t := range s.trials.list {
		if t.ID != id {
			continue
		}
		found, out.Trial = true, t.Trial
		newer := trials{list: s.trials.list[i+1:]}
		for _, u := range t.Undo {
			if newer.holder(u.Thing) == nil {
				mine = append(mine, u)
			}
		}
	}
	s.writer.Unlock()
	if !found {
		return out, &Error{Code: CodeNotFound, Field: "id", Value: clip(id), Detail: "is not on trial"}
	}
	var errs []error
	claims := &request{}
	for i := range mine {
		u := &mine[i]
		switch u.About {
		case AboutBan:
			p, err := netip.ParsePrefix(u.Name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if e, ok := s.entryOfClaim(p, u); ok {
				claims.undo, out.Prefixes = append(claims.undo, e), append(out.Prefixes, p)
			}
		case AboutAllow:
			out.Allows = true
			errs = append(errs, s.restoreAllow(u))
		case AboutLimit:
			out.Limits = true
			errs = append(errs, s.restoreLimit(u))
		case AboutInterface:
			out.Interfaces[u.Name] = u.Attached
			errs = append(errs, s.restoreInterface(u))
		case AboutConfig:
			if out.Config = u.Config; u.Config != nil {
				errs = append(errs, s.Reject(u.Config))
			}
		case AboutPanic:
		default:
		}
	}
	if len(claims.undo) > 0 {
		if s.submit(claims); claims.err != nil {
			errs = append(errs, claims.err)
		}
	}
	return out, errors.Join(errs...)
}

// entryOfClaim is what to write for a claim to be as it was; nothing if its origin has never spoken. One
// that has ended meanwhile stays ended.
func (s *Store) entryOfClaim(p netip.Prefix, u *undo) (entry, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list, known := s.numbers[u.Origin]
	if !known {
		return entry{}, false
	}
	e := entry{key: keyOf(p), list: list, boot: s.boot, expires: Forever}
	if u.Claim == nil {
		e.remove = true
		return e, true
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
			return entry{remove: true, key: e.key, list: list}, true
		}
	}
	return e, true
}

func (s *Store) restoreAllow(u *undo) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	p, err := netip.ParsePrefix(u.Name)
	if err != nil {
		return err
	}
	next := maps.Clone(s.allows.by[FromAPI])
	delete(next, p)
	if u.Allow != nil {
		a := u.Allow.Allow
		if a.boot = u.Allow.Boot; u.Allow.Until != 0 {
			if a.until = u.Allow.Until; a.boot != s.boots[s.boot].id {
				a.until = uint64(max(a.Expires.UnixNano()-s.boots[s.boot].offset, 1))
			}
		}
		if a.Until() > s.clock.Monotonic() {
			next[p] = a
		}
	}
	return s.saveAllows([]AllowOutcome{{Prefix: p}}, next)
}

func (s *Store) restoreLimit(u *undo) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	next := s.cloneLimits()
	delete(next.api, u.Name)
	if u.Limit != nil {
		next.api[u.Name] = *u.Limit
	}
	return asError(s.save(next, s.interfaces, u.Name))
}

func (s *Store) restoreInterface(u *undo) error {
	return s.remember(u.Name, func(i *Interface) {
		i.API, i.Detached = "", false
		if u.Interface != nil {
			i.API, i.Detached = u.Interface.API, u.Interface.Detached
		}
	})
}

// Tried returns what a trial of a configuration holds; nil if it is of something else.
func (s *Store) Tried(id string) *FileText {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, t := range s.trials.list {
		if u := t.of(Thing{About: AboutConfig}); t.ID == id && u != nil {
			return u.Config
		}
	}
	return nil
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
