package maps

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
)

// Source is one tracked source: an address, or a prefix where its limit groups addresses.
type Source struct {
	Prefix       netip.Prefix
	Limit        uint8  // the number of the limit that it is held to
	Packets      uint64 // passed
	Bytes        uint64 // passed
	Dropped      uint64 // packets that its limit dropped, or would have dropped if it monitors
	First        uint64 // when it was first heard of, in ns of CLOCK_MONOTONIC
	Seen         uint64 // when it was last heard of, late by up to a quarter of source_idle; during a penalty: now
	PenaltyUntil uint64 // when the penalty ends that it serves; 0 if it serves none
}

// Order says by what sources are compared.
type Order uint8

// The orders. The greatest come first.
const (
	ByPackets Order = iota // that passed
	ByBytes                // that passed
	ByDropped              // packets
	BySeen                 // the last heard of
)

// Sources is the table of tracked sources, which the program writes. Reading it takes no system
// call per source: the table is mapped into memory while it is read, and only then, since it is
// large. What is read of one source belongs together; the sources are not all read at one moment.
type Sources struct {
	tags, states, counts, tabs *ebpf.Map
	hash                       hasher
	limits                     *Limits
}

func openSources(o *opener, hash hasher, limits *Limits) *Sources {
	s := &Sources{
		tags:   o.get(bpf.LeveeMapSourceTags),
		states: o.get(bpf.LeveeMapSourceStates),
		counts: o.get(bpf.LeveeMapSourceCounts),
		tabs:   o.get(bpf.LeveeMapTabs),
		hash:   hash,
		limits: limits,
	}
	if o.err != nil {
		return nil
	}
	slots := int(s.tags.MaxEntries()) * bpf.SourceWays
	if slots != int(s.states.MaxEntries()) || slots != int(s.counts.MaxEntries()) {
		o.err = fmt.Errorf("source tables: %d tags, %d states, %d counts", slots,
			s.states.MaxEntries(), s.counts.MaxEntries())
	}
	return s
}

// Capacity returns how many sources can be tracked.
func (s *Sources) Capacity() int { return int(s.tags.MaxEntries()) * bpf.SourceWays }

// Len returns how many sources are tracked.
func (s *Sources) Len() (n int, err error) {
	mem, tags, err := mapArray[uint64](s.tags, false)
	if err != nil {
		return 0, fmt.Errorf("map %s: %w", bpf.LeveeMapSourceTags, err)
	}
	defer unmap(mem, &err)
	for i := range tags {
		if atomic.LoadUint64(&tags[i])&bpf.TagLive != 0 {
			n++
		}
	}
	return n, nil
}

func unmap(mem []byte, err *error) {
	if e := unix.Munmap(mem); e != nil {
		*err = errors.Join(*err, fmt.Errorf("unmap: %w", e))
	}
}

// Top returns the first n sources in an order.
func (s *Sources) Top(n int, by Order) (_ []Source, err error) {
	if n <= 0 {
		return nil, nil
	}
	view, err := s.open()
	if err != nil {
		return nil, err
	}
	defer view.close(&err)
	pending, err := s.gathered()
	if err != nil {
		return nil, err
	}

	top := ranking{n: n}
	now := Monotonic()
	for i := range view.tags {
		tag := atomic.LoadUint64(&view.tags[i])
		if tag&bpf.TagLive == 0 {
			continue
		}
		counts := &view.counts[i]
		var rank uint64
		switch by {
		case ByPackets:
			rank = atomic.LoadUint64(&counts.Packets) + pending.of(i, tag).packets
		case ByBytes:
			rank = atomic.LoadUint64(&counts.Bytes) + pending.of(i, tag).bytes
		case ByDropped:
			rank = atomic.LoadUint64(&counts.Dropped) + pending.of(i, tag).dropped
		case BySeen:
			rank = min(seenOf(tag), now)
		}
		if !top.takes(rank) {
			continue
		}
		if src, ok := view.read(i, tag, now, pending); ok {
			src.order = rank
			heap.Push(&top, src)
			if top.Len() > n {
				heap.Pop(&top)
			}
		}
	}
	slices.SortFunc(top.sources, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.order, a.order), a.Prefix.Compare(b.Prefix), cmp.Compare(a.Limit, b.Limit))
	})
	sources := make([]Source, len(top.sources))
	for i, r := range top.sources {
		sources[i] = r.Source
	}
	return sources, nil
}

