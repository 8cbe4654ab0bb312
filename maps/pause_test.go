package maps

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps/internal/pause"
)

// TestHandOverAtEachMoment lets one prefix take over from another in the middle of the program's look-up,
// at each moment between two of its probes: what one of the two bans all the time is dropped. Prefixes
// around the address whose bans have ended make the program ask for every length. (Bans that
// monitor would do so, too, but where it meets one it may ask all anew for reasons of its own.)
func TestHandOverAtEachMoment(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU: the writer can't write while the program waits")
	}
	for _, c := range []struct {
		addr, function  string
		lengths, others []int // of the prefixes that take turns; more of them for LEVEE_LONG
		around          []int
		least           int // moments in a look-up
	}{
		{"198.51.100.77", "ban4_probe", []int{32, 27, 19, 9}, []int{31, 24, 16}, []int{30, 26, 22, 18, 12}, 8},
		{"2001:db8:1:2:3:4:5:6", "ban6_probe", []int{128, 64, 47, 16}, []int{127, 56, 48, 32, 29}, []int{126, 100, 60, 40, 24}, 10},
	} {
		t.Run(c.function, func(t *testing.T) {
			how := onlyBans()
			how.pause = c.function
			k := load(t, how)
			stop, err := pause.Of(k.prog, k.maps[pause.Map])
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := stop.Close(); err != nil {
					t.Error(err)
				}
			}()
			addr := address(c.addr)
			ban := func(bits int) Ban {
				return Ban{Prefix: netip.PrefixFrom(addr, bits).Masked(), Expires: bpf.Forever}
			}
			put := func(ban Ban) {
				if err := k.Bans.Put(ban); err != nil {
					t.Error(err)
				}
			}
			remove := func(ban Ban) {
				if !k.Bans.Delete(ban.Prefix) {
					t.Errorf("%s is gone", ban.Prefix)
				}
			}
			run := func(stops []int, meanwhile func()) (uint32, int) {
				t.Helper()
				for range 20 { // the machine may be busy
					verdict, moments, err := stop.Run(frame(addr), stops, meanwhile)
					if err == nil {
						return verdict, moments
					} else if !errors.Is(err, pause.ErrLate) {
						t.Fatal(err)
					}
				}
				t.Fatal(pause.ErrLate)
				return 0, 0
			}
			for _, bits := range c.around {
				ended := ban(bits)
				ended.Expires = 1
				put(ended)
			}
			// As many moments as a look has that finds what enforces at its end.
			put(ban(slices.Min(c.lengths)))
			_, look := run(nil, nil)
			remove(ban(slices.Min(c.lengths)))
			if look < c.least {
				t.Fatalf("a look has %d moments, not even %d: it asks for less than this test is about", look, c.least)
			}
			if most := banTries * look; most > pause.Moments {
				t.Fatalf("%d looks have %d moments: too many to stop at each", banTries, most)
			}
			lengths := c.lengths
			if long() > 1 {
				lengths = append(lengths, c.others...)
			}
			turns := 0
			for _, one := range lengths {
				for _, other := range lengths {
					if one == other {
						continue
					}
					for moment := range look {
						// Once; and in each look but the last.
						var each []int
						for i := range banTries - 1 {
							each = append(each, moment+i*look)
						}
						for _, stops := range [][]int{each[:1], each} {
							now, next := ban(one), ban(other)
							put(now)
							verdict, _ := run(stops, func() {
								put(next)
								remove(now)
								now, next = next, now
								turns++
							})
							if verdict != xdpDrop {
								t.Errorf("%s is banned by a /%d or a /%d all the time, and passed when they took turns at the moments %v",
									addr, one, other, stops)
							}
							remove(now)
						}
					}
				}
			}
			t.Logf("%d turns in the middle of a look-up of %d moments", turns, look)
			if pairs := len(lengths) * (len(lengths) - 1); turns < pairs*look {
				t.Errorf("only %d turns of %d pairs", turns, pairs)
			}
		})
	}
}
