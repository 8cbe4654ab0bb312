package maps

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// TestLookupAgainstModel changes the table at random and asks the Go twin of the program's reader,
// which reads the mapped tables as the program does, about millions of addresses.
func TestLookupAgainstModel(t *testing.T) {
	k := load(t, onlyBans())
	r := seeded(t)
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			for range 4 * long() {
				w, m := newWorld(r), make(model)
				for i := range some(1500) {
					p := w.step(t, k.Bans, m, v6)
					for range 40 {
						ask(t, k.Bans, m, w.addr(v6), w.now)
						ask(t, k.Bans, m, w.near(p), w.now)
					}
					if i%100 == 0 {
						verify(t, k.Bans, m)
					}
				}
				empty(t, k.Bans, m)
			}
		})
	}
}

func ask(t *testing.T, b *Bans, m model, addr netip.Addr, now uint64) {
	t.Helper()
	got, ok := b.Lookup(addr)
	if err := m.ask(addr, now).check(addr, got, ok); err != nil {
		t.Fatal(err)
	}
}

// empty deletes everything, and checks that nothing is left in the maps.
func empty(t *testing.T, b *Bans, m model) {
	t.Helper()
	for _, p := range slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare) {
		if !b.Delete(p) {
			t.Fatalf("delete %s: was not there", p)
		}
		delete(m, p)
	}
	verify(t, b, m)
	if !blank(b.v4.bits) || !blank(b.v4.classes) || !blank(b.v6.wide) || *b.v6.tiers != 0 {
		t.Fatal("bits are left in an empty table")
	}
	for _, e := range slices.Concat(b.v4.table, b.v4.wide) {
		if e.Word != 0 {
			t.Fatalf("word %#x is left in an empty table", e.Word)
		}
	}
	for _, e := range b.v6.table {
		if e.Word != 0 {
			t.Fatalf("word %#x is left in an empty table", e.Word)
		}
	}
	for _, cell := range b.v6.filter {
		if cell.Low|cell.High != 0 {
			t.Fatal("bits are left in an empty filter")
		}
	}
}

func blank(words []uint64) bool {
	return !slices.ContainsFunc(words, func(w uint64) bool { return w != 0 })
}

// TestProgramAgainstModel runs the program itself: verdict, reason and list of every packet.
func TestProgramAgainstModel(t *testing.T) {
	k := load(t, onlyBans())
	r := seeded(t)
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			for range long() {
				w, m := newWorld(r), make(model)
				for range some(1500) {
					p := w.step(t, k.Bans, m, v6)
					want := tally{}
					before := k.tally()
					for range 16 {
						want.add(t, k, m, w.addr(v6), w.now)
						want.add(t, k, m, w.near(p), w.now)
					}
					if got := k.tally().since(before); got != want {
						t.Fatalf("counted %+v, want %+v", got, want)
					}
				}
				empty(t, k.Bans, m)
			}
		})
	}
}

// tally is what the program counts of bans.
type tally struct {
	clean, banned, monitored   uint64
	bannedList, monitoredLists [4]uint64
}

func (k *kernel) tally() (n tally) {
	n.clean, n.banned, n.monitored = k.count(bpf.ReasonClean, false), k.count(bpf.ReasonBanned, false), k.count(bpf.ReasonBanned, true)
	lists, err := k.Counters.Lists()
	if err != nil {
		k.t.Fatal(err)
	}
	for _, l := range lists {
		if l.Monitored {
			n.monitoredLists[l.List] = l.Packets
		} else {
			n.bannedList[l.List] = l.Packets
		}
	}
	return n
}

func (n tally) since(before tally) tally {
	n.clean -= before.clean
	n.banned -= before.banned
	n.monitored -= before.monitored
	for i := range n.bannedList {
		n.bannedList[i] -= before.bannedList[i]
		n.monitoredLists[i] -= before.monitoredLists[i]
	}
	return n
}

// add runs a packet and adds what it must have counted. The list is that of the Go reader, whose
// answer is checked against the model.
func (n *tally) add(t *testing.T, k *kernel, m model, addr netip.Addr, now uint64) {
	t.Helper()
	want := uint32(xdpPass)
	ban, ok := k.Bans.Lookup(addr)
	if err := m.ask(addr, now).check(addr, ban, ok); err != nil {
		t.Fatal(err)
	}
	switch {
	case !ok:
		n.clean++
	case ban.Monitor:
		n.monitored++
		n.monitoredLists[ban.List]++
	default:
		n.banned++
		n.bannedList[ban.List]++
		want = xdpDrop
	}
	if got := k.run(frame(addr), 1); got != want {
		t.Fatalf("%s: verdict %d, want %d (%+v)", addr, got, want, ban)
	}
}

