package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// A limit that no packet breaks, so that what passes is charged for all that it can be charged.
const (
	clearPackets = 100_000_000       // per second
	clearBits    = 1_000_000_000_000 // per second
)

const xdpHasFrags = 1 << 5

// perCase are the maps that hold what packets did; each case has its own, so that one case's
// sources do not fill another's table.
var perCase = []string{
	bpf.LeveeMapSourceTags, bpf.LeveeMapSourceStates, bpf.LeveeMapSourceCounts,
	bpf.LeveeMapPending, bpf.LeveeMapAggregates,
}

// shield is one set of Levee's tables, and programs that read them.
type shield struct {
	sizes   bpf.Sizes
	secret  [2]uint64
	maps    map[string]*ebpf.Map
	control bpf.Control
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
		if name == ".rodata" || slices.Contains(perCase, name) {
			continue
		}
		if s.maps[name], err = ebpf.NewMap(m); err != nil {
			return nil, fmt.Errorf("create %s: %w", name, err)
		}
		s.closers = append(s.closers, s.maps[name])
	}
	if err := fillBans(s.maps, s.secret, slices.Concat(bans...)); err != nil {
		return nil, err
	}
	s.control = bpf.Control{
		EventBudget: 100,
		Ban6Tiers:   bpf.Ban6Tier48 | bpf.Ban6Tier32,
		SourceIdle:  3600e9, // longer than a run: what is tracked stays so
	}
	if err := s.set(s.control); err != nil {
		return nil, err
	}
	return s, s.setLimit(clearLimit())
}

func clearLimit() bpf.Limit {
	l := bpf.Limit{Flags: bpf.LimitEnabled | bpf.LimitCoarse, Group4: 32, Group6: 64, Aggregate4: 24, Aggregate6: 48}
	for i := range l.Threshold {
		l.Threshold[i] = rate(clearPackets)
	}
	l.Threshold[bpf.ThresholdBits] = rate(clearBits / 8)
	return l
}

// rate is so many packets or bytes per second, with a burst of one second.
func rate(perSecond float64) bpf.Rate {
	return bpf.Rate{Cost: uint64(1e9 / perSecond * (1 << bpf.CostShift)), Burst: 1e9}
}

func (s *shield) set(control bpf.Control) error {
	return s.maps[bpf.LeveeMapControls].Put(uint32(0), control)
}

func (s *shield) setLimit(l bpf.Limit) error {
	return s.maps[bpf.LeveeMapLimits].Put(uint32(0), l)
}

// stage is a place where sources are counted: the maps of one case.
type stage struct {
	shield *shield
	slot   uint32
	maps   map[string]*ebpf.Map
}

// newStage makes a case's own maps; what its programs count stands under a slot of its own.
func (s *shield) newStage(slot uint32) (*stage, error) {
	st := &stage{shield: s, slot: slot, maps: maps.Clone(s.maps)}
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
	return st, nil
}

// load loads the program with these features. The shield owns it.
func (st *stage) load(features bpf.Features) (*ebpf.Program, error) {
	spec, err := bpf.LoadLevee()
	if err != nil {
		return nil, err
	}
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
		spec.Programs["levee"].Flags |= xdpHasFrags
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: st.maps})
	if err != nil {
		return nil, fmt.Errorf("load levee: %w", err)
	}
	program := coll.DetachProgram("levee")
	coll.Close()
	st.shield.closers = append(st.shield.closers, program)
	return program, nil
}

// verdicts says how often each reason ended a packet's way so far.
func (st *stage) verdicts() (map[bpf.Reason]uint64, error) {
	all := make(map[bpf.Reason]uint64)
	m := st.maps[bpf.LeveeMapCounters]
	for reason := range bpf.ReasonMax {
		for i := range uint32(bpf.FamilyMax) * 2 {
			var perCPU []bpf.Counter
			index := (st.slot*uint32(bpf.ReasonMax)+uint32(reason))*uint32(bpf.FamilyMax)*2 + i
			if err := m.Lookup(index, &perCPU); err != nil {
				return nil, fmt.Errorf("read the counters: %w", err)
			}
			for _, c := range perCPU {
				if c.Packets > 0 {
					all[reason] += c.Packets
				}
			}
		}
	}
	return all, nil
}

func (s *shield) close() {
	for _, c := range s.closers {
		_ = c.Close()
	}
}
