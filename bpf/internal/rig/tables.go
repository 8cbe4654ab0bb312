package rig

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

// SetControl changes the run-time switches.
func (r *Rig) SetControl(change func(*bpf.Control)) {
	change(&r.control)
	put(r, bpf.LeveeMapControls, 0, r.control)
}

// Ban is one entry of the ban table.
type Ban struct {
	Prefix  netip.Prefix
	List    uint16
	Monitor bool
	Expires uint64 // CLOCK_MONOTONIC ns; 0: never
}

// Ban adds a ban. It knows nothing of bans that are there already: two whose prefixes share a class
// and overlap in it are the caller's business.
func (r *Rig) Ban(b Ban) {
	if b.Expires == 0 {
		b.Expires = bpf.Forever
	}
	r.lists[b.List] = true
	if b.Prefix.Addr().Is4() {
		r.ban4(b)
	} else {
		r.ban6(b)
	}
}

func (b Ban) word(key uint32, class uint64) uint64 {
	word := uint64(key)<<bpf.BanKeyShift | uint64(b.List)<<bpf.BanListShift |
		uint64(b.Prefix.Bits())<<bpf.BanLengthShift | class<<bpf.BanClassShift | bpf.BanLive
	if b.Monitor {
		word |= bpf.BanMonitor
	}
	return word
}

func (r *Rig) ban4(b Ban) {
	prefix := b.Prefix.Masked()
	first := binary.BigEndian.Uint32(prefix.Addr().AsSlice())
	count := uint64(1) << (32 - prefix.Bits()) // addresses
	class := uint64(32-prefix.Bits()) / 4
	if prefix.Bits() <= 16 {
		class = uint64(bpf.LeveeBan4ClassBAN4WIDE)
	}
	stride := uint64(1) << (4 * class) // addresses that one entry stands for

	for at := uint64(0); at < count; at += stride {
		key := first + uint32(at)
		if class == uint64(bpf.LeveeBan4ClassBAN4WIDE) {
			put(r, bpf.LeveeMapBan4Wide, key>>16, bpf.Ban4Entry{Word: b.word(key, 0), Expires: b.Expires})
			continue
		}
		r.insert4(bpf.Ban4Entry{Word: b.word(key, class), Expires: b.Expires}, uint32(r.hash64(class<<32|uint64(key))))
	}
	// Nets are /24s: a bit each, and a nibble each.
	net, nets := int(first>>8), int((count+255)>>8)
	r.orRange(bpf.LeveeMapBan4Bits, net, nets, 1, 1)
	r.orRange(bpf.LeveeMapBan4Classes, net, nets, 4, 1<<min(class, 3))
}

// orRange sets the same bits in each of n fields of an array of words.
func (r *Rig) orRange(name string, first, n, width int, bits byte) {
	r.dirty[name] = true
	perByte := 8 / width
	from, to := first/perByte, (first+n-1)/perByte+1
	b := make([]byte, to-from)
	r.peek(name, int64(from), b)
	for i := first; i < first+n; i++ {
		b[i/perByte-from] |= bits << (i % perByte * width)
	}
	r.poke(name, int64(from), b)
}

func (r *Rig) insert4(e bpf.Ban4Entry, home uint32) {
	for i := range bpf.Ban4Probes {
		index := (home + uint32(i)) & (r.buckets(bpf.LeveeMapBan4Table) - 1)
		bucket := get[bpf.Ban4Bucket](r, bpf.LeveeMapBan4Table, index)
		for j := range bucket.Entry {
			if bucket.Entry[j].Word&bpf.BanLive == 0 {
				bucket.Entry[j] = e
				put(r, bpf.LeveeMapBan4Table, index, bucket)
				return
			}
		}
	}
	panic("rig: the IPv4 ban table is full")
}

