package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bbolt trusts its file: on a damaged page it panics, in part in a goroutine of its own where nobody
// can catch it. So the file's skeleton is checked before bbolt sees it: every page that can be
// reached is what it says it is, lies within the file, is reached once, and has its keys in order.
// What stands in the leaves has checksums of its own.

// File format, see bbolt's internal/common.
const (
	pageHeader  = 16 // u64 id | u16 flags | u16 count | u32 overflow
	element     = 16 // leaf: u32 flags, pos, key size, value size; branch: u32 pos, key size, u64 page
	metaBytes   = 64
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	branchPage  = 1
	leafPage    = 2
	isBucket    = 1
)

type skeleton struct {
	f    *os.File
	size int64 // of a page
	end  uint64
	seen map[uint64]bool
}

// lockFile takes the lock that bbolt takes on an opened file, so that nobody writes while it is
// checked.
func lockFile(f *os.File, patience time.Duration) error {
	for until := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(until) {
			return errHeld
		}
	}
}

var errHeld = errors.New("another process holds it; is a second daemon running?")

// checkFile walks the file. A doubt is a damaged meta page, of which there are two: bbolt takes the
// other one, which may lack the last commit.
func checkFile(f *os.File) (doubt, damage error) {
	s := skeleton{f: f, size: 4096, seen: map[uint64]bool{}}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	first, errFirst := s.meta(0)
	if errFirst == nil {
		s.size = int64(first.size)
	}
	best, doubt := first, errFirst
	if second, err := s.meta(s.size); err != nil {
		if errFirst != nil {
			return nil, fmt.Errorf("it has no valid head: %w", errFirst)
		}
		doubt = err
	} else if errFirst != nil || second.tx > first.tx {
		best = second
	}
	if doubt != nil {
		doubt = fmt.Errorf("%w; its last change may be lost", doubt)
	}
	if s.size = int64(best.size); s.size < 512 || s.size > 1<<16 || s.size&(s.size-1) != 0 {
		return nil, fmt.Errorf("its pages have %d bytes", best.size)
	}
	if s.end = best.end; s.end > uint64(info.Size()/s.size) {
		return nil, fmt.Errorf("it has %d bytes, and should have %d at least", info.Size(), s.end*uint64(s.size))
	}
	return doubt, s.page(best.root, nil, nil)
}

type metaPage struct {
	size          uint32
	root, end, tx uint64
}

func (s *skeleton) meta(at int64) (metaPage, error) {
	var b [metaBytes]byte
	if _, err := s.f.ReadAt(b[:], at+pageHeader); err != nil {
		return metaPage{}, err
	}
	n := binary.NativeEndian
	h := fnv.New64a()
	h.Write(b[:metaBytes-8])
	if n.Uint32(b[:]) != metaMagic || n.Uint32(b[4:]) != metaVersion || h.Sum64() != n.Uint64(b[56:]) {
		return metaPage{}, fmt.Errorf("the head at %d is damaged", at)
	}
	return metaPage{n.Uint32(b[8:]), n.Uint64(b[16:]), n.Uint64(b[40:]), n.Uint64(b[48:])}, nil
}

// page checks a page whose keys must be at least low and below high, and all that it leads to.
func (s *skeleton) page(id uint64, low, high []byte) error {
	head := make([]byte, pageHeader)
	if id < 2 || id >= s.end {
		return fmt.Errorf("page %d is out of bounds", id)
	}
	if _, err := s.f.ReadAt(head, int64(id)*s.size); err != nil {
		return err
	}
	overflow := uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head) != id || id+overflow >= s.end {
		return fmt.Errorf("page %d is damaged", id)
	}
	for i := id; i <= id+overflow; i++ {
		if s.seen[i] {
			return fmt.Errorf("page %d is used twice", i)
		}
		s.seen[i] = true
	}
	b := make([]byte, int64(overflow+1)*s.size)
	if _, err := s.f.ReadAt(b, int64(id)*s.size); err != nil {
		return err
	}
	return s.elements(id, b, low, high)
}

// elements checks what a page holds; b is the page, or a bucket that is kept within another's value.
func (s *skeleton) elements(id uint64, b, low, high []byte) error {
	n := binary.NativeEndian
	damaged := fmt.Errorf("page %d is damaged", id)
	if len(b) < pageHeader {
		return damaged
	}
	flags, count := n.Uint16(b[8:]), int(n.Uint16(b[10:]))
	if flags != branchPage && flags != leafPage || flags == branchPage && count == 0 || pageHeader+count*element > len(b) {
		return damaged
	}
	keys := make([][]byte, count)
	for i := range keys {
		at := pageHeader + i*element
		e := b[at : at+element]
		pos, key, value := uint64(n.Uint32(e)), uint64(n.Uint32(e[4:])), uint64(0)
		if flags == leafPage {
			pos, key, value = uint64(n.Uint32(e[4:])), uint64(n.Uint32(e[8:])), uint64(n.Uint32(e[12:]))
		}
		start := uint64(at) + pos
		if key == 0 || pos < element || start+key+value > uint64(len(b)) {
			return damaged
		}
		keys[i] = b[start : start+key]
		if i == 0 && bytes.Compare(keys[0], low) < 0 || i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 ||
			high != nil && bytes.Compare(keys[i], high) >= 0 {
			return damaged
		}
		if flags == leafPage && n.Uint32(e)&isBucket != 0 {
			if err := s.bucket(id, b[start+key:start+key+value]); err != nil {
				return err
			}
		}
	}
	if flags == leafPage {
		return nil
	}
	for i := range keys {
		next := high
		if i+1 < count {
			next = keys[i+1]
		}
		if err := s.page(n.Uint64(b[pageHeader+i*element+8:]), keys[i], next); err != nil {
			return err
		}
	}
	return nil
}

// bucket checks a bucket: u64 root page | u64 sequence, and where the root is 0 a page right behind.
func (s *skeleton) bucket(id uint64, value []byte) error {
	if len(value) < 16 {
		return fmt.Errorf("page %d is damaged", id)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return s.page(root, nil, nil)
	}
	return s.elements(id, value[16:], nil, nil)
}
