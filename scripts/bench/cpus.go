package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sync/errgroup"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/scripts/internal/space"
)

// cpuCase is what two CPUs do at once.
type cpuCase struct {
	name    string
	sources [2]source // of each CPU
	bound   float64   // what one CPU's packet may cost beside another CPU, to the cost alone
}

func (b *bench) cpuCases(v6 bool) []cpuCase {
	l := b.lists(v6)
	fixed := func(i int) source { return source{oneSource, drawFixed, l.clean[i : i+1]} }
	both := func(name string, s source, bound float64) cpuCase { return cpuCase{name, [2]source{s, s}, bound} }
	return []cpuCase{
		both("both on one source", fixed(0), 1.5),
		{name: "a source each", sources: [2]source{fixed(1), fixed(2)}},
		both("both on one banned source", source{bannedSources, drawFixed, l.banned[:1]}, 0),
		both("both on random sources", source{randomSources, drawRandom, nil}, 0),
		both("both on banned sources", source{bannedSources, drawShuffle, l.banned}, 0),
	}
}

// pair is a program on two CPUs, each behind a wrapper of its own.
type pair struct {
	row    row
	bound  float64
	probes [2]*probe
	alone  []float64
	beside []float64
}

// cpus is the third part: what a packet costs beside another CPU that does the same.
func (b *bench) cpus(ctx context.Context) error {
	if runtime.NumCPU() < 2 {
		b.report.Notes = append(b.report.Notes, "cpus: left out, there is one CPU alone")
		return nil
	}
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

	var pairs []*pair
	slot := uint32(0)
	for i := range b.cpuCases(false) {
		for _, v6 := range []bool{false, true} {
			c := b.cpuCases(v6)[i]
			st, err := sh.newStage(slot)
			if err != nil {
				return err
			}
			slot++
			program, err := st.load(bpf.DefaultFeatures())
			if err != nil {
				return err
			}
			for _, target := range []struct {
				name    string
				program *ebpf.Program
			}{{bare, rivals.bare}, {field, rivals.field[parts{true, true}]}, {levee, program}} {
				p := &pair{row: row{Part: "cpus", Case: c.name, Family: familyName(v6), Subject: target.name, Unit: "ns"}}
				if target.name == levee {
					p.bound = c.bound
				}
				for cpu, src := range c.sources {
					if p.probes[cpu], err = b.probe(w, target.program, v6, src); err != nil {
						return err
					}
				}
				pairs = append(pairs, p)
			}
		}
	}
	if err := b.meter.measurePairs(ctx, pairs); err != nil {
		return err
	}
	for _, p := range pairs {
		r := p.row
		if len(p.beside) == 0 {
			b.report.Notes = append(b.report.Notes, fmt.Sprintf("cpus: %s, %s, %s: others took a CPU away in every round",
				r.Case, r.Family, r.Subject))
			continue
		}
		r.Figure = figureOf(p.beside)
		r = r.ratio("alone", p.beside, p.alone)
		if p.bound > 0 {
			r = r.atMost(p.bound)
		}
		r.Note = fmt.Sprintf("alone %s ns; %d of %d rounds", number(figureOf(p.alone).Median), len(p.beside)/2, b.meter.rounds)
		b.report.Rows = append(b.report.Rows, r)
	}
	return nil
}

// measurePairs samples each pair in turn: one CPU alone, the other alone, both at once.
func (m meter) measurePairs(ctx context.Context, pairs []*pair) error {
	type order struct {
		run  func() error
		done chan<- error
	}
	var workers [2]chan order
	for i := range workers {
		workers[i] = make(chan order)
		defer close(workers[i])
		cpu := (m.cpu + i) % runtime.NumCPU()
		started := make(chan error)
		go func() {
			runtime.LockOSThread() // for good: the thread stays bound, and ends with the goroutine
			started <- measuring(cpu)
			for o := range workers[i] {
				o.done <- o.run()
			}
		}()
		if err := <-started; err != nil {
			return err
		}
	}
	do := func(cpu int, run func() error) error {
		done := make(chan error)
		workers[cpu] <- order{run, done}
		return <-done
	}
	sample := func(cpu int, p *probe, to *float64) func() error {
		return func() error {
			return do(cpu, func() (err error) {
				*to, err = p.sample(p.repeat)
				return err
			})
		}
	}
	var held [2]*holder
	for cpu := range held {
		h, err := newHolder(m.cpu)
		if err != nil {
			return err
		}
		defer h.close()
		held[cpu] = h
	}
	for _, p := range pairs {
		for cpu, probe := range p.probes {
			if err := do(cpu, func() error { return probe.warmUp(m.slice / time.Duration(m.tries)) }); err != nil {
				return err
			}
		}
		// Both take the same number of packets, so that neither ends long before the other.
		p.probes[1].repeat = p.probes[0].repeat
	}
	for range m.rounds {
		for _, p := range pairs {
			if err := ctx.Err(); err != nil {
				return err
			}
			for cpu, probe := range p.probes {
				if err := held[cpu].hold(probe.program); err != nil {
					return err
				}
			}
			var alone, beside [2]float64
			for cpu, probe := range p.probes {
				if err := sample(cpu, probe, &alone[cpu])(); err != nil {
					return err
				}
			}
			// Where others take a CPU away meanwhile, the two were not beside each other: again, and
			// after some tries not at all.
			together := false
			for range 5 {
				before := monotonic()
				var group errgroup.Group
				for cpu, probe := range p.probes {
					group.Go(sample(cpu, probe, &beside[cpu]))
				}
				if err := group.Wait(); err != nil {
					return err
				}
				took := max(beside[0], beside[1]) * float64(p.probes[0].repeat)
				if together = float64(monotonic()-before) < 1.15*took; together {
					break
				}
			}
			if !together {
				continue
			}
			p.alone = append(p.alone, alone[:]...)
			p.beside = append(p.beside, beside[:]...)
		}
	}
	return nil
}

// holder keeps a program among those that the kernel calls directly. A test run puts its program
// there and takes it away again, and sleeps for it, so that two runs would hardly meet. A program
// that is attached somewhere is there already: here to the loopback interface of a namespace that
// has nothing else.
type holder struct {
	space *space.Space
	link  link.Link
}

func newHolder(cpu int) (*holder, error) {
	s, err := space.New("bench", cpu)
	if err != nil {
		return nil, err
	}
	return &holder{space: s}, nil
}

func (h *holder) hold(program *ebpf.Program) error {
	if h.link != nil {
		return h.link.Update(program)
	}
	return h.space.Do(func() (err error) {
		const loopback = 1
		h.link, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: loopback, Flags: link.XDPGenericMode})
		if err != nil {
			return fmt.Errorf("hold the program: %w", err)
		}
		return nil
	})
}

func (h *holder) close() {
	if h.link != nil {
		_ = h.link.Close()
	}
	h.space.Close()
}
