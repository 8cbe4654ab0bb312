package state

import (
	"encoding/binary"
	"iter"
	"net/netip"
)

// key is a prefix without pointers, so that a million of them cost the garbage collector nothing.
type key struct {
	hi, lo uint64
	bits   uint8
	v4     bool
}

func keyOf(p netip.Prefix) key {
	a := p.Addr()
	if a.Is4() {
		b := a.As4()
		return key{0, uint64(binary.BigEndian.Uint32(b[:])), uint8(p.Bits()), true}
	}
	b := a.As16()
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), uint8(p.Bits()), false}
}

func (k key) prefix() netip.Prefix {
	if k.v4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(k.lo))
		return netip.PrefixFrom(netip.AddrFrom4(b), int(k.bits))
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	return netip.PrefixFrom(netip.AddrFrom16(b), int(k.bits))
}

// shorter returns the key of the prefix of a length that contains this one.
func (k key) shorter(bits int) key {
	k.bits = uint8(bits)
	if k.v4 {
		k.lo &= 0xFFFFFFFF << (32 - bits)
		k.lo &= 0xFFFFFFFF
		return k
	}
	if bits <= 64 {
		k.lo = 0
		k.hi &= ^uint64(0) << (64 - bits)
	} else {
		k.lo &= ^uint64(0) << (128 - bits)
	}
	return k
}

func (k key) contains(o key) bool {
	return k.v4 == o.v4 && k.bits <= o.bits && o.shorter(int(k.bits)) == k
}

// record is a claim as memory holds it: 56 bytes, and no pointers.
type record struct {
	hi, lo  uint64 // of the key
	expires uint64 // ns of CLOCK_MONOTONIC of this boot, or Forever
	created int64  // wall clock, ns since 1970
	segment uint32 // where on disk its newest copy stands: the low bits of the segment's number
	words   uint32 // actor and reason, of texts
	next    uint32 // the next claim on the same prefix; 0 none
	list    uint16 // the origin
	boot    uint16 // in which its expiry was set
	bits    uint8  // of the key
	flags   uint8
}

const (
	recordLive    = 1
	recordIPv4    = 2
	recordMonitor = 4
	recordHead    = 8 // the first of the claims on its prefix: the index leads to it
)

func (r *record) key() key {
	return key{r.hi, r.lo, r.bits, r.flags&recordIPv4 != 0}
}

func (r *record) live() bool    { return r.flags&recordLive != 0 }
func (r *record) monitor() bool { return r.flags&recordMonitor != 0 }
func (r *record) head() bool    { return r.flags&recordHead != 0 }

// setKey makes a record one of a prefix.
func (r *record) setKey(k key) {
	r.hi, r.lo, r.bits = k.hi, k.lo, k.bits
	r.flags &^= recordIPv4
	if k.v4 {
		r.flags |= recordIPv4
	}
}

const chunk = 4096

// claims is every claim, found by prefix. It is not safe for concurrent use. A million of them take
// 56 MB and an index of 16 MB, none of which the garbage collector has to look at.
type claims struct {
	slab    []*[chunk]record
	free    uint32 // the first free slot, linked by next
	used    uint32 // slots ever handed out; slot 0 is none
	index   index
	lengths [2][129]int // prefixes with claims, by family and length
	lists   []listCount // by list
	live    int
	timed   int
	due     dueHeap
	texts   texts
}

type listCount struct{ v4, v6 int }

func newClaims() *claims {
	return &claims{index: newIndex(newSeed(), 0), used: 1, texts: newTexts()}
}

func (c *claims) at(slot uint32) *record { return &c.slab[slot/chunk][slot%chunk] }

// head returns the first claim on exactly this prefix; 0 if there is none.
func (c *claims) head(k key) uint32 {
	_, slot := c.locate(k, c.index.hash(k))
	return slot
}

// locate returns the index's cell for a prefix, and the slot to which it leads; 0 if it is empty.
func (c *claims) locate(k key, hash uint32) (cell, slot uint32) {
	for cell = c.index.home(hash); ; cell = c.index.after(cell) {
		v := c.index.cells[cell]
		if v == 0 {
			return cell, 0
		}
		if uint32(v>>32) == hash {
			if r := c.at(uint32(v)); r.hi == k.hi && r.lo == k.lo && r.key() == k {
				return cell, uint32(v)
			}
		}
	}
}

// find returns the claim of a list on a prefix; nil if there is none.
func (c *claims) find(k key, list uint16) *record {
	for r := range c.on(k) {
		if r.list == list {
			return r
		}
	}
	return nil
}

// on iterates over the claims on exactly this prefix.
func (c *claims) on(k key) iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for slot := c.head(k); slot != 0; {
			r := c.at(slot)
			slot = r.next
			if !yield(r) {
				return
			}
		}
	}
}

// put makes or replaces the claim of a list on a prefix. The record's words must be held already;
// those of the one replaced are let go.
func (c *claims) put(n record) { c.putHashed(n, c.index.hash(n.key())) }

