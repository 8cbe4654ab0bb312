package maps

import (
	"net/netip"

	"github.com/levee-xdp/levee/bpf"
)

// survey reads the tables and works out everything that is counted here from what stands in them.
// What no reader could find or should believe is removed: words that are no prefix's, entries that
// are out of a reader's reach or stand behind another of their key, tombstones that nothing lies
// behind, classes and bits of /24s that no slot touches. It returns how many words that took.
func (b *ban4) survey() (repaired int) {
	b.alone = 0
	b.lengths = [33]int{}
	b.slots = [ban4Classes]int{}
	clear(b.spill)
	b.count32.reset()
	b.count28.reset()

	for i := range b.wide {
		e := &b.wide[i]
		if e.Word == 0 {
			continue
		}
		p := place{classWide, uint32(i) << 16, len(b.table) + i, true}
		if !sound4(p, e.Word) {
			store(&e.Word, 0)
			repaired++
			continue
		}
		repaired += b.meet(p)
	}

	var garbage, tombs []int
	for at := range b.table {
		word := b.table[at].Word
		switch {
		case word == 0:
			continue
		case word == bpf.BanTombstone:
			tombs = append(tombs, at)
			continue
		case live(word):
			c, key := class4(word>>bpf.BanClassShift&3), uint32(word>>bpf.BanKeyShift)
			p := b.locate(c, key, nil)
			if p.at == at && sound4(p, word) {
				b.spillTo(p, 1)
				repaired += b.meet(p)
				continue
			}
		}
		garbage = append(garbage, at)
	}
	for _, at := range garbage {
		b.tidy(at)
		repaired++
	}
	for _, at := range tombs {
		if b.tidy(at) {
			repaired++
		}
	}

	for length, n := range b.besideOf {
		b.lengths[length] += n
	}

	for i := range uint32(len(b.classes)) {
		if old := b.classes[i]; old != 0 {
			if fit := b.fitClasses(i, old); fit != old {
				store(&b.classes[i], fit)
				repaired++
			}
		}
		if b.fitBits(i) {
			repaired++
		}
	}
	return repaired
}

// sound4 tells whether a word says something that the writer of this package could have said.
func sound4(p place, word uint64) bool {
	v := contentOf(word, 0)
	return p.key == mask4(p.key, p.class.bits()) && classOf(int(v.length)) == p.class &&
		v.length <= 32 && uint32(v.list) < bpf.MaxLists && word == word4(p.class, p.key, &v)
}

// meet counts a slot that was found live.
func (b *ban4) meet(p place) (repaired int) {
	b.slots[p.class]++
	if b.cover(p.class, p.key) {
		repaired++
	}
	// A prefix that stands in some of its slots, but is kept in none of the two ways, is what a
	// killed writer left: the next Sync completes it, or removes it.
	if v := b.says(p.at); p.first(v.length) {
		b.alone++
		b.lengths[v.length]++
		b.clearBeside(p.key, int(v.length))
	}
	return repaired
}

// tidy makes a slot that holds no entry free, or a tombstone if a reader must not stop there.
func (b *ban4) tidy(at int) bool {
	word := uint64(0)
	if b.spill[at/bpf.Ban4Slots] > 0 {
		word = bpf.BanTombstone
	}
	if b.table[at].Word == word {
		return false
	}
	store(&b.table[at].Word, word)
	return true
}

// fitClasses returns what a word of classes should be, of which at least all is there that should.
func (b *ban4) fitClasses(i uint32, old uint64) uint64 {
	fit := present(b.count32.word(i)) | present(b.count28.word(i))<<1
	if old&(nibbleLow<<2) != 0 {
		for n := range uint32(16) {
			if old>>(n*4)&4 != 0 && b.locate(class24, i<<12|n<<8, nil).live {
				fit |= 4 << (n * 4)
			}
		}
	}
	if old&nibble20 != 0 && (live(b.wide[i>>4].Word) || b.locate(class20, i<<12, nil).live) {
		fit |= nibble20
	}
	return fit
}

// mark begins a round of Sync: from here on every prefix that is put is marked as wanted.
func (b *ban4) mark() {
	b.round = !b.round
	b.met = make(marks, (len(b.table)+len(b.wide)+63)/64)
}

// sweep removes every prefix that was not put since mark, if it goes.
func (b *ban4) sweep(goes func(netip.Prefix) bool) (removed int) {
	prefix := func(addr uint32, length int) netip.Prefix { return netip.PrefixFrom(addr4(addr), length) }
	var stale []uint64
	for k, v := range b.beside {
		if v.round != b.round && goes(prefix(uint32(k>>8), int(k&0xFF))) {
			stale = append(stale, k)
		}
	}
	// One that loses a better prefix may come to stand in its slot: so these go first.
	for _, k := range stale {
		if b.remove(uint32(k>>8), int(k&0xFF)) {
			removed++
		}
	}
	for at := range len(b.table) + len(b.wide) {
		if !live(b.entry(at).Word) || b.met.get(at) {
			continue
		}
		length := int(b.says(at).length)
		if addr := mask4(b.keyAt(at), length); goes(prefix(addr, length)) && b.remove(addr, length) {
			removed++
		}
	}
	return removed
}

func (b *ban4) keyAt(at int) uint32 { return uint32(b.entry(at).Word >> bpf.BanKeyShift) }

// standing returns the prefix that is kept in a slot, if one is.
func (b *ban4) standing(at int) (addr uint32, v content, ok bool) {
	if !live(b.entry(at).Word) {
		return 0, v, false
	}
	key, v := b.keyAt(at), b.says(at)
	return key, v, mask4(key, int(v.length)) == key
}