func (r *Rig) ban6(b Ban) {
	prefix := b.Prefix.Masked()
	length := prefix.Bits()
	if length == 0 {
		panic("rig: ::/0 is banned as its two halves")
	}
	hi, lo := words(prefix.Addr())
	hash := r.hash64(r.hash128(hi, lo) + uint64(length))
	r.insert6(bpf.Ban6Entry{Word: b.word(uint32(hash), 0), Hi: hi, Lo: lo, Expires: b.Expires}, uint32(hash>>32))

	filter := func(hash uint64, low, high uint64) {
		index := uint32(hash) & (r.buckets(bpf.LeveeMapBan6Filter) - 1)
		cell := get[bpf.Ban6Lengths](r, bpf.LeveeMapBan6Filter, index)
		cell.Low |= low | 1<<max(hash>>59, 1) // its mark
		cell.High |= high
		put(r, bpf.LeveeMapBan6Filter, index, cell)
	}
	var tier uint32
	switch {
	case length == 128:
		tier = bpf.Ban6Tier48
		filter(r.hash64(hi>>16), 1, 0)
	case length >= 64:
		tier = bpf.Ban6Tier48
		filter(r.hash64(hi>>16), 0, 1<<(length-64))
	case length >= 48:
		tier = bpf.Ban6Tier48
		filter(r.hash64(hi>>16), 1<<length, 0)
	case length >= 32:
		tier = bpf.Ban6Tier32
		filter(r.hash64(hi>>32), 1<<length, 0)
	default:
		tier = bpf.Ban6TierWide
		for net := hi >> 48; net <= hi>>48+1<<(max(16, length)-length)-1; net++ {
			r.or(bpf.LeveeMapBan6Wide, net, 1<<length)
		}
	}
	r.SetControl(func(c *bpf.Control) {
		c.Ban6Tiers |= tier
		c.Ban6Version++
	})
}

func (r *Rig) insert6(e bpf.Ban6Entry, home uint32) {
	for i := range bpf.Ban6Probes {
		index := (home + uint32(i)) & (r.buckets(bpf.LeveeMapBan6Table) - 1)
		bucket := get[bpf.Ban6Bucket](r, bpf.LeveeMapBan6Table, index)
		for j := range bucket.Entry {
			if bucket.Entry[j].Word&bpf.BanLive == 0 {
				bucket.Entry[j] = e
				put(r, bpf.LeveeMapBan6Table, index, bucket)
				return
			}
		}
	}
	panic("rig: the IPv6 ban table is full")
}

// or sets bits of an array of words.
func (r *Rig) or(name string, index uint64, bits uint64) {
	put(r, name, uint32(index), get[uint64](r, name, uint32(index))|bits)
}

// words is an address in host order, IPv4 in the low 32 bits of the second.
func words(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		return 0, uint64(binary.BigEndian.Uint32(a.AsSlice()))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// Address is the reverse: what the program's two words mean in a family.
func Address(family bpf.Family, hi, lo uint64) netip.Addr {
	if family == bpf.FamilyIPv4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(lo))))
	}
	if family == bpf.FamilyIPv6 {
		return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)))
	}
	return netip.Addr{}
}

func prefixKey(p netip.Prefix) bpf.PrefixKey {
	p = p.Masked()
	key := bpf.PrefixKey{Length: uint32(p.Bits()), Addr: p.Addr().As16()}
	if p.Addr().Is4() {
		key.Length += 96
	}
	return key
}

// Allow adds an allow entry; expires 0 is never.
func (r *Rig) Allow(p netip.Prefix, noLimit bool, expires uint64) {
	entry := bpf.Allow{Expires: expires}
	if expires == 0 {
		entry.Expires = bpf.Forever
	}
	if noLimit {
		entry.Flags = bpf.AllowNoLimit
	}
	key := prefixKey(p)
	must(r.Maps[bpf.LeveeMapAllows].Put(key, entry))
	r.tries = append(r.tries, trieKey{bpf.LeveeMapAllows, key})
}

// Rate is a threshold in plain numbers: units (packets, or bytes) per second, and units that may come
// at once.
type Rate struct {
	PerSecond float64
	Burst     float64
}

// Encode returns the rate as the program knows it.
func (r Rate) Encode() bpf.Rate {
	if r == (Rate{}) {
		return bpf.Rate{}
	}
	ns := 1e9 / r.PerSecond
	return bpf.Rate{
		Cost:  uint64(math.Round(ns * float64(uint64(1)<<bpf.CostShift))),
		Burst: uint64(math.Round(ns * r.Burst)),
	}
}

