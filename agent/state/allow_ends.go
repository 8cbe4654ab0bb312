package state

import (
	"encoding/json"
	"maps"
	"net/netip"

	"go.etcd.io/bbolt"
)

// savedAllow is an allow entry on disk: beside when it ends on the wall clock, when it does by the
// clock of the boot in which that was promised.
type savedAllow struct {
	Allow
	Boot  string `json:"boot,omitempty"`
	Until uint64 `json:"until,omitempty"`
}

func (s *Store) loadAllow(text []byte) (Allow, error) {
	var a savedAllow
	if err := json.Unmarshal(text, &a); err != nil {
		return Allow{}, err
	}
	if a.Expires.IsZero() {
		return a.Allow, nil
	}
	if a.boot = a.Boot; a.boot == s.boots[s.boot].id {
		a.until = max(a.Until, 1)
	} else {
		a.until = uint64(max(a.Expires.UnixNano()-s.boots[s.boot].offset, 1))
	}
	return a.Allow, nil
}

// follow moves the ends of entries from other boots with the wall clock, which was set by ns.
func (t *allowTable) follow(by int64, boot string) (moved bool) {
	for p, a := range t.by[FromAPI] {
		if a.until == 0 || a.boot == boot {
			continue
		}
		a.until = uint64(max(int64(a.until)-by, 1))
		t.by[FromAPI][p] = a
		t.refresh(p)
		moved = true
	}
	return moved
}

// SweepAllows forgets the allow entries that have ended, on disk too: whatever is done to the clocks,
// they do not come back. It tells whether there were any, and when the next one ends, in ns of
// CLOCK_MONOTONIC, or Forever.
func (s *Store) SweepAllows() (ended bool, next uint64) {
	s.writer.Lock()
	defer s.writer.Unlock()
	now := s.clock.Monotonic()
	next = Forever
	var gone []netip.Prefix
	for p, a := range s.allows.by[FromAPI] {
		if a.Until() <= now {
			gone = append(gone, p)
		} else {
			next = min(next, a.Until())
		}
	}
	if len(gone) == 0 {
		return false, next
	}
	left := maps.Clone(s.allows.by[FromAPI])
	failed := s.write("forget allow entries that have ended", func(tx *bbolt.Tx) error {
		for _, p := range gone {
			delete(left, p)
			if err := tx.Bucket(bucketAllows).Delete([]byte(p.String())); err != nil {
				return err
			}
		}
		return nil
	})
	if failed != nil {
		s.log.Error("allow entries have ended, and are still on disk", "error", failed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allows.by[FromAPI] = left
	for _, p := range gone {
		s.allows.refresh(p)
	}
	return true, next
}
