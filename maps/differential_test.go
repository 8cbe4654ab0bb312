package maps

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gaissmai/bart"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps/internal/batch"
)

// These tests hold three against each other: the table as Bans builds it, the compiled program that
// reads it, and a tree of prefixes (bart) that knows nothing of either. They use what Bans exports and
// the program's verdicts, and so hold for any layout of the table.

// lookups is how many addresses the program is asked about in all.
func lookups() int {
	if os.Getenv("LEVEE_LONG") != "" {
		return 10_000_000
	}
	return some(600_000)
}

// asker puts a batch before the program.
func asker(t *testing.T, k *kernel) *batch.Batch {
	t.Helper()
	b, err := batch.New(k.prog, k.maps[bpf.LeveeMapListCounters])
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// reference is what the ban table stands for, in a tree, with what random changes need beside it.
type reference struct {
	tree bart.Table[Ban]
	held []netip.Prefix // in no order, to draw from
	gone []Ban          // taken away lately
}

func (f *reference) put(ban Ban) {
	ban.Prefix = plain(ban.Prefix)
	if _, ok := f.tree.Get(ban.Prefix); !ok {
		f.held = append(f.held, ban.Prefix)
	}
	f.tree.Insert(ban.Prefix, ban)
}

func (f *reference) delete(p netip.Prefix) {
	old, _ := f.tree.Get(p)
	f.tree.Delete(p)
	i := slices.Index(f.held, p)
	f.held = slices.Delete(f.held, i, i+1)
	if f.gone = append(f.gone, old); len(f.gone) > 64 {
		f.gone = f.gone[1:]
	}
}

// ask is model.ask, of the tree.
func (f *reference) ask(addr netip.Addr, now uint64) answer {
	return answerOf(func(yield func(Ban) bool) {
		f.tree.Supernets(netip.PrefixFrom(addr, addr.BitLen()))(func(_ netip.Prefix, ban Ban) bool { return yield(ban) })
	}, now)
}

// judge says what is wrong with what the program did.
func (a answer) judge(addr netip.Addr, got batch.Answer) error {
	hidden := a.either && got == batch.Answer{Verdict: xdpPass, List: -1}
	want := batch.Answer{Verdict: xdpPass, List: -1}
	switch {
	case hidden:
		return nil
	case a.banned:
		want = batch.Answer{Verdict: xdpDrop, List: got.List}
	case a.monitored:
		want = batch.Answer{Verdict: xdpPass, List: got.List, Monitor: true}
	}
	named := !a.banned && !a.monitored || slices.ContainsFunc(a.covers, func(ban Ban) bool {
		return ban.Monitor == want.Monitor && int(ban.List) == got.List
	})
	if got != want || !named {
		return fmt.Errorf("%s: the program says %+v, its bans are %+v", addr, got, a.covers)
	}
	return nil
}

// change makes a random change to the table and the reference alike.
func (f *reference) change(t *testing.T, k *kernel, w *world, v6 bool, most int, soon uint64) {
	t.Helper()
	b := k.Bans
	draw := func() Ban {
		ban := w.ban(v6)
		if soon != 0 && w.IntN(3) == 0 {
			ban.Expires = soon
		}
		return ban
	}
	put := func(ban Ban) {
		if err := b.Put(ban); err == nil {
			f.put(ban)
		} else if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	n := w.IntN(256)
	if len(f.held) > most && n < 128 {
		n = 128
	}
	switch {
	case n < 80:
		put(draw())
	case n < 100: // one that was there before
		if len(f.gone) > 0 {
			put(f.gone[w.IntN(len(f.gone))])
		}
	case n < 128: // another list, time or mode
		if len(f.held) > 0 {
			ban := draw()
			ban.Prefix = f.held[w.IntN(len(f.held))]
			put(ban)
		}
	case n < 220:
		if len(f.held) > 0 {
			p := f.held[w.IntN(len(f.held))]
			if !b.Delete(p) {
				t.Fatalf("delete %s: was not there", p)
			}
			f.delete(p)
		}
	case n < 240:
		many := make([]Ban, 1+w.IntN(60))
		for i := range many {
			many[i] = draw()
		}
		failed := b.PutMany(many)
		for i, ban := range many {
			if failed == nil || failed[i] == nil {
				f.put(ban)
			} else if !errors.Is(failed[i], ErrFull) {
				t.Fatal(failed[i])
			}
		}
	case n < 242: // refreshed as a whole, sometimes by a daemon that has just started
		for _, p := range slices.Clone(f.held) {
			switch w.IntN(5) {
			case 0:
				f.delete(p)
			case 1:
				ban := draw()
				ban.Prefix = p
				f.put(ban)
			}
		}
		for range w.IntN(30) {
			f.put(draw())
		}
		if w.IntN(2) == 0 {
			k.reopen()
		}
		_, err := k.Bans.Sync(func(yield func(Ban) bool) {
			for _, ban := range f.tree.All() {
				if !yield(ban) {
					return
				}
			}
		})
		if err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		if err != nil {
			for _, p := range slices.Clone(f.held) {
				if _, ok := k.Bans.Get(p); !ok {
					f.delete(p)
				}
			}
		}
	}
}

// addresses draws addresses in and beside what is banned, and where others are drawn from.
func (f *reference) addresses(w *world, v6 bool, addrs []netip.Addr) {
	for i := range addrs {
		if n := len(f.held); n > 0 && w.IntN(2) == 0 {
			addrs[i] = w.near(f.held[w.IntN(n)])
		} else {
			addrs[i] = w.addr(v6)
		}
	}
}

// TestProgramAgainstTree changes the table in every way that there is, and asks the compiled program
// about thousands of addresses after each few changes.
func TestProgramAgainstTree(t *testing.T) {
	r := seeded(t)
	const atOnce = 2048
	for _, c := range []struct {
		name        string
		setup       setup
		bases, most int
	}{
		{"few", onlyBans(), 6, 200},
		{"many", onlyBans(), 2000, 4000},
		{"crowded", tiny(), 6, 60},
	} {
		for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
			t.Run(c.name+" "+name, func(t *testing.T) {
				k := load(t, c.setup)
				b := asker(t, k)
				addrs, answers := make([]netip.Addr, atOnce), []batch.Answer(nil)
				asked, banned, monitored, timed, rounds := 0, 0, 0, 0, 0
				quota := lookups() / 6
				// A ban of /0 leaves no address that is not banned in its world: then others follow.
				told := func() bool { return min(banned, monitored, asked-banned-monitored) >= 100 && timed > 0 }
				enough := func() bool { return asked >= quota && (told() || asked >= quota+500_000) }
				for !enough() {
					w, f := newWorld(r), &reference{}
					for len(w.bases4) < c.bases {
						more := newWorld(r)
						w.bases4, w.bases6 = append(w.bases4, more.bases4...), append(w.bases6, more.bases6...)
					}
					check := func(now uint64) {
						t.Helper()
						for i, addr := range addrs {
							a := f.ask(addr, now)
							if err := a.judge(addr, answers[i]); err != nil {
								t.Fatalf("after %d lookups: %v", asked, err)
							}
							if a.banned {
								banned++
							} else if a.monitored {
								monitored++
							}
						}
						asked += len(addrs)
					}
					ask := func() {
						t.Helper()
						var err error
						if answers, err = b.Ask(answers[:0], addrs); err != nil {
							t.Fatal(err)
						}
					}
					for range 1 + w.IntN(c.most) { // something to begin with
						f.change(t, k, w, v6, c.most, 0)
					}
					for i := 0; i < 16 && !enough(); i++ {
						rounds++
						soon := uint64(0)
						if i%16 == 0 {
							soon = Monotonic() + 30e6
						}
						for range 1 + w.IntN(20) {
							f.change(t, k, w, v6, c.most, soon)
						}
						f.addresses(w, v6, addrs)
						ask()
						if now := Monotonic(); soon == 0 || now < soon {
							check(now)
						} // else the machine was busy, and what ends soon may have ended meanwhile
						if soon == 0 {
							continue
						}
						for coarse() <= soon {
							time.Sleep(time.Duration(soon - min(soon, coarse()) + 1e6))
						}
						ask()
						check(Monotonic())
						timed++
					}
					if err := clean(k.Bans, f.held); err != nil {
						t.Fatal(err)
					}
				}
				t.Logf("%d lookups, %d banned, %d monitored; %d times after some had ended; %d rounds", asked, banned, monitored, timed, rounds)
				if !told() {
					t.Error("too few of one kind to say anything")
				}
			})
		}
	}
}

// clean deletes what a test has put.
func clean(b *Bans, held []netip.Prefix) error {
	for _, p := range held {
		if !b.Delete(p) {
			return fmt.Errorf("delete %s: was not there", p)
		}
	}
	if v4, v6 := b.Len(); v4+v6 != 0 {
		return fmt.Errorf("%d and %d bans are left of none", v4, v6)
	}
	return nil
}

// step is one change of a walk: what stands for a prefix before it and after it, if anything.
type step struct {
	prefix        netip.Prefix
	before, after *Ban
}

func (s step) back() step { return step{s.prefix, s.after, s.before} }

func (s step) take(b *Bans) error {
	if s.after != nil {
		return b.Put(*s.after)
	}
	if !b.Delete(s.prefix) {
		return fmt.Errorf("delete %s: was not there", s.prefix)
	}
	return nil
}

// bounds is what may be seen of an address at any time of a walk.
type bounds struct {
	always   bool // banned by one that enforces, before and after every change
	never    bool // never banned, nor monitored
	mayDrop  bool
	lists    [2]map[int]bool // of its bans, ended or not: those that enforce, those that monitor
	switches int             // changes of what bans it
}

func (d *bounds) judge(addr netip.Addr, got batch.Answer) error {
	monitor := 0
	if got.Monitor {
		monitor = 1
	}
	switch {
	case got.Verdict != xdpDrop && got.Verdict != xdpPass:
		return fmt.Errorf("%s: verdict %d", addr, got.Verdict)
	case d.always && got.Monitor:
		return fmt.Errorf("%s is banned before and after every change, and was monitored: %+v", addr, got)
	case d.always && got.Verdict != xdpDrop:
		return fmt.Errorf("%s is banned before and after every change, and passed", addr)
	case d.never && got.List >= 0:
		return fmt.Errorf("%s is never banned, and the program says %+v", addr, got)
	case !d.mayDrop && got.Verdict == xdpDrop:
		return fmt.Errorf("%s is never banned by one that enforces, and was dropped: %+v", addr, got)
	case got.List >= 0 && !d.lists[monitor][got.List]:
		return fmt.Errorf("%s is never on that list, and the program says %+v", addr, got)
	}
	return nil
}

// TestProgramWhileChanging lets a writer walk to and fro between random states of the table, a change
// a step, and sometimes from one to any other by a Sync, while the program is asked. What an address
// is in all of these states it must be all the time.
func TestProgramWhileChanging(t *testing.T) {
	r := seeded(t)
	for _, c := range []struct {
		name  string
		setup setup
		begin int
	}{{"roomy", onlyBans(), 60}, {"crowded", tiny(), 12}} {
		t.Run(c.name, func(t *testing.T) {
			k := load(t, c.setup)
			b := asker(t, k)
			var sums struct{ steps, syncs, asked, always, never, busy, cut int }
			for round := range max(2, some(10)) * long() {
				v6 := round%2 == 1
				w, m := newWorld(r), make(model)
				for range c.begin {
					if ban := w.ban(v6); k.Bans.Put(ban) == nil {
						m.put(ban)
					}
				}
				states, walk := []model{maps.Clone(m)}, []step(nil)
				for len(walk) < 24 {
					s := w.walk(k.Bans, m, v6)
					if s == nil {
						continue
					}
					walk = append(walk, *s)
					states = append(states, maps.Clone(m))
				}

				// What the addresses are in all states. Those that many changes concern say most.
				now := Monotonic()
				seen := make(map[netip.Addr]*bounds)
				for range 400 {
					addr := w.addr(v6)
					if w.IntN(4) != 0 {
						addr = w.near(walk[w.IntN(len(walk))].prefix)
					}
					seen[addr] = across(addr, states, now)
				}
				var always, never, other []netip.Addr
				for addr, d := range seen {
					switch {
					case d.always:
						always = append(always, addr)
					case d.never:
						never = append(never, addr)
					default:
						other = append(other, addr)
					}
				}
				var addrs []netip.Addr
				for _, list := range [][]netip.Addr{always, never, other} {
					slices.SortFunc(list, func(x, y netip.Addr) int {
						return cmp.Or(seen[y].switches-seen[x].switches, x.Compare(y))
					})
					addrs = append(addrs, list[:min(len(list), 16)]...)
				}
				judges := make([]*bounds, len(addrs))
				for i, addr := range addrs {
					judges[i] = seen[addr]
					if judges[i].always {
						sums.always++
					}
					if judges[i].never {
						sums.never++
					}
					sums.busy += judges[i].switches
				}
				for n := len(addrs); len(addrs) < 8192; {
					addrs, judges = append(addrs, addrs[:n]...), append(judges, judges[:n]...)
				}

				var stop atomic.Bool
				var wg sync.WaitGroup
				wg.Go(func() {
					defer stop.Store(true)
					var answers []batch.Answer
					for end := time.Now().Add(120 * time.Millisecond); time.Now().Before(end); {
						var err error
						if answers, err = b.Ask(answers[:0], addrs); err != nil {
							t.Error(err)
							return
						}
						for i, got := range answers {
							if err := judges[i].judge(addrs[i], got); err != nil {
								t.Error(err)
								return
							}
						}
						sums.asked += len(addrs)
					}
				})
				at, on := len(walk), -1
				for !stop.Load() {
					var err error
					if w.IntN(4000) == 0 {
						to := w.IntN(len(states))
						_, err = k.Bans.Sync(maps.Values(states[to]))
						at = to
						sums.syncs++
					} else {
						if at == 0 {
							on = 1
						} else if at == len(walk) {
							on = -1
						}
						if on > 0 {
							err = walk[at].take(k.Bans)
						} else {
							err = walk[at-1].back().take(k.Bans)
						}
						at += on
						sums.steps++
					}
					if errors.Is(err, ErrFull) {
						sums.cut++ // a crowded table: there was room for it the first time
						break
					} else if err != nil {
						t.Error(err)
						break
					}
				}
				wg.Wait()
				if t.Failed() {
					t.Logf("round %d, %d bans, %d steps", round, len(m), len(walk))
					return
				}
				if _, err := k.Bans.Sync(values(nil)); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%+v", sums)
			if sums.always == 0 || sums.never == 0 || sums.steps < 1000 {
				t.Error("too few to say anything")
			}
		})
	}
}

// walk makes a random change, and returns it; nil if there was no room for it or nothing to change.
func (w *world) walk(b *Bans, m model, v6 bool) *step {
	keys := slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare)
	if len(keys) == 0 {
		return nil
	}
	p := keys[w.IntN(len(keys))]
	var after *Ban
	switch w.IntN(4) {
	case 0: // is taken away
	case 1: // another list, time or mode
		ban := w.ban(v6)
		ban.Prefix = p
		after = &ban
	default: // another prefix, often around or within one that is there
		ban := w.ban(v6)
		if w.IntN(3) != 0 {
			ban.Prefix = netip.PrefixFrom(p.Addr(), min(max(0, p.Bits()-6+w.IntN(13)), p.Addr().BitLen())).Masked()
		}
		after = &ban
		p = plain(ban.Prefix)
	}
	s := &step{prefix: p, after: after}
	if old, ok := m[p]; ok {
		s.before = &old
	}
	if s.take(b) != nil {
		return nil
	}
	if after == nil {
		delete(m, p)
	} else {
		m.put(*after)
	}
	return s
}

// across gathers what an address is in each of the states.
func across(addr netip.Addr, states []model, now uint64) *bounds {
	d := &bounds{always: true, never: true, lists: [2]map[int]bool{{}, {}}}
	var last []Ban
	for i, m := range states {
		a := m.ask(addr, now)
		d.always = d.always && a.banned
		d.mayDrop = d.mayDrop || a.banned
		d.never = d.never && len(a.covers) == 0
		// Of one that has ended, too: what replaces it in its slot may be counted to its list at first.
		for _, ban := range m.ask(addr, 0).covers {
			monitor := 0
			if ban.Monitor {
				monitor = 1
			}
			d.lists[monitor][int(ban.List)] = true
		}
		if i > 0 && !slices.Equal(last, a.covers) {
			d.switches++
		}
		last = a.covers
	}
	return d
}

// TestHandOver lets two prefixes that have an address in common take turns in banning it, as fast as
// that goes, while the program is asked about nothing else. Those that monitor and lie around the
// address make the program look long, so that it is often in the middle when they change.
func TestHandOver(t *testing.T) {
	for _, c := range []struct {
		addr      string
		one, two  int
		monitored bool
		others    int // that fill the table, so that each search takes long, too
	}{
		{"198.51.100.77", 32, 16, false, 0},
		{"198.51.100.77", 32, 20, true, 50},
		{"198.51.100.77", 31, 16, true, 50},
		{"198.51.100.77", 27, 18, true, 40},
		{"2001:db8:1:2:3:4:5:6", 128, 32, false, 0},
		{"2001:db8:1:2:3:4:5:6", 127, 29, true, 0},
		{"2001:db8:1:2:3:4:5:6", 65, 47, true, 0},
	} {
		t.Run(fmt.Sprintf("%s of %d and %d, monitored %v, %d others", c.addr, c.one, c.two, c.monitored, c.others), func(t *testing.T) {
			how := onlyBans()
			if c.others > 0 {
				how = tiny()
			}
			k := load(t, how)
			addr := address(c.addr)
			ban := func(bits int, monitor bool) Ban {
				return Ban{Prefix: netip.PrefixFrom(addr, bits).Masked(), Monitor: monitor, Expires: bpf.Forever}
			}
			put := func(ban Ban) {
				if err := k.Bans.Put(ban); err != nil {
					t.Error(err)
				}
			}
			// Not so many that it would look longer than four changes take: it gives up after as many.
			for i := range 8 {
				if bits := addr.BitLen() * (8 - i) / 8; c.monitored && bits != c.one && bits != c.two {
					put(ban(bits, true))
				}
			}
			one, two := ban(c.one, false), ban(c.two, false)
			put(two)
			put(one)
			for r := seeded(t); ; {
				if used, _ := k.Bans.Slots(); used >= c.others {
					break
				}
				put(Ban{Prefix: netip.PrefixFrom(addr4(r.Uint32()|1<<31), 32), Expires: bpf.Forever})
			}
			k.Bans.Delete(two.Prefix)
			hammer(t, k, addr, func() {
				put(two)
				k.Bans.Delete(one.Prefix)
				put(one)
				k.Bans.Delete(two.Prefix)
			}, func(got batch.Answer) bool { return got == batch.Answer{Verdict: xdpDrop} })
		})
	}
}

// TestEndedStaysEnded lets a ban that has ended and one that monitors take turns on one prefix: between
// the two there is none that enforces.
func TestEndedStaysEnded(t *testing.T) {
	for _, at := range []string{"198.51.100.77/32", "198.51.100.64/26", "198.0.0.0/9", "2001:db8::1/128", "2001:db8::/33", "::/0"} {
		t.Run(at, func(t *testing.T) {
			k := load(t, onlyBans())
			p := prefix(at)
			put := func(ban Ban) {
				if err := k.Bans.Put(ban); err != nil {
					t.Error(err)
				}
			}
			put(Ban{Prefix: p, Monitor: true, Expires: bpf.Forever})
			hammer(t, k, p.Addr(), func() {
				put(Ban{Prefix: p, Expires: 1, List: 1})
				put(Ban{Prefix: p, Monitor: true, Expires: bpf.Forever})
			}, func(got batch.Answer) bool { return got.Verdict == xdpPass })
		})
	}
}

// hammer changes the table again and again while the program is asked about one address, and fails
// where an answer is not right.
func hammer(t *testing.T, k *kernel, addr netip.Addr, turn func(), right func(batch.Answer) bool) {
	b := asker(t, k)
	addrs := slices.Repeat([]netip.Addr{addr}, 4096)
	var stop atomic.Bool
	var wg sync.WaitGroup
	asked := 0
	wg.Go(func() {
		defer stop.Store(true)
		var answers []batch.Answer
		for end := time.Now().Add(time.Duration(long()) * 250 * time.Millisecond); time.Now().Before(end); asked += len(addrs) {
			var err error
			if answers, err = b.Ask(answers[:0], addrs); err != nil {
				t.Error(err)
				return
			}
			if i := slices.IndexFunc(answers, func(got batch.Answer) bool { return !right(got) }); i >= 0 {
				t.Errorf("after %d lookups the program says %+v", asked+i, answers[i])
				return
			}
		}
	})
	turns := 0
	for ; !stop.Load(); turns++ {
		turn()
	}
	wg.Wait()
	t.Logf("%d turns, %d lookups", turns, asked)
}