// tiny is a program whose tables fill quickly.
func tiny() setup {
	s := onlyBans()
	s.buckets4, s.buckets6, s.cells6 = 16, 16, 16
	return s
}

// TestCrowdedTable keeps tiny tables at the brim: long searches, tombstones, filter cells that many
// prefixes share, and prefixes that find no room, which may have others move but must change nothing.
func TestCrowdedTable(t *testing.T) {
	k := load(t, tiny())
	r := seeded(t)
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			full, tombs, rounds := 0, 0, max(1, some(3))*long()
			for range rounds {
				w, m := newWorld(r), make(model)
				for i := range 1000 {
					keys := slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare)
					if len(keys) > 0 && w.IntN(5) < 2 {
						p := keys[w.IntN(len(keys))]
						if !k.Bans.Delete(p) {
							t.Fatalf("delete %s: was not there", p)
						}
						delete(m, p)
					} else {
						ban := w.ban(v6)
						before := memory(k.Bans)
						err := k.Bans.Put(ban)
						var f *FullError
						switch {
						case err == nil:
							m.put(ban)
						case !errors.As(err, &f) || !errors.Is(err, ErrFull):
							t.Fatal(err)
						case f.Prefix != plain(ban.Prefix).String() || f.Setting == "":
							t.Fatalf("full: %+v", f)
						default:
							full++
							if !slices.Equal(before, memory(k.Bans)) {
								t.Fatalf("%s found no room, but what the tables say has changed", ban.Prefix)
							}
						}
					}
					for range 30 {
						ask(t, k.Bans, m, w.addr(v6), w.now)
					}
					for _, e := range k.Bans.v4.table {
						if e.Word == bpf.BanTombstone {
							tombs++
						}
					}
					for _, e := range k.Bans.v6.table {
						if e.Word == bpf.BanTombstone {
							tombs++
						}
					}
					if i%50 == 0 {
						verify(t, k.Bans, m)
					}
				}
				for range 200 {
					addr := w.addr(v6)
					want := uint32(xdpPass)
					if m.ask(addr, w.now).banned {
						want = xdpDrop
					}
					if got := k.run(frame(addr), 1); got != want {
						t.Fatalf("%s: verdict %d, want %d", addr, got, want)
					}
				}
				empty(t, k.Bans, m)
			}
			if full < 33*rounds || tombs < 333*rounds {
				t.Errorf("not crowded: %d found no room, %d tombstones seen", full, tombs)
			}
		})
	}
}

// memory is what the hashed tables say, wherever in its window an entry stands, and what leads to them.
func memory(b *Bans) [][4]uint64 {
	var all [][4]uint64
	for _, e := range b.v4.table {
		if live(e.Word) {
			all = append(all, [4]uint64{e.Word, e.Expires})
		}
	}
	for _, e := range b.v6.table {
		if live(e.Word) {
			all = append(all, [4]uint64{e.Word, e.Hi, e.Lo, e.Expires})
		}
	}
	slices.SortFunc(all, func(a, b [4]uint64) int { return slices.Compare(a[:], b[:]) })
	for _, c := range b.v6.filter {
		all = append(all, [4]uint64{c.Low, c.High})
	}
	return append(all, [4]uint64{uint64(*b.v6.tiers)})
}

// homed returns addresses whose /32 (IPv4) or /128 has its home in a bucket.
func homed(b *Bans, v6 bool, bucket uint32, n int) (list []netip.Addr) {
	for i := uint64(1); len(list) < n; i++ {
		switch {
		case v6:
			k := key6{0x20010DB8 << 32, i, 128}
			if uint32(b.v6.hashOf(k)>>32)&b.v6.mask == bucket {
				list = append(list, k.addr())
			}
		case b.v4.home(class32, uint32(i)<<8) == bucket:
			list = append(list, addr4(uint32(i)<<8))
		}
	}
	return list
}

