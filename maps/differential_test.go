package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
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
