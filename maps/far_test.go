package maps

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps/internal/batch"
)

// The program remembers, CPU by CPU, which /48 of IPv6 no ban is near: struct ban6_far. These tests are
// about when it must ask again.

// onCPU binds the calling goroutine for good to one of the CPUs that the process may use, counted from 0 and
// around. Its thread ends with it.
func onCPU(t testing.TB, nth int) {
	t.Helper()
	runtime.LockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	nth %= all.Count()
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			if nth == 0 {
				one.Set(cpu)
			}
			nth--
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
}

// remembered tells whether the program remembers that no ban is near an address, as its own memory says.
func (k *kernel) remembered(addr netip.Addr) bool {
	k.t.Helper()
	key := keyOf6(netip.PrefixFrom(addr, 48)).hi >> 16
	var fars []bpf.Ban6Far // of each CPU
	m := k.maps[bpf.LeveeMapBan6Fars]
	for i := range m.MaxEntries() {
		if err := m.Lookup(i, &fars); err != nil {
			k.t.Fatal(err)
		}
		for _, far := range fars {
			if far.Key == key && far.Version == k.Control.c.Ban6Version {
				return true
			}
		}
	}
	return false
}

// takesPlaceOf finds an address whose /48 the program remembers in the place of another one's.
func takesPlaceOf(addr netip.Addr) netip.Addr {
	place := func(addr netip.Addr) uint64 {
		const multiplier = 0xC4CEB9FE1A85EC53 // HASH_B
		key := keyOf6(netip.PrefixFrom(addr, 128)).hi >> 16
		return (key ^ onlyBans().secret[0]) * multiplier >> (64 - 6) // BAN6_FARS_SHIFT
	}
	other := addr.As16()
	for other[0]++; place(netip.AddrFrom16(other)) != place(addr); other[5]++ {
	}
	return netip.AddrFrom16(other)
}

// elsewhere is bans of every tier, far from what the tests ask about: without any the filters need not be
// asked, and nothing is remembered.
var elsewhere = []Ban{
	{Prefix: prefix("3fff:1::1/128"), Expires: bpf.Forever},
	{Prefix: prefix("3fff:200::/40"), Expires: bpf.Forever},
	{Prefix: prefix("3fe0::/20"), Expires: bpf.Forever},
}

