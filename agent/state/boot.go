package state

import (
	"encoding/binary"
	"errors"
	"time"

	"go.etcd.io/bbolt"
)

// boot is a boot of the host, and how far its monotonic clock was behind the wall's when last seen.
type boot struct {
	id     string
	offset int64 // ns
}

// loadBoots reads the boots that expiries refer to, and enters this one. A wall clock that is behind
// what was seen before a reboot has not been set yet, so what was seen stands in for it.
func (s *Store) loadBoots(tx *bbolt.Tx) error {
	err := tx.Bucket(bucketBoots).ForEach(func(k, v []byte) error {
		if len(k) != 2 || len(v) < 8 || int(binary.BigEndian.Uint16(k)) != len(s.boots) {
			return errors.New("its boots make no sense")
		}
		s.boots = append(s.boots, boot{id: string(v[8:]), offset: int64(binary.BigEndian.Uint64(v))})
		return nil
	})
	if err != nil {
		return err
	}
	id := s.clock.Boot()
	if n := len(s.boots); n == 0 || s.boots[n-1].id != id {
		wall := max(s.clock.Now().UnixNano(), s.wall)
		s.boots = append(s.boots, boot{id, wall - int64(s.clock.Monotonic())})
	} else {
		s.boots[n-1].offset = s.offsetNow()
	}
	s.boot = uint16(len(s.boots) - 1)
	return nil
}

// offsetNow is how far the monotonic clock is behind the wall's.
func (s *Store) offsetNow() int64 {
	return s.clock.Now().UnixNano() - int64(s.clock.Monotonic())
}

// fromBoot brings an expiry from a boot's clock into this one's; 0 if it passed before this boot.
// Within a boot the monotonic clock alone speaks; across boots the wall clock does.
func (m *memory) fromBoot(expires uint64, n uint16) uint64 {
	if expires == Forever || n == m.boot {
		return expires
	}
	return uint64(max(int64(expires)+m.boots[n].offset-m.boots[m.boot].offset, 0))
}

// toBoot is the way back.
func (m *memory) toBoot(expires uint64, n uint16) uint64 {
	if expires == Forever || n == m.boot {
		return expires
	}
	return uint64(max(int64(expires)+m.boots[m.boot].offset-m.boots[n].offset, 0))
}

// wallTime says when on the wall clock a monotonic time is; zero for Forever.
func (m *memory) wallTime(mono uint64) time.Time {
	if mono == Forever {
		return time.Time{}
	}
	return time.Unix(0, int64(mono)+m.boots[m.boot].offset).UTC()
}
