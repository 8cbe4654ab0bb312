package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// life is what a daemon goes through while it is watched: from its start to the end of its work.
type life struct {
	name   string
	change func(*variant) // what differs from the program before
	work   bool           // changes are asked for once it is ready
	begin  bool           // nothing is pinned, and there is no state
}

var lives = []life{
	{name: "at work", change: func(*variant) {}, work: true},
	{name: "upgrade to another program", change: func(v *variant) { v.events = !v.events }},
	{name: "upgrade to other tables", change: func(v *variant) { v.larger = !v.larger }},
	{name: "first start", change: func(*variant) {}, begin: true},
}

// workTime is how long a daemon is at work before it is ended in good order.
const workTime = 250 * time.Millisecond

// sitesResult is what the second phase found.
type sitesResult struct {
	Sites, Kills, NotMet int
	ByCall               map[string]int
	Checks               int
	Flood                outcome
	Took                 time.Duration
	Wrong                []string
}

// selection says which sites are tried.
type selection struct {
	most    int // of each life; 0: all
	pattern *regexp.Regexp
	share   share
}

func (w selection) takes(s site) bool { return w.pattern.MatchString(s.String()) && w.share.has(s.Key) }

// rig is a torture with a flood, whose daemon is dead between two lives.
type rig struct {
	*torture
	flood   *flood
	variant variant
}

func newRig(ctx context.Context, bin, dir string, seed uint64, log func(string, ...any)) (*rig, error) {
	t, d, err := newTorture(ctx, bin, dir, seed, log)
	if err != nil {
		return nil, err
	}
	f, err := t.startFlood(ctx, 4096, 2*time.Millisecond)
	if err != nil {
		d.kill()
		t.close()
		return nil, err
	}
	g := &rig{torture: t, flood: f}
	if err := t.examineLive(ctx, "at the start", d, f); err != nil {
		d.kill()
		t.close()
		return nil, err
	}
	return g, d.stop()
}

// end takes everything down, whatever state it is in.
func (g *rig) end() {
	_, _ = g.flood.stop() // what it says was told, or does not matter after an error
	g.close()
}

// begin starts a life under a plan. It returns when the daemon is ready, has met the plan's site, or
// has ended.
func (g *rig) begin(ctx context.Context, l *life, p *plan) (*daemon, error) {
	l.change(&g.variant)
	if l.begin {
		if err := g.forget(ctx); err != nil {
			return nil, err
		}
	}
	if err := g.configure(g.variant); err != nil {
		return nil, err
	}
	d, err := g.start(p)
	if err != nil {
		return nil, err
	}
	if err := d.awaitReady(ctx); err != nil && !errors.Is(err, errEnded) {
		d.kill()
		return nil, err
	}
	return d, nil
}

// forget takes the shield down and moves the state away, for a first start; the flood stands still
// meanwhile, for nothing is banned.
func (g *rig) forget(ctx context.Context) error {
	out, code, err := g.host.run(ctx, nil, "detach", "--all")
	if err != nil || code != 0 {
		return fmt.Errorf("levee detach --all: exit code %d, %w: %s", code, err, out)
	}
	return os.RemoveAll(g.path("state"))
}

// through lets a daemon live its life to its end, or until it dies.
func (g *rig) through(ctx context.Context, l *life, d *daemon, most time.Duration) {
	if d.ended() {
		return
	}
	if l.work {
		g.load.run(ctx)
		select {
		case <-d.exited:
		case <-time.After(most):
		}
		_ = g.host.client.Reload(ctx) // it may die in the midst of it
		g.halt()
	}
	if !d.ended() {
		_ = syscall.Kill(d.pid, syscall.SIGTERM)
		select {
		case <-d.exited:
		case <-time.After(15 * time.Second):
			g.complain(l.name, "the daemon does not end\n"+d.log.String())
			d.kill()
		}
	}
	g.host.client.Close()
}

// discover lives a life without harm, and returns the sites that it meets.
func (g *rig) discover(ctx context.Context, l *life) ([]site, error) {
	d, err := g.begin(ctx, l, &plan{})
	if err != nil {
		return nil, err
	}
	g.through(ctx, l, d, 2*workTime)
	if d.err != nil {
		return nil, fmt.Errorf("%s: the daemon ended: %w\n%s", l.name, d.err, d.log)
	}
	return d.trace.seen(), nil
}

