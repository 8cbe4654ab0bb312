package maps

import (
	"maps"
	"net/netip"
	"testing"
)

// differing asks both ways round whether the table is as it should be.
func differing(b *Bans, want model) (n int) {
	for at := 0; at >= 0; {
		var some int
		at, some = b.Compare(at, func(p netip.Prefix) (Ban, bool) { ban, ok := want[p]; return ban, ok })
		n += some
	}
	var all []Ban
	for _, ban := range want {
		all = append(all, ban)
	}
	if v4, v6 := b.Len(); v4+v6 != len(want) {
		n++
	}
	return n + b.Lacks(all)
}

// TestCompare litters tables and changes what is wanted of them: whatever Sync puts right Compare and
// Lacks have found, and where they find nothing there is nothing to do.
func TestCompare(t *testing.T) {
	for name, s := range map[string]setup{"roomy": onlyBans(), "tiny": tiny()} {
		t.Run(name, func(t *testing.T) {
			k := load(t, s)
			r := seeded(t)
			found := 0
			for round := range some(30 * long()) {
				w, want := newWorld(r), make(model)
				for range 120 {
					if ban := w.ban(w.IntN(2) == 0); k.Bans.Put(ban) == nil {
						want.put(ban)
					}
				}
				if _, err := k.Bans.Sync(maps.Values(want)); err != nil {
					t.Fatal(err)
				}
				if n := differing(k.Bans, want); n != 0 {
					t.Fatalf("round %d: %d differ, and nothing was done", round, n)
				}
				if name == "roomy" { // changes one by one leave nothing, either
					for range 40 {
						w.step(t, k.Bans, want, w.IntN(2) == 0)
					}
				}
				if n := differing(k.Bans, want); n != 0 {
					t.Fatalf("round %d: %d differ after changes", round, n)
				}
				switch w.IntN(3) {
				case 0:
					litter(w, k.Bans)
				case 1:
					scribble(w, k.Bans)
				default:
					for p, ban := range want {
						switch w.IntN(40) {
						case 0:
							delete(want, p)
						case 1:
							ban.List ^= 1
							want[p] = ban
						}
					}
					if w.IntN(2) == 0 {
						want.put(w.ban(w.IntN(2) == 0))
					}
				}
				n := differing(k.Bans, want)
				changes, err := k.Bans.Sync(maps.Values(want))
				if err != nil {
					want = make(model) // tiny: no room
				}
				if (n > 0) != (changes.Drift() > 0) {
					t.Fatalf("round %d: %d differ, and Sync did %+v", round, n, changes)
				}
				if n > 0 {
					found++
				}
				if err == nil {
					verify(t, k.Bans, want)
				}
				if _, err := k.Bans.Sync(func(func(Ban) bool) {}); err != nil {
					t.Fatal(err)
				}
			}
			if found == 0 {
				t.Error("nothing was ever found")
			}
		})
	}
}

// scribble flips one bit of what leads to a ban or of a ban.
func scribble(w *world, b *Bans) {
	for {
		i := w.IntN(len(b.v4.table))
		if e := &b.v4.table[i]; live(e.Word) {
			switch w.IntN(4) {
			case 0:
				e.Word ^= 1 << w.IntN(64)
			case 1:
				e.Expires ^= 1 << w.IntN(64)
			case 2:
				b.v4.classes[b.v4.keyAt(i)>>12] ^= 1 << w.IntN(64)
			default:
				b.v4.bits[b.v4.keyAt(i)>>14] ^= 1 << w.IntN(64)
			}
			return
		}
		i = w.IntN(len(b.v6.table))
		if e := &b.v6.table[i]; live(e.Word) {
			switch k := b.v6.keyAt(i); w.IntN(6) {
			case 0:
				e.Word ^= 1 << w.IntN(64)
			case 1:
				e.Expires ^= 1 << w.IntN(64)
			case 2:
				e.Hi ^= 1 << w.IntN(64)
			case 3:
				e.Lo ^= 1 << w.IntN(64)
			case 4:
				*b.v6.tiers ^= 1 << w.IntN(3)
			default:
				word, _, _, _ := b.v6.bitOf(k)
				*word ^= 1 << w.IntN(64)
			}
			return
		}
	}
}