// loadFar is a program with bans elsewhere.
func loadFar(t *testing.T) *kernel {
	t.Helper()
	k := load(t, onlyBans())
	if _, err := k.Bans.PutAll(values(elsewhere)); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestFarIsAskedAgain bans an address that the program has just found far from every ban, by prefixes of
// all lengths and in all ways that there are.
func TestFarIsAskedAgain(t *testing.T) {
	onCPU(t, 0)
	k := loadFar(t)
	addr := address("2001:db8:1:2:3:4:5:6")
	pass := func(bits int, when string) {
		t.Helper()
		for range 2 { // it asks, and then remembers
			if got := k.run(frame(addr), 1); got != xdpPass {
				t.Fatalf("%s %s a /%d: verdict %d", addr, when, bits, got)
			}
		}
		if !k.remembered(addr) {
			t.Fatalf("%s %s a /%d: it is not remembered that no ban is near", addr, when, bits)
		}
	}
	for bits := range 129 {
		ban := Ban{Prefix: netip.PrefixFrom(addr, bits).Masked(), Expires: bpf.Forever}
		for name, change := range map[string]func() error{
			"Put":     func() error { return k.Bans.Put(ban) },
			"PutMany": func() error { k.Bans.PutMany([]Ban{ban}); return nil },
			"PutAll":  func() error { _, err := k.Bans.PutAll(values([]Ban{ban})); return err },
			"Sync": func() error {
				_, err := k.Bans.Sync(values(append(elsewhere[:len(elsewhere):len(elsewhere)], ban)))
				return err
			},
		} {
			pass(bits, "before")
			if err := change(); err != nil {
				t.Fatal(err)
			}
			if got := k.run(frame(addr), 1); got != xdpDrop {
				t.Errorf("%s after %s of a /%d: verdict %d", addr, name, bits, got)
			}
			if !k.Bans.Delete(ban.Prefix) {
				t.Errorf("%s is gone", ban.Prefix)
			}
			pass(bits, "after")
		}
	}
}

// TestFarNeedsOrder has a CPU that may see loads in another order: there the program remembers nothing, and bans
// all the same.
func TestFarNeedsOrder(t *testing.T) {
	onCPU(t, 0)
	how := onlyBans()
	how.unordered = true
	k := load(t, how)
	if _, err := k.Bans.PutAll(values(elsewhere)); err != nil {
		t.Fatal(err)
	}
	addr := address("2001:db8:1:2:3:4:5:6")
	for bits := range 129 {
		ban := Ban{Prefix: netip.PrefixFrom(addr, bits).Masked(), Expires: bpf.Forever}
		for range 2 {
			if got := k.run(frame(addr), 1); got != xdpPass || k.remembered(addr) {
				t.Fatalf("before a /%d: verdict %d, remembered: %v", bits, got, k.remembered(addr))
			}
		}
		if err := k.Bans.Put(ban); err != nil {
			t.Fatal(err)
		}
		if got := k.run(frame(addr), 1); got != xdpDrop {
			t.Errorf("after a /%d: verdict %d", bits, got)
		}
		k.Bans.Delete(ban.Prefix)
	}
}

// TestFarIsOfOne48 asks about far addresses and banned ones in turn: there are more /48 than the program
// remembers.
func TestFarIsOfOne48(t *testing.T) {
	onCPU(t, 0)
	k := loadFar(t)
	at := func(net int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(net >> 8), byte(net), 15: 1})
	}
	nets := some(5*64) &^ 1
	for net := 1; net < nets; net += 2 {
		if err := k.Bans.Put(Ban{Prefix: netip.PrefixFrom(at(net), 48).Masked(), Expires: bpf.Forever}); err != nil {
			t.Fatal(err)
		}
	}
	for net := range nets {
		for other := range nets {
			want := []uint32{xdpPass, xdpDrop}[other%2]
			if got := k.run(frame(at(other)), 1); got != want {
				t.Fatalf("%s: verdict %d, want %d", at(other), got, want)
			}
			if got := k.run(frame(at(net&^1)), 1); got != xdpPass {
				t.Fatalf("%s: verdict %d", at(net&^1), got)
			}
		}
	}
}

// TestFarIsOfAllOfIt asks about an address that is not banned beside one that is, in one /48: that it passes is
// no reason to remember that no ban is near.
func TestFarIsOfAllOfIt(t *testing.T) {
	onCPU(t, 0)
	k := loadFar(t)
	banned, clean := address("2001:db8:1:2:3:4:5:6"), address("2001:db8:1:ffff:3:4:5:6")
	for bits := 49; bits <= 128; bits++ {
		ban := Ban{Prefix: netip.PrefixFrom(banned, bits).Masked(), Expires: bpf.Forever}
		if err := k.Bans.Put(ban); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := k.run(frame(clean), 1); got != xdpPass {
				t.Errorf("/%d: %s: verdict %d", bits, clean, got)
			}
			if got := k.run(frame(banned), 1); got != xdpDrop {
				t.Errorf("/%d: %s: verdict %d", bits, banned, got)
			}
		}
		if !k.Bans.Delete(ban.Prefix) {
			t.Errorf("%s is gone", ban.Prefix)
		}
	}
}

