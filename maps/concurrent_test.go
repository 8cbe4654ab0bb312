package maps

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

// pair is an address that is banned all the time and its neighbour that never is: they differ in
// the bit behind `shared`, so that every prefix of more bits than that tells them apart.
type pair struct {
	always, never netip.Addr
	shared        int
}

func pairs(r *rand.Rand) (list []pair) {
	for _, shared := range []int{12, 15, 16, 18, 20, 23, 24, 27, 28, 30, 31} {
		a := r.Uint32()
		list = append(list, pair{addr4(a), addr4(a ^ 1<<(31-shared)), shared})
	}
	for _, shared := range []int{1, 10, 20, 31, 40, 47, 48, 60, 100, 127} {
		a := key6{hi: r.Uint64(), lo: r.Uint64()}
		n := a
		if shared < 64 {
			n.hi ^= 1 << (63 - shared)
		} else {
			n.lo ^= 1 << (127 - shared)
		}
		list = append(list, pair{a.addr(), n.addr(), shared})
	}
	return list
}

func (p pair) cover(r *rand.Rand) netip.Prefix {
	length := p.shared + 1 + r.IntN(p.always.BitLen()-p.shared)
	return netip.PrefixFrom(p.always, length).Masked()
}

// churn changes bans until it is told to stop, and each of its changes leaves every pair's first
// address banned before and after it.
func churn(t *testing.T, b *Bans, r *rand.Rand, list []pair, stop *atomic.Bool) (changes int) {
	enforce := func(p netip.Prefix) Ban {
		ban := Ban{Prefix: p, List: uint16(r.IntN(4)), Expires: bpf.Forever}
		if r.IntN(2) == 0 {
			ban.Expires = Monotonic() + 3600e9 + uint64(r.IntN(1000))
		}
		return ban
	}
	put := func(ban Ban) {
		if err := b.Put(ban); err != nil {
			t.Error(err)
			stop.Store(true)
		}
		changes++
	}
	now := make([]Ban, len(list)) // what bans each pair's first address for good
	for i, p := range list {
		now[i] = enforce(p.cover(r))
		put(now[i])
		if first := p.single(); first != now[i].Prefix {
			b.Delete(first)
		}
	}
	for !stop.Load() {
		i := r.IntN(len(list))
		p := list[i]
		switch r.IntN(6) {
		case 0: // another list, another time
			now[i] = enforce(now[i].Prefix)
			put(now[i])
		case 1: // one that only monitors, or has expired, comes and goes
			ban := Ban{Prefix: p.cover(r), Monitor: true, Expires: bpf.Forever}
			if r.IntN(2) == 0 {
				ban = Ban{Prefix: ban.Prefix, Expires: 1}
			}
			if ban.Prefix == now[i].Prefix {
				continue
			}
			put(ban)
			b.Delete(ban.Prefix)
		case 2: // the whole set at once
			next := make([]Ban, len(list))
			for i, p := range list {
				next[i] = now[i]
				if r.IntN(2) == 0 {
					next[i] = enforce(p.cover(r))
				}
			}
			if r.IntN(3000) != 0 {
				continue // reading the whole table takes its time
			}
			if _, err := b.Sync(values(next)); err != nil {
				t.Error(err)
			}
			now = next
			changes++
		default: // another prefix takes over
			next := enforce(p.cover(r))
			put(next)
			if next.Prefix != now[i].Prefix {
				b.Delete(now[i].Prefix)
			}
			now[i] = next
		}
	}
	return changes
}

func values(bans []Ban) iter.Seq[Ban] {
	return func(yield func(Ban) bool) {
		for _, ban := range bans {
			if !yield(ban) {
				return
			}
		}
	}
}

