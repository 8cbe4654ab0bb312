package maps

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// TestSync makes tables that hold one random set equal to another, sometimes after they were opened
// anew, and with garbage in them.
func TestSync(t *testing.T) {
	for name, s := range map[string]setup{"roomy": onlyBans(), "tiny": tiny()} {
		t.Run(name, func(t *testing.T) {
			k := load(t, s)
			r := seeded(t)
			for round := range max(1, some(12)) * long() {
				w, have, want := newWorld(r), make(model), make(model)
				// What the table holds before: put one by one, some of it changed again.
				for range 150 {
					ban := w.ban(w.IntN(2) == 0)
					if err := k.Bans.Put(ban); err == nil {
						have.put(ban)
					} else if !errors.Is(err, ErrFull) {
						t.Fatal(err)
					}
				}
				// What is wanted: some of that, some changed, and others.
				for p, ban := range have {
					switch w.IntN(4) {
					case 0:
						continue
					case 1:
						changed := w.ban(p.Addr().Is6())
						changed.Prefix = p
						want.put(changed)
					default:
						want.put(ban)
					}
				}
				for range 100 {
					want.put(w.ban(w.IntN(2) == 0))
				}

				fresh := w.IntN(2) == 0
				if fresh {
					k.reopen()
				}
				dirty := w.IntN(3) == 0
				if dirty {
					litter(w, k.Bans)
				}
				changes, err := k.Bans.Sync(maps.Values(want))
				if err != nil && !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
				if err != nil { // tiny: what found no room is missing, and no more than that
					for p := range want {
						if _, ok := k.Bans.Get(p); !ok {
							delete(want, p)
							changes.Full--
						}
					}
					if changes.Full != 0 {
						t.Fatalf("%d more found no room than are missing", changes.Full)
					}
				}
				verify(t, k.Bans, want)
				if !fresh && !dirty && err == nil {
					if expected := expect(have, want); changes != expected {
						t.Fatalf("round %d: %+v, want %+v", round, changes, expected)
					}
				}
				for range 500 {
					ask(t, k.Bans, want, w.addr(w.IntN(2) == 0), w.now)
				}

				// Once more: nothing to do, nothing written.
				before := memory(k.Bans)
				changes, err = k.Bans.Sync(maps.Values(want))
				if err != nil || changes != (Changes{Kept: len(want)}) {
					t.Fatalf("the second time: %+v, %v", changes, err)
				}
				if !slices.Equal(before, memory(k.Bans)) {
					t.Fatal("the second time: something was written")
				}
				// Opened anew, too, but for prefixes that others hide.
				k.reopen()
				changes, err = k.Bans.Sync(maps.Values(want))
				if err != nil || changes.Updated+changes.Removed+changes.Repaired > 2 {
					t.Fatalf("opened anew: %+v, %v", changes, err)
				}
				verify(t, k.Bans, want)
				empty(t, k.Bans, want)
			}
		})
	}
}

func expect(have, want model) (c Changes) {
	for p, ban := range want {
		old, ok := have[p]
		switch {
		case !ok:
			c.Added++
		case old == ban:
			c.Kept++
		default:
			c.Updated++
		}
	}
	for p := range have {
		if _, ok := want[p]; !ok {
			c.Removed++
		}
	}
	return c
}

// litter does to the tables what no writer of this package does: words that say nothing sensible,
// entries where no reader finds them and twice, tombstones, bits and classes without reason, and
// bits and classes missing.
func litter(w *world, b *Bans) {
	some4 := func() *bpf.Ban4Entry { return &b.v4.table[w.IntN(len(b.v4.table))] }
	some6 := func() *bpf.Ban6Entry { return &b.v6.table[w.IntN(len(b.v6.table))] }
	live4 := func() (e *bpf.Ban4Entry) {
		for range 10000 {
			if e = some4(); live(e.Word) {
				break
			}
		}
		return e
	}
	live6 := func() (e *bpf.Ban6Entry) {
		for range 10000 {
			if e = some6(); live(e.Word) {
				break
			}
		}
		return e
	}
	for range 1 + w.IntN(20) {
		switch w.IntN(12) {
		case 0:
			some4().Word = w.Uint64()
		case 1:
			some6().Word = w.Uint64()
		case 2:
			some4().Word = bpf.BanTombstone
		case 3:
			some6().Word = bpf.BanTombstone
		case 4:
			*some4() = *live4()
		case 5:
			*some6() = *live6()
		case 6:
			live4().Word = 0
		case 7:
			live6().Word = 0
		case 8:
			b.v4.bits[uint4(w.addr4())>>14] ^= w.Uint64()
		case 9:
			b.v4.classes[uint4(w.addr4())>>12] ^= w.Uint64()
		case 10:
			b.v4.wide[w.IntN(len(b.v4.wide))].Word = w.Uint64()
		case 11:
			b.v6.filter[w.IntN(len(b.v6.filter))].Low ^= w.Uint64()
			b.v6.wide[w.IntN(len(b.v6.wide))] ^= w.Uint64()
			*b.v6.tiers ^= w.Uint32N(8)
		}
	}
}