// Lookup returns what is tracked of an address: a source for each limit that it is held to. An IPv4
// address mapped into IPv6 is an IPv4 address.
func (s *Sources) Lookup(addr netip.Addr) (_ []Source, err error) {
	if !addr.IsValid() {
		return nil, nil
	}
	addr = addr.Unmap().WithZone("")
	view, err := s.open()
	if err != nil {
		return nil, err
	}
	defer view.close(&err)
	pending, err := s.gathered()
	if err != nil {
		return nil, err
	}
	var sources []Source
	now := Monotonic()
	for _, number := range s.limits.Numbers() {
		p, err := addr.Prefix(s.limits.group(number, addr.Is6()))
		if err != nil {
			return nil, fmt.Errorf("look up %s under limit %d: %w", addr, number, err)
		}
		bucket := s.bucket(p.Addr())
		for way := range bpf.SourceWays {
			i := bucket*bpf.SourceWays + way
			tag := atomic.LoadUint64(&view.tags[i])
			if tag&bpf.TagLive == 0 || uint8(tag>>bpf.TagLimitShift) != number {
				continue
			}
			if src, ok := view.read(i, tag, now, pending); ok && src.Prefix == p {
				sources = append(sources, src.Source)
				break
			}
		}
	}
	return sources, nil
}

// bucket is where the program looks for a source: the twin of source_hash.
func (s *Sources) bucket(addr netip.Addr) int {
	var hi, lo uint64
	if addr.Is4() {
		lo = uint64(uint4(addr))
	} else {
		k := keyOf6(netip.PrefixFrom(addr, 128))
		hi, lo = k.hi, k.lo
	}
	hash := s.hash.hash128(hi, lo)
	return int(hash & uint64(s.tags.MaxEntries()-1))
}

// view is the table mapped into memory.
type view struct {
	mapped [][]byte
	tags   []uint64
	states []bpf.SourceState
	counts []bpf.SourceCounts
	limits *Limits
}

func (s *Sources) open() (_ *view, err error) {
	v := &view{limits: s.limits}
	if err := openView(v, bpf.LeveeMapSourceTags, s.tags, &v.tags); err != nil {
		return nil, err
	}
	if err := openView(v, bpf.LeveeMapSourceStates, s.states, &v.states); err != nil {
		return nil, err
	}
	if err := openView(v, bpf.LeveeMapSourceCounts, s.counts, &v.counts); err != nil {
		return nil, err
	}
	return v, nil
}

func openView[T any](v *view, name string, m *ebpf.Map, to *[]T) error {
	mem, entries, err := mapArray[T](m, false)
	if err != nil {
		err = fmt.Errorf("map %s: %w", name, err)
		v.close(&err)
		return err
	}
	v.mapped = append(v.mapped, mem)
	*to = entries
	return nil
}

func (v *view) close(err *error) {
	for _, mem := range v.mapped {
		unmap(mem, err)
	}
}

const tagSeen = bpf.TagSeenMask << bpf.TagSeenShift

// seenOf returns the time that a tag tells, in ns.
func seenOf(tag uint64) uint64 { return tag >> bpf.TagSeenShift & bpf.TagSeenMask << bpf.SeenShift }

