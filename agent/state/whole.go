package state

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"
)

// What is done whole or not at all may be too much for one transaction: everybody else would wait for it.
// So each of its parts notes, in the transaction that makes it, how it is taken back, and the whole is
// decided when the notes are thrown away. Notes that are found at a start are of a whole that was cut
// short: it is taken back, from its end on.
//
// A note is a part's time (i64, the same for all of its claims) and a segment: of each claim what its
// origin had said before, or that it had said nothing.
var bucketWhole = []byte("whole") // made when it is needed: it is in no schema

// ProposeWhole is ProposeBriefly for a part of what is done whole or not at all. KeepWhole or DropWhole must
// follow; if neither comes before the daemon ends, the next Open takes the parts back. There may be one whole
// at a time, and before one begins DropWhole must have found nothing that was left of another.
func (s *Store) ProposeWhole(proposals []Proposal, out []Outcome) error {
	r := &request{proposals: proposals, brief: true, outcomes: out, whole: true}
	s.submit(r)
	return asError(r.err)
}

// KeepWhole makes the parts stay.
func (s *Store) KeepWhole() error {
	s.writer.Lock()
	defer s.writer.Unlock()
	failed := s.write("note that all of it is done", func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketWhole) == nil {
			return nil
		}
		return tx.DeleteBucket(bucketWhole)
	})
	if failed == nil {
		s.undecided = false
	}
	return asError(failed)
}

// DropWhole takes back the last part that is there, but for what the origins have said since, and returns
// its prefixes. It is to be called until there is none.
func (s *Store) DropWhole() ([]netip.Prefix, error) {
	r := &request{drop: true}
	s.submit(r)
	if r.err == nil && len(r.dropped) == 0 {
		s.writer.Lock()
		s.undecided = false
		s.writer.Unlock()
	}
	return r.dropped, asError(r.err)
}

// dropLeft takes back what an earlier daemon has left of a whole.
func (s *Store) dropLeft() error {
	n := 0
	for {
		prefixes, err := s.DropWhole()
		if err != nil {
			s.undecided = true
			return err
		}
		if len(prefixes) == 0 {
			break
		}
		n += len(prefixes)
		if s.config.Dropped != nil {
			s.config.Dropped(prefixes)
		}
	}
	if n > 0 {
		s.log.Warn("an import that was to be done whole or not at all was cut short; what was done of it was taken back", "prefixes", n)
	}
	return nil
}

// note adds to the transaction how the claims of a request are taken back.
func (c *change) note(r *request) {
	before := make([]entry, 0, len(r.outcomes))
	for i := range r.outcomes {
		if m, ok := r.outcomes[i].Made(); ok {
			before = append(before, m.back())
		}
	}
	if len(before) > 0 {
		c.undecided = true
		c.notes = append(c.notes, note{c.wall, before})
	}
}

// note is how the claims that were made at a time are taken back.
type note struct {
	created int64
	before  []entry
}

// back is what puts things as they were before a claim was made.
func (m *Made) back() entry {
	if m.before != nil {
		return *m.before
	}
	return entry{remove: true, key: m.key, list: m.list}
}

// takeBack puts back what was before claims that were made at a time, the last one first, as far as they
// are still what the origins say. The claims are told by what was before them.
func (c *change) takeBack(created int64, before []entry) {
	for _, e := range slices.Backward(before) {
		if cur := c.current(e.key, e.list); cur != nil && cur.created == created {
			c.add(e)
		}
	}
}

// saveNotes writes the transaction's notes, and throws away the one that it has carried out.
func (c *change) saveNotes(tx *bbolt.Tx) error {
	if c.carriedOut != nil {
		b := tx.Bucket(bucketWhole)
		if err := b.Delete(c.carriedOut); err != nil {
			return err
		}
		if k, _ := b.Cursor().First(); k == nil {
			return tx.DeleteBucket(bucketWhole)
		}
	}
	for _, n := range c.notes {
		b, err := tx.CreateBucketIfNotExists(bucketWhole)
		if err != nil {
			return err
		}
		place, err := b.NextSequence()
		if err != nil {
			return err
		}
		v := append(binary.BigEndian.AppendUint64(nil, uint64(n.created)), encodeSegment(n.before)...)
		if err := b.Put(segmentKey(place), v); err != nil {
			return err
		}
	}
	return nil
}

// drop reads the last note, and has the transaction carry it out.
func (c *change) drop(r *request) error {
	return c.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketWhole)
		if b == nil {
			return nil
		}
		k, v := b.Cursor().Last()
		if k == nil {
			return nil
		}
		var before []entry
		if len(v) < 8 {
			return fmt.Errorf("note %x: %w", k, errSegment)
		}
		if err := decodeSegment(v[8:], func(e *entry) error {
			before = append(before, *e)
			r.dropped = append(r.dropped, e.key.prefix())
			return nil
		}); err != nil {
			return fmt.Errorf("note %x: %w", k, err)
		}
		c.carriedOut = slices.Clone(k)
		c.takeBack(int64(binary.BigEndian.Uint64(v)), before)
		return nil
	})
}
