package maps

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"github.com/levee-xdp/levee/bpf"
)

// ban4 is the IPv4 half of the ban table; types.h, maps.h and ban.h say how it is read.
//
// The table is its own index. A prefix is kept in the first of its slots, if it stands there, and
// the slot says all there is to say of it. Only of prefixes that lost their first slot to another
// is something kept here. So a million bans cost no memory but that of the maps.
type ban4 struct {
	bits    []uint64
	classes []uint64
	wide    []bpf.Ban4Entry
	table   []bpf.Ban4Entry // four of them are a bucket
	mask    uint32
	hash    hasher
	epoch   *epoch

	beside   map[uint64]content // key4 → a prefix that does not stand in its first slot
	besideOf [33]int            // how many of them have a length
	alone    int                // prefixes that do
	lengths  [33]int            // how many prefixes have a length, of both kinds

	slots [ban4Classes]int // live slots

	spill   []uint8 // by bucket: how many live entries were pushed past it
	count32 nibbles // by /24: slots of class /32 within it
	count28 nibbles // by /24: slots of class /28 within it

	met   marks // while Sync runs: whether what stands in a slot was met; wide after table
	round bool  // the sign of the current round of Sync: see content.round
}

// class4 is one of the five lengths to which IPv4 prefixes are expanded.
type class4 uint8

const (
	class32     = class4(bpf.LeveeBan4ClassBAN432)
	class28     = class4(bpf.LeveeBan4ClassBAN428)
	class24     = class4(bpf.LeveeBan4ClassBAN424)
	class20     = class4(bpf.LeveeBan4ClassBAN420)
	classWide   = class4(bpf.LeveeBan4ClassBAN4WIDE)
	ban4Classes = 5
)

const ban4Match = 0xFFFFFFFF<<32 | 3<<4 | bpf.BanTombstone | bpf.BanLive

func classOf(length int) class4 {
	switch {
	case length > 28:
		return class32
	case length > 24:
		return class28
	case length > 20:
		return class24
	case length > 16:
		return class20
	}
	return classWide
}

// bits is the length of the class's slots, low the shortest prefix that is expanded to it.
func (c class4) bits() int { return 32 - 4*int(c) }
func (c class4) low() int {
	if c == classWide {
		return 0
	}
	return c.bits() - 3
}

func mask4(addr uint32, length int) uint32 { return addr & uint32(^uint64(0)<<(32-length)) }

func key4(addr uint32, length int) uint64 { return uint64(addr)<<8 | uint64(length) }

func addr4(addr uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)})
}

func uint4(addr netip.Addr) uint32 {
	a := addr.As4()
	return binary.BigEndian.Uint32(a[:])
}

func word4(c class4, key uint32, v *content) uint64 {
	return uint64(key)<<bpf.BanKeyShift | uint64(c&3)<<bpf.BanClassShift | v.word()
}

func (b *ban4) home(c class4, key uint32) uint32 {
	return uint32(b.hash.hash64(uint64(c)<<32|uint64(key))) & b.mask
}

// find is the twin of ban4_probe, to the letter: the live word for a key, and its expiry.
func (b *ban4) find(c class4, key uint32) (word, expires uint64) {
	want := uint64(key)<<bpf.BanKeyShift | uint64(c&3)<<bpf.BanClassShift | bpf.BanLive
	home := b.home(c, key)
	for i := range uint32(bpf.Ban4Probes) {
		bucket := b.bucket((home + i) & b.mask)
		ends := false
		for j := range bucket {
			word := atomic.LoadUint64(&bucket[j].Word)
			if word&ban4Match == want {
				word, expires := b.epoch.readEntry(&bucket[j].Word, word, &bucket[j].Expires, ban4Match, want)
				if word != 0 {
					return word, expires
				}
			}
			ends = ends || free(word)
		}
		if ends {
			break
		}
	}
	return 0, 0
}

// readEntry is the twin of ban_read.
func (e *epoch) readEntry(at *uint64, seen uint64, expires *uint64, mask, want uint64) (word, until uint64) {
	for range banReads {
		epoch := atomic.LoadUint64(e.word)
		until := atomic.LoadUint64(expires)
		again := atomic.LoadUint64(at)
		if again == seen && atomic.LoadUint64(expires) == until && atomic.LoadUint64(e.word) == epoch {
			if lived(until) {
				return seen, until
			}
			return 0, 0
		}
		if again&mask != want {
			return 0, 0
		}
		seen = again
	}
	return 0, 0
}

// As in ban.h.
const (
	banReads = 4
	banTries = 16
)

