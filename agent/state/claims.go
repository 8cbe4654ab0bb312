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
	b := a.As16()
	k := key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), uint8(p.Bits()), a.Is4()}
	if k.v4 {
		k.hi, k.lo = 0, k.lo&0xFFFFFFFF
	}
	return k
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

// record is a claim as memory holds it: without pointers, 72 bytes.
type record struct {
	key     key
	expires uint64 // ns of CLOCK_MONOTONIC of this boot, or Forever
	created int64  // wall clock, ns since 1970
	segment uint64 // where on disk its newest copy stands
	actor   uint32 // of texts
	reason  uint32
	next    uint32 // the next claim on the same prefix; 0 none
	list    uint16 // the origin
	boot    uint16 // in which its expiry was set
	monitor bool
	live    bool
}

const chunk = 4096

// claims is every claim, found by prefix. It is not safe for concurrent use.
type claims struct {
	slab    []*[chunk]record
	free    uint32 // the first free slot, linked by next
	used    uint32 // slots ever handed out; slot 0 is none
	heads   map[key]uint32
	lengths [2][129]int // prefixes with claims, by family and length
	lists   []listCount // by list
	live    int
	timed   int
	due     dueHeap
	texts   texts
}

type listCount struct{ v4, v6 int }

func newClaims() *claims {
	return &claims{heads: map[key]uint32{}, used: 1, texts: newTexts()}
}

func (c *claims) at(slot uint32) *record { return &c.slab[slot/chunk][slot%chunk] }

func (c *claims) find(k key, list uint16) (uint32, *record) {
	for slot := c.heads[k]; slot != 0; {
		r := c.at(slot)
		if r.list == list {
			return slot, r
		}
		slot = r.next
	}
	return 0, nil
}

// on iterates over the claims on exactly this prefix.
func (c *claims) on(k key) iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for slot := c.heads[k]; slot != 0; {
			r := c.at(slot)
			slot = r.next
			if !yield(r) {
				return
			}
		}
	}
}

// put makes or replaces the claim of a list on a prefix. The record's texts must be held already;
// those of the one replaced are let go.
func (c *claims) put(n record) {
	n.live = true
	if slot, r := c.find(n.key, n.list); r != nil {
		c.texts.release(r.actor)
		c.texts.release(r.reason)
		c.countTimed(r, -1)
		n.next = r.next
		*r = n
		c.countTimed(r, 1)
		c.schedule(slot, r)
		return
	}
	slot := c.free
	if slot != 0 {
		c.free = c.at(slot).next
	} else {
		if int(c.used)/chunk >= len(c.slab) {
			c.slab = append(c.slab, new([chunk]record))
		}
		slot = c.used
		c.used++
	}
	head, had := c.heads[n.key]
	n.next = head
	*c.at(slot) = n
	c.heads[n.key] = slot
	if !had {
		c.lengths[familyIndex(n.key.v4)][n.key.bits]++
	}
	c.live++
	c.count(n.list, n.key.v4, 1)
	c.countTimed(&n, 1)
	c.schedule(slot, &n)
}

func (c *claims) forget(k key, list uint16) {
	slot, r := c.find(k, list)
	if r == nil {
		return
	}
	if head := c.heads[k]; head == slot {
		if r.next == 0 {
			delete(c.heads, k)
			c.lengths[familyIndex(k.v4)][k.bits]--
		} else {
			c.heads[k] = r.next
		}
	} else {
		for before := c.at(head); ; before = c.at(before.next) {
			if before.next == slot {
				before.next = r.next
				break
			}
		}
	}
	c.texts.release(r.actor)
	c.texts.release(r.reason)
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
			if _, ok := c.heads[wide]; ok && !yield(wide) {
				return
			}
		}
	}
}

// all iterates over the live records from a slot on.
func (c *claims) all(from, to uint32) iter.Seq2[uint32, *record] {
	return func(yield func(uint32, *record) bool) {
		for slot := max(from, 1); slot < min(to, c.used); slot++ {
			if r := c.at(slot); r.live && !yield(slot, r) {
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
			c.due.push(due{r.expires, slot})
		}
	}
}

// earliest returns the earliest expiry, or Forever.
func (c *claims) earliest() uint64 {
	for len(c.due) > 0 {
		d := c.due[0]
		if r := c.at(d.slot); r.live && r.expires == d.at {
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
	s = s[:n]
	for i := 0; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < n && s[child].at < s[least].at {
				least = child
			}
		}
		if least == i {
			break
		}
		s[least], s[i] = s[i], s[least]
		i = least
	}
	*h = s
}

// texts keeps each actor and reason once; 0 is the empty one.
type texts struct {
	ids  map[string]uint32
	text []string
	refs []int32
	free []uint32
}

func newTexts() texts {
	return texts{ids: map[string]uint32{}, text: []string{""}, refs: []int32{1}}
}

func (t *texts) hold(s string) uint32 {
	if s == "" {
		return 0
	}
	if id, ok := t.ids[s]; ok {
		t.refs[id]++
		return id
	}
	var id uint32
	if n := len(t.free); n > 0 {
		id = t.free[n-1]
		t.free = t.free[:n-1]
		t.text[id], t.refs[id] = s, 1
	} else {
		id = uint32(len(t.text))
		t.text, t.refs = append(t.text, s), append(t.refs, 1)
	}
	t.ids[s] = id
	return id
}

func (t *texts) release(id uint32) {
	if id == 0 {
		return
	}
	if t.refs[id]--; t.refs[id] == 0 {
		delete(t.ids, t.text[id])
		t.text[id] = ""
		t.free = append(t.free, id)
	}
}