// Limit is a limit in plain numbers. Lengths of 0 are those of a default limit.
type Limit struct {
	Thresholds [bpf.ThresholdMax]Rate // bits in bytes
	Aggregate  Rate
	Penalty    time.Duration
	Flags      uint8 // besides LimitEnabled
	Group4     uint8
	Group6     uint8
	Aggregate4 uint8
	Aggregate6 uint8
	Credit     [bpf.ThresholdMax]uint8 // up to bpf.CreditMax
}

// Limit sets the limit of a number.
func (r *Rig) Limit(number uint8, l Limit) {
	or := func(v, otherwise uint8) uint8 {
		if v == 0 {
			return otherwise
		}
		return v
	}
	entry := bpf.Limit{
		Aggregate:  l.Aggregate.Encode(),
		Penalty:    uint64(l.Penalty),
		Flags:      l.Flags | bpf.LimitEnabled,
		Group4:     or(l.Group4, 32),
		Group6:     or(l.Group6, 64),
		Aggregate4: or(l.Aggregate4, 24),
		Aggregate6: or(l.Aggregate6, 48),
	}
	for i, t := range l.Thresholds {
		entry.Threshold[i] = t.Encode()
		entry.Credit[i/2] |= l.Credit[i] << (i % 2 * 4)
	}
	r.limits[number] = true
	put(r, bpf.LeveeMapLimits, uint32(number), entry)
}

// NoLimit takes the limit of a number away.
func (r *Rig) NoLimit(number uint8) { put(r, bpf.LeveeMapLimits, uint32(number), bpf.Limit{}) }

// BindSource binds a source prefix to a limit.
func (r *Rig) BindSource(p netip.Prefix, number uint8) {
	key := prefixKey(p)
	must(r.Maps[bpf.LeveeMapSourceLimits].Put(key, uint32(number)))
	r.tries = append(r.tries, trieKey{bpf.LeveeMapSourceLimits, key})
	r.SetControl(func(c *bpf.Control) { c.SourceLimits++ })
}

// BindService binds a protocol, and a destination port of TCP or UDP unless it is 0, to a limit.
func (r *Rig) BindService(protocol uint8, port uint16, number uint8) {
	name, index, slot := bpf.LeveeMapProtocolLimits, uint64(protocol/8), protocol%8
	if port != 0 {
		name, index, slot = bpf.LeveeMapServiceLimits, uint64(port/8), uint8(port%8)
		if protocol == 17 {
			index += 8192
		}
	}
	r.or(name, index, uint64(number)<<(slot*8))
	r.SetControl(func(c *bpf.Control) { c.ServiceLimits++ })
}

// Fill occupies every slot of the source table with sources seen just now, so that no newcomer finds
// room.
func (r *Rig) Fill() { r.FillBut(math.MaxUint32) }

// FillBut leaves one slot as it is.
func (r *Rig) FillBut(index uint32) {
	// of a limit that no packet of a test falls under
	tag := uint64(254)<<bpf.TagLimitShift | Monotonic()>>bpf.SeenShift<<bpf.TagSeenShift | bpf.TagLive
	for bucket := range r.buckets(bpf.LeveeMapSourceTags) {
		tags := get[bpf.SourceTags](r, bpf.LeveeMapSourceTags, bucket)
		for way := range tags.Tag {
			if bucket*uint32(bpf.SourceWays)+uint32(way) != index {
				tags.Tag[way] = tag
			}
		}
		put(r, bpf.LeveeMapSourceTags, bucket, tags)
	}
}

// Forget empties the source table.
func (r *Rig) Forget() { r.zero(bpf.LeveeMapSourceTags) }

// Age moves every source's last packet back in time.
func (r *Rig) Age(d time.Duration) {
	for bucket := range r.buckets(bpf.LeveeMapSourceTags) {
		tags := get[bpf.SourceTags](r, bpf.LeveeMapSourceTags, bucket)
		for i, tag := range tags.Tag {
			if tag != 0 {
				tags.Tag[i] = tag - uint64(d)>>bpf.SeenShift<<bpf.TagSeenShift
			}
		}
		put(r, bpf.LeveeMapSourceTags, bucket, tags)
	}
}