// lookup is the twin of ban4_find.
func (b *ban4) lookup(addr uint32) (word, expires uint64) {
	if atomic.LoadUint64(&b.bits[addr>>14])>>(addr>>8&63)&1 == 0 {
		return 0, 0
	}
	for range banTries {
		epoch := atomic.LoadUint64(b.epoch.word)
		classes := atomic.LoadUint64(&b.classes[addr>>12]) >> ((addr >> 8 & 15) * 4)
		word, expires = 0, 0
		for c := class32; c <= class20; c++ {
			if classes>>c&1 == 0 {
				continue
			}
			w, e := b.find(c, mask4(addr, c.bits()))
			if enforces(w) {
				return w, e
			}
			if word == 0 {
				word, expires = w, e
			}
		}
		if classes>>class20&1 != 0 {
			wide := &b.wide[addr>>16]
			w, e := atomic.LoadUint64(&wide.Word), uint64(0)
			if live(w) {
				w, e = b.epoch.readEntry(&wide.Word, w, &wide.Expires, bpf.BanLive, bpf.BanLive)
			} else {
				w = 0
			}
			if enforces(w) {
				return w, e
			}
			if word == 0 {
				word, expires = w, e
			}
		}
		if atomic.LoadUint64(b.epoch.word) == epoch {
			break
		}
	}
	return word, expires
}

func (b *ban4) bucket(i uint32) []bpf.Ban4Entry {
	at := int(i) * bpf.Ban4Slots
	return b.table[at : at+bpf.Ban4Slots : at+bpf.Ban4Slots]
}

// place is a slot for a key: where it stands, or where it could. Its number counts the table's
// slots first and then the wide ones.
type place struct {
	class class4
	key   uint32
	at    int  // -1: nowhere
	live  bool // it stands there
}

// locate finds the slot of a key, expired or not, or else the one where it would be put. The slots
// in taken are not on offer.
func (b *ban4) locate(c class4, key uint32, taken []place) place {
	if c == classWide {
		i := int(key >> 16)
		return place{c, key, len(b.table) + i, live(b.wide[i].Word)}
	}
	want := uint64(key)<<bpf.BanKeyShift | uint64(c)<<bpf.BanClassShift | bpf.BanLive
	home := b.home(c, key)
	at := -1
	for i := range uint32(bpf.Ban4Probes) {
		n := (home + i) & b.mask
		ends := false
		for j, entry := range b.bucket(n) {
			if entry.Word&ban4Match == want {
				return place{c, key, int(n)*bpf.Ban4Slots + j, true}
			}
			if live(entry.Word) {
				continue
			}
			ends = ends || free(entry.Word)
			if here := int(n)*bpf.Ban4Slots + j; at < 0 && !isTaken(taken, here) {
				at = here
			}
		}
		if ends && at >= 0 {
			break
		}
	}
	return place{c, key, at, false}
}

func isTaken(taken []place, at int) bool {
	for _, p := range taken {
		if p.at == at {
			return true
		}
	}
	return false
}

func (b *ban4) entry(at int) *bpf.Ban4Entry {
	if at < len(b.table) {
		return &b.table[at]
	}
	return &b.wide[at-len(b.table)]
}

// says returns the content of a live slot.
func (b *ban4) says(at int) content {
	e := b.entry(at)
	return contentOf(e.Word, e.Expires)
}

// first tells whether the slot of a key is the first of a prefix's slots.
func (p place) first(length uint8) bool { return mask4(p.key, int(length)) == p.key }

// kept returns a prefix of which p is the first slot, if it is there: from the slot, or from beside.
func (b *ban4) kept(p place, length int) (content, bool) {
	if p.live {
		if v := b.says(p.at); int(v.length) == length {
			v.round = b.round == (b.met == nil || b.met.get(p.at))
			return v, true
		}
	}
	if b.besideOf[length] == 0 {
		return content{}, false
	}
	v, ok := b.beside[key4(p.key, length)]
	return v, ok
}

// get returns what is wanted of a prefix.
func (b *ban4) get(addr uint32, length int) (content, bool) {
	return b.kept(b.locate(classOf(length), addr, nil), length)
}

// change says what a put did.
type change uint8

const (
	kept change = iota
	added
	updated
	repaired
)

// tryPut makes a prefix wanted. It returns false, and changes nothing, if a slot finds no room.
func (b *ban4) tryPut(addr uint32, length int, v content) (change, bool) {
	v.length, v.round = uint8(length), b.round
	c := classOf(length)
	first := b.locate(c, addr, nil)
	if first.at < 0 {
		return kept, false
	}
	old, was := b.kept(first, length)
	var wrote bool
	if length == c.bits() {
		wrote = b.offer(first, v)
	} else {
		var ok bool
		if wrote, ok = b.spread(first, v); !ok {
			return kept, false
		}
	}
	if !was {
		b.lengths[length]++
	}
	if b.says(first.at).length != v.length {
		b.setBeside(addr, length, v)
	}
	return changeOf(was, old.same(v), wrote), true
}

