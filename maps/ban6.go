package maps

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"sync/atomic"

	"github.com/levee-xdp/levee/bpf"
)

// ban6 is the IPv6 half of the ban table; types.h, maps.h and ban.h say how it is read.
//
// Lengths are exact, so each prefix stands in a slot of its own, which says all there is to say of
// it. The one exception is ::/0: it is stored as its halves, whose slots it may have to share with
// ::/1 and 8000::/1. Those three are kept here, and a slot that says what ::/0 says is marked.
type ban6 struct {
	filter     []bpf.Ban6Lengths
	filterMask uint32
	wide       []uint64
	table      []bpf.Ban6Entry // two of them are a bucket
	mask       uint32
	hash       hasher
	epoch      *epoch
	tiers      *uint32 // control->ban6_tiers
	version    *uint64 // control->ban6_version
	spoke      uint64  // what it was set to last; 0: nothing yet

	all    *content    // ::/0, if it is wanted
	halves [2]*content // ::/1 and 8000::/1

	alone int     // prefixes of two bits and more: all but those three
	slots int     // live slots
	spill []uint8 // by bucket: how many live entries were pushed past it
	fit   fit6    // what the filters should say
	tier  [3]int  // how many entries a tier has

	met   marks
	round bool
}

// key6 is an IPv6 prefix: the address in host order, masked.
type key6 struct {
	hi, lo uint64
	length int
}

func keyOf6(p netip.Prefix) key6 {
	a := p.Addr().As16()
	return key6{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]), p.Bits()}
}

func keyOfEntry(e *bpf.Ban6Entry) key6 {
	return key6{e.Hi, e.Lo, int(uint8(e.Word >> bpf.BanLengthShift))}
}

func (k key6) addr() netip.Addr     { return addr6(k.hi, k.lo) }
func (k key6) prefix() netip.Prefix { return netip.PrefixFrom(k.addr(), k.length) }

func addr6(hi, lo uint64) netip.Addr {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], hi)
	binary.BigEndian.PutUint64(a[8:], lo)
	return netip.AddrFrom16(a)
}

func mask6(hi, lo uint64, length int) key6 {
	return key6{
		hi & (^uint64(0) << max(0, 64-length)),
		lo & (^uint64(0) << min(64, 128-length)),
		length,
	}
}

const ban6Match = 0xFFFFFFFF<<32 | 0xFF<<8 | bpf.BanTombstone | bpf.BanLive

func (b *ban6) hashOf(k key6) uint64 {
	return b.hash.hash64(b.hash.hash128(k.hi, k.lo) + uint64(k.length))
}

// word returns the word of a prefix's slot, which may be what ::/0 says.
func (b *ban6) word(k key6, v content) uint64 {
	all := uint64(0)
	if int(v.length) < k.length {
		all = bpf.BanAll
	}
	v.length = uint8(k.length)
	return b.hashOf(k)<<bpf.BanKeyShift | v.word() | all
}

// content6 is contentOf for IPv6: the slot of a half may say what ::/0 says.
func content6(word, expires uint64) content {
	v := contentOf(word, expires)
	if word&bpf.BanAll != 0 && v.length == 1 {
		v.length = 0
	}
	return v
}

func (b *ban6) bucket(i uint32) []bpf.Ban6Entry {
	at := int(i) * bpf.Ban6Slots
	return b.table[at : at+bpf.Ban6Slots : at+bpf.Ban6Slots]
}

