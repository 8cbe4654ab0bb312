package maps

import (
	"github.com/levee-xdp/levee/bpf"
)

// A key is looked for in a window of buckets from its home on, and where many meet, a window is full long
// before the table is: at a third of a table of a million. So one that finds no room has another make room
// that may stand elsewhere, outside of the window. That one is written to its new slot before it leaves the
// old one, and the epoch rises in between: a reader that saw neither looks again.

// roomTries is how many slots are cleared so for one prefix: one that expands may need eight.
const roomTries = 16

// roomDepth is how many entries may have to move for one to find room.
const roomDepth = 1

// roomShare says which part of a table's slots is sure to be found, one in so many; and of what is beyond
// that, entries are moved in search of room in the first half: where a table is as good as full it would
// take long and find nothing.
const roomShare = 2

func worthwhile(used, slots int) bool { return used < slots-slots/(2*roomShare) }

// put makes a prefix wanted. It returns false if a slot finds no room; then nothing is banned that was
// not before.
func (b *ban4) put(addr uint32, length int, v content) (what change, ok bool) {
	for range roomTries {
		if what, ok = b.tryPut(addr, length, v); ok || !worthwhile(b.used(), len(b.table)) || !b.makeRoom(addr, length) {
			break
		}
	}
	return what, ok
}

// makeRoom moves an entry out of the way of a prefix, where one of its slots found no room.
func (b *ban4) makeRoom(addr uint32, length int) bool {
	c := classOf(length)
	for i := range 1 << (c.bits() - length) {
		key := addr + uint32(i)<<(4*c)
		if b.locate(c, key, nil).at >= 0 {
			continue
		}
		return b.clearIn(b.home(c, key), roomDepth)
	}
	return false
}

// clearIn frees a slot in the window of a home: an entry there goes to another slot of its own window, which
// may have to be freed in the same way first.
func (b *ban4) clearIn(home uint32, depth int) bool {
	leave := func(at int) bool {
		word := b.table[at].Word
		p := place{class4(word >> bpf.BanClassShift & 3), uint32(word >> bpf.BanKeyShift), at, true}
		for to := range nearest(b.home(p.class, p.key), b.mask, bpf.Ban4Probes, bpf.Ban4Slots) {
			if !live(b.table[to].Word) {
				b.move(p, to)
				return true
			}
		}
		return false
	}
	for at := range window(home, b.mask, bpf.Ban4Probes, bpf.Ban4Slots) {
		if leave(at) {
			return true
		}
	}
	for at := range window(home, b.mask, bpf.Ban4Probes, bpf.Ban4Slots) {
		word := b.table[at].Word
		next := b.home(class4(word>>bpf.BanClassShift&3), uint32(word>>bpf.BanKeyShift))
		if depth > 0 && next != home && b.clearIn(next, depth-1) {
			return !live(b.table[at].Word) || leave(at)
		}
	}
	return false
}

// move has an entry stand in another slot of its window.
func (b *ban4) move(p place, to int) {
	from, next := p.at, p
	next.at = to
	store(&b.table[to].Expires, b.table[from].Expires)
	b.spillTo(next, 1)
	store(&b.table[to].Word, b.table[from].Word)
	b.epoch.grew()
	b.epoch.shrinks()
	store(&b.table[from].Word, gone(b.spill[from/bpf.Ban4Slots]))
	b.spillTo(p, -1)
	b.met.move(from, to)
}

// put is that of ban4.
func (b *ban6) put(k key6, v content) (what change, ok bool) {
	for range roomTries {
		if what, ok = b.tryPut(k, v); ok || !worthwhile(b.slots, len(b.table)) || !b.makeRoom(k) {
			break
		}
	}
	return what, ok
}

func (b *ban6) makeRoom(k key6) bool {
	keys := []key6{k}
	if b.held(k) != nil {
		keys = keys[:0]
		for _, i := range halvesOf(k) {
			keys = append(keys, halfKey(i))
		}
	}
	for _, k := range keys {
		if at, _ := b.locate(k, -1); at >= 0 {
			continue
		}
		return b.clearIn(b.home(k), roomDepth)
	}
	return false
}

func (b *ban6) clearIn(home uint32, depth int) bool {
	leave := func(at int) bool {
		k := b.keyAt(at)
		for to := range nearest(b.home(k), b.mask, bpf.Ban6Probes, bpf.Ban6Slots) {
			if !live(b.table[to].Word) {
				b.move(k, at, to)
				return true
			}
		}
		return false
	}
	for at := range window(home, b.mask, bpf.Ban6Probes, bpf.Ban6Slots) {
		if leave(at) {
			return true
		}
	}
	for at := range window(home, b.mask, bpf.Ban6Probes, bpf.Ban6Slots) {
		next := b.home(b.keyAt(at))
		if depth > 0 && next != home && b.clearIn(next, depth-1) {
			return !live(b.table[at].Word) || leave(at)
		}
	}
	return false
}

func (b *ban6) home(k key6) uint32 { return uint32(b.hashOf(k)>>32) & b.mask }

// move has an entry stand in another slot of its window.
func (b *ban6) move(k key6, from, to int) {
	old, e := &b.table[from], &b.table[to]
	store(&e.Hi, old.Hi)
	store(&e.Lo, old.Lo)
	store(&e.Expires, old.Expires)
	b.spillTo(k, to, 1)
	store(&e.Word, old.Word)
	b.epoch.grew()
	b.epoch.shrinks()
	store(&old.Word, gone(b.spill[from/bpf.Ban6Slots]))
	b.spillTo(k, from, -1)
	b.met.move(from, to)
}

// window yields the slots in which an entry of a home may stand, the farthest first: those nearest to
// their home stay where they are as long as that can be.
func window(home, mask uint32, probes, slots int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := probes - 1; i >= 0; i-- {
			for j := range slots {
				if !yield(int((home+uint32(i))&mask)*slots + j) {
					return
				}
			}
		}
	}
}

// nearest is window the other way round. The first slot of it that is not live is where an entry may go:
// readers stop at a free one.
func nearest(home, mask uint32, probes, slots int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range probes * slots {
			if !yield(int((home+uint32(i/slots))&mask)*slots + i%slots) {
				return
			}
		}
	}
}

// gone is the word of a slot that was emptied: a reader must not stop there while entries were pushed past
// its bucket.
func gone(spill uint8) uint64 {
	if spill > 0 {
		return bpf.BanTombstone
	}
	return 0
}

// move has a mark go along with its entry.
func (m marks) move(from, to int) {
	if m == nil {
		return
	}
	if m.get(from) {
		m.set(to)
	} else {
		m.clear(to)
	}
	m.clear(from)
}