// putHashed is put for who knows the key's hash.
func (c *claims) putHashed(n record, hash uint32) {
	n.flags |= recordLive
	n.flags &^= recordHead
	k := n.key()
	cell, head := c.locate(k, hash)
	for slot := head; slot != 0; {
		r := c.at(slot)
		if r.list == n.list {
			c.texts.release(r.words)
			c.countTimed(r, -1)
			n.next = r.next
			n.flags |= r.flags & recordHead
			*r = n
			c.countTimed(r, 1)
			c.schedule(slot, r)
			return
		}
		slot = r.next
	}
	slot := c.slot()
	if head == 0 {
		n.flags |= recordHead
		c.index.fill(cell, hash, slot)
		c.lengths[familyIndex(k.v4)][k.bits]++
	} else {
		first := c.at(head)
		n.next, first.next = first.next, slot
	}
	*c.at(slot) = n
	c.live++
	c.count(n.list, k.v4, 1)
	c.countTimed(&n, 1)
	c.schedule(slot, &n)
}

// slot hands out a free slot.
func (c *claims) slot() uint32 {
	slot := c.free
	if slot != 0 {
		c.free = c.at(slot).next
		return slot
	}
	if int(c.used)/chunk >= len(c.slab) {
		c.slab = append(c.slab, new([chunk]record))
	}
	slot = c.used
	c.used++
	return slot
}

func (c *claims) forget(k key, list uint16) {
	cell, head := c.locate(k, c.index.hash(k))
	before, slot := uint32(0), head
	for slot != 0 && c.at(slot).list != list {
		before, slot = slot, c.at(slot).next
	}
	if slot == 0 {
		return
	}
	r := c.at(slot)
	switch {
	case before != 0:
		c.at(before).next = r.next
	case r.next != 0:
		c.at(r.next).flags |= recordHead
		c.index.lead(cell, r.next)
	default:
		c.index.empty(cell)
		c.lengths[familyIndex(k.v4)][k.bits]--
	}
	c.texts.release(r.words)
	c.live--
	c.count(list, k.v4, -1)
	c.countTimed(r, -1)
	*r = record{next: c.free}
	c.free = slot
}

func (c *claims) count(list uint16, v4 bool, by int) {
	for int(list) >= len(c.lists) {
		c.lists = append(c.lists, listCount{})
	}
	if v4 {
		c.lists[list].v4 += by
	} else {
		c.lists[list].v6 += by
	}
}

func (c *claims) countTimed(r *record, by int) {
	if r.expires != Forever {
		c.timed += by
	}
}

func familyIndex(v4 bool) int {
	if v4 {
		return 0
	}
	return 1
}

// covering iterates over the prefixes with claims that contain a prefix, itself included, the most
// specific first.
func (c *claims) covering(k key) iter.Seq[key] {
	return func(yield func(key) bool) {
		lengths := &c.lengths[familyIndex(k.v4)]
		for bits := int(k.bits); bits >= 0; bits-- {
			if lengths[bits] == 0 {
				continue
			}
			wide := k.shorter(bits)
			if c.head(wide) != 0 && !yield(wide) {
				return
			}
		}
	}
}

// all iterates over the live records from a slot on.
func (c *claims) all(from, to uint32) iter.Seq2[uint32, *record] {
	return func(yield func(uint32, *record) bool) {
		for slot := max(from, 1); slot < min(to, c.used); slot++ {
			if r := c.at(slot); r.live() && !yield(slot, r) {
				return
			}
		}
	}
}

// dueHeap is a binary heap of expiries, the earliest first. An entry whose claim has gone, or has
// another expiry by now, is skipped when it comes up.
type dueHeap []due

type due struct {
	at   uint64
	slot uint32
}

func (c *claims) schedule(slot uint32, r *record) {
	if r.expires == Forever {
		return
	}
	if len(c.due) > 2*c.timed+chunk {
		c.reschedule()
		return
	}
	c.due.push(due{r.expires, slot})
}

// reschedule builds the heap afresh, without what has gone.
func (c *claims) reschedule() {
	c.due = c.due[:0]
	for slot, r := range c.all(1, c.used) {
		if r.expires != Forever {
			c.due = append(c.due, due{r.expires, slot})
		}
	}
	for i := len(c.due)/2 - 1; i >= 0; i-- {
		c.due.down(i)
	}
}

// earliest returns the earliest expiry, or Forever.
func (c *claims) earliest() uint64 {
	for len(c.due) > 0 {
		d := c.due[0]
		if r := c.at(d.slot); r.live() && r.expires == d.at {
			return d.at
		}
		c.due.pop()
	}
	return Forever
}

func (h *dueHeap) push(d due) {
	s := append(*h, d)
	i := len(s) - 1
	for i > 0 {
		up := (i - 1) / 2
		if s[up].at <= s[i].at {
			break
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
	*h = s
}

func (h *dueHeap) pop() {
	s := *h
	n := len(s) - 1
	s[0] = s[n]
	*h = s[:n]
	h.down(0)
}

// down moves what stands at i to where it belongs below.
func (h *dueHeap) down(i int) {
	for s := *h; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(s) && s[child].at < s[least].at {
				least = child
			}
		}
		if least == i {
			return
		}
		s[least], s[i] = s[i], s[least]
		i = least
	}
}
