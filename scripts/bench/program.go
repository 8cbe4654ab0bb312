package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// Names of what is measured.
const (
	bare  = "bare"
	field = "field" // LPM trie and LRU hash
	levee = "levee"

	// Beside the bare program, what it takes to read the source, and to load the lines of an answer, and no
	// more: see reads.c.
	sourceRead  = "source read"
	filterLine  = "filter's line" // whether a ban is near
	fewestLines = "fewest lines"
)

// What each case may cost, to the bare program with the same sources. Lists are drawn from at random,
// which is a cold access of the wrapper's own; read in order they show the shield's cost alone.
var programBounds = map[string]float64{
	oneSource:     3,
	randomSources: 6,
	bannedSources: 2.2,
	manySources:   3.5,
}

const (
	oneSource     = "one clean source"
	randomSources = "random sources"
	bannedSources = "banned sources"
	manySources   = "many clean sources"
	inOrder       = ", in order"
)

// What a program reads; the names are those of reads.c.
const (
	readFilter uint32 = 1 << iota
	readBan
	readTags
	readAggregate
)

// The fewest lines of an answer in each case, drawn at random or in order. Of many clean sources some are
// tracked and some are not: what both need.
var programReads = map[string]uint32{
	oneSource:     readFilter,
	randomSources: readFilter | readTags | readAggregate,
	bannedSources: readFilter | readBan,
	manySources:   readFilter | readTags,
}

// cases are the sources of the first part.
func (b *bench) cases(v6 bool) []source {
	l := b.lists(v6)
	return []source{
		{oneSource, drawFixed, l.clean[:1]},
		{randomSources, drawRandom, nil},
		{bannedSources, drawShuffle, l.banned},
		{bannedSources + inOrder, drawSequence, l.banned},
		{manySources, drawShuffle, l.clean},
		{manySources + inOrder, drawSequence, l.clean},
	}
}

// programs is the first part: ns a packet, beside the bare program and the common way.
func (b *bench) programs(context.Context) error {
	sh, rivals, closeAll, err := b.subjects()
	if err != nil {
		return err
	}
	defer closeAll()
	w, err := newWrappers(false)
	if err != nil {
		return err
	}
	defer w.close()

	subjects := append([]string{bare, filterLine, fewestLines, field, levee}, b.objects...)
	type entry struct {
		source source
		v6     bool
		stage  *stage
		probes map[string]*probe
	}
	var entries []entry
	var probes []*probe
	for i := range b.cases(false) {
		for _, v6 := range []bool{false, true} {
			if !strings.Contains(b.cases(false)[i].name, b.config.cases) {
				continue
			}
			e := entry{source: b.cases(v6)[i], v6: v6, probes: make(map[string]*probe)}
			if e.stage, err = sh.newStage(uint32(len(entries))); err != nil {
				return err
			}
			program, err := e.stage.load(bpf.DefaultFeatures())
			if err != nil {
				return err
			}
			targets := map[string]*ebpf.Program{bare: rivals.bare, field: rivals.field[parts{true, true}], levee: program}
			fewest := programReads[strings.TrimSuffix(e.source.name, inOrder)]
			for name, reads := range map[string]uint32{filterLine: readFilter, fewestLines: fewest} {
				if name == filterLine && reads == fewest {
					continue // the same program
				}
				if targets[name], err = e.stage.loadReads(reads); err != nil {
					return err
				}
			}
			for _, path := range b.objects {
				if targets[path], err = loadCandidate(sh, path); err != nil {
					return err
				}
			}
			for _, name := range subjects {
				if targets[name] == nil {
					continue
				}
				p, err := b.probe(w, targets[name], v6, e.source)
				if err != nil {
					return err
				}
				p.name = name
				e.probes[name] = p
				probes = append(probes, p)
			}
			entries = append(entries, e)
		}
	}
	b.log("measuring")
	if err := b.meter.measure(probes); err != nil {
		return err
	}
	four := make(map[string][]float64)
	for _, e := range entries {
		for _, name := range subjects {
			if e.probes[name] == nil {
				continue
			}
			samples := e.probes[name].samples
			r := row{Part: "program", Case: e.source.name, Family: familyName(e.v6), Subject: name, Unit: "ns",
				Figure: figureOf(samples)}
			switch name {
			case bare:
			case filterLine, fewestLines, field, levee:
				r = r.ratio(bare, samples, e.probes[bare].samples)
			default:
				r = r.ratio(levee, samples, e.probes[levee].samples)
			}
			if name == levee {
				if limit := programBounds[e.source.name]; limit > 0 {
					r = r.atMost(limit)
				}
				if r.Note, err = e.stage.shares(); err != nil {
					return err
				}
			}
			b.report.Rows = append(b.report.Rows, r)
			if name == levee && e.source.name != oneSource {
				r.Bound, r.Note = nil, ""
				b.report.Rows = append(b.report.Rows, r.ratio(fewestLines, samples, e.probes[fewestLines].samples))
			}
		}
		now := row{Part: "program", Case: e.source.name, Family: "ipv6", Subject: levee, Unit: "ns",
			Figure: figureOf(e.probes[levee].samples)}
		if e.v6 {
			b.report.Rows = append(b.report.Rows, now.ratio("ipv4", e.probes[levee].samples, four[e.source.name]).atMost(1.5))
		} else {
			four[e.source.name] = e.probes[levee].samples
		}
	}
	return nil
}

