package main

import (
	"context"
	"encoding/binary"
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"time"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// variant is Levee with something else than usual.
type variant struct {
	name    string
	feature func(*bpf.Features)
	control func(*maps.Control) error
	limit   func(*maps.Limit)
	allows  int // allow entries
	frags   bool
	drop    float64 // what it may cost banned sources, to the usual
	only    string  // the one case in which it says something
	apart   bool    // it leaves its sources in a state that would tell on the others
}

func variants() []variant {
	return []variant{
		{name: "all"},
		{name: "no bans", feature: func(f *bpf.Features) { f.Bans = false }},
		{name: "no sanity", feature: func(f *bpf.Features) { f.Sanity, f.Martians = false, false }},
		{name: "no limits", feature: func(f *bpf.Features) { f.Limits = false }},
		{name: "no events", feature: func(f *bpf.Features) { f.Events = false }},
		{name: "bans alone", feature: func(f *bpf.Features) { *f = bpf.Features{Bans: true} }},
		{name: "limits alone", feature: func(f *bpf.Features) { *f = bpf.Features{Limits: true} }},
		{name: "parse and count", feature: func(f *bpf.Features) { *f = bpf.Features{} }},
		{name: "multi-buffer", frags: true, feature: func(f *bpf.Features) { f.Frags = true }},
		{name: "monitor", control: func(c *maps.Control) error { c.SetMonitor(true); return nil }, drop: 1.1},
		{name: "events, budget 0", control: budget(0)},
		{name: "events, budget 1M", control: budget(1_000_000)},
		{name: "10,000 allows", allows: 10_000},
		{name: "exact clock", limit: func(l *maps.Limit) {
			l.Thresholds[bpf.ThresholdICMP] = maps.Rate{PerSecond: clearPackets, Burst: 10} // too short for the coarse one
		}},
		{name: "packets' threshold alone", limit: func(l *maps.Limit) {
			l.Thresholds = [bpf.ThresholdMax]maps.Rate{bpf.ThresholdPackets: l.Thresholds[bpf.ThresholdPackets]}
		}},
		{name: "aggregate of all", limit: func(l *maps.Limit) { l.AggregateAlways = true }},
		{name: "over the limit", limit: packets(20_000, 0), only: oneSource, apart: true},
		{name: "over the limit, exact clock", limit: packets(1, 0), only: oneSource, apart: true},
		{name: "in penalty", limit: packets(20_000, time.Hour), only: oneSource, apart: true},
		{name: "in penalty, exact clock", limit: packets(1, time.Hour), only: oneSource, apart: true},
		{name: "newcomers evict", control: func(c *maps.Control) error { return c.SetSourceIdle(1) }, only: randomSources, apart: true},
	}
}

// packets makes a limit of so many a second, far fewer than are sent. A rate that is low has a burst too short
// for the coarse clock.
func packets(perSecond float64, penalty time.Duration) func(*maps.Limit) {
	return func(l *maps.Limit) {
		l.Thresholds[bpf.ThresholdPackets] = maps.Rate{PerSecond: perSecond}
		l.Penalty = penalty
	}
}

func budget(events uint32) func(*maps.Control) error {
	return func(c *maps.Control) error {
		c.SetEventBudget(events)
		return nil
	}
}

// stages is the second part: what each stage costs, and each switch.
func (b *bench) stages(ctx context.Context) error {
	if err := b.stageCosts(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.banCounts(ctx)
}

// stageCase is one kind of sources, with tables of its own that all variants share but for those apart.
type stageCase struct {
	source source
	v6     bool
	probes []*probe // by variant
	apart  []*stage // by variant; nil: it shares the tables
	field  map[parts]*probe
}

func (b *bench) stageCosts() error {
	sh, rivals, closeAll, err := b.subjects()
	if err != nil {
		return err
	}
	defer closeAll()
	var wrap [2]*wrappers // plain, and with multi-buffer packets
	for i := range wrap {
		if wrap[i], err = newWrappers(i == 1); err != nil {
			return err
		}
		defer wrap[i].close()
	}

	all := variants()
	var cases []*stageCase
	var probes []*probe
	slots := uint32(0)
	newStage := func() (*stage, error) {
		slots++
		return sh.newStage(slots - 1)
	}
	for i, name := range []string{oneSource, randomSources, bannedSources + inOrder, manySources + inOrder} {
		for _, v6 := range []bool{false, true} {
			if b.quick && (i > 1 || v6 != (i == 1)) {
				continue
			}
			c := &stageCase{v6: v6, field: make(map[parts]*probe)}
			for _, c.source = range b.cases(v6) {
				if c.source.name == name {
					break
				}
			}
			c.probes, c.apart = make([]*probe, len(all)), make([]*stage, len(all))
			shared, err := newStage()
			if err != nil {
				return err
			}
			for n, v := range all {
				if v.only != "" && v.only != name {
					continue
				}
				st := shared
				if v.apart {
					if st, err = newStage(); err != nil {
						return err
					}
					c.apart[n] = st
				}
				p, program, err := b.variantProbe(wrap, st, v, c)
				if err != nil {
					return fmt.Errorf("%s: %w", v.name, err)
				}
				if n > 0 && !v.apart {
					p.warm = 0 // the first variant has filled the tables
				}
				c.probes[n] = p
				probes = append(probes, p)
				if i == 0 && !v6 {
					if err := b.verifierRow(v, program); err != nil {
						return err
					}
				}
			}
			for p, program := range rivals.field {
				if c.field[p], err = b.probe(wrap[0], program, v6, c.source); err != nil {
					return err
				}
				probes = append(probes, c.field[p])
			}
			cases = append(cases, c)
		}
	}
	b.log("measuring %d variants", len(probes))
	if err := b.meter.measure(probes); err != nil {
		return err
	}
	for _, c := range cases {
		if err := b.stageRows(all, c); err != nil {
			return err
		}
	}
	return nil
}

// variantProbe loads a variant's program, and sets its switches before each sample.
func (b *bench) variantProbe(wrap [2]*wrappers, st *stage, v variant, c *stageCase) (*probe, *ebpf.Program, error) {
	features := bpf.DefaultFeatures()
	if v.feature != nil {
		v.feature(&features)
	}
	if v.allows > 0 {
		m, err := st.shield.newAllows(v.allows)
		if err != nil {
			return nil, nil, err
		}
		st = &stage{shield: st.shield, slot: st.slot, maps: stdmaps.Clone(st.maps)}
		st.maps[bpf.LeveeMapAllows] = m
	}
	program, err := st.load(features)
	if err != nil {
		return nil, nil, err
	}
	w := wrap[0]
	if v.frags {
		w = wrap[1]
	}
	p, err := b.probe(w, program, c.v6, c.source)
	if err != nil {
		return nil, nil, err
	}
	p.name = v.name
	p.before = func() error {
		if err := st.shield.usual(); err != nil {
			return err
		}
		if v.control != nil {
			if err := v.control(st.shield.tables.Control); err != nil {
				return err
			}
		}
		limit := clearLimit()
		if v.limit != nil {
			v.limit(&limit)
		}
		return st.shield.tables.Limits.Put(0, limit)
	}
	return p, program, nil
}

// stageRows compares a case's variants with the usual, and the decisions with the common way's.
func (b *bench) stageRows(all []variant, c *stageCase) (err error) {
	usual := c.probes[0].samples
	byName := make(map[string]float64)
	base := row{Part: "stages", Case: c.source.name, Family: familyName(c.v6), Unit: "ns"}
	for i, v := range all {
		if c.probes[i] == nil {
			continue
		}
		r := base
		r.Subject, r.Figure = v.name, figureOf(c.probes[i].samples)
		byName[v.name] = r.Figure.Median
		if c.apart[i] != nil {
			if r.Note, err = c.apart[i].shares(); err != nil {
				return err
			}
		}
		if i > 0 {
			r = r.ratio("all", c.probes[i].samples, usual)
			if v.drop > 0 && c.source.name == bannedSources+inOrder {
				r = r.atMost(v.drop)
			}
		}
		b.report.Rows = append(b.report.Rows, r)
	}
	none := figureOf(c.field[parts{}].samples).Median
	cost := func(subject string, mine, theirs, limit float64) {
		r := base
		r.Subject, r.Figure, r.Against = subject, figure{mine, mine, mine}, "field"
		r.Note = fmt.Sprintf("field %s ns", number(theirs))
		r.Ratio = mine / theirs
		if limit > 0 {
			r = r.atMost(limit)
		}
		b.report.Rows = append(b.report.Rows, r)
	}
	if c.source.name != oneSource {
		theirs := figureOf(c.field[parts{bans: true}].samples).Median - none
		limit := 0.1
		if c.v6 {
			limit = 0 // a tenth of what a trie of a million costs; there are not as many here
		}
		cost("the ban decision", byName["bans alone"]-byName["parse and count"], theirs, limit)
	}
	if c.source.name == randomSources {
		theirs := figureOf(c.field[parts{limits: true}].samples).Median - none
		cost("the limit", byName["limits alone"]-byName["parse and count"], theirs, 0.5)
	}
	if c.source.name == bannedSources+inOrder {
		r := base
		r.Subject, r.Figure = "events, budget 100", figureOf(usual)
		without := c.probes[indexOf(all, "no events")].samples
		b.report.Rows = append(b.report.Rows, r.ratio("no events", usual, without).atMost(1.1))
	}
	return nil
}

func indexOf(all []variant, name string) int {
	for i, v := range all {
		if v.name == name {
			return i
		}
	}
	return -1
}

// verifierRow says how many instructions the verifier walked for a variant's program.
func (b *bench) verifierRow(v variant, program *ebpf.Program) error {
	if v.feature == nil && v.name != "all" {
		return nil
	}
	info, err := program.Info()
	if err != nil {
		return fmt.Errorf("read the program's info: %w", err)
	}
	walked, _ := info.VerifiedInstructions()
	size, _ := info.JitedSize()
	b.report.Rows = append(b.report.Rows, row{Part: "stages", Case: "verifier", Subject: v.name, Unit: "insns",
		Figure: figure{float64(walked), float64(walked), float64(walked)}, Note: fmt.Sprintf("%d bytes of machine code", size)})
	return nil
}

// banCounts measures clean sources beside more and more bans.
func (b *bench) banCounts(ctx context.Context) error {
	counts := []int{1000, 100_000, 1_000_000, 4_000_000}
	if b.quick {
		counts = []int{1000, 10_000, 50_000}
	}
	b.log("tables of %d bans", counts)
	w, err := newWrappers(false)
	if err != nil {
		return err
	}
	defer w.close()
	clean := b.cases(false)[len(b.cases(false))-1]
	type entry struct {
		count  int
		probes []*probe
	}
	var entries []entry
	var probes []*probe
	sources := []source{clean, {name: randomSources, draw: drawRandom}}
	for _, count := range counts {
		sizes := b.sizes
		sizes.Ban4Entries = max(sizes.Ban4Entries, count)
		bans := newBans(rand.New(rand.NewPCG(uint64(count), 0)), false, count)
		sh, err := newShield(sizes, bans)
		if err != nil {
			return err
		}
		defer sh.close()
		e := entry{count: count}
		for i, src := range sources {
			st, err := sh.newStage(uint32(i))
			if err != nil {
				return err
			}
			program, err := st.load(bpf.DefaultFeatures())
			if err != nil {
				return err
			}
			p, err := b.probe(w, program, false, src)
			if err != nil {
				return err
			}
			e.probes = append(e.probes, p)
			probes = append(probes, p)
		}
		entries = append(entries, e)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := b.meter.measure(probes); err != nil {
		return err
	}
	for i, src := range sources {
		least := entries[0].probes[i].samples
		for _, e := range entries {
			r := row{Part: "stages", Case: "bans, " + src.name, Family: "ipv4",
				Subject: fmt.Sprintf("%d bans", e.count), Unit: "ns", Figure: figureOf(e.probes[i].samples)}
			if e.count != counts[0] {
				r = r.ratio("1000 bans", e.probes[i].samples, least).atMost(1.5)
			}
			b.report.Rows = append(b.report.Rows, r)
		}
	}
	return nil
}

// newAllows makes a trie with so many allow entries; they lie in 10/8, where no source is.
func (s *shield) newAllows(count int) (*ebpf.Map, error) {
	spec, err := bpf.LoadLevee()
	if err != nil {
		return nil, err
	}
	if err := s.sizes.Apply(spec); err != nil {
		return nil, err
	}
	m, err := ebpf.NewMap(spec.Maps[bpf.LeveeMapAllows])
	if err != nil {
		return nil, fmt.Errorf("create allow entries: %w", err)
	}
	s.closers = append(s.closers, m)
	for i := range count {
		key := bpf.PrefixKey{Length: 128}
		key.Addr[10], key.Addr[11], key.Addr[12] = 0xFF, 0xFF, 10
		binary.BigEndian.PutUint16(key.Addr[13:], uint16(i))
		if err := m.Put(key, bpf.Allow{Expires: bpf.Forever}); err != nil {
			return nil, fmt.Errorf("add an allow entry: %w", err)
		}
	}
	return m, nil
}
