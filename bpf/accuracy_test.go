package bpf_test

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// stream is one source that sends a multiple of what its limit admits.
type stream struct {
	name     string
	limit    uint8
	source   netip.Addr
	frame    []byte
	unit     float64 // of a packet: 1, or bytes
	rate     float64 // units a second
	burst    float64 // units
	multiple float64 // of the rate, all CPUs together; 0: as fast as it goes
	cpus     []int
	coarse   bool
	credit   float64 // units by which the burst may be short of what was asked for

	mu      sync.Mutex
	batches []batch
}

// batch is packets that were sent at some time between two.
type batch struct {
	before, after uint64        // CLOCK_MONOTONIC ns
	behind        time.Duration // by how much the coarse clock was, before
	n             int
}

// accuracyKinds are the limits that streams are held to. Each admits 1,000 packets a second and a
// burst of 400.
var accuracyKinds = []struct {
	name  string
	unit  float64
	flags uint8
	v6    bool
	t     bpf.Threshold
	given uint8 // on credit: 1 << (n-1) packets a CPU
}{
	{"packets, IPv4", 1, 0, false, bpf.ThresholdPackets, 0},
	{"packets, IPv6", 1, 0, true, bpf.ThresholdPackets, 0},
	{"bits, IPv4", 1000, 0, false, bpf.ThresholdBits, 0},
	{"bits, IPv6", 1000, 0, true, bpf.ThresholdBits, 0},
	{"packets by the coarse clock, IPv4", 1, bpf.LimitCoarse, false, bpf.ThresholdPackets, 0},
	{"packets by the coarse clock, IPv6", 1, bpf.LimitCoarse, true, bpf.ThresholdPackets, 0},
	{"packets on credit, IPv4", 1, bpf.LimitCoarse, false, bpf.ThresholdPackets, 4},
	{"packets on credit, IPv6", 1, bpf.LimitCoarse, true, bpf.ThresholdPackets, 4},
	{"bits on credit, IPv4", 1000, bpf.LimitCoarse, false, bpf.ThresholdBits, 4},
	{"bits on credit, IPv6", 1000, bpf.LimitCoarse, true, bpf.ThresholdBits, 4},
}

const (
	admittedRate  = 1000.0
	admittedBurst = 400.0
)

// tick is how long the coarse clock stands still.
func tick(tb testing.TB) time.Duration {
	tb.Helper()
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// streams sets the limits, and makes a stream of each kind for each multiple and number of CPUs.
func streams(tb testing.TB, r *rig.Rig, multiples []float64) []*stream {
	tb.Helper()
	var all []*stream
	r.Reset()
	r.SetControl(func(c *bpf.Control) { c.SourceIdle = uint64(time.Minute) })
	for i, k := range accuracyKinds {
		number := uint8(i + 1)
		l := rig.Limit{Flags: k.flags}
		rate := rig.Rate{PerSecond: admittedRate * k.unit, Burst: admittedBurst * k.unit}
		if k.flags&bpf.LimitCoarse != 0 {
			// as user space sets it, so that no window admits more than by the exact clock
			rate.Burst -= tick(tb).Seconds() * rate.PerSecond
		}
		var credit float64 // of both CPUs, in units
		if k.given != 0 {
			l.Credit[k.t] = k.given
			credit = float64(int(2) << (k.given - 1))
			if k.t == bpf.ThresholdBits {
				credit *= float64(bpf.CreditBytes)
			}
			rate.Burst -= credit
		}
		l.Thresholds[k.t] = rate
		r.Limit(number, l)
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + number}), 16)
		dst := netip.MustParseAddr("198.51.100.1")
		if k.v6 {
			prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0x0D, 0xB8, number}), 48)
			dst = netip.MustParseAddr("2001:db8:ffff::1")
		}
		r.BindSource(prefix, number)
		for j, multiple := range multiples {
			for cpus := 1; cpus <= 2; cpus++ {
				source := prefix.Addr().AsSlice()
				// in the third byte of IPv4; in IPv6, the /64
				source[2+4*boolInt(k.v6)] = byte(2*j + cpus)
				addr, _ := netip.AddrFromSlice(source)
				s := &stream{
					name: fmt.Sprintf("%s, %g ×, %d CPU", k.name, multiple, cpus), limit: number, source: addr, unit: k.unit,
					rate: admittedRate * k.unit, burst: admittedBurst * k.unit, multiple: multiple, cpus: []int{len(all) / 2 % 2},
					coarse: k.flags&bpf.LimitCoarse != 0, credit: credit,
					frame: packet.New().IP(addr, dst).UDP(1, 2).Pad(1000).Bytes(),
				}
				if cpus == 2 {
					s.cpus = []int{0, 1}
				}
				all = append(all, s)
			}
		}
	}
	return all
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// dear is how many single runs cost about as much as a repeated one: for that the kernel patches its
// own code (bpf_prog_change_xdp), and stops all CPUs for it.
const dear = 100

