package state

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// A change whose last sync fails is in the file, and bbolt goes on from there. The state takes it back:
// neither the next change nor the next start knows of it.
func TestUndo(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", 0)
	h.ban("192.0.2.2", "operator", time.Hour)
	for round := range 20 {
		before, err := readHeads(h.file, h.db.Info().PageSize)
		if err != nil {
			t.Fatal(err)
		}
		// What such a change leaves behind: claims are gone, an origin is known, a setting was made.
		if err := h.db.Update(func(tx *bbolt.Tx) error {
			segments := tx.Bucket(bucketSegments)
			c := segments.Cursor()
			for k, _ := c.First(); k != nil; k, _ = c.Next() {
				if err := c.Delete(); err != nil {
					return err
				}
			}
			return errors.Join(
				tx.Bucket(bucketMeta).Put(keyLog, encodeLog(segments0)),
				tx.Bucket(bucketLists).Put([]byte("api:zzz"), []byte{0, 2}),
				tx.Bucket(bucketAllows).Put([]byte("garbage"), []byte("garbage")))
		}); err != nil {
			t.Fatal(err)
		}
		h.before = &before
		if round%2 == 0 {
			h.reopen() // closing undoes it, too
		}
		h.ban("192.0.2.3", "api:new", 0)
		if h.before != nil {
			t.Fatal("a change was made before the one that failed was undone")
		}
		h.try(Proposal{Prefix: prefix("192.0.2.3"), Origin: "api:new", Remove: true})
		h.want("192.0.2.1 operator forever; 192.0.2.2 operator 1h")
		h.reopen()
		h.want("192.0.2.1 operator forever; 192.0.2.2 operator 1h")
	}
}

var segments0 = segments{first: 900, next: 900}

// What can't be undone keeps every change off until it can.
func TestUndoFails(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", 0)
	before, err := readHeads(h.file, h.db.Info().PageSize)
	if err != nil {
		t.Fatal(err)
	}
	h.ban("192.0.2.2", "operator", 0)
	h.before = &before
	file := h.file
	if h.file, err = openReadOnly(h.path); err != nil {
		t.Fatal(err)
	}
	_, err = h.Propose([]Proposal{{Prefix: prefix("192.0.2.3"), Origin: "operator"}})
	if err == nil || AsError(err, "").Code != CodeStorage || !strings.Contains(err.Error(), "could not be undone") {
		t.Errorf("%v", err)
	}
	h.file.Close()
	h.file = file
	h.reopen()
	h.want("192.0.2.1 operator forever")
}

func TestAdvice(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSPC: "no space left on device; make room", syscall.EROFS: "read-only file system; its filesystem is mounted read-only",
		syscall.EIO: "input/output error; the disk fails", syscall.EACCES: "permission denied; the daemon must be able to write",
	} {
		if err := advised(errno); !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := advised(errNothing); !errors.Is(err, errNothing) || err.Error() != errNothing.Error() {
		t.Error(err)
	}
}

var errNothing = errors.New("nothing of the disk's")