// TestSyncKeepsWhatStays syncs a table that is full of what is not wanted any more with a set that
// finds room only when that has gone.
func TestSyncKeepsWhatStays(t *testing.T) {
	k := load(t, tiny())
	old, next := make(model), make(model)
	for i := range uint32(64) {
		ban := Ban{Prefix: netip.PrefixFrom(addr4(0x0A000000+i<<8), 32), Expires: bpf.Forever}
		if k.Bans.Put(ban) == nil {
			old.put(ban)
		}
		if i%4 == 0 {
			next.put(ban)
		} else {
			ban.Prefix = netip.PrefixFrom(addr4(0x14000000+i<<8), 32)
			next.put(ban)
		}
	}
	changes, err := k.Bans.Sync(maps.Values(next))
	t.Logf("%+v, %v", changes, err)
	if used, _ := k.Bans.Slots(); used < 56 {
		t.Errorf("%d of 64 slots are used", used)
	}
	for p, ban := range old {
		_, ok := k.Bans.Get(p)
		if _, stays := next[p]; ok != stays {
			t.Errorf("%+v: there: %v, want %v", ban, ok, stays)
		}
	}
}

// TestSyncInFullTable syncs to and fro between two bans of one address in a table that is full with the others
// of the first: what bans the address goes last, so that nobody ever sees it unbanned.
func TestSyncInFullTable(t *testing.T) {
	for _, c := range []struct {
		name          string
		always        netip.Addr
		first, second netip.Prefix
		other         func(i uint32) netip.Prefix
	}{
		{"ipv4", netip.MustParseAddr("192.0.2.7"), prefix("192.0.2.7/32"), prefix("192.0.2.0/28"),
			func(i uint32) netip.Prefix { return netip.PrefixFrom(addr4(0x0A000000+i<<8), 32) }},
		{"ipv6", netip.MustParseAddr("2001:db8::7"), prefix("2001:db8::7/128"), prefix("2001:db8::/64"),
			func(i uint32) netip.Prefix { return netip.PrefixFrom(addr6(0x20010db9<<32|uint64(i)<<8, 1), 128) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := load(t, tiny())
			full, next := []Ban{forever(c.first)}, []Ban{forever(c.second)}
			if err := k.Bans.Put(full[0]); err != nil {
				t.Fatal(err)
			}
			for i := range uint32(1000) {
				if ban := forever(c.other(i)); k.Bans.Put(ban) == nil {
					full = append(full, ban)
				}
			}
			var stop atomic.Bool
			var wg sync.WaitGroup
			looks, missed := 0, 0
			wg.Go(func() {
				for ; !stop.Load(); looks++ {
					if _, ok := k.Bans.Lookup(c.always); !ok {
						missed++
					}
				}
			})
			for range some(200) {
				for _, wanted := range [][]Ban{next, full} {
					changes, err := k.Bans.Fill(slices.Values(wanted))
					if len(wanted) > 1 && errors.Is(err, ErrFull) {
						err = nil // the others may lie less well than the first time
					}
					if err != nil || changes.Late > 0 || changes.Added == 0 || changes.Removed == 0 {
						t.Errorf("to %d bans: %+v, %v", len(wanted), changes, err)
					}
				}
			}
			stop.Store(true)
			wg.Wait()
			t.Logf("%d bans fill the table; %d looks", len(full), looks)
			if missed > 0 {
				t.Errorf("%s is banned before and after each, and was not in %d of %d looks", c.always, missed, looks)
			}
		})
	}
}