// send sends n packets from one CPU and notes when.
func (s *stream) send(r *rig.Rig, n int) error {
	var coarse unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &coarse)
	if err != nil {
		return err
	}
	b := batch{before: rig.Monotonic(), n: n}
	b.behind = time.Duration(int64(b.before) - coarse.Nano())
	if n > dear {
		_, err = r.Repeat(s.frame, n)
	} else {
		for i := 0; i < n && err == nil; i++ {
			_, err = r.Run(s.frame)
		}
	}
	b.after = rig.Monotonic()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches = append(s.batches, b)
	return err
}

func (s *stream) sent() (n int) {
	for _, b := range s.batches {
		n += b.n
	}
	return n
}

// span is from before the first packet to after the last, in seconds.
func (s *stream) span() float64 {
	first, last := s.batches[0].before, uint64(0)
	for _, b := range s.batches {
		first, last = min(first, b.before), max(last, b.after)
	}
	return float64(last-first) / 1e9
}

// most is how many packets may pass. A coarse clock that was behind by more than a tick when the
// stream began, since a busy machine's tick was late, catches up with that in its course.
func (s *stream) most(late time.Duration) float64 {
	first := slices.MinFunc(s.batches, func(a, b batch) int { return cmp.Compare(a.before, b.before) })
	behind := 0.0
	if s.coarse {
		behind = max(0, (first.behind - late).Seconds())
	}
	return (s.burst + s.rate*(s.span()+behind)) / s.unit
}

// least is how many packets have to pass: what a bucket of tokens would let through of what was
// really sent. A machine that is busy with other things keeps the senders waiting, and while they
// wait no more than a burst is saved up for them. When in its batch a packet came is not known: the
// latest is the worst, for a full bucket runs over while it waits, but in the end, where the earliest
// is. A sender that had to wait in the midst of a batch, which took several times as long as others, may
// have sent it all before, and the next one late: what the bucket gained meanwhile may have run over.
// The coarse clock is late by a tick.
func (s *stream) least(late time.Duration) float64 {
	slices.SortFunc(s.batches, func(a, b batch) int { return cmp.Compare(a.after, b.after) })
	full := (s.burst - late.Seconds()*s.rate - 2*s.credit) / s.unit
	tokens, passed := full, 0.0
	last, begun := s.batches[0].after, uint64(0)
	lengths := make([]uint64, len(s.batches))
	for i, b := range s.batches {
		lengths[i] = b.after - b.before
	}
	slices.Sort(lengths)
	usual := lengths[len(lengths)/2]
	lost := 0.0 // seconds
	for _, b := range s.batches {
		if took := b.after - b.before; took > 4*usual {
			lost += min(float64(took-usual)/1e9, s.burst/s.rate)
		}
		tokens = min(full, tokens+float64(b.after-last)/1e9*s.rate/s.unit)
		last, begun = b.after, max(begun, b.before)
		n := min(math.Floor(tokens), float64(b.n))
		tokens -= n
		passed += n
	}
	return passed - (late.Seconds()+float64(last-begun)/1e9+lost)*s.rate/s.unit
}

// atOnce is of how much time a stream sends at once what is due.
const atOnce = 50 * time.Millisecond

