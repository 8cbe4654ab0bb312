package maps

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

// million yields n IPv4 bans: three quarters addresses, the rest /16 to /24.
func million(n int) iter.Seq[Ban] {
	return func(yield func(Ban) bool) {
		r := rand.New(rand.NewPCG(1, 2))
		for i := range n {
			length := 32
			if i%4 == 3 {
				length = 16 + r.IntN(9)
			}
			p := netip.PrefixFrom(addr4(mask4(r.Uint32(), length)), length)
			if !yield(Ban{Prefix: p, List: 1, Expires: bpf.Forever}) {
				return
			}
		}
	}
}

func defaults() setup {
	s := onlyBans()
	s.sizes = bpf.DefaultSizes()
	return s
}

// BenchmarkPutMillion puts a million bans into an empty table of the default size.
func BenchmarkPutMillion(b *testing.B) {
	k := load(b, defaults())
	bans := collect(million(1e6))
	least := time.Hour
	sorted := os.Getenv("LEVEE_SORTED") != ""
	if sorted {
		slices.SortFunc(bans, func(a, b Ban) int { return a.Prefix.Compare(b.Prefix) })
	}
	for b.Loop() {
		b.StopTimer()
		if _, err := k.Bans.Sync(values(nil)); err != nil {
			b.Fatal(err)
		}
		k.reopen()
		runtime.GC()
		began := time.Now()
		b.StartTimer()
		if _, err := k.Bans.PutAll(values(bans)); err != nil {
			b.Fatal(err)
		}
		least = min(least, time.Since(began))
	}
	b.ReportMetric(float64(least.Microseconds())/1e3, "least-ms")
	used, _ := k.Bans.Slots()
	b.ReportMetric(float64(used), "slots")
}

// BenchmarkSyncMillion syncs a table that holds a million bans with the same million.
func BenchmarkSyncMillion(b *testing.B) {
	k := load(b, defaults())
	bans := collect(million(1e6))
	if _, err := k.Bans.PutAll(values(bans)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if c, err := k.Bans.Sync(values(bans)); err != nil || c.Added+c.Removed+c.Repaired > 0 {
			b.Fatal(c, err)
		}
	}
}

// BenchmarkOpenMillion opens the maps of a table that holds a million bans.
func BenchmarkOpenMillion(b *testing.B) {
	k := load(b, defaults())
	if _, err := k.Bans.PutAll(million(some(1e6))); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		k.reopen()
	}
}

// BenchmarkPut puts one ban and takes it away, in a table that holds a million.
func BenchmarkPut(b *testing.B) {
	k := load(b, defaults())
	if _, err := k.Bans.PutAll(million(some(1e6))); err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for _, length := range []int{32, 29, 24, 17} {
		b.Run(fmt.Sprintf("/%d", length), func(b *testing.B) {
			for b.Loop() {
				p := netip.PrefixFrom(addr4(mask4(r.Uint32(), length)), length)
				if err := k.Bans.Put(Ban{Prefix: p, Expires: bpf.Forever}); err != nil {
					b.Fatal(err)
				}
				k.Bans.Delete(p)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	k := load(b, defaults())
	if _, err := k.Bans.PutAll(million(some(1e6))); err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for b.Loop() {
		k.Bans.Lookup(addr4(r.Uint32()))
	}
}

// BenchmarkTop reads the top ten of half a million sources, from a full table.
func BenchmarkTop(b *testing.B) {
	s := everything()
	s.sizes = bpf.DefaultSizes()
	k := load(b, s)
	view, err := writable(k)
	if err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for i := range view.tags {
		view.tags[i] = r.Uint64()>>16<<16 | bpf.TagLive
		view.states[i].Lo = uint64(r.Uint32())
		view.counts[i].Packets, view.counts[i].Bytes, view.counts[i].Dropped = r.Uint64N(1e9), r.Uint64N(1e12), r.Uint64N(1e6)
	}
	view.close(&err)
	for _, by := range []Order{ByPackets, BySeen} {
		b.Run(fmt.Sprintf("order%d", by), func(b *testing.B) {
			for b.Loop() {
				if top, err := k.Sources.Top(10, by); err != nil || len(top) != 10 {
					b.Fatal(top, err)
				}
			}
		})
	}
}

func writable(k *kernel) (v view, err error) {
	for _, open := range []func() ([]byte, error){
		func() (mem []byte, err error) { mem, v.tags, err = mapArray[uint64](k.Sources.tags, true); return },
		func() (mem []byte, err error) {
			mem, v.states, err = mapArray[bpf.SourceState](k.Sources.states, true)
			return
		},
		func() (mem []byte, err error) {
			mem, v.counts, err = mapArray[bpf.SourceCounts](k.Sources.counts, true)
			return
		},
	} {
		mem, err := open()
		if err != nil {
			return v, err
		}
		v.mapped = append(v.mapped, mem)
	}
	return v, nil
}

func BenchmarkCounters(b *testing.B) {
	k := load(b, everything())
	for b.Loop() {
		if _, err := k.Counters.Read(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMemoryOfMillion holds the process to what the tables of a million bans may cost it; with -test.short they
// are fewer, and the tables the same.
func TestMemoryOfMillion(t *testing.T) {
	k := load(t, defaults())
	debug.FreeOSMemory()
	before := resident(t)
	if _, err := k.Bans.PutAll(million(some(1e6))); err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory()
	after := resident(t)
	n, _ := k.Bans.Len()
	t.Logf("%d bans: %d MB resident, of which %d MB mapped tables; the bans took %d MB", n, after.all>>20, after.file>>20, (after.all-before.all)>>20)
	if took := after.all - before.all; took > 50<<20 {
		t.Errorf("%d bans take %d MB", n, took>>20)
	}
}

type usage struct{ all, file int64 }

func resident(t *testing.T) (u usage) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "VmRSS: %d kB", &u.all)
		fmt.Sscanf(line, "RssFile: %d kB", &u.file)
	}
	u.all <<= 10
	u.file <<= 10
	return u
}

func collect(bans iter.Seq[Ban]) (list []Ban) {
	for ban := range bans {
		list = append(list, ban)
	}
	return list
}

// BenchmarkCompareMillion compares a table that holds a million bans with the same million, and says
// how long the longest part took: that is what a change may wait.
func BenchmarkCompareMillion(b *testing.B) {
	k := load(b, defaults())
	bans := collect(million(1e6))
	if _, err := k.Bans.PutAll(values(bans)); err != nil {
		b.Fatal(err)
	}
	want := make(map[netip.Prefix]Ban, len(bans))
	for _, ban := range bans {
		want[ban.Prefix] = ban
	}
	longest := time.Duration(0)
	for b.Loop() {
		for at := 0; at >= 0; {
			var n int
			began := time.Now()
			at, n = k.Bans.Compare(at, func(p netip.Prefix) (Ban, bool) { ban, ok := want[p]; return ban, ok })
			longest = max(longest, time.Since(began))
			if n > 0 {
				b.Fatal(n)
			}
		}
		for part := range slices.Chunk(bans, 1024) {
			began := time.Now()
			if n := k.Bans.Lacks(part); n > 0 {
				b.Fatal(n)
			}
			longest = max(longest, time.Since(began))
		}
	}
	b.ReportMetric(float64(longest.Microseconds())/1e3, "longest-ms")
}
