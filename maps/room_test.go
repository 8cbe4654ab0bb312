package maps

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// A table holds what it says that it does, of whichever lengths, and what had to make room is found.
func TestRoom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random6 := func(length int) netip.Prefix {
		var a [16]byte
		for i := range a {
			a[i] = byte(r.Uint32())
		}
		p, _ := netip.AddrFrom16(a).Prefix(length)
		return p
	}
	random4 := func(length int) netip.Prefix {
		p, _ := addr4(r.Uint32()).Prefix(length)
		return p
	}
	for name, draw := range map[string]func() netip.Prefix{
		"IPv4 addresses": func() netip.Prefix { return random4(32) },
		"IPv4 prefixes":  func() netip.Prefix { return random4(17 + r.IntN(16)) },
		"IPv6 /64":       func() netip.Prefix { return random6(64) },
		"IPv6 prefixes":  func() netip.Prefix { return random6(17 + r.IntN(112)) },
	} {
		t.Run(name, func(t *testing.T) {
			size := onlyBans()
			if os.Getenv("LEVEE_LONG") != "" {
				size.sizes = bpf.DefaultSizes() // the more buckets, the sooner one window is full
			}
			k := load(t, size)
			capacity4, capacity6 := k.Bans.Capacity()
			var held []netip.Prefix
			known := make(map[netip.Prefix]bool)
			full := func() (used, capacity int) {
				used4, used6 := k.Bans.Slots()
				if draw().Addr().Is4() {
					return used4, capacity4
				}
				return used6, capacity6
			}
			for {
				used, capacity := full()
				p := draw()
				if known[p] {
					continue
				}
				known[p] = true
				err := k.Bans.Put(Ban{Prefix: p, Expires: bpf.Forever})
				if err != nil {
					if used+8 <= capacity {
						t.Fatalf("%d of %d: %v", used, capacity, err)
					}
					t.Logf("full at %d of %d", used, capacity)
					break
				}
				held = append(held, p)
			}
			r.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
			look := func(held []netip.Prefix, want bool) {
				t.Helper()
				for _, p := range held {
					if _, ok := k.Bans.Get(p); ok != want {
						t.Fatalf("%s is held: %v", p, ok)
					}
				}
				for _, p := range held[:min(2000, len(held))] {
					if want && k.run(frame(p.Addr()), 1) != xdpDrop {
						t.Fatalf("the program passes %s", p)
					}
				}
			}
			look(held, true)
			wanted := make(map[netip.Prefix]Ban)
			for _, p := range held {
				wanted[p] = Ban{Prefix: p, Expires: bpf.Forever}
			}
			for at := 0; at >= 0; {
				next, wrong := k.Bans.Compare(at, func(p netip.Prefix) (Ban, bool) { b, ok := wanted[p]; return b, ok })
				if wrong > 0 {
					t.Fatalf("%d words are wrong", wrong)
				}
				at = next
			}
			half := held[:len(held)/2]
			for _, p := range half {
				k.Bans.Delete(p)
			}
			look(half, false)
			look(held[len(half):], true)
			for _, p := range held {
				k.Bans.Delete(p)
			}
			if used, _ := full(); used != 0 {
				t.Errorf("%d slots are left", used)
			}
		})
	}
}
