package state

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/gaissmai/bart"
	"go.etcd.io/bbolt"
)

// load reads everything into memory, and checks it.
func (s *Store) load(tx *bbolt.Tx) error {
	damaged := func(format string, args ...any) error {
		return &DamagedError{s.config.Path, fmt.Errorf(format, args...)}
	}
	s.memory = memory{
		claims:     newClaims(),
		names:      []Origin{""},
		numbers:    map[Origin]uint16{},
		allows:     newAllowTable(),
		proxies:    &bart.Table[Prefix]{},
		limits:     newLimitTable(),
		interfaces: map[string]Interface{},
	}
	for _, b := range buckets {
		if tx.Bucket(b) == nil {
			return damaged("it lacks the bucket %s", b)
		}
	}
	meta := tx.Bucket(bucketMeta)
	if wall := meta.Get(keyWall); len(wall) == 8 {
		s.wall = int64(binary.BigEndian.Uint64(wall))
	}
	if err := s.loadBoots(tx); err != nil {
		return damaged("%w", err)
	}
	if err := s.loadLists(tx); err != nil {
		return damaged("%w", err)
	}
	if err := s.loadSettings(tx); err != nil {
		return damaged("%w", err)
	}
	if err := s.loadTrials(tx); err != nil {
		return damaged("%w", err)
	}
	if err := s.loadTokens(tx); err != nil {
		return damaged("%w", err)
	}
	s.fresh = meta.Get(keyUnfilled) != nil
	log := meta.Get(keyLog)
	if len(log) != 16 {
		return damaged("it lacks the bounds of its log")
	}
	s.segments = segments{first: binary.BigEndian.Uint64(log), next: binary.BigEndian.Uint64(log[8:])}
	if err := s.loadSegments(tx); err != nil {
		return damaged("%w", err)
	}
	return nil
}

func (s *Store) loadSegments(tx *bbolt.Tx) error {
	now := s.clock.Monotonic()
	want := s.segments.first
	c := tx.Bucket(bucketSegments).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if !bytes.Equal(k, segmentKey(want)) {
			return fmt.Errorf("segment %d is missing", want)
		}
		err := decodeSegment(v, func(e *entry) error {
			s.segments.entries++
			if int(e.list) >= len(s.names) || e.list == 0 {
				return fmt.Errorf("names an unknown list %d", e.list)
			}
			if !e.remove && e.expires != Forever && int(e.boot) >= len(s.boots) {
				return fmt.Errorf("names an unknown boot %d", e.boot)
			}
			r := s.recordOf(e, want)
			if e.remove || r.expires <= now {
				s.forget(e.key, e.list)
				return nil
			}
			r.words = s.texts.hold(e.words)
			s.put(r)
			return nil
		})
		if err != nil {
			return fmt.Errorf("segment %d: %w", want, err)
		}
		want++
	}
	if want != s.segments.next {
		return fmt.Errorf("segment %d is missing", want)
	}
	return nil
}

func (s *Store) loadLists(tx *bbolt.Tx) error {
	return tx.Bucket(bucketLists).ForEach(func(k, v []byte) error {
		if len(v) != 2 {
			return fmt.Errorf("list %q has no number", k)
		}
		n := binary.BigEndian.Uint16(v)
		if n == 0 || n >= MaxLists {
			return fmt.Errorf("list %q has the number %d", k, n)
		}
		for int(n) >= len(s.names) {
			s.names = append(s.names, "")
		}
		s.names[n] = Origin(k)
		s.numbers[Origin(k)] = n
		return nil
	})
}

// recordOf makes an entry's record; its words are not held yet.
func (s *Store) recordOf(e *entry, segment uint64) (r record) {
	// One by one: a literal would be copied from where it had just been written, which waits for that.
	r.created, r.segment, r.list, r.boot, r.expires = e.created, uint32(segment), e.list, e.boot, e.expires
	r.setKey(e.key)
	if e.monitor {
		r.flags |= recordMonitor
	}
	if !e.remove {
		r.expires = s.fromBoot(e.expires, e.boot)
	}
	return r
}

func (s *Store) entryOf(r *record) entry {
	return entry{key: r.key(), list: r.list, boot: r.boot, monitor: r.monitor(), created: r.created,
		expires: s.toBoot(r.expires, r.boot), words: s.texts.text[r.words]}
}
