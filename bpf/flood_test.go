package bpf_test

import (
	"maps"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
	"github.com/levee-xdp/levee/bpf/internal/wrapper"
)

// long tells whether to take the time for whole measurements: LEVEE_LONG.
func long() bool { return os.Getenv("LEVEE_LONG") != "" }

// resident is the process's memory in bytes, without what waits to be collected.
func resident(tb testing.TB) int {
	tb.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		tb.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		tb.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func wrap(tb testing.TB, r *rig.Rig, c wrapper.Config) *wrapper.Wrapper {
	tb.Helper()
	w, err := wrapper.New(r.Program, c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := w.Close(); err != nil {
			tb.Error(err)
		}
	})
	return w
}

// TestWrapper checks that floods are what they say.
func TestWrapper(t *testing.T) {
	r := loadDefault(t)
	for _, w := range worlds(t, r) {
		w.baseline()
		prefix, list := "10.32.0.0/11", []string{"10.0.0.1", "10.0.0.2", "10.9.9.9"}
		if w.v6() {
			prefix, list = "2400:4000::/20", []string{"2400::1", "2400:0:0:1::1", "2400:9::"}
		}
		from := netip.MustParsePrefix(prefix)
		frame := tcp(w).Bytes()
		if _, err := wrap(t, r, wrapper.Config{Prefix: from}).Run(frame, 500); err != nil {
			t.Fatal(err)
		}
		sources := r.Sources()
		if len(sources) < 450 { // the smallest table has no room for some
			t.Errorf("%s: %d sources of 500 packets", prefix, len(sources))
		}
		for source := range sources {
			if !from.Contains(source) {
				t.Errorf("%s gives %s", prefix, source)
			}
		}

		r.Forget()
		var addrs []netip.Addr
		for _, a := range list {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		onCPU(t, 0)
		inTurn := wrap(t, r, wrapper.Config{List: addrs})
		for range 7 { // one at a time: a run of several that a signal interrupts sends some twice
			if _, err := inTurn.Run(frame, 1); err != nil {
				t.Fatal(err)
			}
		}
		sources = r.Sources()
		for i, want := range []uint64{3, 2, 2} {
			if got := sources[groupOf(addrs[i])].Packets; got != want {
				t.Errorf("%s sent %d packets, want %d", addrs[i], got, want)
			}
		}
	}
}

// TestSpoofedFlood sends millions of packets from random sources. Memory stays as it is, the clients
// that were there stay tracked and lose nothing, and a heavy source among the flood is held to its
// limit.
func TestSpoofedFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("a flood at speed, which a machine without hardware's help does not make")
	}
	const (
		clients = 1000
		rate    = 1000 // packets a second and source, also of a prefix whose sources find no room
		burst   = 200
		offered = 10 * rate
	)
	needKernel(t)
	config := configOf(bpf.DefaultFeatures())
	config.Sizes = rig.Smallest()
	config.Sizes.Sources = 1 << 16
	r := load(t, config)
	for _, w := range worlds(t, r) {
		t.Run(w.family.String(), func(t *testing.T) {
			const flood = 10_000_000
			patience, least := 8*time.Second, int64(flood/5) // a busy machine may stop there
			if w.v6() {
				patience, least = 4*time.Second, flood/10
			}
			if long() {
				patience = time.Hour
			}
			r.Reset()
			var l rig.Limit
			l.Thresholds[bpf.ThresholdPackets] = rig.Rate{PerSecond: rate, Burst: burst}
			r.Limit(0, l)
			r.SetControl(func(c *bpf.Control) { c.SourceIdle = uint64(time.Second) })

			// Sources that no flood draws: clients each of a group of its own, and the heavy one.
			prefix, heavy := netip.MustParsePrefix("64.0.0.0/2"), netip.MustParseAddr("203.0.112.7")
			var tracked []netip.Addr
			for i := range clients {
				if w.v6() {
					tracked = append(tracked, netip.AddrFrom16([16]byte{0x26, 0, byte(i >> 8), byte(i), 15: 1}))
				} else {
					tracked = append(tracked, netip.AddrFrom4([4]byte{198, 18 + byte(i>>8), byte(i), 9}))
				}
			}
			if w.v6() {
				prefix, heavy = netip.MustParsePrefix("4000::/3"), netip.MustParseAddr("2001:db8:bad::7")
			}
			spoofed := wrap(t, r, wrapper.Config{Prefix: prefix})
			friends := wrap(t, r, wrapper.Config{List: tracked})
			frame := tcp(w).Bytes()

			// The clients come first; everything is in place.
			var rest time.Duration // no two packets of one of them were further apart
			lastRound := time.Now()
			round := func() {
				begin := time.Now()
				if _, err := friends.Run(frame, clients); err != nil {
					t.Error(err)
				}
				rest = max(rest, time.Since(lastRound))
				lastRound = begin
			}
			onCPU(t, runtime.NumCPU()-1) // the list's cursor is a CPU's, and a run could move to another in its middle
			round()
			first := r.Sources()
			if len(first) < clients*99/100 {
				t.Fatalf("%d of %d clients are tracked", len(first), clients)
			}
			tables, err := r.Memlock()
			if err != nil {
				t.Fatal(err)
			}
			memory, stats := resident(t), r.Stats()

			var sent atomic.Int64
			var flooding time.Duration
			done := make(chan error, 1)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread ends with its affinity
				var first unix.CPUSet
				first.Set(0)
				if err := unix.SchedSetaffinity(0, &first); err != nil {
					done <- err
					return
				}
				begin := time.Now()
				// at least three seconds, so that the heavy source has time to be over its limit
				for n := sent.Load(); n < flood && (n < least || time.Since(begin) < patience) || time.Since(begin) < 3*time.Second; n = sent.Load() {
					if _, err := spoofed.Run(frame, 100_000); err != nil {
						done <- err
						return
					}
					sent.Add(100_000)
				}
				flooding = time.Since(begin)
				done <- nil
			}()

			// The clients send every 100 ms, the heavy source all the time after some flood.
			rounds, admitted := 1, 0
			burstFrame := packet.New().IP(heavy, w.dst).UDP(1, 2).Bytes()
			begin := time.Now()
			var firstHeavy time.Time // none of its packets was before
			var heavySent int
			for running := true; running; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
					running = false
				default:
				}
				elapsed := time.Since(begin)
				if want := 1 + int(elapsed/(100*time.Millisecond)); rounds < want {
					round()
					rounds++
				}
				const start = 500 * time.Millisecond
				// a busy machine leaves much to catch up with: not all of it before the clients' turn
				for range min(500, int((elapsed-start).Seconds()*offered)-heavySent) {
					if heavySent == 0 {
						firstHeavy = time.Now()
					}
					verdict := run(t, r, burstFrame)
					heavySent++
					if verdict == xdpPass {
						admitted++
					}
				}
				time.Sleep(time.Millisecond)
			}
			window := time.Since(firstHeavy)
			rest = max(rest, time.Since(lastRound))

			residentAfter := resident(t)
			after := r.Sources()
			lost := 0
			if rest > 900*time.Millisecond {
				t.Logf("the machine kept the clients waiting for %s: they may lose their slots", rest)
				clear(first)
			}
			for source, was := range first {
				now, ok := after[source]
				if !ok || now.First != was.First || now.Dropped != 0 || now.Packets < uint64(rounds) { // an interrupted run sends some twice
					lost++
					t.Errorf("client %s: %+v, was %+v, sent %d", source, now, was, rounds)
					if lost == 5 {
						break
					}
				}
			}
			if now, err := r.Memlock(); err != nil || !maps.Equal(now, tables) {
				t.Errorf("the tables' memory was %v, is %v (%v)", tables, now, err)
			}
			if residentAfter > memory+8<<20 {
				t.Errorf("the process had %d MiB, has %d", memory>>20, residentAfter>>20)
			}
			moved := r.Stats()
			for i := range moved {
				moved[i] -= stats[i]
			}
			n := sent.Load()
			t.Logf("%.1fM packets in %.1f s, %.0f ns each with two CPUs at work; sources tracked %d, of which evicting %d; packets untracked %d, contended %d, without an aggregate %d",
				float64(n)/1e6, flooding.Seconds(), float64(flooding)/float64(n), moved[bpf.StatTracked], moved[bpf.StatEvicted],
				moved[bpf.StatUntracked], moved[bpf.StatContended], moved[bpf.StatAggregateFull])
			t.Logf("heavy source: %d of %d packets passed in %.2f s", admitted, heavySent, window.Seconds())
			if moved[bpf.StatUntracked] == 0 {
				t.Error("the table never was full: this is no test of it")
			}
			// It may be untracked first, under its prefix's aggregate, and get a slot later: a burst of each.
			if most := int(window.Seconds()*rate) + 2*burst + 2; admitted > most {
				t.Errorf("heavy source: %d packets passed in %.2f s, at most %d should", admitted, window.Seconds(), most)
			}
			if heavySent < 2*admitted {
				t.Errorf("heavy source: only %d packets sent, %d passed", heavySent, admitted)
			}
		})
	}
}
