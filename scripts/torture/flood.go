package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// tally is what became of a source's frames.
type tally struct {
	Sent    uint64 // frames that the generator gave to the wire
	Dropped uint64 // of these, found the wire's queue full, where no program is yet
	Passed  uint64 // were counted behind the shield
}

func (t *tally) add(o tally) {
	t.Sent += o.Sent
	t.Dropped += o.Dropped
	t.Passed += o.Passed
}

// arrived is how many frames the shield has judged.
func (t tally) arrived() uint64 { return t.Sent - t.Dropped }

// flood sends live frames of all sources in turn, as fast as one CPU can, until it is stopped.
type flood struct {
	w      *world
	cancel context.CancelFunc
	done   chan error

	mu      sync.Mutex
	tallies map[netip.Addr]*tally
	began   time.Duration
	ended   time.Duration
	over    map[netip.Addr]tally // what became of a flood that has been stopped
	told    bool                 // of what went wrong with it
}

// startFlood begins a flood; between two bursts of a source it waits for a while, so that it leaves
// room to others on a small machine.
func (w *world) startFlood(ctx context.Context, burst int, pause time.Duration) (*flood, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &flood{w: w, cancel: cancel, done: make(chan error, 1), tallies: map[netip.Addr]*tally{}}
	for _, source := range append(append([]netip.Addr{}, bannedSources...), cleanSources...) {
		passed, err := w.behind(source)
		if err != nil {
			cancel()
			return nil, err
		}
		f.tallies[source] = &tally{Passed: -passed} // what comes from here on
	}
	f.began = monotonic()
	go func() { f.done <- f.run(ctx, burst, pause) }()
	return f, nil
}

func (f *flood) run(ctx context.Context, burst int, pause time.Duration) error {
	dropped, err := f.w.dropped()
	if err != nil {
		return err
	}
	for {
		for source, t := range f.tallies {
			select {
			case <-ctx.Done():
				return nil
			default:
			}
			err := f.w.outer.Do(func() error {
				return undisturbed(func() error {
					_, err := f.w.generator.Run(&ebpf.RunOptions{
						Data: f.w.frame(source), Repeat: uint32(burst), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 64,
					})
					return err
				})
			})
			if err != nil {
				return fmt.Errorf("send frames: %w", err)
			}
			now, err := f.w.dropped()
			if err != nil {
				return err
			}
			f.mu.Lock()
			t.Sent += uint64(burst)
			t.Dropped += now - dropped
			f.mu.Unlock()
			dropped = now
			if pause > 0 {
				time.Sleep(pause)
			}
		}
	}
}

// undisturbed keeps signals from this thread, which is the caller's alone: a run that one interrupts has sent
// some of its frames, and is begun anew.
func undisturbed(run func() error) error {
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &before); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	err := run()
	if restored := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); restored != nil {
		return fmt.Errorf("let signals in again: %w", restored)
	}
	return err
}

// stop ends the flood, waits until every frame has come to its end, and says what became of them.
func (f *flood) stop() (map[netip.Addr]tally, error) {
	if f.over != nil {
		return f.over, nil
	}
	f.cancel()
	if err := <-f.done; err != nil {
		return nil, err
	}
	f.ended = monotonic()
	out := map[netip.Addr]tally{}
	for source, t := range f.tallies {
		base := t.Passed
		var last uint64
		// What stands in the queue is worked off by a softirq; it is over when nothing moves.
		for still := 0; still < 20; still++ {
			now, err := f.w.behind(source)
			if err != nil {
				return nil, err
			}
			if now != last {
				last, still = now, 0
			}
			if now+base >= t.arrived() {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		done := *t
		done.Passed = last + base
		out[source] = done
	}
	f.over = out
	return out, nil
}

func (f *flood) took() time.Duration { return f.ended - f.began }

// passedOfBanned is how many packets of banned sources have come through since the flood began.
func (f *flood) passedOfBanned() (n uint64, err error) {
	if f.over != nil {
		return 0, nil // it has been told
	}
	for _, source := range bannedSources {
		now, err := f.w.behind(source)
		if err != nil {
			return 0, err
		}
		n += now + f.tallies[source].Passed
	}
	return n, nil
}

// outcome is a whole flood, summed.
type outcome struct {
	Banned, Clean tally
	Took          time.Duration
}

func (f *flood) outcome(tallies map[netip.Addr]tally) (o outcome, err error) {
	var wrong []string
	add := func(to *tally, source netip.Addr) tally {
		t := tallies[source]
		to.add(t)
		return t
	}
	for _, source := range bannedSources {
		if t := add(&o.Banned, source); t.Passed != 0 {
			wrong = append(wrong, fmt.Sprintf("%d of %d packets of %s, which is banned, came through", t.Passed, t.arrived(), source))
		}
	}
	for _, source := range cleanSources {
		if t := add(&o.Clean, source); t.Passed != t.arrived() {
			wrong = append(wrong, fmt.Sprintf("of %d packets of %s, which is not banned, %d came through", t.arrived(), source, t.Passed))
		}
	}
	o.Took = f.took()
	f.told = true
	if len(wrong) > 0 {
		err = errors.New(strings.Join(wrong, "; "))
	}
	return o, err
}

func (o outcome) rate() float64 { return float64(o.Banned.Sent+o.Clean.Sent) / o.Took.Seconds() }
