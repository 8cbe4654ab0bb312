package rig

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// Source is one tracked source, with what still stands on the CPUs' tabs.
type Source struct {
	Source  netip.Addr
	Limit   uint8
	Packets uint64
	Bytes   uint64
	Dropped uint64
	First   uint64 // CLOCK_MONOTONIC ns
}

// Snapshot is everything that the program counts.
type Snapshot struct {
	Counters []bpf.Counter
	Lists    []bpf.Counter
	Limits   []bpf.Counter
	Stats    [bpf.StatMax]uint64
	Sources  map[uint32]Source
}

// Snapshot reads all counters and the source table.
func (r *Rig) Snapshot() Snapshot {
	s := Snapshot{
		Counters: r.counters(bpf.LeveeMapCounters),
		Lists:    r.counters(bpf.LeveeMapListCounters),
		Limits:   r.counters(bpf.LeveeMapLimitCounters),
		Stats:    r.Stats(),
		Sources:  r.sources(),
	}
	return s
}

// Resource is an earlier snapshot with the source table read anew: a snapshot of now, if no packet
// was seen since. It costs much less than one.
func (r *Rig) Resource(s Snapshot) Snapshot {
	s.Sources = r.sources()
	return s
}

// Reread returns an earlier snapshot with what the program should be moving read anew: this interface's
// counters, those of the lists and limits that were set since Reset, the stats and the source table. It
// costs much less than a snapshot, which shows what it should not have moved.
func (r *Rig) Reread(s Snapshot) Snapshot {
	s.Counters, s.Lists, s.Limits = slices.Clone(s.Counters), slices.Clone(s.Lists), slices.Clone(s.Limits)
	read := func(name string, sums []bpf.Counter, number, each int) {
		for i := number * each; i < (number+1)*each; i++ {
			sums[i] = r.counter(name, uint32(i))
		}
	}
	read(bpf.LeveeMapCounters, s.Counters, int(r.Slot), int(bpf.ReasonMax)*int(bpf.FamilyMax)*2)
	for list := range r.lists {
		read(bpf.LeveeMapListCounters, s.Lists, int(list), 2)
	}
	for limit := range r.limits {
		read(bpf.LeveeMapLimitCounters, s.Limits, int(limit), int(bpf.LimitCounters)*2)
	}
	s.Stats, s.Sources = r.Stats(), r.sources()
	return s
}

// counters reads a per-CPU array of counters, summed.
func (r *Rig) counters(name string) []bpf.Counter {
	m := r.Maps[name]
	n := int(m.MaxEntries())
	keys := make([]uint32, n)
	perCPU := make([][2]uint64, n*r.cpus)
	var cursor ebpf.MapBatchCursor
	got, err := m.BatchLookup(&cursor, keys, perCPU, nil)
	if got != n {
		panic(fmt.Sprintf("rig: read %s: %d of %d entries: %v", name, got, n, err))
	}
	sums := make([]bpf.Counter, n)
	for i, c := range perCPU {
		sum := &sums[keys[i/r.cpus]]
		sum.Packets += c[0]
		sum.Bytes += c[1]
	}
	return sums
}

// Stats reads what is counted beside the reasons.
func (r *Rig) Stats() (sums [bpf.StatMax]uint64) {
	perCPU := make([]uint64, r.cpus)
	for i := range sums {
		must(r.Maps[bpf.LeveeMapStats].Lookup(uint32(i), perCPU))
		for _, n := range perCPU {
			sums[i] += n
		}
	}
	return sums
}

// Count reads one reason's counter of this interface.
func (r *Rig) Count(reason bpf.Reason, family bpf.Family, monitored bool) (sum bpf.Counter) {
	return r.counter(bpf.LeveeMapCounters, counterIndex(r.Slot, reason, family, monitored))
}

func (r *Rig) counter(name string, index uint32) (sum bpf.Counter) {
	perCPU := make([]bpf.Counter, r.cpus)
	must(r.Maps[name].Lookup(index, perCPU))
	for _, c := range perCPU {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
	}
	return sum
}

func counterIndex(slot uint32, reason bpf.Reason, family bpf.Family, monitored bool) uint32 {
	index := ((slot*uint32(bpf.ReasonMax)+uint32(reason))*uint32(bpf.FamilyMax) + uint32(family)) * 2
	if monitored {
		index++
	}
	return index
}

// sources reads the live entries of the source table.
func (r *Rig) sources() map[uint32]Source {
	all := make(map[uint32]Source)
	fixed := make(map[uint32]uint64) // tags, without when they were seen
	for bucket := range r.buckets(bpf.LeveeMapSourceTags) {
		tags := get[bpf.SourceTags](r, bpf.LeveeMapSourceTags, bucket)
		for way, tag := range tags.Tag {
			if tag&bpf.TagLive == 0 {
				continue
			}
			index := bucket*uint32(bpf.SourceWays) + uint32(way)
			family := bpf.FamilyIPv4
			if tag>>bpf.TagFamilyShift&1 == 1 {
				family = bpf.FamilyIPv6
			}
			fixed[index] = tag &^ ((1<<38 - 1) << bpf.TagSeenShift)
			state := r.SourceState(index)
			counts := get[bpf.SourceCounts](r, bpf.LeveeMapSourceCounts, index)
			all[index] = Source{
				Source: Address(family, state.Hi, state.Lo), Limit: uint8(tag >> bpf.TagLimitShift),
				Packets: counts.Packets, Bytes: counts.Bytes, Dropped: counts.Dropped, First: counts.First,
			}
		}
	}
	sets := make([]bpf.Tabs, r.cpus)
	must(r.Maps[bpf.LeveeMapTabs].Lookup(uint32(0), sets))
	for _, set := range sets {
		for _, p := range set.Tab {
			s, live := all[p.Slot]
			if !live || p.Tag != fixed[p.Slot] {
				continue
			}
			s.Packets += uint64(p.Passed) + uint64(p.Owed)
			s.Bytes += uint64(p.Bytes) + uint64(p.OwedBytes)
			s.Dropped += uint64(p.Dropped)
			all[p.Slot] = s
		}
	}
	return all
}