// recover starts a daemon as an operator would, and looks whether all is well with it.
func (g *rig) recover(ctx context.Context, when string) error {
	d, err := g.start(nil)
	if err != nil {
		return err
	}
	if err := d.awaitReady(ctx); err != nil {
		g.complain(when, fmt.Sprintf("it does not start again: %v\n%s", err, d.log))
		d.kill()
		return nil
	}
	if err := g.examineLive(ctx, when, d, g.flood); err != nil {
		return err
	}
	d.kill()
	return nil
}

// each does something at every site of every life, once at each site.
func (g *rig) each(ctx context.Context, which selection, do func(*life, site) error) error {
	known := map[string]bool{}
	for i := range lives {
		l := &lives[i]
		if l.begin {
			if err := g.pauseForFirstStarts(); err != nil {
				return err
			}
		}
		seen, err := g.discover(ctx, l)
		if err != nil {
			return err
		}
		seen = slices.DeleteFunc(seen, func(s site) bool { return known[s.Key] || !which.takes(s) })
		if most := which.most; most > 0 && len(seen) > most {
			g.random.Shuffle(len(seen), func(i, j int) { seen[i], seen[j] = seen[j], seen[i] })
			seen = seen[:most]
		}
		g.log("%s: %d sites", l.name, len(seen))
		for _, s := range seen {
			if err := ctx.Err(); err != nil {
				return err
			}
			known[s.Key] = true
			if err := do(l, s); err != nil {
				return fmt.Errorf("%s, %s: %w", l.name, s, err)
			}
			if len(g.wrong) >= mostComplaints {
				return nil
			}
		}
	}
	return nil
}

// pauseForFirstStarts ends the flood and takes its tally: what comes now begins with no ban at all.
func (g *rig) pauseForFirstStarts() error {
	tallies, err := g.flood.stop()
	if err != nil {
		return err
	}
	if _, err := g.flood.outcome(tallies); err != nil {
		g.complain("of the flood", err.Error())
	}
	g.load.forget()
	return nil
}

// sites kills the daemon at every place in the program that makes a system call which writes, before
// the call and after it.
func sites(ctx context.Context, bin, dir string, which selection, seed uint64, log func(string, ...any)) (r sitesResult, err error) {
	began := time.Now()
	g, err := newRig(ctx, bin, dir, seed, log)
	if err != nil {
		return r, err
	}
	defer g.end()
	r.ByCall = map[string]int{}
	err = g.each(ctx, which, func(l *life, s site) error {
		r.Sites++
		r.ByCall[s.Call]++
		for _, after := range []bool{false, true} {
			when := fmt.Sprintf("%s, killed before %s", l.name, s)
			if after {
				when = fmt.Sprintf("%s, killed after %s", l.name, s)
			}
			p := &plan{Site: s.Key, Do: doKill, After: after, Times: 1}
			if l.work {
				p.Skip = g.random.IntN(3)
			}
			met := false
			for range 3 { // chance has a part in which sites a life meets
				d, err := g.begin(ctx, l, p)
				if err != nil {
					return err
				}
				g.through(ctx, l, d, 2*workTime)
				if met = d.trace.hitAll() > 0; met {
					break
				}
				p.Skip = 0
			}
			if !met {
				r.NotMet++
				log("not met again: %s", when)
			}
			r.Kills++
			if !l.begin {
				if err := g.examineDead(when, g.flood); err != nil {
					return err
				}
			}
			if err := g.recover(ctx, when); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	if r.Flood, err = g.finish(ctx, nil, g.flood); err != nil {
		return r, err
	}
	r.Checks, r.Wrong, r.Took = g.checks, g.wrong, time.Since(began)
	return r, nil
}

func (r sitesResult) complaints() []string { return r.Wrong }

func (r sitesResult) text() string {
	var calls []string
	for call, n := range r.ByCall {
		calls = append(calls, fmt.Sprintf("%s %d", call, n))
	}
	slices.Sort(calls)
	return table([][2]string{
		{"places in the program that make a system call which writes", fmt.Sprintf("%d: %s", r.Sites, strings.Join(calls, ", "))},
		{"kills, one before the call and one after it", fmt.Sprintf("%d, of these %d where the place was not met again", r.Kills, r.NotMet)},
		{"looks at a prefix, in the kernel and in the state", fmt.Sprint(r.Checks)},
		{"frames of banned sources", r.Flood.Banned.words()},
		{"frames of other sources", r.Flood.Clean.words()},
		{"took", r.Took.Round(time.Second).String()},
		{"acknowledged changes lost or undone, packets passed or lost, things left behind", fmt.Sprint(len(r.Wrong))},
	}) + list(r.Wrong)
}