// subjects are the tables of Levee and of the common way, with all the bans.
func (b *bench) subjects() (*shield, *rivals, func(), error) {
	b.log("filling tables")
	bans4, bans6 := b.lists(false).bans, b.lists(true).bans
	sh, err := newShield(b.sizes, bans4, bans6)
	if err != nil {
		return nil, nil, nil, err
	}
	rivals, err := newRivals(bans4, bans6, b.sizes.Sources)
	if err != nil {
		sh.close()
		return nil, nil, nil, err
	}
	return sh, rivals, func() { rivals.close(); sh.close() }, nil
}

// loadCandidate loads another build, on tables for sources of its own.
func loadCandidate(sh *shield, path string) (*ebpf.Program, error) {
	spec, err := ebpf.LoadCollectionSpec(path)
	if err != nil {
		return nil, fmt.Errorf("read another build: %w", err)
	}
	st, err := sh.newStage(bpf.MaxInterfaces - 1)
	if err != nil {
		return nil, err
	}
	return st.loadSpec(spec, levee, bpf.DefaultFeatures())
}

// probe puts a program behind a wrapper.
func (b *bench) probe(w *wrappers, target *ebpf.Program, v6 bool, src source) (*probe, error) {
	wrapped, err := w.wrap(target, v6, src)
	if err != nil {
		return nil, err
	}
	packet, _ := newFrame(v6)
	p := &probe{name: src.name, program: wrapped, packet: packet}
	switch src.draw {
	case drawFixed:
	case drawRandom:
		p.warm = b.sizes.Sources * 3
	case drawSequence, drawShuffle:
		p.warm = len(src.addrs)
	}
	return p, nil
}

// shares says what became of the packets, so that a figure is not of something else.
func (st *stage) shares() (string, error) {
	verdicts, err := st.verdicts()
	if err != nil {
		return "", err
	}
	total := uint64(0)
	for _, n := range verdicts {
		total += n
	}
	if total == 0 {
		return "", errors.New("no packet was counted")
	}
	reasons := slices.SortedFunc(maps.Keys(verdicts), func(a, b bpf.Reason) int {
		return cmp.Compare(verdicts[b], verdicts[a])
	})
	var words []string
	for _, r := range reasons {
		if share := float64(verdicts[r]) / float64(total); share >= 0.001 {
			words = append(words, fmt.Sprintf("%s %.1f %%", r, 100*share))
		}
	}
	return strings.Join(words, ", "), nil
}
