package state

import (
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A commit ends with writing one of two heads and a sync. If that sync fails, bbolt reports an error,
// but the head is in the file and the change with it: it would be in force after the next start, or
// even for bbolt's next transaction, though the caller was told that nothing was changed. So the heads
// are read before a change, and put back if it fails. What the old heads lead to is still there: a
// transaction writes to free pages alone.

// headBytes is what of a head's page has a meaning.
const headBytes = pageHeader + metaBytes

// heads are the beginnings of the first two pages.
type heads struct {
	size int64 // of a page
	head [2][headBytes]byte
}

func readHeads(f *os.File, pageSize int) (h heads, err error) {
	h.size = int64(pageSize)
	for i := range h.head {
		if _, err := f.ReadAt(h.head[i][:], int64(i)*h.size); err != nil {
			return h, err
		}
	}
	return h, nil
}

// update runs a transaction that leaves the file as it was if it fails. If even that can't be done,
// there are no changes any more until it can.
func (s *Store) update(f func(*bbolt.Tx) error) error {
	if err := s.undo(); err != nil {
		return fmt.Errorf("an earlier change that failed could not be undone: %w", err)
	}
	before, err := readHeads(s.file, s.db.Info().PageSize)
	if err != nil {
		return err
	}
	failed := s.db.Update(f)
	if failed == nil {
		return nil
	}
	if now, err := readHeads(s.file, int(before.size)); err == nil && now == before {
		return fmt.Errorf("%w; nothing was changed", failed)
	}
	s.before = &before
	if err := s.undo(); err != nil {
		return fmt.Errorf("%w; nothing was changed yet, but it may be in force after a restart, for it could not be undone: %w", failed, err)
	}
	return fmt.Errorf("%w; nothing was changed", failed)
}

// undo puts the heads back that stood before a change that failed, if there was one, and has bbolt
// read the file again, whose list of free pages follows from its heads.
func (s *Store) undo() error {
	if s.before == nil {
		return nil
	}
	if s.db != nil {
		// bbolt lets go of the lock for a moment; who takes it then is told of by the error of reopen.
		for i, head := range s.before.head {
			if _, err := s.file.WriteAt(head[:], int64(i)*s.before.size); err != nil {
				return err
			}
		}
		if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
			return err
		}
		db := s.db
		s.db = nil
		if err := db.Close(); err != nil {
			return err
		}
	}
	if err := s.reopen(); err != nil {
		return err
	}
	s.before = nil
	return nil
}

func (s *Store) reopen() error {
	o := options()
	o.OpenFile = func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		f, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
		s.file = f
		return f, err
	}
	db, err := bbolt.Open(s.config.Path, 0o600, o)
	if err != nil {
		return fmt.Errorf("open it again: %w", err)
	}
	s.db = db
	return nil
}

// shut closes the file, with what failed undone if that can be done now.
func (s *Store) shut() error {
	err := s.undo()
	if s.db != nil {
		err = errors.Join(err, s.db.Close())
	}
	return err
}