// TestFullBucket forces entries into one bucket until a search finds no place for more, at the wrap
// of the table.
func TestFullBucket(t *testing.T) {
	k := load(t, onlyBans())
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			room, home, words := bpf.Ban4Slots*bpf.Ban4Probes, k.Bans.v4.mask-2, func() (n []uint64) {
				for _, e := range k.Bans.v4.table {
					if e.Word != 0 {
						n = append(n, e.Word)
					}
				}
				return n
			}
			if v6 {
				room, home, words = bpf.Ban6Slots*bpf.Ban6Probes, k.Bans.v6.mask-2, func() (n []uint64) {
					for _, e := range k.Bans.v6.table {
						if e.Word != 0 {
							n = append(n, e.Word)
						}
					}
					return n
				}
			}
			addrs := homed(k.Bans, v6, home, room+1)
			single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
			m := make(model)
			put := func(a netip.Addr) error {
				ban := Ban{Prefix: single(a), Expires: bpf.Forever}
				err := k.Bans.Put(ban)
				if err == nil {
					m.put(ban)
				}
				return err
			}
			for _, a := range addrs[:room] {
				if err := put(a); err != nil {
					t.Fatal(err)
				}
			}
			if err := put(addrs[room]); !errors.Is(err, ErrFull) {
				t.Fatalf("the last one: %v", err)
			}
			verify(t, k.Bans, m)
			for _, a := range addrs {
				ask(t, k.Bans, m, a, Monotonic())
			}

			// The first goes: behind a tombstone, the last is still found, by both readers.
			remove := func(a netip.Addr) {
				if !k.Bans.Delete(single(a)) {
					t.Fatalf("delete %s", a)
				}
				delete(m, single(a))
			}
			remove(addrs[0])
			if len(words()) != room {
				t.Fatalf("%d words, want %d and a tombstone", len(words()), room-1)
			}
			if got := k.run(frame(addrs[room-1]), 1); got != xdpDrop {
				t.Fatal("an entry behind a tombstone is not found")
			}
			if got := k.run(frame(addrs[0]), 1); got != xdpPass {
				t.Fatal("a tombstone bans")
			}
			// The tombstone is used again.
			if err := put(addrs[room]); err != nil {
				t.Fatal(err)
			}
			verify(t, k.Bans, m)
			remove(addrs[room])

			// All of the first bucket goes: tombstones. Then all that was pushed past it: no tombstone
			// is left, for nothing lies behind.
			slots := room / bpf.Ban4Probes
			if v6 {
				slots = room / bpf.Ban6Probes
			}
			for _, a := range addrs[1:slots] {
				remove(a)
			}
			if len(words()) != room {
				t.Fatalf("%d words, want %d", len(words()), room)
			}
			for _, a := range addrs[slots:room] {
				remove(a)
				for _, a := range addrs {
					ask(t, k.Bans, m, a, Monotonic())
				}
			}
			if left := words(); len(left) != 0 {
				t.Fatalf("words are left: %x", left)
			}
		})
	}
}

