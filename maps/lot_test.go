package maps

import (
	"errors"
	"slices"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// TestPutMany puts random bans many at a time, of prefixes that overlap and that occur twice, into tables
// with room and without, and takes some away in between: what is there is what as many Puts would have left.
func TestPutMany(t *testing.T) {
	for name, s := range map[string]setup{"roomy": onlyBans(), "tiny": tiny()} {
		t.Run(name, func(t *testing.T) {
			k := load(t, s)
			r := seeded(t)
			fulls := 0
			for range max(1, some(12)) * long() {
				w, m := newWorld(r), make(model)
				for range 8 {
					bans := make([]Ban, 1+w.IntN(3*ahead))
					for i := range bans {
						if bans[i] = w.ban(w.IntN(3) == 0); i > 0 && w.IntN(8) == 0 {
							bans[i].Prefix = bans[w.IntN(i)].Prefix
						}
					}
					wrong := w.IntN(len(bans))
					bans[wrong].List = 5000
					failed := k.Bans.PutMany(bans)
					for i, ban := range bans {
						switch {
						case i == wrong:
							if failed[i] == nil || errors.Is(failed[i], ErrFull) {
								t.Fatalf("list 5000: %v", failed[i])
							}
						case failed[i] == nil:
							m.put(ban)
						case errors.Is(failed[i], ErrFull):
							fulls++
						default:
							t.Fatalf("%+v: %v", ban, failed[i])
						}
					}
					verify(t, k.Bans, m)
					for range 100 {
						ask(t, k.Bans, m, w.addr(w.IntN(2) == 0), w.now)
					}
					for p := range m {
						if w.IntN(3) == 0 {
							if !k.Bans.Delete(p) {
								t.Fatalf("%s was not there", p)
							}
							delete(m, p)
						}
					}
				}
				empty(t, k.Bans, m)
			}
			if name == "tiny" && fulls == 0 {
				t.Error("all found room")
			}
		})
	}
}

// TestPutManyWithOneBeside fills a table anew whose words somebody else has cleared: a prefix that was kept
// beside it, for it stood in none of its slots, looks as if nothing were known of it.
func TestPutManyWithOneBeside(t *testing.T) {
	k := load(t, onlyBans())
	short := Ban{Prefix: prefix("192.0.2.0/32"), Expires: Monotonic() + 3600e9}
	over := Ban{Prefix: prefix("192.0.2.0/31"), Expires: bpf.Forever}
	for _, ban := range []Ban{short, over} {
		if err := k.Bans.Put(ban); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(k.Bans.v4.beside); n != 1 {
		t.Fatalf("%d prefixes stand beside the table", n)
	}
	for i := range k.Bans.v4.table {
		k.Bans.v4.table[i].Word = 0
	}
	if _, err := k.Bans.Sync(slices.Values([]Ban{short})); err != nil {
		t.Fatal(err)
	}
	verify(t, k.Bans, model{short.Prefix: short})
}