// SourceIndex finds a tracked source's slot.
func (r *Rig) SourceIndex(source netip.Addr, limit uint8) (uint32, error) {
	for index, s := range r.sources() {
		if s.Source == source && s.Limit == limit {
			return index, nil
		}
	}
	return 0, fmt.Errorf("look for source %s of limit %d: not tracked", source, limit)
}

// SourceState reads a tracked source's state.
func (r *Rig) SourceState(index uint32) bpf.SourceState {
	return get[bpf.SourceState](r, bpf.LeveeMapSourceStates, index)
}

// SetSourceState writes a tracked source's state.
func (r *Rig) SetSourceState(index uint32, s bpf.SourceState) {
	put(r, bpf.LeveeMapSourceStates, index, s)
}

// hashOf is a source's, and its family.
func (r *Rig) hashOf(source netip.Addr) (uint64, bpf.Family) {
	hi, lo := words(source)
	family := bpf.FamilyIPv6
	if source.Is4() {
		family = bpf.FamilyIPv4
	}
	return r.hash128(hi, lo), family
}

// Alike finds another source (a group of the default lengths) that falls into the same bucket under
// a limit, with the same fingerprint.
func (r *Rig) Alike(source netip.Addr) netip.Addr {
	mine, family := r.hashOf(source)
	mask := uint64(r.buckets(bpf.LeveeMapSourceTags)-1) | 0xFFFF<<bpf.TagPrintShift
	hi, lo := words(source)
	for {
		if family == bpf.FamilyIPv4 {
			lo = uint64(uint32(lo + 1))
		} else {
			hi++
		}
		other := Address(family, hi, lo)
		if hash, _ := r.hashOf(other); hash&mask == mine&mask {
			return other
		}
	}
}

// SharesTab finds another source that a CPU keeps on the same tab, under the default limit.
func (r *Rig) SharesTab(source netip.Addr) netip.Addr {
	const b = 0xC4CEB9FE1A85EC53 // HASH_B of hash.h
	const tabs = uint64(len(bpf.Tabs{}.Tab))
	tab := func(hi, lo uint64) uint64 { return (hi ^ lo ^ r.secret[0]) * b >> 32 * tabs >> 32 }
	hi, lo := words(source)
	mine := tab(hi, lo)
	for {
		if source.Is4() {
			lo = uint64(uint32(lo + 1))
		} else {
			hi++
		}
		if tab(hi, lo) == mine {
			_, family := r.hashOf(source)
			return Address(family, hi, lo)
		}
	}
}

// Faceless finds a source (a group of the default lengths) near another whose fingerprint is 0.
func (r *Rig) Faceless(source netip.Addr) netip.Addr {
	hi, lo := words(source)
	_, family := r.hashOf(source)
	for {
		if family == bpf.FamilyIPv4 {
			lo = uint64(uint32(lo + 1))
		} else {
			hi++
		}
		other := Address(family, hi, lo)
		if hash, _ := r.hashOf(other); hash>>bpf.TagPrintShift == 0 {
			return other
		}
	}
}

// Busy makes a source's slot look as if another CPU were filling it just now.
func (r *Rig) Busy(source netip.Addr, limit uint8) {
	hash, family := r.hashOf(source)
	var tags bpf.SourceTags
	tags.Tag[0] = hash>>bpf.TagPrintShift<<bpf.TagPrintShift | uint64(limit)<<bpf.TagLimitShift |
		uint64(family-bpf.FamilyIPv4)<<bpf.TagFamilyShift | Monotonic()>>bpf.SeenShift<<bpf.TagSeenShift
	put(r, bpf.LeveeMapSourceTags, uint32(hash)&(r.buckets(bpf.LeveeMapSourceTags)-1), tags)
}

// FillAggregates occupies every cell of the aggregates with prefixes that owe an hour.
func (r *Rig) FillAggregates() {
	var bucket bpf.AggregateBucket
	for i := range bucket.Key {
		bucket.Key[i], bucket.Tat[i] = 255<<8|uint64(i)<<16, Monotonic()+uint64(time.Hour)
	}
	for index := range r.buckets(bpf.LeveeMapAggregates) {
		put(r, bpf.LeveeMapAggregates, index, bucket)
	}
}