// TestSyncLate needs the room of those that ban the address before: what comes when they are gone is told.
func TestSyncLate(t *testing.T) {
	k := load(t, tiny())
	for i := range uint32(256) {
		_ = k.Bans.Put(forever(netip.PrefixFrom(addr4(0xC0000200+i), 32))) // until there is no room
	}
	next := model{}
	next.put(forever(prefix("192.0.2.0/24")))
	changes, err := k.Bans.Sync(maps.Values(next))
	if err != nil || changes.Late != 1 || changes.Added != 1 || changes.Removed < 32 {
		t.Errorf("%+v, %v; want one that was late", changes, err)
	}
	verify(t, k.Bans, next)
}

// TestSyncTurns has one of two bans take the only room that can be made at first. From then on, what has addresses
// in common with that one alone may go, and makes room for the other, which is not late.
func TestSyncTurns(t *testing.T) {
	k := load(t, tiny())
	gone := forever(prefix("192.0.2.1/32"))
	if err := k.Bans.Put(gone); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(256) {
		_ = k.Bans.Put(forever(netip.PrefixFrom(addr4(0xCB007100+i), 32))) // until there is no room
	}
	next := []Ban{forever(prefix("203.0.113.0/24")), forever(prefix("198.51.100.0/24"))}
	changes, err := k.Bans.Sync(values(next))
	if err != nil || changes.Late != 0 || changes.Added != 2 || changes.Removed < 32 {
		t.Errorf("%+v, %v; want none that was late", changes, err)
	}
	want := model{}
	for _, ban := range next {
		want.put(ban)
	}
	verify(t, k.Bans, want)
}

func forever(p netip.Prefix) Ban { return Ban{Prefix: p, Expires: bpf.Forever} }

// TestTakeOver lets a ban that stops enforcing come long before the ones that take over from it.
func TestTakeOver(t *testing.T) {
	for _, c := range []struct {
		name   string
		before Ban
		after  []netip.Prefix // enforce from then on
		always netip.Addr
	}{
		{"ipv4", Ban{Prefix: prefix("192.0.2.0/24")}, []netip.Prefix{prefix("192.0.2.7/32")}, netip.MustParseAddr("192.0.2.7")},
		{"ipv4, wide", Ban{Prefix: prefix("192.0.0.0/12")}, []netip.Prefix{prefix("192.0.2.0/27")}, netip.MustParseAddr("192.0.2.7")},
		{"ipv6", Ban{Prefix: prefix("2001:db8::/32")}, []netip.Prefix{prefix("2001:db8::/64")}, netip.MustParseAddr("2001:db8::7")},
	} {
		for _, ends := range []struct {
			name string
			ban  Ban
		}{
			{"monitors", Ban{Monitor: true, Expires: bpf.Forever}},
			{"has expired", Ban{Expires: 1}},
		} {
			t.Run(c.name+" "+ends.name, func(t *testing.T) {
				k := load(t, onlyBans())
				c.before.Expires = bpf.Forever
				if err := k.Bans.Put(c.before); err != nil {
					t.Fatal(err)
				}
				ends.ban.Prefix, ends.ban.List = c.before.Prefix, 3
				look := func(when string) {
					if ban, ok := k.Bans.Lookup(c.always); !ok || ban.Monitor {
						t.Errorf("%s: %s is banned before and after, found %+v", when, c.always, ban)
					}
				}
				want := model{}
				wanted := func(yield func(Ban) bool) {
					give := func(ban Ban) {
						want.put(ban)
						yield(ban)
						look("while others are put")
					}
					give(ends.ban)
					for i := range uint32(200) { // more than a batch
						give(Ban{Prefix: netip.PrefixFrom(addr4(0x0A000000+i<<8), 32), Expires: bpf.Forever})
					}
					for _, p := range c.after {
						give(Ban{Prefix: p, Expires: bpf.Forever})
					}
				}
				changes, err := k.Bans.Sync(wanted)
				if err != nil || changes != (Changes{Added: 201, Updated: 1}) {
					t.Errorf("%+v, %v", changes, err)
				}
				look("afterwards")
				verify(t, k.Bans, want)
			})
		}
	}
}

// TestSyncWithWrongBans goes on past wrong ones and says so.
func TestSyncWithWrongBans(t *testing.T) {
	k := load(t, onlyBans())
	good := Ban{Prefix: prefix("192.0.2.0/24"), Expires: bpf.Forever}
	changes, err := k.Bans.Sync(slices.Values([]Ban{{}, good, {Prefix: good.Prefix, List: 5000}}))
	if err == nil || changes != (Changes{Added: 1}) {
		t.Fatalf("%+v, %v", changes, err)
	}
	verify(t, k.Bans, model{good.Prefix: good})
}
