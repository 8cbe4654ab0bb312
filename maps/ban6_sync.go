package maps

import (
	"net/netip"
	"sync/atomic"

	"github.com/levee-xdp/levee/bpf"
)

// survey reads the tables and works out everything that is counted here from what stands in them;
// see ban4.survey.
func (b *ban6) survey() (repaired int) {
	b.alone, b.slots, b.tier = 0, 0, [3]int{}
	clear(b.spill)
	b.fit.reset()

	var garbage, tombs []int
	for at := range b.table {
		word := b.table[at].Word
		switch {
		case word == 0:
			continue
		case word == bpf.BanTombstone:
			tombs = append(tombs, at)
			continue
		case live(word) && b.sound(at):
			k := b.keyAt(at)
			if found, there := b.locate(k, -1); there && found == at {
				b.spillTo(k, at, 1)
				repaired += b.meet(k, at)
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

	tiers := uint32(0)
	for t, n := range b.tier {
		if n > 0 {
			tiers |= 1 << t
		}
	}
	if *b.tiers != tiers {
		atomic.StoreUint32(b.tiers, tiers)
		repaired++
	}
	if b.silenced() {
		repaired++
	}
	b.said() // who wrote before may have been stopped before he did
	return repaired + b.fitFilters()
}

// sound tells whether a slot says something that the writer of this package could have said.
func (b *ban6) sound(at int) bool {
	k, v := b.keyAt(at), b.says(at)
	return sound6(k, v) && b.table[at].Word == b.word(k, v)
}

// sound6 tells whether there can be such a slot, and such content.
func sound6(k key6, v content) bool {
	return k.length >= 1 && k.length <= 128 && k == mask6(k.hi, k.lo, k.length) && uint32(v.list) < bpf.MaxLists
}

// meet counts a slot that was found live.
func (b *ban6) meet(k key6, at int) (repaired int) {
	b.slots++
	b.tier[tierOf(k.length)]++
	if b.cover(k) {
		repaired++
	}
	v := b.says(at)
	held := b.held(key6{k.hi, k.lo, int(v.length)})
	if held == nil {
		b.alone++
		return repaired
	}
	if *held == nil {
		v.round = b.round // of the round before the next Sync: that must say that it is wanted
		*held = &v
	}
	return repaired
}

// tidy makes a slot that holds no entry free, or a tombstone if a reader must not stop there.
func (b *ban6) tidy(at int) bool {
	word := uint64(0)
	if b.spill[at/bpf.Ban6Slots] > 0 {
		word = bpf.BanTombstone
	}
	if b.table[at].Word == word {
		return false
	}
	store(&b.table[at].Word, word)
	return true
}

// fitFilters clears every bit of the filters that leads to no prefix.
func (b *ban6) fitFilters() (repaired int) {
	fit := func(word *uint64, fit uint64) {
		if *word != fit {
			store(word, fit)
			repaired++
		}
	}
	for i := range b.filter {
		fit(&b.filter[i].Low, b.fit.cells[i].Low)
		fit(&b.filter[i].High, b.fit.cells[i].High)
	}
	for i := range b.wide {
		fit(&b.wide[i], b.fit.wide[i])
	}
	return repaired
}

// mark begins a round of Sync: from here on every prefix that is put is marked as wanted.
func (b *ban6) mark() {
	b.round = !b.round
	b.met = make(marks, (len(b.table)+63)/64)
}

// sweep removes every prefix that was not put since mark, if it goes.
func (b *ban6) sweep(goes func(netip.Prefix) bool) (removed int) {
	for _, k := range []key6{{}, halfKey(0), halfKey(1)} {
		if v := *b.held(k); v != nil && v.round != b.round && goes(k.prefix()) && b.remove(k) {
			removed++
		}
	}
	for at := range b.table {
		if !live(b.table[at].Word) || b.met.get(at) {
			continue
		}
		if k := b.keyAt(at); k.length > 1 && goes(k.prefix()) {
			b.remove(k)
			removed++
		}
	}
	return removed
}