// find is the twin of ban6_probe: the live word for the prefix of a length of an address.
func (b *ban6) find(hi, lo uint64, length int) (word, expires uint64) {
	k := mask6(hi, lo, length)
	hash := b.hashOf(k)
	want := hash<<bpf.BanKeyShift | uint64(length)<<bpf.BanLengthShift | bpf.BanLive
	home := uint32(hash >> 32)
	for i := range uint32(bpf.Ban6Probes) {
		bucket := b.bucket((home + i) & b.mask)
		ends := false
		for j := range bucket {
			e := &bucket[j]
			word := atomic.LoadUint64(&e.Word)
			if word&ban6Match == want && atomic.LoadUint64(&e.Hi) == k.hi && atomic.LoadUint64(&e.Lo) == k.lo {
				word, expires := b.epoch.readEntry(&e.Word, word, &e.Expires, ban6Match, want)
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

// ask is the twin of ban6_ask.
func (b *ban6) ask(hi, lo, set uint64, base int) (word, expires uint64) {
	for set != 0 {
		bit := bits.Len64(set) - 1
		set &^= 1 << bit
		w, e := b.find(hi, lo, base+bit)
		if enforces(w) {
			return w, e
		}
		if word == 0 {
			word, expires = w, e
		}
	}
	return word, expires
}

// once is the twin of ban6_near and ban6_once.
func (b *ban6) once(hi, lo uint64, tiers uint32) (word, expires uint64) {
	var low, high uint64
	if tiers&bpf.Ban6Tier48 != 0 {
		n, mark := b.cell(hi >> 16)
		if set := atomic.LoadUint64(&b.filter[n].Low); set>>mark&1 != 0 {
			low |= set & (0xFFFF<<48 | 1)
			high |= atomic.LoadUint64(&b.filter[n].High)
		}
	}
	if tiers&bpf.Ban6Tier32 != 0 {
		n, mark := b.cell(hi >> 32)
		if set := atomic.LoadUint64(&b.filter[n].Low); set>>mark&1 != 0 {
			low |= set & (0xFFFF << 32)
		}
	}
	if tiers&bpf.Ban6TierWide != 0 {
		low |= atomic.LoadUint64(&b.wide[hi>>48]) & 0xFFFFFFFE
	}
	if low&1 != 0 {
		if word, expires = b.find(hi, lo, 128); enforces(word) {
			return word, expires
		}
	}
	for _, set := range []struct {
		bits uint64
		base int
	}{{high, 64}, {low &^ 1, 0}} {
		w, e := b.ask(hi, lo, set.bits, set.base)
		if enforces(w) {
			return w, e
		}
		if word == 0 {
			word, expires = w, e
		}
	}
	return word, expires
}

// lookup is the twin of ban6_find.
func (b *ban6) lookup(hi, lo uint64) (word, expires uint64) {
	for range banTries {
		epoch := atomic.LoadUint64(b.epoch.word)
		tiers := atomic.LoadUint32(b.tiers)
		if tiers == 0 {
			return 0, 0
		}
		word, expires = b.once(hi, lo, tiers)
		if enforces(word) || atomic.LoadUint64(b.epoch.word) == epoch {
			break
		}
	}
	return word, expires
}

// cell is where the first 48 or 32 bits of an address lead, and the bit of its Low that says so: the
// twin of ban6_mark.
func (b *ban6) cell(x uint64) (n, mark uint32) {
	hash := b.hash.hash64(x)
	return uint32(hash) & b.filterMask, max(uint32(hash>>59), 1)
}

func (b *ban6) says(at int) content { return content6(b.table[at].Word, b.table[at].Expires) }

func (b *ban6) keyAt(at int) key6 {
	return keyOfEntry(&b.table[at])
}

// locate finds the slot of a prefix, expired or not, or else the one where it would be put (at -1:
// nowhere). The slot in taken is not on offer.
func (b *ban6) locate(k key6, taken int) (at int, there bool) {
	hash := b.hashOf(k)
	want := hash<<bpf.BanKeyShift | uint64(k.length)<<bpf.BanLengthShift | bpf.BanLive
	home := uint32(hash >> 32)
	at = -1
	for i := range uint32(bpf.Ban6Probes) {
		n := (home + i) & b.mask
		ends := false
		for j, entry := range b.bucket(n) {
			here := int(n)*bpf.Ban6Slots + j
			if live(entry.Word) {
				if entry.Word&ban6Match == want && entry.Hi == k.hi && entry.Lo == k.lo {
					return here, true
				}
				continue
			}
			ends = ends || free(entry.Word)
			if at < 0 && here != taken {
				at = here
			}
		}
		if ends && at >= 0 {
			break
		}
	}
	return at, false
}

func (b *ban6) len() int {
	n := b.alone
	for _, v := range []*content{b.all, b.halves[0], b.halves[1]} {
		if v != nil {
			n++
		}
	}
	return n
}

// get returns what is wanted of a prefix.
func (b *ban6) get(k key6) (content, bool) {
	if v := b.held(k); v != nil {
		return deref(*v)
	}
	at, there := b.locate(k, -1)
	if !there {
		return content{}, false
	}
	return b.says(at), true
}

// held is where one of the three prefixes stands that are kept here.
func (b *ban6) held(k key6) **content {
	switch k.length {
	case 0:
		return &b.all
	case 1:
		return &b.halves[k.hi>>63]
	}
	return nil
}

func deref(v *content) (content, bool) {
	if v == nil {
		return content{}, false
	}
	return *v, true
}

// tryPut makes a prefix wanted. It returns false, and changes nothing, if it finds no room.
func (b *ban6) tryPut(k key6, v content) (change, bool) {
	v.length, v.round = uint8(k.length), b.round
	if held := b.held(k); held != nil {
		return b.putHeld(k, held, v)
	}
	at, there := b.locate(k, -1)
	if at < 0 {
		return kept, false
	}
	what := added
	if there {
		what = kept
		e := &b.table[at]
		if b.epoch.replace(&e.Word, &e.Expires, b.word(k, v), v.expires) {
			what = updated
		}
	} else {
		b.insert(k, at, v)
		b.alone++
	}
	if b.met != nil {
		b.met.set(at)
	}
	return what, true
}

func (b *ban6) putHeld(k key6, held **content, v content) (change, bool) {
	halves := halvesOf(k)
	taken := -1
	for _, i := range halves {
		at, there := b.locate(halfKey(i), taken)
		if at < 0 {
			return kept, false
		}
		if !there {
			taken = at
		}
	}
	old, was := deref(*held)
	*held = &v
	wrote := b.settle(halves)
	return changeOf(was, old.same(v), wrote), true
}

func halfKey(i int) key6 { return key6{uint64(i) << 63, 0, 1} }

func halvesOf(k key6) []int {
	if k.length == 0 {
		return []int{0, 1}
	}
	return []int{int(k.hi >> 63)}
}

// best is what the slot of a half should say: the better of ::/0 and the half's own prefix.
func (b *ban6) best(half int) *content {
	if own := b.halves[half]; own != nil && (b.all == nil || own.beats(*b.all)) {
		return own
	}
	return b.all
}

// settle makes the slots of halves say what they should.
func (b *ban6) settle(halves []int) (wrote bool) {
	for _, i := range halves {
		best := b.best(i)
		k := halfKey(i)
		at, there := b.locate(k, -1)
		switch {
		case best == nil && there:
			b.clear(k, at)
			wrote = true
		case best != nil && !there:
			b.insert(k, at, *best)
			wrote = true
		case best != nil:
			e := &b.table[at]
			wrote = b.epoch.replace(&e.Word, &e.Expires, b.word(k, *best), best.expires) || wrote
		}
	}
	return wrote
}

// remove makes a prefix unwanted. It returns false if it was not wanted.
func (b *ban6) remove(k key6) bool {
	if held := b.held(k); held != nil {
		if *held == nil {
			return false
		}
		*held = nil
		b.settle(halvesOf(k))
		return true
	}
	at, there := b.locate(k, -1)
	if there {
		b.clear(k, at)
		b.alone--
	}
	return there
}

// insert fills a slot. A reader finds it by the tier, the filter and the word: until the last of
// them is there the prefix is not banned, and then it is.
func (b *ban6) insert(k key6, at int, v content) {
	b.enter(k)
	e := &b.table[at]
	store(&e.Hi, k.hi)
	store(&e.Lo, k.lo)
	store(&e.Expires, v.expires)
	b.spillTo(k, at, 1)
	store(&e.Word, b.word(k, v))
	b.slots++
	b.cover(k)
	b.epoch.grew()
}

// clear empties a slot, and leaves a tombstone where a reader must not stop: see ban4.clear.
func (b *ban6) clear(k key6, at int) {
	b.epoch.shrinks()
	word := uint64(0)
	if b.spill[at/bpf.Ban6Slots] > 0 {
		word = bpf.BanTombstone
	}
	store(&b.table[at].Word, word)
	b.spillTo(k, at, -1)
	b.slots--
	if b.met != nil {
		b.met.clear(at)
	}
	b.uncover(k)
	b.leave(k)
}

// spillTo counts an entry in or out of the buckets that it was pushed past.
func (b *ban6) spillTo(k key6, at, by int) {
	end := uint32(at / bpf.Ban6Slots)
	for n := uint32(b.hashOf(k)>>32) & b.mask; n != end; n = (n + 1) & b.mask {
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
