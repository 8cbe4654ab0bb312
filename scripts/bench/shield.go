package main

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// A limit that no packet breaks, so that what passes is charged for all that it can be charged.
const (
	clearPackets = 10_000_000      // per second
	clearBits    = 100_000_000_000 // per second
	clearBurst   = 100             // seconds' worth
)

const xdpHasFrags = 1 << 5

// perCase are the maps that hold what packets did; each case has its own, so that one case's
// sources do not fill another's table.
var perCase = []string{
	bpf.LeveeMapSourceTags, bpf.LeveeMapSourceStates, bpf.LeveeMapSourceCounts,
	bpf.LeveeMapTabs, bpf.LeveeMapBan6Fars, bpf.LeveeMapAggregates,
}

// shield is one set of Levee's tables, and programs that read them.
type shield struct {
	sizes   bpf.Sizes
	secret  [2]uint64
	maps    map[string]*ebpf.Map
	tables  *maps.Tables
	closers []interface{ Close() error }
}

// newShield makes the tables, with the default limit on and these bans.
func newShield(sizes bpf.Sizes, bans ...[]netip.Prefix) (*shield, error) {
	s := &shield{sizes: sizes, secret: [2]uint64{rand.Uint64(), rand.Uint64()}, maps: make(map[string]*ebpf.Map)}
	spec, err := bpf.LoadLevee()
	if err != nil {
		return nil, err
	}
	if err := sizes.Apply(spec); err != nil {
		return nil, err
	}
	for name, m := range spec.Maps {
		if name == ".rodata" {
			continue
		}
		if s.maps[name], err = ebpf.NewMap(m); err != nil {
			return nil, fmt.Errorf("create %s: %w", name, err)
		}
		s.closers = append(s.closers, s.maps[name])
	}
	err = s.maps[bpf.LeveeMapMeta].Put(uint32(0), bpf.Meta{Schema: bpf.Schema, Secret: s.secret})
	if err != nil {
		return nil, fmt.Errorf("write the meta map: %w", err)
	}
	if s.tables, err = maps.Open(s.maps); err != nil {
		return nil, err
	}
	if _, err := s.tables.Bans.PutAll(entries(bans...)); err != nil {
		return nil, err
	}
	if err := s.usual(); err != nil {
		return nil, err
	}
	return s, s.tables.Limits.Put(0, clearLimit())
}

// entries makes bans without an end out of prefixes.
func entries(lists ...[]netip.Prefix) iter.Seq[maps.Ban] {
	return func(yield func(maps.Ban) bool) {
		for _, list := range lists {
			for _, prefix := range list {
				if !yield(maps.Ban{Prefix: prefix, List: 1, Expires: bpf.Forever}) {
					return
				}
			}
		}
	}
}

// usual sets the switches as they are when nothing else is said.
func (s *shield) usual() error {
	c := s.tables.Control
	c.SetMonitor(false)
	c.SetEventBudget(eventBudget)
	// Longer than a run: what is tracked stays so, and what is not finds no room.
	return c.SetSourceIdle(time.Hour)
}

const eventBudget = 100

func clearLimit() maps.Limit {
	var l maps.Limit
	for i := range l.Thresholds {
		l.Thresholds[i] = maps.Rate{PerSecond: clearPackets, Burst: clearBurst * clearPackets}
	}
	l.Thresholds[bpf.ThresholdBits] = maps.Rate{PerSecond: clearBits, Burst: clearBurst * clearBits}
	return l
}

// stage is a place where sources are counted: the maps of one case.
type stage struct {
	shield *shield
	slot   uint32
	maps   map[string]*ebpf.Map
}

// newStage makes a case's own maps; what its programs count stands under a slot of its own.
func (s *shield) newStage(slot uint32) (*stage, error) {
	st := &stage{shield: s, slot: slot, maps: make(map[string]*ebpf.Map)}
	for name, m := range s.maps {
		st.maps[name] = m
	}
	spec, err := bpf.LoadLevee()
	if err != nil {
		return nil, err
	}
	if err := s.sizes.Apply(spec); err != nil {
		return nil, err
	}
	for _, name := range perCase {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", name, err)
		}
		st.maps[name] = m
		s.closers = append(s.closers, m)
	}
	// A slot that is nobody's is not read.
	err = s.maps[bpf.LeveeMapInterfaces].Put(slot, bpf.Interface{Ifindex: slot + 1})
	if err != nil {
		return nil, fmt.Errorf("claim slot %d: %w", slot, err)
	}
	return st, nil
}

// load loads the committed program with these features. The shield owns it.
func (st *stage) load(features bpf.Features) (*ebpf.Program, error) {
	spec, err := bpf.LoadLevee()
	if err != nil {
		return nil, err
	}
	return st.loadSpec(spec, levee, features)
}

// loadReads loads the program that does these reads, a bit of reads.c each, and nothing else.
func (st *stage) loadReads(reads uint32) (*ebpf.Program, error) {
	spec, err := loadReads()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["cfg_reads"].Set(reads); err != nil {
		return nil, fmt.Errorf("set cfg_reads: %w", err)
	}
	return st.loadSpec(spec, "reads", bpf.DefaultFeatures())
}

// loadSpec loads a program on the stage's maps.
func (st *stage) loadSpec(spec *ebpf.CollectionSpec, name string, features bpf.Features) (*ebpf.Program, error) {
	if err := st.shield.sizes.Apply(spec); err != nil {
		return nil, err
	}
	if err := features.Apply(spec); err != nil {
		return nil, err
	}
	if err := bpf.Specialise(spec, st.shield.secret, st.slot); err != nil {
		return nil, err
	}
	if features.Frags {
		spec.Programs[name].Flags |= xdpHasFrags
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: st.maps})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", name, err)
	}
	program := coll.DetachProgram(name)
	coll.Close()
	st.shield.closers = append(st.shield.closers, program)
	return program, nil
}

// verdicts says how often each reason ended a packet's way so far.
func (st *stage) verdicts() (map[bpf.Reason]uint64, error) {
	counts, err := st.shield.tables.Counters.Read()
	if err != nil {
		return nil, err
	}
	all := make(map[bpf.Reason]uint64)
	for _, c := range counts {
		if c.Slot == st.slot && c.Packets > 0 {
			all[c.Reason] += c.Packets
		}
	}
	return all, nil
}

func (s *shield) close() {
	_ = s.tables.Close()
	for _, c := range s.closers {
		_ = c.Close()
	}
}