// Sources reads the source table, by source; a source under several limits adds up.
func (r *Rig) Sources() map[netip.Addr]Source {
	all := make(map[netip.Addr]Source)
	for _, s := range r.sources() {
		if sum, ok := all[s.Source]; ok {
			s.Packets += sum.Packets
			s.Bytes += sum.Bytes
			s.Dropped += sum.Dropped
			s.First = min(s.First, sum.First)
		}
		all[s.Source] = s
	}
	return all
}

// Moves is what changed between two snapshots: the name of each number that moved, and by how much.
type Moves map[string]uint64

// Since returns what moved since an earlier snapshot.
func (s Snapshot) Since(before Snapshot) Moves {
	m := make(Moves)
	for i, c := range s.Counters {
		was := before.Counters[i]
		if c == was {
			continue
		}
		j := i / 2
		m.Count(uint32(j/int(bpf.FamilyMax)/int(bpf.ReasonMax)), bpf.Reason(j/int(bpf.FamilyMax)%int(bpf.ReasonMax)),
			bpf.Family(j%int(bpf.FamilyMax)), i%2 == 1, c.Packets-was.Packets, c.Bytes-was.Bytes)
	}
	for i, c := range s.Lists {
		if was := before.Lists[i]; c != was {
			m.List(uint16(i/2), i%2 == 1, c.Packets-was.Packets, c.Bytes-was.Bytes)
		}
	}
	for i, c := range s.Limits {
		if was := before.Limits[i]; c != was {
			j := i / 2
			m.Limit(uint8(j/int(bpf.LimitCounters)), bpf.Threshold(j%int(bpf.LimitCounters)), i%2 == 1,
				c.Packets-was.Packets, c.Bytes-was.Bytes)
		}
	}
	for i, n := range s.Stats {
		m.Stat(bpf.Stat(i), n-before.Stats[i])
	}
	for index, now := range s.Sources {
		was := before.Sources[index]
		if was.Source != now.Source || was.Limit != now.Limit || was.First != now.First {
			was = Source{}
		}
		m.Source(now.Source, now.Limit, now.Packets-was.Packets, now.Bytes-was.Bytes, now.Dropped-was.Dropped)
	}
	return m
}

// Add puts a number under a name, unless it is 0.
func (m Moves) Add(name string, n uint64) {
	if n != 0 {
		m[name] += n
	}
}

func (m Moves) counter(name string, monitored bool, packets, bytes uint64) {
	if monitored {
		name += " monitored"
	}
	m.Add(name+": packets", packets)
	m.Add(name+": bytes", bytes)
}

// Count notes packets of a reason.
func (m Moves) Count(slot uint32, reason bpf.Reason, family bpf.Family, monitored bool, packets, bytes uint64) {
	m.counter(fmt.Sprintf("slot %d %s %s", slot, reason, family), monitored, packets, bytes)
}

// List notes packets of a ban list.
func (m Moves) List(list uint16, monitored bool, packets, bytes uint64) {
	m.counter(fmt.Sprintf("list %d", list), monitored, packets, bytes)
}

// Limit notes packets over a limit's threshold.
func (m Moves) Limit(number uint8, threshold bpf.Threshold, monitored bool, packets, bytes uint64) {
	m.counter(fmt.Sprintf("limit %d %s", number, threshold), monitored, packets, bytes)
}

// Stat notes a stat.
func (m Moves) Stat(stat bpf.Stat, n uint64) { m.Add(fmt.Sprintf("stat %d", stat), n) }

// Source notes what a tracked source's counts grew by.
func (m Moves) Source(source netip.Addr, limit uint8, packets, bytes, dropped uint64) {
	name := fmt.Sprintf("source %s of limit %d", source, limit)
	m.Add(name+": packets", packets)
	m.Add(name+": bytes", bytes)
	m.Add(name+": dropped", dropped)
}

// Compare returns what of m was not wanted, and what was wanted and is not in m; empty if all is
// well.
func (m Moves) Compare(want Moves) string {
	var b strings.Builder
	all := maps.Clone(m)
	maps.Copy(all, want)
	for _, name := range names(all) {
		if m[name] != want[name] {
			fmt.Fprintf(&b, "\n\t%s: moved by %d, want %d", name, m[name], want[name])
		}
	}
	return b.String()
}

// Count is a reason's counter of an interface.
func (s Snapshot) Count(slot uint32, reason bpf.Reason, family bpf.Family, monitored bool) bpf.Counter {
	return s.Counters[counterIndex(slot, reason, family, monitored)]
}

// Reason is how many packets were counted under a reason, enforced and monitored together.
func (s Snapshot) Reason(slot uint32, reason bpf.Reason, family bpf.Family) uint64 {
	i := counterIndex(slot, reason, family, false)
	return s.Counters[i].Packets + s.Counters[i+1].Packets
}
