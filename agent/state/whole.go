package state

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

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

// KeepWhole makes the parts stay, and takes things out of all trials, as Release does, in one.
func (s *Store) KeepWhole(changed ...Thing) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	failed := s.endThingsWith("note that all of it is done", s.holding(changed), nil, func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketWhole) == nil {
			return nil
		}
		return tx.DeleteBucket(bucketWhole)
	})
	if failed == nil {
		s.undecided = false
		s.left.Store(nil)
	}
	return asError(failed)
}

// Dropped is what a step of DropWhole has done.
type Dropped struct {
	Prefixes  []netip.Prefix // of the part, for the kernel to follow
	Decisions []Decision     // what is in force now of its claims, but for those that others have changed since
	Damaged   error          // why the part can't be taken back, ever: its note is damaged, and gone; nil if it could
}

// DropWhole takes back the last part that is there, but for what the origins have said since, and tells
// whether there was any. It is to be called until there is none.
func (s *Store) DropWhole() (Dropped, bool, error) {
	r, err := s.dropPart()
	return r.dropped, r.carriedOut, err
}

func (s *Store) dropPart() (*request, error) {
	r := &request{drop: true}
	s.submit(r)
	if r.err != nil {
		s.left.Store(r.err)
		return &request{damaged: r.damaged}, r.err
	}
	if !r.carriedOut {
		s.writer.Lock()
		s.undecided = false
		s.writer.Unlock()
		s.left.Store(nil)
	}
	return r, nil
}

// Left says why a whole that was not kept could not be taken back yet, so that some of it is in force; nil
// if none is. DropWhole is to be called again.
func (s *Store) Left() error { return asError(s.left.Load()) }

// dropLeft takes back what an earlier daemon has left of a whole. It returns an error only if the file is
// not what was written; what could not be written is in Left.
func (s *Store) dropLeft() error {
	n := 0
	for {
		r, err := s.dropPart()
		switch {
		case r.damaged != nil:
			return r.damaged
		case err != nil:
			s.undecided = true
			s.log.Error("what an import has left that was to be done whole or not at all could not be taken back; that is tried again", "error", err)
			return nil
		case !r.carriedOut:
			if n > 0 {
				s.log.Warn("an import that was to be done whole or not at all was cut short; what was done of it was taken back", "prefixes", n)
			}
			return nil
		}
		n += len(r.dropped.Prefixes)
		if s.config.Dropped != nil {
			s.config.Dropped(r.dropped)
		}
	}
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
// are still what the origins say, and returns those that it has put back. The claims are told by what was
// before them.
func (c *change) takeBack(created int64, before []entry) (back []entry) {
	for _, e := range slices.Backward(before) {
		if cur := c.current(e.key, e.list); cur != nil && cur.created == created {
			c.add(e)
			back = append(back, e)
		}
	}
	return back
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

// drop reads the last note, and has the transaction carry it out. One that is damaged is thrown away: it
// would keep all that came before it from being taken back, and every other whole from being begun. Returns
// a DamagedError if the file is not what was written.
func (c *change) drop(r *request) (err error) {
	if err := c.undo(); err != nil {
		return fmt.Errorf("an earlier change that failed could not be undone: %w", err)
	}
	defer c.catch(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return c.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketWhole)
		if b == nil {
			return nil
		}
		k, v := b.Cursor().Last()
		if k == nil {
			return nil
		}
		created, before, damaged := readNote(v)
		c.carriedOut, r.carriedOut = slices.Clone(k), true
		if damaged != nil {
			r.dropped.Damaged = fmt.Errorf("note %x: %w; %s", k, damaged, c.madeAt(created))
			return nil
		}
		for i := range before {
			r.dropped.Prefixes = append(r.dropped.Prefixes, before[i].key.prefix())
		}
		for _, e := range c.takeBack(created, before) {
			d := Decision{About: AboutBan, Op: string(StatusRemoved), Subject: PrefixString(e.key.prefix()), Origin: c.origin(e.list)}
			if !e.remove {
				d.Op, d.Claim = string(StatusChanged), c.claimOfEntry(&e)
			}
			r.dropped.Decisions = append(r.dropped.Decisions, d)
		}
		return nil
	})
}

func readNote(v []byte) (created int64, before []entry, err error) {
	if len(v) < 8 {
		return 0, nil, errSegment
	}
	err = decodeSegment(v[8:], func(e *entry) error {
		before = append(before, *e)
		return nil
	})
	return int64(binary.BigEndian.Uint64(v)), before, err
}

// madeAt says which claims were made at a time.
func (c *change) madeAt(created int64) string {
	n := 0
	for _, r := range c.all(0, c.used) {
		if r.created == created {
			n++
		}
	}
	if n == 0 {
		return "no ban is known that it was about"
	}
	return fmt.Sprintf("%d bans that were made at %s stay in force", n, time.Unix(0, created).UTC().Format(time.RFC3339Nano))
}
