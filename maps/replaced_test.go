package maps

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

// What is read of a set bans just what the set did.
func TestReadBans(t *testing.T) {
	k := load(t, onlyBans())
	r := seeded(t)
	for range 5 * long() {
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
