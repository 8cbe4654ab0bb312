package maps

import (
	"net/netip"

	"github.com/levee-xdp/levee/bpf"
)

// Compare looks at a part of the table, from a position on: whether each word is one that the writer
// of this package left there, and each ban is wanted as it stands. It returns the next position, -1
// after the last part, and how many words are not as they should be. It changes nothing, and a change
// that waits for it waits for less than a millisecond. With Lacks, which asks the other way round, and
// Len, which must be how many are wanted, it finds whatever Sync would put right, if it begins at 0 and
// nothing changes on its way.
func (b *Bans) Compare(at int, wanted func(netip.Prefix) (Ban, bool)) (next, differing int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, part := range b.parts(wanted) {
		steps := (part.n + part.step - 1) / part.step
		if at-next >= steps {
			next += steps
			continue
		}
		from := (at - next) * part.step
		for i := from; i < min(from+part.step, part.n); i++ {
			if !part.right(i) {
				differing++
			}
		}
		return at + 1, differing
	}
	return -1, 0
}

// tablePart is a table as Compare walks it.
type tablePart struct {
	n, step int
	right   func(i int) bool
}

func (b *Bans) parts(wanted func(netip.Prefix) (Ban, bool)) []tablePart {
	is := func(p netip.Prefix, v content) bool {
		ban, ok := wanted(p)
		return ok && ban.List == v.list && ban.Monitor == v.monitor && ban.Expires == v.expires
	}
	return []tablePart{
		{1, 1, func(int) bool { return b.v6.heldRight(is) }},
		{len(b.v4.table) + len(b.v4.wide), 2048, func(i int) bool { return b.v4.slotRight(i, is) }},
		{len(b.v4.classes), 8192, func(i int) bool { return b.v4.classesRight(uint32(i)) }},
		{len(b.v6.table), 2048, func(i int) bool { return b.v6.slotRight(i, is) }},
		{len(b.v6.filter), 4096, func(i int) bool { return b.v6.filter[i] == b.v6.fit.cells[i] }},
		{len(b.v6.wide), 4096, func(i int) bool { return b.v6.wide[i] == b.v6.fit.wide[i] }},
	}
}

// Lacks returns how many of these bans the table does not hold as Put would leave them.
func (b *Bans) Lacks(bans []Ban) (lacking int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	some := newLot(b, func(_ int, ban *Ban, _ slots4) {
		v := content{expires: ban.Expires, list: ban.List, monitor: ban.Monitor, length: uint8(ban.Prefix.Bits())}
		if addr := ban.Prefix.Addr(); addr.Is4() && !b.v4.holds(uint4(addr), v) || addr.Is6() && !b.v6.holds(keyOf6(ban.Prefix), v) {
			lacking++
		}
	})
	for i := range bans {
		if err := some.add(0, &bans[i]); err != nil {
			lacking++
		}
	}
	some.flush()
	return lacking
}

// holds tells whether each slot of a prefix says what the prefix says, or what beats it.
func (b *ban4) holds(addr uint32, v content) bool {
	c := classOf(int(v.length))
	for i := range 1 << (c.bits() - int(v.length)) {
		p := b.locate(c, addr+uint32(i)<<(4*c), nil)
		if !p.live || !b.covers(c, p.key) {
			return false
		}
		says := b.says(p.at)
		if says.length == v.length && !says.same(v) || says.length != v.length && !says.beats(v) {
			return false
		}
		if i == 0 {
			if known, ok := b.kept(p, int(v.length)); !ok || !known.same(v) {
				return false
			}
		}
	}
	return true
}

func (b *ban4) slotRight(at int, is func(netip.Prefix, content) bool) bool {
	word := b.entry(at).Word
	switch {
	case word == 0:
		return true
	case word == bpf.BanTombstone:
		return at < len(b.table) && b.spill[at/bpf.Ban4Slots] > 0
	case !live(word):
		return false
	}
	p := place{classWide, uint32(at-len(b.table)) << 16, at, true}
	if at < len(b.table) {
		if p = b.locate(class4(word>>bpf.BanClassShift&3), uint32(word>>bpf.BanKeyShift), nil); p.at != at {
			return false
		}
	}
	v := b.says(at)
	return sound4(p, word) && b.covers(p.class, p.key) && is(v.ban(addr4(p.key)).Prefix, v)
}

// covers tells whether the class nibble and the bit are set of each /24 that a slot touches.
func (b *ban4) covers(c class4, key uint32) bool {
	n := key >> 8
	switch c {
	case class32, class28, class24:
		return b.classes[n>>4]>>(n&15*4+uint32(c))&1 != 0 && b.bits[n>>6]>>(n&63)&1 != 0
	case class20:
		return b.classes[n>>4]&nibble20 == nibble20 && b.bits[n>>6]>>(n&63)&0xFFFF == 0xFFFF
	case classWide:
	}
	for i := range uint32(16) {
		if b.classes[n>>4+i]&nibble20 != nibble20 {
			return false
		}
	}
	for i := range uint32(4) {
		if b.bits[n>>6+i] != ^uint64(0) {
			return false
		}
	}
	return true
}

// classesRight tells whether a word of classes, and its sixteen bits, say no more than they should.
func (b *ban4) classesRight(i uint32) bool {
	word := b.classes[i]
	return gather(present(word)) == b.bits[i>>2]>>(i&3*16)&0xFFFF && b.fitClasses(i, word) == word
}

// holds tells whether a prefix stands where readers look for it.
func (b *ban6) holds(k key6, v content) bool {
	if held := b.held(k); held != nil {
		known, ok := deref(*held)
		return ok && known.same(v) // whether the slots of the halves say so is looked at there
	}
	at, there := b.locate(k, -1)
	return there && b.says(at).same(v) && b.covers(k)
}

// heldRight looks at what is kept beside the table.
func (b *ban6) heldRight(is func(netip.Prefix, content) bool) bool {
	tiers := uint32(0)
	for t, n := range b.tier {
		if n > 0 {
			tiers |= 1 << t
		}
	}
	if *b.tiers != tiers || b.silenced() {
		return false
	}
	for _, k := range []key6{{}, halfKey(0), halfKey(1)} {
		if v := *b.held(k); v != nil && !is(k.prefix(), *v) {
			return false
		}
	}
	for i := range 2 {
		if _, there := b.locate(halfKey(i), -1); there != (b.best(i) != nil) {
			return false
		}
	}
	return true
}

func (b *ban6) slotRight(at int, is func(netip.Prefix, content) bool) bool {
	word := b.table[at].Word
	switch {
	case word == 0:
		return true
	case word == bpf.BanTombstone:
		return b.spill[at/bpf.Ban6Slots] > 0
	case !live(word) || !b.sound(at):
		return false
	}
	k, v := b.keyAt(at), b.says(at)
	if found, there := b.locate(k, -1); !there || found != at || !b.covers(k) {
		return false
	}
	if k.length == 1 {
		best := b.best(int(k.hi >> 63))
		return best != nil && v.same(*best)
	}
	return is(k.prefix(), v)
}

// covers tells whether the filters' bits are set that lead to a prefix.
func (b *ban6) covers(k key6) bool {
	word, _, bit, _ := b.bitOf(k)
	if k.length > 16 {
		return *word&bit != 0
	}
	for i := range b.span(k) {
		if b.wide[i]&bit == 0 {
			return false
		}
	}
	return true
}