// spread offers a prefix to all of its slots. All places are found before any is written: there are
// at most eight in the table, and wide ones are always there.
func (b *ban4) spread(first place, v content) (wrote, ok bool) {
	c, n := first.class, 1<<(first.class.bits()-int(v.length))
	if c == classWide {
		for i := range n {
			wrote = b.offer(b.locate(c, first.key+uint32(i)<<16, nil), v) || wrote
		}
		return wrote, true
	}
	places := [8]place{first}
	for i := 1; i < n; i++ {
		p := b.locate(c, first.key+uint32(i)<<(4*c), places[:i])
		if p.at < 0 {
			return false, false
		}
		places[i] = p
	}
	for _, p := range places[:n] {
		wrote = b.offer(p, v) || wrote
	}
	return wrote, true
}

func changeOf(was, same, wrote bool) change {
	switch {
	case !was:
		return added
	case !same:
		return updated
	case wrote:
		return repaired
	}
	return kept
}

// remove makes a prefix unwanted. It returns false if it was not wanted; slots that say so
// nevertheless are put right.
func (b *ban4) remove(addr uint32, length int) bool {
	c := classOf(length)
	_, was := b.get(addr, length)
	if was {
		b.lengths[length]--
		b.clearBeside(addr, length)
	}
	for i := range 1 << (c.bits() - length) {
		p := b.locate(c, addr+uint32(i)<<(4*c), nil)
		if p.live && int(b.says(p.at).length) == length {
			b.settle(p, content{length: uint8(length)}, false)
		}
	}
	return was
}

func (b *ban4) setBeside(addr uint32, length int, v content) {
	n := len(b.beside)
	b.beside[key4(addr, length)] = v
	b.besideOf[length] += len(b.beside) - n
}

func (b *ban4) clearBeside(addr uint32, length int) {
	if b.besideOf[length] > 0 {
		n := len(b.beside)
		delete(b.beside, key4(addr, length))
		b.besideOf[length] -= n - len(b.beside)
	}
}

// offer lets a prefix that has been put compete for one of its slots, and returns whether that took
// a write. The other candidates are not asked if what the slot says answers for them: if it is
// free there are none, and if another prefix stands in it, that is the best of them. Only where
// the prefix stood already, and is worse now, they all must be looked at again.
func (b *ban4) offer(p place, v content) bool {
	if p.live {
		says := b.says(p.at)
		if says.length != v.length && !v.beats(says) {
			return false
		}
		if says.length == v.length && says.beats(v) {
			return b.settle(p, v, true)
		}
	}
	return b.say(p, v, true, v.length)
}

// settle finds out what the slot should say in which a prefix stands that has become worse, v, or
// is not wanted any more: the best of its candidates. It returns whether that took a write.
func (b *ban4) settle(p place, v content, wanted bool) bool {
	best, any := v, wanted
	for length := p.class.bits(); length >= p.class.low(); length-- {
		if length == int(v.length) || b.lengths[length] == 0 {
			continue
		}
		at := p
		if !p.first(uint8(length)) {
			at = b.locate(p.class, mask4(p.key, length), nil)
		}
		other, ok := b.kept(at, length)
		if ok && (!any || other.beats(best)) {
			best, any = other, true
		}
	}
	return b.say(p, best, any, v.length)
}

// say makes a slot say one thing, or nothing. A prefix that loses its first slot is kept beside from
// now on, but for the one of the length about: whose change this is.
func (b *ban4) say(p place, best content, any bool, about uint8) (wrote bool) {
	if p.live {
		if says := b.says(p.at); p.first(says.length) {
			b.alone--
			if says.length != about {
				says.round = b.round == (b.met == nil || b.met.get(p.at))
				b.setBeside(p.key, int(says.length), says)
			}
		}
	}
	if any && p.first(best.length) {
		b.alone++
		b.clearBeside(p.key, int(best.length))
	}

	switch {
	case !any:
		b.clear(p)
		wrote = true
	case !p.live:
		b.insert(p, best)
		wrote = true
	default:
		e := b.entry(p.at)
		wrote = b.epoch.replace(&e.Word, &e.Expires, word4(p.class, p.key, &best), best.expires)
	}
	if b.met != nil {
		if any && best.round == b.round {
			b.met.set(p.at)
		} else {
			b.met.clear(p.at)
		}
	}
	return wrote
}
