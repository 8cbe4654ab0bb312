package maps

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-xdp/levee/maps/internal/batch"
)

// late is how long after its end a ban may be enforced at most.
const late = uint64(10 * time.Millisecond)

// ending is an address, and when the ban on it ends.
type ending struct {
	addr netip.Addr
	end  uint64
}

// TestManyEnd lets bans end at random times, and asks the compiled program about them all the time: each
// is enforced until its end, and none is more than 10 ms after it. First nothing but the program ends
// them; then they are taken away, too, as they end.
func TestManyEnd(t *testing.T) {
	n, during := some(100_000), 2*time.Second
	if os.Getenv("LEVEE_LONG") != "" {
		n, during = 1_000_000, 20*time.Second
	}
	for name, swept := range map[string]bool{"by the program alone": false, "and are swept": true} {
		t.Run(name, func(t *testing.T) {
			s := onlyBans()
			s.sizes.Ban4Entries, s.sizes.Ban6Entries = n, n/4
			k := load(t, s)
			r := seeded(t)
			w := watcher{t: t, batch: asker(t, k)}                                               // first: to load it takes time that the bans do not have
			for round := 0; round < 5 && min(w.before, w.after) < n/10 && !t.Failed(); round++ { // a slow machine asks less often
				manyEnd(t, k, &w, r, n, during, swept)
			}
			t.Logf("%d bans, asked %d times, %d of them within 5 ms before the end, %d within 5 ms after it could last; the clock was late %d times",
				n, w.asked, w.before, w.after, w.clock)
			if min(w.before, w.after) < n/10 {
				t.Error("too few at their ends to say anything")
			}
		})
	}
}

// manyEnd lets bans end once.
func manyEnd(t *testing.T, k *kernel, w *watcher, r *rand.Rand, n int, during time.Duration, swept bool) {
	ends, latest := fillEnding(t, k, r, n, during)
	for _, list := range ends {
		slices.SortFunc(list, func(a, b ending) int { return int(int64(a.end - b.end)) })
	}

	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	if swept {
		for _, list := range ends {
			wg.Go(func() { sweep(k, list, &stop) })
		}
	}
	for !t.Failed() && Monotonic() < latest+3*late {
		for _, list := range ends {
			w.watch(list, r)
		}
	}
	wg.Wait()
	// All have ended: none of them is there.
	for _, list := range ends {
		w.ask(list)
	}
	if n4, n6 := k.Bans.Len(); n4+n6 != n && !swept || n4+n6 != 0 && swept {
		t.Errorf("%d and %d bans are left of %d", n4, n6, n)
	}
}

// fillEnding bans as many prefixes of several lengths, none within another, and returns an address in
// each, by family, and when the last of them ends.
func fillEnding(t *testing.T, k *kernel, r *rand.Rand, n int, during time.Duration) (ends [2][]ending, latest uint64) {
	t.Helper()
	begun := Monotonic() + uint64(time.Second) + uint64(n)*2000 // until then all are in place
	bans := make([]Ban, n)
	for i := range bans {
		end := begun + r.Uint64N(uint64(during))
		var addr netip.Addr
		family, bits := 0, 32
		if i%5 == 0 {
			family, bits = 1, []int{128, 64, 56}[i%3]
			var a [16]byte
			binary.BigEndian.PutUint64(a[:], 0x20010db8<<32|uint64(i)<<8)
			addr = netip.AddrFrom16(a)
		} else {
			if addr = addr4(10<<24 | uint32(i)<<3); i%7 == 0 {
				bits = 29
			}
		}
		bans[i] = Ban{Prefix: netip.PrefixFrom(addr, bits), List: uint16(i % batch.Lists), Expires: end}
		ends[family] = append(ends[family], ending{addr, end})
		latest = max(latest, end)
	}
	for _, err := range k.Bans.PutMany(bans) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if now := Monotonic(); now > begun {
		t.Logf("filled %v late", time.Duration(now-begun))
	}
	return ends, latest
}

// sweep takes away what has ended, in its order.
func sweep(k *kernel, list []ending, stop *atomic.Bool) {
	for _, e := range list {
		for Monotonic() < e.end {
			if stop.Load() {
				return
			}
			time.Sleep(time.Millisecond)
		}
		for bits := e.addr.BitLen(); bits > 0 && !k.Bans.Delete(netip.PrefixFrom(e.addr, bits)); bits-- {
		}
	}
}

// watcher asks the program about what ends.
type watcher struct {
	t                    *testing.T
	batch                *batch.Batch
	addrs                []netip.Addr
	answers              []batch.Answer
	asked, before, after int
	clock                int
}

// watch asks about those whose end is near, and about some others.
func (w *watcher) watch(list []ending, r *rand.Rand) {
	w.t.Helper()
	const most = 2048
	from, _ := slices.BinarySearchFunc(list, Monotonic()-late-late/2, func(e ending, at uint64) int { return int(int64(e.end - at)) })
	near := list[from:min(from+most, len(list))]
	w.ask(near)
	from = r.IntN(len(list))
	w.ask(list[from:min(from+most/4, len(list))])
}

func (w *watcher) ask(list []ending) {
	w.t.Helper()
	w.addrs = w.addrs[:0]
	for _, e := range list {
		w.addrs = append(w.addrs, e.addr)
	}
	var err error
	before, clock := Monotonic(), coarse()
	if w.answers, err = w.batch.Ask(w.answers[:0], w.addrs); err != nil {
		w.t.Fatal(err)
	}
	after := Monotonic()
	w.asked += len(list)
	for i, got := range w.answers {
		e := list[i]
		banned := got.Verdict == xdpDrop
		if e.end > after && e.end-after < late/2 {
			w.before++
		}
		if before > e.end+late && before-e.end < late+late/2 {
			w.after++
		}
		switch {
		case !banned && after < e.end:
			w.t.Errorf("%s is not banned, asked %v before its end", e.addr, time.Duration(e.end-after))
		case banned && clock >= e.end:
			w.t.Errorf("%s is banned, asked when the program's clock was %v after its end", e.addr, time.Duration(clock-e.end))
		case banned && before > e.end+late:
			w.clock++ // the kernel's clock stood, as it does where the machine does
		default:
			continue
		}
		return
	}
}