// TestFullIsAllOrNothing puts a prefix that expands to eight slots where only some find room.
func TestFullIsAllOrNothing(t *testing.T) {
	k := load(t, tiny())
	b := k.Bans
	m := make(model)
	for i := uint32(0); b.v4.used() < len(b.v4.table)-4; i++ {
		ban := Ban{Prefix: netip.PrefixFrom(addr4(0x0A000000+i<<8), 32), Expires: bpf.Forever}
		if err := b.Put(ban); err == nil {
			m.put(ban)
		} else if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	before := memory(b)
	bits, classes := slices.Clone(b.v4.bits), slices.Clone(b.v4.classes)
	err := b.Put(Ban{Prefix: prefix("192.0.2.8/29"), Expires: bpf.Forever})
	if !errors.Is(err, ErrFull) {
		t.Fatalf("eight slots where four are free: %v", err)
	}
	t.Log(err)
	if !slices.Equal(before, memory(b)) || !slices.Equal(bits, b.v4.bits) || !slices.Equal(classes, b.v4.classes) {
		t.Fatal("something was written")
	}
	if _, ok := b.Get(prefix("192.0.2.8/29")); ok {
		t.Fatal("it is there")
	}
	verify(t, b, m)

	// Changing what is there needs no room, and /16 and wider none of this table.
	for p := range m {
		ban := Ban{Prefix: p, List: 9, Expires: bpf.Forever}
		if err := b.Put(ban); err != nil {
			t.Fatal(err)
		}
		m.put(ban)
	}
	ban := Ban{Prefix: prefix("203.0.0.0/10"), Expires: bpf.Forever}
	if err := b.Put(ban); err != nil {
		t.Fatal(err)
	}
	m.put(ban)
	verify(t, b, m)
}

func TestWrongBans(t *testing.T) {
	k := load(t, onlyBans())
	for _, ban := range []Ban{{}, {Prefix: prefix("192.0.2.0/24"), List: 1024}} {
		if err := k.Bans.Put(ban); err == nil {
			t.Errorf("%+v was put", ban)
		}
	}
	if k.Bans.Delete(netip.Prefix{}) {
		t.Error("deleted the prefix that is none")
	}
	if _, ok := k.Bans.Lookup(netip.Addr{}); ok {
		t.Error("found the address that is none")
	}
	changes, err := k.Bans.PutAll(slices.Values([]Ban{
		{Prefix: prefix("192.0.2.0/24"), List: 1024}, {}, {Prefix: prefix("198.51.100.0/24"), Expires: bpf.Forever},
	}))
	if err == nil || changes != (Changes{Added: 1}) {
		t.Errorf("got %+v, %v", changes, err)
	}
}

// TestExpiry waits for bans to end by themselves.
func TestExpiry(t *testing.T) {
	k := load(t, onlyBans())
	var at uint64
	addrs := []netip.Addr{address("192.0.2.1"), address("198.51.100.77"), address("203.0.113.9"), address("2001:db8::1"), address("2400::1")}
	check := func(banned bool) {
		t.Helper()
		for _, a := range addrs {
			ban, ok := k.Bans.Lookup(a)
			verdict := k.run(frame(a), 1)
			if banned && Monotonic() >= at {
				return // asked too late
			}
			if ok != banned || (verdict == xdpDrop) != banned || banned && ban.Expires != at {
				t.Errorf("%s: found %v, verdict %d, want banned: %v", a, ok, verdict, banned)
			}
		}
	}
	// Again with more time, where a busy machine has not asked about all before they end.
	for ahead := uint64(100e6); Monotonic() >= at; ahead *= 4 {
		if ahead > 60e9 {
			t.Fatal("no time was enough")
		}
		at = Monotonic() + ahead
		for i, length := range []int{32, 24, 9, 128, 32} {
			if err := k.Bans.Put(Ban{Prefix: netip.PrefixFrom(addrs[i], length), Expires: at}); err != nil {
				t.Fatal(err)
			}
		}
		check(true)
	}
	for Monotonic() < at+20e6 {
	}
	check(false)
	if n4, n6 := k.Bans.Len(); n4 != 3 || n6 != 2 {
		t.Errorf("%d and %d bans, want those that ended too", n4, n6)
	}
}

func TestHalvesOfIPv6(t *testing.T) {
	k := load(t, onlyBans())
	b, m := k.Bans, make(model)
	lower, upper := address("2001:db8::1"), address("fd00::1")
	put := func(p string, list uint16, monitor bool, expires uint64) {
		ban := Ban{prefix(p), list, monitor, expires}
		if err := b.Put(ban); err != nil {
			t.Fatal(err)
		}
		m.put(ban)
	}
	step := func(change func()) {
		t.Helper()
		change()
		verify(t, b, m)
		for _, a := range []netip.Addr{lower, upper} {
			ask(t, b, m, a, Monotonic())
			if want := m.ask(a, Monotonic()).banned; (k.run(frame(a), 1) == xdpDrop) != want {
				t.Errorf("%s: want banned %v", a, want)
			}
		}
	}
	later := Monotonic() + 3600e9
	step(func() { put("::/0", 1, false, later) })
	step(func() { put("8000::/1", 2, true, bpf.Forever) })
	step(func() { put("8000::/1", 2, false, bpf.Forever) })
	step(func() { put("::/1", 3, true, later) })
	step(func() { b.Delete(prefix("::/0")); delete(m, prefix("::/0")) })
	step(func() { put("::/0", 1, false, later) })
	step(func() { b.Delete(prefix("8000::/1")); delete(m, prefix("8000::/1")) })
	step(func() { b.Delete(prefix("::/1")); delete(m, prefix("::/1")) })
	k.reopen()
	b = k.Bans
	verify(t, b, m) // whose the slots of the halves are is seen by themselves
	changes, err := b.Sync(maps.Values(m))
	if err != nil || changes != (Changes{Kept: 1}) {
		t.Errorf("%+v, %v", changes, err)
	}
	step(func() {})
	empty(t, b, m)

	// A slot of a set whose writer did not mark whose it is counts as the half's own, until Sync.
	step(func() { put("::/0", 1, false, later) })
	for _, i := range []int{0, 1} {
		at, _ := b.v6.locate(halfKey(i), -1)
		b.v6.table[at].Word &^= bpf.BanAll
	}
	k.reopen()
	b = k.Bans
	if all := collect(b.All()); len(all) != 2 {
		t.Errorf("%+v", all)
	}
	if changes, err := b.Sync(maps.Values(m)); err != nil || changes.Removed != 2 {
		t.Errorf("%+v, %v", changes, err)
	}
	step(func() {})
}
