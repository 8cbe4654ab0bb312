package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps/internal/batch"
)

// TestHandOver lets two prefixes that have an address in common take turns in banning it, as fast as
// that goes, while the program is asked about nothing else. Those that monitor and lie around the
// address make the program look long, so that it is often in the middle when they change.
func TestHandOver(t *testing.T) {
	for _, c := range []struct {
		addr      string
		one, two  int
		monitored bool
		others    int // that fill the table, so that each search takes long, too
	}{
		{"198.51.100.77", 32, 16, false, 0},
		{"198.51.100.77", 32, 20, true, 50},
		{"198.51.100.77", 31, 16, true, 50},
		{"198.51.100.77", 27, 18, true, 40},
		{"2001:db8:1:2:3:4:5:6", 128, 32, false, 0},
		{"2001:db8:1:2:3:4:5:6", 127, 29, true, 0},
		{"2001:db8:1:2:3:4:5:6", 65, 47, true, 0},
	} {
		t.Run(fmt.Sprintf("%s of %d and %d, monitored %v, %d others", c.addr, c.one, c.two, c.monitored, c.others), func(t *testing.T) {
			how := onlyBans()
			if c.others > 0 {
				how = tiny()
			}
			k := load(t, how)
			addr := address(c.addr)
			ban := func(bits int, monitor bool) Ban {
				return Ban{Prefix: netip.PrefixFrom(addr, bits).Masked(), Monitor: monitor, Expires: bpf.Forever}
			}
			put := func(ban Ban) {
				if err := k.Bans.Put(ban); err != nil {
					t.Error(err)
				}
			}
			// Not so many that it would look longer than its tries take: it gives up after sixteen.
			for i := range 8 {
				if bits := addr.BitLen() * (8 - i) / 8; c.monitored && bits != c.one && bits != c.two {
					put(ban(bits, true))
				}
			}
			one, two := ban(c.one, false), ban(c.two, false)
			put(two)
			put(one)
			for r, tries := seeded(t), 0; ; tries++ {
				if used, _ := k.Bans.Slots(); used >= c.others {
					break
				}
				// Beyond half of the slots, one that finds no room is no wonder: another does.
				err := k.Bans.Put(Ban{Prefix: netip.PrefixFrom(addr4(r.Uint32()|1<<31), 32), Expires: bpf.Forever})
				if used, _ := k.Bans.Slots(); err != nil && (!errors.Is(err, ErrFull) || used < 32 || tries > 1000) {
					t.Fatalf("%d slots are used: %v", used, err)
				}
			}
			k.Bans.Delete(two.Prefix)
			hammer(t, func() {
				put(two)
				k.Bans.Delete(one.Prefix)
				put(one)
				k.Bans.Delete(two.Prefix)
			}, program(t, k, addr, func(got batch.Answer) bool { return got == batch.Answer{Verdict: xdpDrop} }))
		})
	}
}

// TestEndedStaysEnded lets a ban that has ended and one that monitors take turns on one prefix: between
// the two there is none that enforces.
func TestEndedStaysEnded(t *testing.T) {
	for _, at := range []string{"198.51.100.77/32", "198.51.100.64/26", "198.0.0.0/9", "2001:db8::1/128", "2001:db8::/33", "::/0"} {
		t.Run(at, func(t *testing.T) {
			k := load(t, onlyBans())
			p := prefix(at)
			put := func(ban Ban) {
				if err := k.Bans.Put(ban); err != nil {
					t.Error(err)
				}
			}
			put(Ban{Prefix: p, Monitor: true, Expires: bpf.Forever})
			turn := func() {
				put(Ban{Prefix: p, Expires: 1, List: 1})
				put(Ban{Prefix: p, Monitor: true, Expires: bpf.Forever})
			}
			hammer(t, turn, program(t, k, p.Addr(), func(got batch.Answer) bool { return got.Verdict == xdpPass }))
			hammer(t, turn, func() error {
				for range questions {
					if ban, ok := k.Bans.Lookup(p.Addr()); ok && !ban.Monitor {
						return fmt.Errorf("Lookup says %+v", ban)
					}
				}
				return nil
			})
		})
	}
}

// hammer changes the table again and again while it is asked, and fails with what the asking says.
func hammer(t *testing.T, turn func(), ask func() error) {
	var stop atomic.Bool
	var wg sync.WaitGroup
	asked := 0
	wg.Go(func() {
		defer stop.Store(true)
		for end := time.Now().Add(time.Duration(long()) * 250 * time.Millisecond); time.Now().Before(end); asked += questions {
			if err := ask(); err != nil {
				t.Errorf("after %d lookups: %v", asked, err)
				return
			}
		}
	})
	turns := 0
	for ; !stop.Load(); turns++ {
		turn()
	}
	wg.Wait()
	t.Logf("%d turns, %d lookups", turns, asked)
}

// questions is how often the table is asked at a time.
const questions = 4096

// program asks the program about an address, and says which of its answers is not right.
func program(t *testing.T, k *kernel, addr netip.Addr, right func(batch.Answer) bool) (ask func() error) {
	b := asker(t, k)
	addrs := slices.Repeat([]netip.Addr{addr}, questions)
	var answers []batch.Answer
	return func() (err error) {
		if answers, err = b.Ask(answers[:0], addrs); err != nil {
			return err
		}
		if i := slices.IndexFunc(answers, func(got batch.Answer) bool { return !right(got) }); i >= 0 {
			return fmt.Errorf("the program says %+v", answers[i])
		}
		return nil
	}
}
