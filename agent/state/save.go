package state

import (
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
)

// save writes the transaction, and then has memory follow.
func (c *change) save() *Error {
	s := c.Store
	g := s.segments
	var carried []carry
	failed := s.write("write the change", func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketSegments)
		g, carried = s.segments, nil
		for i, o := range c.lists {
			n := binary.BigEndian.AppendUint16(nil, uint16(len(s.names)+i))
			if err := tx.Bucket(bucketLists).Put([]byte(o), n); err != nil {
				return err
			}
		}
		if err := s.saveBoot(tx); err != nil {
			return err
		}
		first := g.next
		for part := range slices.Chunk(c.entries, segmentEntries) {
			if err := g.append(bucket, part); err != nil {
				return err
			}
		}
		var err error
		if carried, err = c.clean(bucket, &g, first); err != nil {
			return err
		}
		if err := c.saveNotes(tx); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		if err := meta.Put(keyWall, binary.BigEndian.AppendUint64(nil, uint64(c.wall))); err != nil {
			return err
		}
		return meta.Put(keyLog, encodeLog(g))
	})
	if failed != nil {
		return failed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.segments.next
	s.segments = g
	s.bootSaved, s.wall = true, c.wall
	for _, o := range c.lists {
		s.numbers[o] = uint16(len(s.names))
		s.names = append(s.names, o)
	}
	for i := range c.entries {
		if i%touched == 0 {
			s.index.touch(c.hashes[i:min(i+touched, len(c.hashes))])
		}
		e := &c.entries[i]
		if e.remove {
			s.forget(e.key, e.list)
			continue
		}
		r := s.recordOf(e, first+uint64(i/segmentEntries))
		r.words = s.texts.hold(e.words)
		s.putHashed(r, c.hashes[i])
	}
	for _, m := range carried {
		if r := s.find(m.key, m.list); r != nil && int32(r.segment-uint32(first)) < 0 {
			r.segment = uint32(m.segment)
		}
	}
	return nil
}

func (s *Store) saveBoot(tx *bbolt.Tx) error {
	if s.bootSaved {
		return nil
	}
	b := s.boots[s.boot]
	v := append(binary.BigEndian.AppendUint64(nil, uint64(b.offset)), b.id...)
	return tx.Bucket(bucketBoots).Put(binary.BigEndian.AppendUint16(nil, s.boot), v)
}

func (g *segments) append(b *bbolt.Bucket, entries []entry) error {
	if err := b.Put(segmentKey(g.next), encodeSegment(entries)); err != nil {
		return err
	}
	g.next++
	g.entries += len(entries)
	return nil
}

// carry is a claim that was written anew, and where.
type carry struct {
	listedKey
	segment uint64
}

// clean takes up segments at the log's tail while most of the log is history, or is in too many
// small pieces. What it costs is bounded by what the commit itself writes. A removal at the tail has
// nothing before it that it could remove, so it is dropped.
func (c *change) clean(b *bbolt.Bucket, g *segments, first uint64) ([]carry, error) {
	var keep []entry
	var carried []carry
	budget := 2*len(c.entries) + 512
	for taken := 0; taken < 64 && budget > 0 && g.first < first; taken++ {
		history := g.entries > 2*(c.live+len(c.entries))+1024
		pieces := g.next-g.first > uint64(2048+c.live/64)
		if !history && !pieces {
			break
		}
		k := segmentKey(g.first)
		err := decodeSegment(b.Get(k), func(e *entry) error {
			budget--
			g.entries--
			if e.remove || c.says(e.key, e.list) {
				return nil
			}
			if r := c.find(e.key, e.list); r != nil && r.segment == uint32(g.first) && r.expires > c.now {
				keep = append(keep, *e)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", g.first, err)
		}
		if err := b.Delete(k); err != nil {
			return nil, err
		}
		g.first++
	}
	for part := range slices.Chunk(keep, segmentEntries) {
		for i := range part {
			carried = append(carried, carry{listedKey{part[i].key, part[i].list}, g.next})
		}
		if err := g.append(b, part); err != nil {
			return nil, err
		}
	}
	return carried, nil
}
