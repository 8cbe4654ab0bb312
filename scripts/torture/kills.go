package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// ballast is how many more bans stand in the tables, so that there is something to restore.
const ballast = 4000

// torture is a host under load, and what was found wrong with it.
type torture struct {
	*host
	*load
	random      *rand.Rand
	descriptors []string // of a daemon that is ready and idle
	wrong       []string
	checks      int
	log         func(format string, args ...any)
}

const (
	workers        = 6
	prefixesEach   = 40
	mostComplaints = 20
)

// newTorture starts a daemon that shields and bans, and leaves it running.
func newTorture(ctx context.Context, bin, dir string, seed uint64, log func(string, ...any)) (t *torture, d *daemon, err error) {
	w, err := newWorld()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	h, err := newHost(w, bin, dir)
	if err != nil {
		return nil, nil, err
	}
	t = &torture{host: h, load: newLoad(h.client, seed, workers, prefixesEach), random: rand.New(rand.NewPCG(seed, 99)), log: log}
	if err := h.configure(variant{}); err != nil {
		return nil, nil, err
	}
	if d, err = h.start(nil); err != nil {
		return nil, nil, err
	}
	if err := d.awaitReady(ctx); err != nil {
		d.kill()
		return nil, nil, fmt.Errorf("%w\n%s", err, d.log)
	}
	if err := t.fill(ctx); err != nil {
		d.kill()
		return nil, nil, err
	}
	return t, d, nil
}

// fill bans the sources that stay banned, and the ballast.
func (t *torture) fill(ctx context.Context) error {
	var r state.BanRequest
	for _, s := range bannedSources {
		r.Bans = append(r.Bans, state.BanItem{Prefix: s.String(), Origin: "operator", For: "1h", Reason: "kept"})
	}
	for i := range ballast {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 1}), 32)
		r.Bans = append(r.Bans, state.BanItem{Prefix: p.String(), Origin: "api:ballast"})
	}
	answer, err := t.host.client.Ban(ctx, r)
	if err == nil && answer.Refused > 0 {
		err = fmt.Errorf("%d bans were refused", answer.Refused)
	}
	return err
}

// complain notes what was wrong, and when.
func (t *torture) complain(when string, wrong ...string) {
	for _, text := range wrong {
		if len(t.wrong) < mostComplaints {
			t.log("WRONG: %s: %s", when, text)
			t.wrong = append(t.wrong, when+": "+text)
		}
	}
}

// examineDead looks at a shield whose daemon is dead: what was acknowledged holds without it.
func (t *torture) examineDead(when string, f *flood) error {
	wrong, err := t.inForce(t.world)
	if err != nil {
		t.complain(when, err.Error())
		return nil
	}
	t.checks += workers * prefixesEach
	t.complain(when, wrong...)
	t.complain(when, t.contradicted()...)
	return t.examineFlood(when, f)
}

func (t *torture) examineFlood(when string, f *flood) error {
	passed, err := f.passedOfBanned()
	if err != nil {
		return err
	}
	if passed > 0 {
		t.complain(when, fmt.Sprintf("%d packets of banned sources have come through", passed))
	}
	if f.over != nil {
		return nil
	}
	select {
	case err := <-f.done:
		f.done <- err
		return errors.Join(errors.New("the flood has ended"), err)
	default:
		return nil
	}
}

// examineLive looks at a daemon that is ready: state and kernel hold what was acknowledged, and no
// more, and nothing was left behind.
func (t *torture) examineLive(ctx context.Context, when string, d *daemon, f *flood) error {
	wrong, err := t.inState(ctx)
	if err != nil {
		t.complain(when, err.Error())
		return nil
	}
	t.complain(when, wrong...)
	if wrong, err = t.inForce(t.world); err != nil {
		return err
	}
	t.complain(when, wrong...)
	t.checks += 2 * workers * prefixesEach
	// What could not be removed is tried again after a while.
	for range 24 {
		if wrong, err = t.standing(); err != nil {
			return err
		}
		if len(wrong) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
	t.complain(when, wrong...)
	if err := t.examineDescriptors(when, d); err != nil {
		return err
	}
	return t.examineFlood(when, f)
}

// examineDescriptors checks that a daemon holds open what the first one held, and no more. A file that it
// is just writing, such as the audit log's head, is open for a moment only: what leaks is still there after
// seconds.
func (t *torture) examineDescriptors(when string, d *daemon) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		open, err := d.descriptors()
		if err != nil {
			return err
		}
		before := t.descriptors
		if before == nil && !slices.ContainsFunc(open, func(of string) bool { return strings.HasSuffix(of, ".new") }) {
			t.descriptors = open
			return nil
		}
		if before != nil && slices.Equal(open, before) {
			return nil
		}
		if time.Now().After(deadline) {
			t.complain(when, fmt.Sprintf("it holds %d descriptors, the first one held %d: %s; %s", len(open), len(before),
				strings.Join(open, " "), strings.Join(before, " ")))
			return nil
		}
	}
}

