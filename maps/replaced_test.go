package maps

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

// What is read of a set bans just what the set did.
func TestReadBans(t *testing.T) {
	t.Run("a seed with ::/0 in it", func(t *testing.T) { readBans(t, rand.New(rand.NewPCG(11461598646797617040, 1)), 5) })
	t.Run("any", func(t *testing.T) { readBans(t, seeded(t), 5*long()) })
}

func readBans(t *testing.T, r *rand.Rand, rounds int) {
	t.Helper()
	k := load(t, onlyBans())
	for range rounds {
		w, want := newWorld(r), make(model)
		for range 200 {
			if ban := w.ban(w.IntN(2) == 0); k.Bans.Put(ban) == nil {
				want.put(ban)
			}
		}
		if _, err := k.Bans.Sync(maps.Values(want)); err != nil {
			t.Fatal(err)
		}
		bans, err := ReadBans(k.maps)
		if err != nil {
			t.Fatal(err)
		}
		told := make(map[netip.Prefix]bool)
		for _, ban := range bans {
			if told[ban.Prefix] || ban != want[ban.Prefix] {
				t.Errorf("%+v was read (before: %v), and %+v was put", ban, told[ban.Prefix], want[ban.Prefix])
			}
			told[ban.Prefix] = true
		}
		again := load(t, onlyBans())
		if _, err := again.Bans.PutAll(values(bans)); err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			ask(t, again.Bans, want, w.addr(w.IntN(2) == 0), w.now)
		}
		if _, err := k.Bans.Sync(func(func(Ban) bool) {}); err != nil {
			t.Fatal(err)
		}
	}
	bans, err := ReadBans(k.maps)
	if err != nil || len(bans) != 0 {
		t.Errorf("%d bans of an empty set, %v", len(bans), err)
	}
	delete(k.maps, bpf.LeveeMapBan6Table)
	if _, err := ReadBans(k.maps); err == nil {
		t.Error("a map is missing, and nobody noticed")
	}
}

// ::/0 stands in the slots of its halves, and is told as what it is where it shares them, too.
func TestReadAll(t *testing.T) {
	all := Ban{Prefix: prefix("::/0"), List: 1, Expires: bpf.Forever}
	own := Ban{Prefix: prefix("8000::/1"), List: 2, Expires: bpf.Forever}
	weak := Ban{Prefix: prefix("::/1"), List: 3, Monitor: true, Expires: bpf.Forever}
	for _, c := range []struct{ put, want []Ban }{
		{[]Ban{all}, []Ban{all}},
		{[]Ban{own}, []Ban{own}},
		{[]Ban{all, own}, []Ban{all, own}}, // the longer one beats it
		{[]Ban{weak, all}, []Ban{all}},     // hidden
		{[]Ban{own, weak}, []Ban{weak, own}},
	} {
		k := load(t, onlyBans())
		for _, ban := range c.put {
			if err := k.Bans.Put(ban); err != nil {
				t.Fatal(err)
			}
		}
		got, err := ReadBans(k.maps)
		slices.SortFunc(got, func(a, b Ban) int { return a.Prefix.Compare(b.Prefix) })
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%+v were put: read %+v, %v", c.put, got, err)
		}
	}
}

// So does what is read of its allow entries and limits.
func TestReadHeld(t *testing.T) {
	k := load(t, everything())
	allow := Allow{Prefix: prefix("192.0.2.0/24"), NoLimit: true, Expires: 12345}
	derived := Allow{Prefix: prefix("2001:db8::/32"), Derived: true, Expires: bpf.Forever}
	for _, a := range []Allow{allow, derived} {
		if err := k.Allows.Put(a); err != nil {
			t.Fatal(err)
		}
	}
	limits := map[uint8]Limit{
		0: {Thresholds: [bpf.ThresholdMax]Rate{bpf.ThresholdPackets: {PerSecond: 100, Burst: 500}}, Derived: true},
		7: {Thresholds: [bpf.ThresholdMax]Rate{bpf.ThresholdSYN: {PerSecond: 20_000, Burst: 20_000}, bpf.ThresholdUDP: {PerSecond: 3_333_333, Burst: 1000}},
			Sources: []netip.Prefix{prefix("198.51.100.0/24")}, Services: []Service{{6, 443}}, Penalty: time.Minute},
	}
	if _, err := k.Limits.Sync(limits); err != nil {
		t.Fatal(err)
	}
	switches := *k.Limits.control
	h, err := ReadHeld(k.maps)
	if err != nil {
		t.Fatal(err)
	}
	if *k.Limits.control != switches {
		t.Error("the switches were written")
	}
	for _, a := range []Allow{allow, derived} {
		if !slices.Contains(h.Allows, a) || len(h.Allows) != 2 {
			t.Errorf("%+v lacks %+v", h.Allows, a)
		}
	}
	if len(h.Limits) != 2 || !h.Limits[0].Derived || h.Limits[7].Derived {
		t.Errorf("%+v", h.Limits)
	}
	// What was read makes the same limits again, to the bit: nothing creeps if that happens again and again.
	before := [2]bpf.Limit{k.Limits.limits[0], k.Limits.limits[7]}
	if _, err := k.Limits.Sync(h.Limits); err != nil {
		t.Fatal(err)
	}
	if after := [2]bpf.Limit{k.Limits.limits[0], k.Limits.limits[7]}; after != before {
		t.Errorf("%+v\nwas %+v", after, before)
	}
	if got, _ := k.Limits.Get(7); !slices.Equal(got.Sources, limits[7].Sources) || !slices.Equal(got.Services, limits[7].Services) {
		t.Errorf("%+v", got)
	}
}
