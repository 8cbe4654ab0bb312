package maps

import (
	"maps"
	"testing"

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