// finish stops the daemon and the flood, takes the shield down as an operator does, and looks whether
// anything is left of it in the kernel.
func (t *torture) finish(ctx context.Context, d *daemon, f *flood) (outcome, error) {
	if d != nil {
		if err := d.stop(); err != nil {
			t.complain("at the end", err.Error())
		}
	}
	tallies, err := f.stop()
	if err != nil {
		return outcome{}, err
	}
	told := f.told
	o, err := f.outcome(tallies)
	if err != nil && !told {
		t.complain("of the flood", err.Error())
	}
	if out, code, err := t.host.run(ctx, nil, "detach", "--all"); err != nil || code != 0 {
		t.complain("at the end", fmt.Sprintf("levee detach --all: exit code %d, %v: %s", code, err, out))
	}
	t.complain("after levee detach --all", t.gone()...)
	return o, nil
}

// killsResult is what the first phase found.
type killsResult struct {
	Kills, AtStart, InUpgrade, InNewSet int
	Acknowledged, Refused, Unanswered   int64
	Checks                              int
	Flood                               outcome
	Took                                time.Duration
	Refusals                            map[string]int // in words
	Wrong                               []string
}

// kills kills the daemon at random points of its life.
func kills(ctx context.Context, bin, dir string, count int, seed uint64, log func(string, ...any)) (r killsResult, err error) {
	began := time.Now()
	t, d, err := newTorture(ctx, bin, dir, seed, log)
	if err != nil {
		return r, err
	}
	defer t.close()
	f, err := t.startFlood(ctx, 4096, time.Millisecond)
	if err != nil {
		d.kill()
		return r, err
	}
	v := variant{}
	for r.Kills < count && len(t.wrong) < mostComplaints && ctx.Err() == nil {
		t.load.run(ctx)
		time.Sleep(time.Duration(t.random.Int64N(int64(120 * time.Millisecond)))) // the time of death, not a wait
		d.kill()
		t.halt()
		r.Kills++
		if err := t.examineDead(fmt.Sprintf("kill %d", r.Kills), f); err != nil {
			return r, err
		}
		for starts := 0; ; starts++ {
			upgrade, set := t.random.IntN(4) == 0, t.random.IntN(6) == 0
			v.events, v.larger = v.events != upgrade, v.larger != set
			if err := t.configure(v); err != nil {
				return r, err
			}
			if d, err = t.start(nil); err != nil {
				return r, err
			}
			if starts == 2 || r.Kills >= count || t.random.IntN(3) != 0 {
				break
			}
			time.Sleep(time.Duration(t.random.Int64N(int64(250 * time.Millisecond)))) // likewise
			if d.ended() {
				return r, fmt.Errorf("the daemon did not start: %w\n%s", d.err, d.log)
			}
			d.kill()
			r.Kills++
			r.AtStart++
			if upgrade {
				r.InUpgrade++
			}
			if set {
				r.InNewSet++
			}
			if err := t.examineDead(fmt.Sprintf("kill %d, at a start", r.Kills), f); err != nil {
				return r, err
			}
		}
		if err := d.awaitReady(ctx); err != nil {
			t.complain(fmt.Sprintf("after kill %d", r.Kills), fmt.Sprintf("%v\n%s", err, d.log))
			d.kill()
			d = nil
			break
		}
		if err := t.examineLive(ctx, fmt.Sprintf("after kill %d", r.Kills), d, f); err != nil {
			return r, err
		}
		if r.Kills%50 == 0 {
			log("%d kills", r.Kills)
		}
	}
	if r.Flood, err = t.finish(ctx, d, f); err != nil {
		return r, err
	}
	r.Acknowledged, r.Refused, r.Unanswered = t.acknowledged.Load(), t.refused.Load(), t.unanswered.Load()
	r.Checks, r.Wrong, r.Took = t.checks, t.wrong, time.Since(began)
	r.Refusals = t.refusals
	return r, nil
}