// read reads a source whose tag was seen. It returns false if the slot has become another's.
func (v *view) read(i int, tag, now uint64, pending pending) (ranked, bool) {
	state, counts := &v.states[i], &v.counts[i]
	hi, lo := atomic.LoadUint64(&state.Hi), atomic.LoadUint64(&state.Lo)
	tat := atomic.LoadUint64(&state.Tat[bpf.ThresholdPackets])
	number := uint8(tag >> bpf.TagLimitShift)
	more := pending.of(i, tag)
	src := Source{
		Limit:        number,
		Packets:      atomic.LoadUint64(&counts.Packets) + more.packets,
		Bytes:        atomic.LoadUint64(&counts.Bytes) + more.bytes,
		Dropped:      atomic.LoadUint64(&counts.Dropped) + more.dropped,
		First:        atomic.LoadUint64(&counts.First),
		Seen:         min(seenOf(tag), now),
		PenaltyUntil: v.limits.penaltyEnd(number, tat, now),
	}
	if atomic.LoadUint64(&v.tags[i])&^tagSeen != tag&^tagSeen {
		return ranked{}, false
	}
	v6 := tag>>bpf.TagFamilyShift&1 != 0
	addr := addr4(uint32(lo))
	if v6 {
		addr = addr6(hi, lo)
	}
	src.Prefix = netip.PrefixFrom(addr, v.limits.group(number, v6))
	return ranked{Source: src}, true
}

// pending is what the CPUs have counted and not added to the sources yet.
type pending struct {
	marks marks // by slot: whether anything is gathered for it
	sums  []gathered
}

type gathered struct {
	slot                    int
	tag                     uint64
	packets, bytes, dropped uint64
}

// gathered reads what the CPUs have gathered. What one of them hands over between this and the
// reading of its source is told twice, this once, as is what it bills just now.
func (s *Sources) gathered() (pending, error) {
	p := pending{marks: make(marks, (s.Capacity()+63)/64)}
	var sets []bpf.Tabs
	if err := s.tabs.Lookup(uint32(0), &sets); err != nil {
		return p, fmt.Errorf("read %s: %w", bpf.LeveeMapTabs, err)
	}
	for _, set := range sets {
		for _, g := range set.Tab {
			sum := gathered{
				slot: int(g.Slot), tag: g.Tag,
				packets: uint64(g.Passed) + uint64(g.Owed),
				bytes:   uint64(g.Bytes) + uint64(g.OwedBytes),
				dropped: uint64(g.Dropped),
			}
			if sum.packets == 0 && sum.dropped == 0 || sum.slot >= s.Capacity() {
				continue
			}
			p.marks.set(sum.slot)
			p.sums = append(p.sums, sum)
		}
	}
	return p, nil
}

// of returns what is gathered for the source with a tag.
func (p pending) of(slot int, tag uint64) (sum gathered) {
	if !p.marks.get(slot) {
		return sum
	}
	for _, g := range p.sums {
		if g.slot == slot && g.tag == tag&^tagSeen {
			sum.packets += g.packets
			sum.bytes += g.bytes
			sum.dropped += g.dropped
		}
	}
	return sum
}

// ranking is a heap of the best so far, the worst of them on top.
type ranking struct {
	n       int
	sources []ranked
}

type ranked struct {
	Source
	order uint64
}

// takes tells whether a source of this rank belongs to the best so far.
func (r *ranking) takes(rank uint64) bool {
	return len(r.sources) < r.n || rank > r.sources[0].order
}

// Len, Less, Swap, Push and Pop are heap.Interface.
func (r *ranking) Len() int           { return len(r.sources) }
func (r *ranking) Less(i, j int) bool { return r.sources[i].order < r.sources[j].order }
func (r *ranking) Swap(i, j int)      { r.sources[i], r.sources[j] = r.sources[j], r.sources[i] }
func (r *ranking) Push(x any)         { r.sources = append(r.sources, x.(ranked)) }
func (r *ranking) Pop() any {
	last := r.sources[len(r.sources)-1]
	r.sources = r.sources[:len(r.sources)-1]
	return last
}
