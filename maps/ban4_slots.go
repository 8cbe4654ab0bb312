package maps

import "github.com/levee-xdp/levee/bpf"

// putFresh is tryPut for a prefix of which nothing is known, and of whose slots none is anybody's: that is how
// nearly all of a lot are. It returns false, and changes nothing, if it is not so or not seen at a glance. What
// it writes, and in which order, is what insert writes.
func (b *ban4) putFresh(at slots4, length int, v content) bool {
	if b.besideOf[length] != 0 {
		if _, ok := b.beside[key4(at[0].key, length)]; ok {
			return false
		}
	}
	c := classOf(length)
	var free [8]int
	for i, slot := range at {
		n, ok := b.freeIn(c, slot)
		if !ok {
			return false
		}
		for _, taken := range free[:i] {
			if taken == n {
				return false
			}
		}
		free[i] = n
	}
	v.length, v.round = uint8(length), b.round
	word := word4(c, 0, &v)
	for i, slot := range at {
		e := &b.table[free[i]]
		store(&e.Expires, v.expires)
		store(&e.Word, word|uint64(slot.key)<<bpf.BanKeyShift)
		b.cover(c, slot.key)
		if b.met != nil {
			b.met.set(free[i])
		}
	}
	b.slots[c] += len(at)
	b.alone++
	b.lengths[length]++
	b.epoch.grew()
	return true
}

// freeIn returns the first free place in a slot's bucket, if there is one: then searches for the slot end in
// this bucket, and it is nowhere if it is not here.
func (b *ban4) freeIn(c class4, slot slot4) (at int, ok bool) {
	want := uint64(slot.key)<<bpf.BanKeyShift | uint64(c)<<bpf.BanClassShift | bpf.BanLive
	from := int(slot.home) * bpf.Ban4Slots
	at = -1
	bucket := b.bucket(slot.home)
	for i := bpf.Ban4Slots - 1; i >= 0; i-- { // backwards, so that no branch depends on which is free
		word := bucket[i].Word
		if word&ban4Match == want {
			return 0, false
		}
		if word == 0 {
			at = from + i
		}
	}
	return at, at >= 0
}

// insert fills a slot. A reader finds it by the bit, the class and the word, so these come last, in
// the reverse order: until the last of them is there the prefix is not banned, and then it is.
func (b *ban4) insert(p place, v content) {
	e := b.entry(p.at)
	store(&e.Expires, v.expires)
	if p.class != classWide {
		b.spillTo(p, 1)
	}
	store(&e.Word, word4(p.class, p.key, &v))
	b.slots[p.class]++
	b.cover(p.class, p.key)
	b.epoch.grew()
}

// clear empties a slot. It leaves a tombstone if entries were pushed past its bucket: a free slot
// would end a reader's search before it came to them. Where it was itself pushed past buckets,
// their tombstones become free once nothing else was.
func (b *ban4) clear(p place) {
	b.epoch.shrinks()
	if p.class == classWide {
		store(&b.entry(p.at).Word, 0)
	} else {
		word := uint64(0)
		if b.spill[p.at/bpf.Ban4Slots] > 0 {
			word = bpf.BanTombstone
		}
		store(&b.entry(p.at).Word, word)
		b.spillTo(p, -1)
	}
	b.slots[p.class]--
	b.uncover(p.class, p.key)
}

// spillTo counts an entry in or out of the buckets that it was pushed past.
func (b *ban4) spillTo(p place, by int) {
	end := uint32(p.at / bpf.Ban4Slots)
	for n := b.home(p.class, p.key); n != end; n = (n + 1) & b.mask {
		b.spill[n] = uint8(int(b.spill[n]) + by)
		if b.spill[n] != 0 {
			continue
		}
		bucket := b.bucket(n)
		for j := range bucket {
			if !live(bucket[j].Word) {
				store(&bucket[j].Word, 0)
			}
		}
	}
}