// TestFarOfOneWhoWasStopped has a writer end after it made a ban visible, before it said so: the next one
// says it.
func TestFarOfOneWhoWasStopped(t *testing.T) {
	onCPU(t, 0)
	k := loadFar(t)
	addr := address("2001:db8:1:2:3:4:5:6")
	for _, bits := range []int{128, 64, 48, 40, 24, 8} {
		if got := k.run(frame(addr), 2); got != xdpPass {
			t.Fatalf("/%d: verdict %d before there is a ban", bits, got)
		}
		version := k.Control.c.Ban6Version
		ban := Ban{Prefix: netip.PrefixFrom(addr, bits).Masked(), Expires: bpf.Forever}
		if err := k.Bans.Put(ban); err != nil {
			t.Fatal(err)
		}
		atomic.StoreUint64(&k.Control.c.Ban6Version, version)
		if got := k.run(frame(addr), 1); got != xdpPass {
			t.Fatalf("/%d: verdict %d where nothing was said: this is no test", bits, got)
		}
		k.reopen()
		if got := k.run(frame(addr), 1); got != xdpDrop {
			t.Errorf("/%d: verdict %d after the tables were opened again", bits, got)
		}
		if !k.Bans.Delete(ban.Prefix) {
			t.Errorf("%s is gone", ban.Prefix)
		}
	}
}

// TestFarWhileChanging bans an address and lets it go, time and again, while the program is asked about it on
// another CPU (where there is one: else between its looks): what it remembered at the wrong moment it would go by
// until the next change.
func TestFarWhileChanging(t *testing.T) {
	r := seeded(t)
	k := loadFar(t)
	b := asker(t, k)
	addr := address("2001:db8:1:2:3:4:5:6")
	// What is remembered first; then another one takes its place in the memory, so that the filters are
	// asked, and what they said in a bad moment is remembered in the next look.
	other := takesPlaceOf(addr)
	addrs := []netip.Addr{addr, other, addr}
	const (
		open     = iota // it is not banned
		coming          // a Put is under way
		standing        // it is banned
		going           // a Delete is under way
		phases
	)
	var phase, looks atomic.Uint64
	var ended, gaveUp atomic.Bool
	var wg sync.WaitGroup
	var judged [phases]int
	wg.Go(func() {
		defer ended.Store(true)
		onCPU(t, 0)
		if _, err := b.Ask(nil, addrs[:2]); err != nil || !k.remembered(other) || k.remembered(addr) {
			t.Errorf("%s does not take the place of %s (%v)", other, addr, err)
			return
		}
		var answers []batch.Answer
		for rounds := some(100_000) * long(); min(judged[open], judged[standing]) < rounds && !gaveUp.Load(); looks.Add(1) {
			before := phase.Load()
			var err error
			if answers, err = b.Ask(answers[:0], addrs); err != nil {
				t.Error(err)
				return
			}
			want := []uint32{open: xdpPass, standing: xdpDrop, phases: 0}[before%phases]
			if phase.Load() != before || want == 0 {
				continue
			}
			for i := 0; i < len(answers); i += 2 {
				if answers[i].Verdict != want {
					t.Errorf("after change %d, look %d: verdict %d, want %d", before, i/2, answers[i].Verdict, want)
					return
				}
			}
			judged[before%phases]++
		}
	})
	onCPU(t, 1)
	for i := 0; !ended.Load(); i++ {
		// At any moment of a look; and then there is one that is judged.
		wait := func() {
			for seen := looks.Load(); looks.Load() < seen+2 && !ended.Load(); {
				runtime.Gosched()
			}
			for range r.IntN(10_000) {
				looks.Load()
			}
		}
		bits := []int{128, 64, 48, 40, 24, 8}[i%6]
		ban := Ban{Prefix: netip.PrefixFrom(addr, bits).Masked(), Expires: bpf.Forever}
		wait()
		phase.Add(1)
		if err := k.Bans.Put(ban); err != nil {
			t.Error(err)
			gaveUp.Store(true)
			break
		}
		phase.Add(1)
		wait()
		phase.Add(1)
		k.Bans.Delete(ban.Prefix)
		phase.Add(1)
	}
	wg.Wait()
	t.Logf("%d bans came and went; %d looks in between, %d while one stood", phase.Load()/phases, judged[open], judged[standing])
}
