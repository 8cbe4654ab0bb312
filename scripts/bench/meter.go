package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// probe is one thing to be measured: a program that is run over a packet, again and again.
type probe struct {
	name    string
	program *ebpf.Program
	packet  []byte
	warm    int          // packets before the first sample, so that tables are as full as they get
	before  func() error // sets switches, before each sample; may be nil
	repeat  int          // packets a sample
	samples []float64    // ns a packet
}

// meter takes samples of many probes in turn (A B C A B C …), so that what disturbs the machine
// disturbs them alike.
type meter struct {
	cpu    int
	rounds int
	slice  time.Duration // of a sample
	// Runs that a sample is the best of: what disturbs a machine only ever takes time, and mostly less
	// than a run of it.
	tries int
}

// run fills the probes' samples.
func (m meter) run(probes []*probe) error {
	runtime.LockOSThread()
	// Never unlocked: the thread stays bound to its CPU, and ends with the goroutine.
	if err := measuring(m.cpu); err != nil {
		return err
	}
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for _, p := range probes {
		if err := p.warmUp(m.slice / time.Duration(m.tries)); err != nil {
			return err
		}
	}
	for range m.rounds {
		for _, p := range probes {
			ns, err := p.best(m.tries)
			if err != nil {
				return err
			}
			p.samples = append(p.samples, ns)
		}
	}
	return nil
}

// measure is run, on a goroutine of its own.
func (m meter) measure(probes []*probe) error {
	done := make(chan error)
	go func() { done <- m.run(probes) }()
	return <-done
}

// warmUp fills tables, and finds how many packets take about that time.
func (p *probe) warmUp(run time.Duration) error {
	ns, err := p.sample(max(p.warm, 2000))
	if err != nil {
		return err
	}
	p.repeat = max(int(float64(run)/ns), 1000)
	_, err = p.sample(p.repeat)
	return err
}

// best is the shortest of some samples.
func (p *probe) best(tries int) (ns float64, err error) {
	for i := range tries {
		again, err := p.sample(p.repeat)
		if err != nil {
			return 0, err
		}
		if i == 0 || again < ns {
			ns = again
		}
	}
	return ns, nil
}

// sample takes the time of a run.
func (p *probe) sample(packets int) (ns float64, err error) {
	if p.before != nil {
		if err := p.before(); err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	start := threadTime()
	_, err = p.program.Run(&ebpf.RunOptions{Data: p.packet, Repeat: uint32(packets)})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", p.name, err)
	}
	return float64(threadTime()-start) / float64(packets), nil
}

// figure is a median and how far the samples are spread: the quartiles.
type figure struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

func figureOf(samples []float64) figure {
	s := slices.Sorted(slices.Values(samples))
	at := func(q float64) float64 {
		if len(s) == 0 {
			return 0
		}
		i := q * float64(len(s)-1)
		low := int(i)
		high := min(low+1, len(s)-1)
		return s[low] + (s[high]-s[low])*(i-float64(low))
	}
	return figure{Median: at(0.5), Low: at(0.25), High: at(0.75)}
}
