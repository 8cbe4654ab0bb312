package maps

import "github.com/levee-xdp/levee/bpf"

// ahead is how many bans are on their way to the table: by the time that the last of them has come to be
// put, the memory of the first has come.
const ahead = 32

// lot is bans that are put one after the other. What a put needs of the tables lies in places that have
// nothing to do with each other, and most of its time would go by in waiting for memory. So a ban that comes
// has what it will need asked for, and is put when some more have come. It is handed on where it stands: a copy
// of what was just written, field by field, waits for those writes.
type lot struct {
	to    *Bans
	put   func(place int, ban *Ban, at slots4)
	next  uint // how many have come
	first uint // how many were put
	ring  [ahead]coming
}

// coming is a ban that waits for its memory.
type coming struct {
	ban   Ban
	place int // its number in what was given
	n     int
	slots [8]slot4
}

// slot4 is one of an IPv4 prefix's slots in the table, before it is looked for: its key, and its bucket if it
// is not pushed past that.
type slot4 struct{ key, home uint32 }

// slots4 is all of them; none where they are not known.
type slots4 []slot4

func newLot(to *Bans, put func(place int, ban *Ban, at slots4)) *lot { return &lot{to: to, put: put} }

// add takes a ban, or says what is wrong with it.
func (l *lot) add(place int, ban *Ban) error {
	if l.next-l.first == ahead {
		l.putFirst()
	}
	c := &l.ring[l.next%ahead]
	c.ban, c.place, c.n = *ban, place, 0
	if err := c.ban.normalise(); err != nil {
		return err
	}
	l.next++
	if addr := c.ban.Prefix.Addr(); addr.Is4() {
		c.n = l.to.v4.fetch(&c.slots, uint4(addr), c.ban.Prefix.Bits())
	} else {
		l.to.v6.fetch(keyOf6(c.ban.Prefix))
	}
	return nil
}

func (l *lot) putFirst() {
	c := &l.ring[l.first%ahead]
	l.first++
	l.put(c.place, &c.ban, c.slots[:c.n])
}

// flush puts those that are still on their way.
func (l *lot) flush() {
	for l.first < l.next {
		l.putFirst()
	}
}

// fetch works out the slots of a prefix, and asks for what a put of it is going to need.
func (b *ban4) fetch(slots *[8]slot4, addr uint32, length int) (n int) {
	c := classOf(length)
	if c == classWide {
		prefetch(&b.wide[addr>>16].Word, &b.classes[addr>>12], &b.bits[addr>>14], &b.bits[addr>>14])
		return 0
	}
	n = 1 << (c.bits() - length)
	for i := range n {
		key := addr + uint32(i)<<(4*c)
		slots[i] = slot4{key, b.home(c, key)}
		b.fetchSlot(c, slots[i])
	}
	return n
}

func (b *ban4) fetchSlot(c class4, slot slot4) {
	bits := &b.bits[slot.key>>14]
	count := bits
	switch {
	case c == class32 && b.count32.cells != nil:
		count = &b.count32.cells[slot.key>>12]
	case c == class28 && b.count28.cells != nil:
		count = &b.count28.cells[slot.key>>12]
	}
	prefetch(&b.table[int(slot.home)*bpf.Ban4Slots].Word, &b.classes[slot.key>>12], bits, count)
}

// fetch asks for what a put of a prefix is going to need.
func (b *ban6) fetch(k key6) {
	entry := &b.table[int(b.home(k))*bpf.Ban6Slots].Word
	if k.length <= 16 {
		prefetch(entry, entry, entry, entry)
		return
	}
	word, fit, _, _ := b.bitOf(k)
	prefetch(entry, word, fit, entry)
}
