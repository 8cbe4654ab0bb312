package maps

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-xdp/levee/maps/internal/batch"
)

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
			var sums struct{ steps, syncs, asked, always, never, busy, cut, late int }
			enough := func() bool { return sums.always > 0 && sums.never > 0 && sums.steps >= 1000 }
			rounds := max(2, some(10)) * long()
			for round := 0; round < rounds || (!enough() && round < 20*rounds); round++ { // more on a busy machine
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
				var wrong error
				var syncs atomic.Uint64 // odd while one is under way
				forgivable := false
				wg.Go(func() {
					defer stop.Store(true)
					var answers []batch.Answer
					for end := time.Now().Add(120 * time.Millisecond); time.Now().Before(end) && !stop.Load(); {
						var err error
						before := syncs.Load()
						if answers, err = b.Ask(answers[:0], addrs); err != nil {
							t.Error(err)
							return
						}
						for i, got := range answers {
							if wrong = judges[i].judge(addrs[i], got); wrong != nil {
								forgivable = before%2 == 1 || syncs.Load() != before
								return
							}
						}
						sums.asked += len(addrs)
					}
				})
				at, on, late := len(walk), -1, false
				for !stop.Load() {
					var err error
					if w.IntN(4000) == 0 {
						to := w.IntN(len(states))
						var changes Changes
						syncs.Add(1)
						changes, err = k.Bans.Sync(maps.Values(states[to]))
						// What found no room before others were gone may have passed meanwhile.
						if late = changes.Late+changes.Full > 0; late {
							stop.Store(true)
						} else {
							syncs.Add(1)
						}
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
				if late {
					sums.late++
				}
				if wrong != nil && (!late || !forgivable) {
					t.Error(wrong)
				}
				if t.Failed() {
					t.Logf("round %d, %d bans, %d steps", round, len(m), len(walk))
					return
				}
				if _, err := k.Bans.Sync(values(nil)); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%+v", sums)
			if !enough() || sums.late > sums.syncs/10 {
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
