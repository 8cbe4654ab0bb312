package maps

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// Count is how many packets of a family went one way on one interface. Counts rise for as long as
// the maps exist; a slot's go on where an interface follows another in it.
type Count struct {
	Slot      uint32 // of the interface
	Reason    bpf.Reason
	Family    bpf.Family
	Monitored bool // passed, where the reason would have dropped it
	Packets   uint64
	Bytes     uint64 // whole frames
}

// ListCount is how many packets a list of bans dropped.
type ListCount struct {
	List      uint16
	Monitored bool // passed after all
	Packets   uint64
	Bytes     uint64
}

// LimitCount is how many packets broke one threshold of a limit, or met its aggregate or a penalty
// (bpf.CountAggregate, bpf.CountPenalty).
type LimitCount struct {
	Limit     uint8
	Threshold bpf.Threshold
	Monitored bool // passed after all
	Packets   uint64
	Bytes     uint64
}

// Counters reads the counters, and adds up those of the CPUs. Its methods may be called at the
// same time.
type Counters struct {
	mu                      sync.Mutex
	counters, lists, limits perCPU
	stats                   *ebpf.Map
	interfaces              *Interfaces
}

func openCounters(o *opener, interfaces *Interfaces) *Counters {
	return &Counters{
		counters:   perCPU{m: o.get(bpf.LeveeMapCounters), name: bpf.LeveeMapCounters},
		lists:      perCPU{m: o.get(bpf.LeveeMapListCounters), name: bpf.LeveeMapListCounters},
		limits:     perCPU{m: o.get(bpf.LeveeMapLimitCounters), name: bpf.LeveeMapLimitCounters},
		stats:      o.get(bpf.LeveeMapStats),
		interfaces: interfaces,
	}
}

// perSlot is how many counters an interface has.
const perSlot = uint32(bpf.ReasonMax) * uint32(bpf.FamilyMax) * 2

// Read returns every count that is not 0, of the slots up to the last one that is taken.
func (c *Counters) Read() ([]Count, error) {
	slots := uint32(1)
	if list := c.interfaces.List(); len(list) > 0 {
		slots = list[len(list)-1].Slot + 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var counts []Count
	err := c.counters.read(slots*perSlot, func(i uint32, sum bpf.Counter) {
		counts = append(counts, Count{
			Slot:      i / perSlot,
			Reason:    bpf.Reason(i / 2 / uint32(bpf.FamilyMax) % uint32(bpf.ReasonMax)),
			Family:    bpf.Family(i / 2 % uint32(bpf.FamilyMax)),
			Monitored: i%2 == 1,
			Packets:   sum.Packets,
			Bytes:     sum.Bytes,
		})
	})
	return counts, err
}

// Lists returns every count of a list that is not 0.
func (c *Counters) Lists() ([]ListCount, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var counts []ListCount
	err := c.lists.read(c.lists.m.MaxEntries(), func(i uint32, sum bpf.Counter) {
		counts = append(counts, ListCount{uint16(i / 2), i%2 == 1, sum.Packets, sum.Bytes})
	})
	return counts, err
}

// Limits returns every count of a limit that is not 0.
func (c *Counters) Limits() ([]LimitCount, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var counts []LimitCount
	err := c.limits.read(c.limits.m.MaxEntries(), func(i uint32, sum bpf.Counter) {
		counts = append(counts, LimitCount{
			Limit:     uint8(i / 2 / uint32(bpf.LimitCounters)),
			Threshold: bpf.Threshold(i / 2 % uint32(bpf.LimitCounters)),
			Monitored: i%2 == 1,
			Packets:   sum.Packets,
			Bytes:     sum.Bytes,
		})
	})
	return counts, err
}

// Stats returns what the program counts beside the reasons, by bpf.Stat.
func (c *Counters) Stats() ([bpf.StatMax]uint64, error) {
	var sums [bpf.StatMax]uint64
	var values []uint64
	for i := range sums {
		if err := c.stats.Lookup(uint32(i), &values); err != nil {
			return sums, fmt.Errorf("read %s: %w", bpf.LeveeMapStats, err)
		}
		for _, v := range values {
			sums[i] += v
		}
	}
	return sums, nil
}

// perCPU reads an array of counters, in batches where the kernel knows them (5.13).
type perCPU struct {
	m      *ebpf.Map
	name   string
	single bool // it does not
	cpus   int
	keys   []uint32
	values []bpf.Counter
}

// batchSize is how many counters one system call reads: those of an interface.
const batchSize = int(perSlot)

// read hands on the sums of the first counters that are not 0.
func (p *perCPU) read(n uint32, each func(i uint32, sum bpf.Counter)) error {
	if p.cpus == 0 {
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return fmt.Errorf("read %s: %w", p.name, err)
		}
		p.cpus = cpus
		p.keys = make([]uint32, batchSize)
		p.values = make([]bpf.Counter, batchSize*cpus)
	}
	hand := func(i uint32, values []bpf.Counter) {
		var sum bpf.Counter
		for _, v := range values {
			sum.Packets += v.Packets
			sum.Bytes += v.Bytes
		}
		if sum.Packets != 0 || sum.Bytes != 0 {
			each(i, sum)
		}
	}

	var cursor ebpf.MapBatchCursor
	for done := uint32(0); !p.single && done < n; {
		count, err := p.m.BatchLookup(&cursor, p.keys, p.values, nil)
		if done == 0 && errors.Is(err, ebpf.ErrNotSupported) {
			p.single = true
			break
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read %s: %w", p.name, err)
		}
		for j, i := range p.keys[:count] {
			if i < n {
				hand(i, p.values[j*p.cpus:(j+1)*p.cpus])
			}
		}
		if done += uint32(count); err != nil {
			break // that was the end of the map
		}
	}
	for i := uint32(0); p.single && i < n; i++ {
		values := p.values[:p.cpus]
		if err := p.m.Lookup(i, &values); err != nil {
			return fmt.Errorf("read %s: %w", p.name, err)
		}
		hand(i, values)
	}
	return nil
}