// play sends all streams for a while, from two threads that each keep to a CPU.
func play(tb testing.TB, r *rig.Rig, all []*stream, d time.Duration) {
	tb.Helper()
	for _, s := range all { // two CPUs that meet a newcomer at once may track it twice
		if err := s.send(r, 1); err != nil {
			tb.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for cpu := range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread() // and never unlocked: the thread ends with its affinity
			var set unix.CPUSet
			set.Set(cpu)
			if errs[cpu] = unix.SchedSetaffinity(0, &set); errs[cpu] != nil {
				return
			}
			var mine []*stream
			for _, s := range all {
				if slices.Contains(s.cpus, cpu) {
					mine = append(mine, s)
				}
			}
			begin := time.Now()
			sent := make([]int, len(mine))
			for time.Since(begin) < d {
				for i, s := range mine {
					elapsed := time.Since(begin)
					if elapsed >= d {
						break
					}
					n := 50_000 // as fast as it goes
					if s.multiple != 0 {
						// What one owes others grows while it is sent: a slow machine would never be done.
						per := s.multiple * s.rate / s.unit / float64(len(s.cpus))
						n = min(int(elapsed.Seconds()*per)-sent[i], int(atOnce.Seconds()*per))
					}
					if n <= 0 || s.multiple >= 100 && n < 10*dear {
						continue
					}
					if errs[cpu] = s.send(r, n); errs[cpu] != nil {
						return
					}
					sent[i] += n
				}
				if mine[0].multiple != 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// judge compares what passed of a stream with what may and has to pass. Beyond that, one packet more
// may pass, for the first costs nothing yet, and what lost too many races; and 1 % less.
func (s *stream) judge(t *testing.T, r *rig.Rig, contended uint64) (passed, most, least float64) {
	t.Helper()
	var late time.Duration
	if s.coarse {
		late = tick(t)
	}
	passed, most, least = float64(r.Sources()[groupOf(s.source)].Packets), s.most(late), s.least(late)
	if passed > most+1+float64(contended) {
		t.Errorf("%s: %.0f of %d packets passed, at most %.0f may", s.name, passed, s.sent(), most+1)
	}
	if passed < 0.99*least-1 {
		t.Errorf("%s: %.0f of %d packets passed, at least %.0f have to", s.name, passed, s.sent(), 0.99*least-1)
	}
	return passed, most, least
}

// TestAccuracy holds sources to their limits, sending 2, 10 and 100 times as much from one and from
// two CPUs: at most burst + rate × time + 1 pass, and not less than that by more than 1 %.
func TestAccuracy(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	r := loadDefault(t)
	d := 2 * time.Second
	if long() {
		d = 10 * time.Second
	}
	all := streams(t, r, []float64{2, 10, 100})
	before := r.Stats()[bpf.StatContended]
	play(t, r, all, d)
	contended := r.Stats()[bpf.StatContended] - before
	above, below := math.Inf(-1), math.Inf(1) // packets
	for _, s := range all {
		passed, most, least := s.judge(t, r, contended)
		above, below = max(above, passed-most), min(below, passed-least)
		t.Logf("%-50s %7d sent in %.2f s, %5.0f passed: at most %.1f may, at least %.0f have to", s.name, s.sent(), s.span(), passed, most, least)
	}
	t.Logf("%d streams over %s: %+.1f packets at most of what may pass, %+.1f at least of what has to; %d contended", len(all), d,
		above, below, contended)
}

// TestAccuracyFlatOut sends from two CPUs to one source as fast as they can: what passes without
// being paid for is counted as contended.
func TestAccuracyFlatOut(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	r := loadDefault(t)
	for _, s := range streams(t, r, []float64{0}) {
		if len(s.cpus) != 2 {
			continue
		}
		before := r.Stats()[bpf.StatContended]
		play(t, r, []*stream{s}, 400*time.Millisecond)
		contended := r.Stats()[bpf.StatContended] - before
		passed, most, least := s.judge(t, r, contended)
		t.Logf("%s: %.1fM packets a second, %.0f passed, at most %.1f may, at least %.0f have to, %d contended", s.name,
			float64(s.sent())/s.span()/1e6, passed, most, least, contended)
	}
}

// TestAccuracyContended holds a source to a limit that lets half of what two CPUs can send pass, so
// that they change its state all the time: what one adds is not lost by the other.
func TestAccuracyContended(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	r := loadDefault(t)
	for _, w := range worlds(t, r) {
		var l rig.Limit
		l.Thresholds[bpf.ThresholdPackets] = rig.Rate{PerSecond: 1e6, Burst: 1e5}
		r.Reset()
		r.Limit(0, l)
		s := &stream{
			name: w.family.String(), source: w.src, frame: tcp(w).Bytes(), unit: 1, rate: 1e6, burst: 1e5, cpus: []int{0, 1},
		}
		before := r.Stats()[bpf.StatContended]
		play(t, r, []*stream{s}, 500*time.Millisecond)
		contended := r.Stats()[bpf.StatContended] - before
		passed, most := float64(r.Sources()[w.group()].Packets), s.most(0)
		t.Logf("%s: %.1fM packets a second, %.0f passed, at most %.0f may, %d contended", s.name, float64(s.sent())/s.span()/1e6, passed, most, contended)
		if passed > most+1+float64(contended) {
			t.Errorf("%s: %.0f packets passed, at most %.0f may", s.name, passed, most+1)
		}
	}
}
