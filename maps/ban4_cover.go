package maps

// Nibbles of classes: bit n stands for class n, bit 3 for both /20 and wide.
const (
	nibbleLow = 0x1111111111111111
	nibble20  = 0x8888888888888888
)

// cover sets the class nibble and then the bit of each /24 that a slot touches, and returns whether
// that took a write.
func (b *ban4) cover(c class4, key uint32) (wrote bool) {
	n := key >> 8
	switch c {
	case class32:
		return b.count32.inc(n) && b.coverOne(n, 1)
	case class28:
		return b.count28.inc(n) && b.coverOne(n, 2)
	case class24:
		return b.coverOne(n, 4)
	case class20:
		wrote = or(&b.classes[n>>4], nibble20)
		return or(&b.bits[n>>6], 0xFFFF<<(n&63)) || wrote
	case classWide:
		for i := range uint32(16) {
			wrote = or(&b.classes[n>>4+i], nibble20) || wrote
		}
		for i := range uint32(4) {
			wrote = or(&b.bits[n>>6+i], ^uint64(0)) || wrote
		}
	}
	return wrote
}

func (b *ban4) coverOne(n uint32, nibble uint64) bool {
	wrote := or(&b.classes[n>>4], nibble<<(n&15*4))
	return or(&b.bits[n>>6], 1<<(n&63)) || wrote
}

func or(at *uint64, set uint64) bool {
	old := *at
	if old|set == old {
		return false
	}
	store(at, old|set)
	return true
}

// uncover clears the class nibble and then the bit of each /24 that a slot touched, where no other
// slot needs them.
func (b *ban4) uncover(c class4, key uint32) {
	n := key >> 8
	switch c {
	case class32:
		if b.count32.dec(n) {
			b.clearClasses(n>>4, 1<<(n&15*4))
		}
	case class28:
		if b.count28.dec(n) {
			b.clearClasses(n>>4, 2<<(n&15*4))
		}
	case class24:
		b.clearClasses(n>>4, 4<<(n&15*4))
	case class20:
		if !live(b.wide[key>>16].Word) {
			b.clearClasses(n>>4, nibble20)
		}
	case classWide:
		for i := range uint32(16) {
			if b.slots[class20] == 0 || !b.locate(class20, key+i<<12, nil).live {
				b.clearClasses(n>>4+i, nibble20)
			}
		}
	}
}

// clearClasses clears bits of a word of classes, and the bits of the /24s that have no class left.
func (b *ban4) clearClasses(i uint32, unset uint64) {
	old := b.classes[i]
	if old&unset == 0 {
		return
	}
	store(&b.classes[i], old&^unset)
	b.fitBits(i)
}

// fitBits makes the sixteen bits of a word of classes agree with it, and returns whether they did
// not.
func (b *ban4) fitBits(i uint32) bool {
	shift := i & 3 * 16
	at := &b.bits[i>>2]
	old := *at
	bits := old&^(0xFFFF<<shift) | gather(present(b.classes[i]))<<shift
	if bits == old {
		return false
	}
	store(at, bits)
	return true
}

// present has the lowest bit of each nibble that is not 0.
func present(nibbles uint64) uint64 {
	n := nibbles | nibbles>>1
	return (n | n>>2) & nibbleLow
}

// gather brings the lowest bits of sixteen nibbles together.
func gather(n uint64) uint64 {
	n = (n | n>>3) & 0x0303030303030303
	n = (n | n>>6) & 0x000F000F000F000F
	n = (n | n>>12) & 0x000000FF000000FF
	return (n | n>>24) & 0xFFFF
}

// nibbles counts up to 256 things in each of 2^24 cells with four bits a cell, sixteen cells to a
// word: counts of 15 and more, which are rare, stand in a map. Memory is taken where it is used.
type nibbles struct {
	cells []uint64
	many  map[uint32]uint16
}

func (n *nibbles) reset() {
	clear(n.cells)
	n.many = make(map[uint32]uint16)
}

// word returns sixteen cells at once; what is not 0 in it is not 0.
func (n *nibbles) word(i uint32) uint64 {
	if n.cells == nil {
		return 0
	}
	return n.cells[i]
}

// inc returns whether the count was 0.
func (n *nibbles) inc(i uint32) bool {
	if n.cells == nil {
		n.cells = make([]uint64, 1<<20)
	}
	shift := i & 15 * 4
	v := n.cells[i>>4] >> shift & 15
	if v < 15 {
		n.cells[i>>4] += 1 << shift
	}
	if v >= 14 {
		if v == 14 {
			n.many[i] = 14
		}
		n.many[i]++
	}
	return v == 0
}

// dec returns whether the count is 0 now.
func (n *nibbles) dec(i uint32) bool {
	shift := i & 15 * 4
	v := n.cells[i>>4] >> shift & 15
	if v == 15 {
		if n.many[i]--; n.many[i] > 14 {
			return false
		}
		delete(n.many, i)
	}
	n.cells[i>>4] -= 1 << shift
	return v == 1
}