// TestNoGapForGoReader and TestNoGapForProgram replace prefixes by others while readers look: an
// address that is banned before and after each change is always found, one that is banned before
// and after none never is.
func TestNoGapForGoReader(t *testing.T) {
	k := load(t, tiny())
	r := seeded(t)
	// Few pairs at a time, so that most changes concern the address that is looked at.
	for _, list := range fewer(pairs(r), 3) {
		var stop atomic.Bool
		var wg sync.WaitGroup
		ready := make(chan struct{})
		looks := 0
		wg.Go(func() {
			<-ready
			for !stop.Load() {
				for _, p := range list {
					if ban, ok := k.Bans.Lookup(p.always); !ok || ban.Monitor {
						t.Errorf("%s (/%d) is banned, found %+v", p.always, p.shared, ban)
						stop.Store(true)
					}
					if ban, ok := k.Bans.Lookup(p.never); ok {
						t.Errorf("%s (/%d) is not banned, found %+v", p.never, p.shared, ban)
						stop.Store(true)
					}
				}
				looks++
			}
		})
		changes := runChurn(t, k, r, list, &stop, ready)
		wg.Wait()
		t.Logf("%d changes, %d looks at %v", changes, looks, list)
		if t.Failed() {
			return
		}
		wipe(t, k)
	}
}

func TestNoGapForProgram(t *testing.T) {
	k := load(t, tiny())
	r := seeded(t)
	for _, list := range fewer(pairs(r), 3) {
		var stop atomic.Bool
		var wg sync.WaitGroup
		ready := make(chan struct{})
		before := k.told()
		// A run that a signal interrupts is begun again, so the number of packets is not known. What
		// tells the addresses apart is the length of their frames. Many packets a run: the kernel
		// takes some milliseconds to prepare one of more than a packet.
		const times = 30000
		wg.Go(func() {
			<-ready
			for !stop.Load() {
				for _, p := range list {
					k.run(padded(p.always, 100), times)
					k.run(padded(p.never, 101), times)
				}
			}
		})
		changes := runChurn(t, k, r, list, &stop, ready)
		wg.Wait()
		after := k.told()
		banned, clean := after[bpf.ReasonBanned].since(before[bpf.ReasonBanned]), after[bpf.ReasonClean].since(before[bpf.ReasonClean])
		t.Logf("%d changes, %d and %d packets, at %v", changes, banned.Packets, clean.Packets, list)
		if banned.Packets < times || clean.Packets < times {
			t.Fatal("too few packets")
		}
		if gaps := 101*clean.Packets - clean.Bytes; gaps != 0 {
			t.Errorf("%d packets of banned sources passed", gaps)
		}
		if hits := banned.Bytes - 100*banned.Packets; hits != 0 {
			t.Errorf("%d packets of sources that are not banned were dropped", hits)
		}
		if t.Failed() {
			return
		}
		wipe(t, k)
	}
}

func padded(src netip.Addr, length int) []byte {
	f := make([]byte, length)
	copy(f, frame(src))
	return f
}

// told returns packets and bytes by reason; what is monitored counts as clean.
func (k *kernel) told() map[bpf.Reason]told {
	k.t.Helper()
	counts, err := k.Counters.Read()
	if err != nil {
		k.t.Fatal(err)
	}
	sums := make(map[bpf.Reason]told)
	for _, c := range counts {
		if c.Monitored {
			c.Reason = bpf.ReasonClean
		}
		sums[c.Reason] = told{sums[c.Reason].Packets + c.Packets, sums[c.Reason].Bytes + c.Bytes}
	}
	return sums
}

type told struct{ Packets, Bytes uint64 }

func (n told) since(before told) told {
	return told{n.Packets - before.Packets, n.Bytes - before.Bytes}
}

func fewer(list []pair, n int) (lists [][]pair) {
	for len(list) > n {
		lists = append(lists, list[:n])
		list = list[n:]
	}
	return append(lists, list)
}

// runChurn churns for a while. Readers may begin when ready is closed: when every pair is banned.
func runChurn(t *testing.T, k *kernel, r *rand.Rand, list []pair, stop *atomic.Bool, ready chan struct{}) int {
	for _, p := range list {
		if err := k.Bans.Put(Ban{Prefix: p.single(), Expires: bpf.Forever}); err != nil {
			t.Fatal(err)
		}
	}
	close(ready)
	time.AfterFunc(time.Duration(long())*400*time.Millisecond, func() { stop.Store(true) })
	return churn(t, k.Bans, r, list, stop)
}

func wipe(t *testing.T, k *kernel) {
	t.Helper()
	whole(t, k.Bans)
	if _, err := k.Bans.Sync(values(nil)); err != nil {
		t.Fatal(err)
	}
}

func (p pair) single() netip.Prefix { return netip.PrefixFrom(p.always, p.always.BitLen()) }

// String is for logs.
func (p pair) String() string { return fmt.Sprintf("%s/%d", p.always, p.shared) }
