package state

import (
	"net/netip"
	"time"
)

// Expired is a claim that ended by itself.
type Expired struct {
	Prefix netip.Prefix
	Origin Origin
}

// Sweep forgets the claims that have ended, at most a number of them, and returns them with the
// time of the next, in ns of CLOCK_MONOTONIC, or Forever. Nothing is written: what is on disk says
// itself when it ends.
func (s *Store) Sweep(most int) (ended []Expired, next uint64) {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Monotonic()
	for {
		next = s.earliest()
		if next > now || len(ended) >= most {
			return ended, next
		}
		r := s.at(s.due[0].slot)
		ended = append(ended, Expired{r.key().prefix(), s.names[r.list]})
		s.forget(r.key(), r.list)
	}
}

// Tick looks whether the wall clock was set. Bans of this boot do not care; those from before it
// were promised by the wall clock and follow it. It tells whether any did.
func (s *Store) Tick() (moved bool) {
	const tolerance = int64(time.Second)
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	offset := s.offsetNow()
	by := offset - s.boots[s.boot].offset
	if by > -tolerance && by < tolerance {
		return false
	}
	for _, r := range s.all(1, s.used) {
		if r.boot != s.boot && r.expires != Forever {
			r.expires = uint64(max(int64(r.expires)-by, 0))
			moved = true
		}
	}
	moved = s.allows.follow(by, s.boots[s.boot].id) || moved
	s.boots[s.boot].offset, s.bootSaved = offset, false
	s.reschedule()
	s.log.Warn("the wall clock was set", "by", time.Duration(by).String())
	if err := s.write("note the clock", s.saveBoot); err == nil {
		s.bootSaved = true
	}
	return moved
}
