package maps

import (
	"sync/atomic"

	"github.com/levee-xdp/levee/bpf"
)

// fit6 is what the filters should say, and by how many prefixes. Most bits have one user; where there are
// more, those beyond the first are counted by the bit's name: see ban6.bitOf.
type fit6 struct {
	cells []bpf.Ban6Lengths
	wide  []uint64
	more  map[uint32]uint32
}

func newFit6(cells, wide int) fit6 {
	return fit6{make([]bpf.Ban6Lengths, cells), make([]uint64, wide), make(map[uint32]uint32)}
}

func (f *fit6) reset() {
	clear(f.cells)
	clear(f.wide)
	clear(f.more)
}

// tierOf says which filter leads to a length: the number of its bit in enum ban6_tier.
func tierOf(length int) int {
	switch {
	case length >= 48:
		return 0
	case length >= 32:
		return 1
	}
	return 2
}

// enter counts a prefix into its tier, which readers ask from the first one on; leave counts it out.
func (b *ban6) enter(k key6) {
	t := tierOf(k.length)
	if b.tier[t]++; b.tier[t] == 1 {
		atomic.StoreUint32(b.tiers, *b.tiers|1<<t)
	}
}

func (b *ban6) leave(k key6) {
	t := tierOf(k.length)
	if b.tier[t]--; b.tier[t] == 0 {
		atomic.StoreUint32(b.tiers, *b.tiers&^(1<<t))
	}
}

// bitOf says which bit of which word of the filters stands for a prefix, where that word is kept as it
// should be, and the name under which more than one user is counted. A prefix of up to 16 bits has that bit
// in each word from this one on, 2^(16-length) of them, and is their only user.
func (b *ban6) bitOf(k key6) (word, fit *uint64, bit uint64, ref uint32) {
	if tierOf(k.length) < 2 {
		n, _ := b.cellOf(k)
		ref = n<<8 | uint32(k.length)
		if k.length >= 64 && k.length < 128 {
			return &b.filter[n].High, &b.fit.cells[n].High, 1 << (k.length - 64), ref
		}
		return &b.filter[n].Low, &b.fit.cells[n].Low, 1 << (k.length & 63), ref
	}
	n := uint32(k.hi >> 48)
	return &b.wide[n], &b.fit.wide[n], 1 << k.length, 1<<31 | n<<8 | uint32(k.length)
}

// cellOf is the cell that leads to a prefix of 32 bits and more, and its mark there.
func (b *ban6) cellOf(k key6) (n, mark uint32) {
	if k.length < 48 {
		return b.cell(k.hi >> 32)
	}
	return b.cell(k.hi >> 16)
}

// cover sets the filters' bits that lead to a prefix, and returns whether that took a write.
func (b *ban6) cover(k key6) (wrote bool) {
	word, fit, bit, ref := b.bitOf(k)
	switch {
	case k.length <= 16:
		for i := range b.span(k) {
			b.fit.wide[i] |= bit
			wrote = or(&b.wide[i], bit) || wrote
		}
	case k.length < 32:
		wrote = b.lead(word, fit, bit, ref)
	default:
		wrote = b.lead(word, fit, bit, ref)
		n, mark := b.cellOf(k) // comes last: readers ask for it first
		wrote = b.lead(&b.filter[n].Low, &b.fit.cells[n].Low, 1<<mark, n<<8|mark) || wrote
	}
	if wrote {
		b.said()
	}
	return wrote
}

// said must be called after the filters came to say more, before anything else is taken away: what a CPU
// remembers of them does not hold any more (struct ban6_far).
func (b *ban6) said() {
	b.spoke = max(b.spoke, *b.version) + 1
	store(b.version, b.spoke)
}

// silenced tells whether somebody else set the version: what CPUs remember of another time may hold again.
func (b *ban6) silenced() bool { return b.spoke != 0 && *b.version != b.spoke }

// lead sets a bit for one user more, and returns whether that took a write.
func (b *ban6) lead(word, fit *uint64, bit uint64, ref uint32) (wrote bool) {
	if *fit&bit != 0 {
		b.fit.more[ref]++
	}
	*fit |= bit
	return or(word, bit)
}

// uncover clears the filters' bits of a prefix, where no other prefix needs them.
func (b *ban6) uncover(k key6) {
	word, fit, bit, ref := b.bitOf(k)
	if k.length > 16 {
		if k.length >= 32 {
			n, mark := b.cellOf(k)
			b.release(&b.filter[n].Low, &b.fit.cells[n].Low, 1<<mark, n<<8|mark)
		}
		b.release(word, fit, bit, ref)
		return
	}
	for i := range b.span(k) {
		b.fit.wide[i] &^= bit
		store(&b.wide[i], b.wide[i]&^bit)
	}
}

// release clears a bit that nobody else uses.
func (b *ban6) release(word, fit *uint64, bit uint64, ref uint32) {
	switch b.fit.more[ref] {
	case 0:
		*fit &^= bit
		store(word, *word&^bit)
	case 1:
		delete(b.fit.more, ref)
	default:
		b.fit.more[ref]--
	}
}

// span yields the cells of the wide filter that a prefix of up to 16 bits covers.
func (b *ban6) span(k key6) func(yield func(int) bool) {
	first := int(k.hi >> 48)
	return func(yield func(int) bool) {
		for i := first; i < first+1<<(16-k.length); i++ {
			if !yield(i) {
				return
			}
		}
	}
}
