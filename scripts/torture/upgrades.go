package main

import (
	"context"
	"fmt"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// upgradesResult is what the fourth phase found.
type upgradesResult struct {
	Upgrades, NewSets int
	With, Without     outcome // the flood while the daemon is upgraded, and while it is left alone
	Counted           uint64  // packets that the shield counts as dropped because they are banned, with upgrades
	Took              time.Duration
	Wrong             []string
}

// upgrades replaces the daemon and its program in place, over and over, under as many packets as one
// CPU can send. Every tenth brings new tables along.
func upgrades(ctx context.Context, bin, dir string, count int, seed uint64, log func(string, ...any)) (r upgradesResult, err error) {
	const burst = 1 << 16
	began := time.Now()
	t, d, err := newTorture(ctx, bin, dir, seed, log)
	if err != nil {
		return r, err
	}
	defer t.close()
	if err := t.control(ctx, &r, burst); err != nil {
		d.kill()
		return r, err
	}
	before, err := t.countedAsBanned(ctx)
	if err != nil {
		d.kill()
		return r, err
	}
	f, err := t.startFlood(ctx, burst, 0)
	if err != nil {
		d.kill()
		return r, err
	}
	v := variant{}
	last := d
	for r.Upgrades < count && len(t.wrong) < mostComplaints && ctx.Err() == nil {
		v.events = !v.events
		if r.Upgrades%10 == 9 {
			v.larger = !v.larger
			r.NewSets++
		}
		if err := t.configure(v); err != nil {
			return r, err
		}
		was, err := t.programID()
		if err != nil {
			return r, err
		}
		if r.Upgrades%2 == 0 {
			last.kill()
		} else if err := last.stop(); err != nil {
			t.complain("at a stop", err.Error())
		}
		if last, err = t.start(nil); err != nil {
			return r, err
		}
		if err := last.awaitReady(ctx); err != nil {
			t.complain("at an upgrade", fmt.Sprintf("%v\n%s", err, last.log))
			break
		}
		r.Upgrades++
		switch now, err := t.programID(); {
		case err != nil:
			return r, err
		case now == was:
			t.complain("at an upgrade", fmt.Sprintf("the program is the same as before\n%s", last.log))
		}
		if err := t.examineFlood(fmt.Sprintf("at upgrade %d", r.Upgrades), f); err != nil {
			return r, err
		}
		if r.Upgrades%100 == 0 {
			log("%d upgrades", r.Upgrades)
		}
	}
	tallies, err := f.stop()
	if err != nil {
		return r, err
	}
	if r.With, err = f.outcome(tallies); err != nil {
		t.complain("with upgrades", err.Error())
	}
	after, err := t.countedAsBanned(ctx)
	if err != nil {
		return r, err
	}
	if r.Counted = after - before; r.Counted != r.With.Banned.arrived() {
		t.complain("with upgrades", fmt.Sprintf("%d packets of banned sources arrived, and the shield counts %d", r.With.Banned.arrived(), r.Counted))
	}
	if _, err := t.finish(ctx, last, f); err != nil {
		return r, err
	}
	r.Wrong, r.Took = t.wrong, time.Since(began)
	return r, nil
}

// control floods for a while and leaves the daemon alone.
func (t *torture) control(ctx context.Context, r *upgradesResult, burst int) error {
	f, err := t.startFlood(ctx, burst, 0)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	tallies, err := f.stop()
	if err != nil {
		return err
	}
	if r.Without, err = f.outcome(tallies); err != nil {
		t.complain("without upgrades", err.Error())
	}
	return nil
}

func (w *world) programID() (id uint32, err error) {
	prog, err := w.program()
	if err != nil {
		return 0, err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return 0, err
	}
	number, _ := info.ID()
	return uint32(number), nil
}

// countedAsBanned is what the shield has counted as dropped because of a ban.
func (t *torture) countedAsBanned(ctx context.Context) (n uint64, err error) {
	stats, err := t.host.client.Stats(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the counters: %w", err)
	}
	for _, c := range stats.Counters {
		if c.Reason == "banned" && c.Action == state.ActionDrop {
			n += c.Packets
		}
	}
	return n, nil
}

func (r upgradesResult) complaints() []string { return r.Wrong }

func (r upgradesResult) text() string {
	return table([][2]string{
		{"upgrades in place", fmt.Sprintf("%d, each to another program, %d of these to new tables; half of them after kill -9", r.Upgrades, r.NewSets)},
		{"frames a second, with upgrades", fmt.Sprintf("%.0f", r.With.rate())},
		{"frames of banned sources, with upgrades", r.With.Banned.words()},
		{"of these, counted by the shield as dropped", fmt.Sprint(r.Counted)},
		{"frames of other sources, with upgrades", r.With.Clean.words()},
		{"frames a second, without", fmt.Sprintf("%.0f", r.Without.rate())},
		{"frames of banned sources, without", r.Without.Banned.words()},
		{"frames of other sources, without", r.Without.Clean.words()},
		{"took", r.Took.Round(time.Second).String()},
		{"packets of banned sources passed, of others lost", fmt.Sprintf("%d and %d", r.With.Banned.Passed, int64(r.With.Clean.arrived()-r.With.Clean.Passed))},
	}) + list(r.Wrong)
}
