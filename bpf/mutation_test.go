package bpf_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/packet"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// world is what a row works with: the program, and addresses of one family.
type world struct {
	*rig.Rig
	tb     testing.TB
	family bpf.Family
	src    netip.Addr
	dst    netip.Addr

	*ledger
}

// ledger saves reading all counters before a row that follows another: nothing has moved since.
type ledger struct {
	last rig.Snapshot // after the last row
	sent bool         // packets since then

	// Reads only what a row should move. Then settle must be asked at the end whether anything else did.
	narrow bool
}

func (w *world) snapshot() rig.Snapshot {
	if w.narrow && w.last.Counters != nil {
		return w.Reread(w.last)
	}
	return w.Snapshot()
}

// settle fails if anything moved that no row has looked at.
func (w *world) settle() {
	w.tb.Helper()
	if diff := w.Snapshot().Since(w.last).Compare(nil); diff != "" {
		w.tb.Errorf("what no row should move: %s", diff)
	}
}

// worlds are the twins that each row is run in.
func worlds(tb testing.TB, r *rig.Rig) []*world {
	l := new(ledger)
	return []*world{
		{Rig: r, ledger: l, tb: tb, family: bpf.FamilyIPv4, src: netip.MustParseAddr("192.0.2.77"), dst: netip.MustParseAddr("198.51.100.9")},
		{Rig: r, ledger: l, tb: tb, family: bpf.FamilyIPv6, src: netip.MustParseAddr("2001:db8:a1:b2:c3:d4:e5:f6"), dst: netip.MustParseAddr("2001:db8:ffff::9")},
	}
}

// build makes a row's packet in a world.
type build func(w *world) *packet.Packet

// row is one mutation of a golden packet, or one state of the tables that it meets.
type row struct {
	name   string
	only   bpf.Family // other: both families
	setup  func(w *world)
	packet build
	want   []outcome                // one for each packet that is sent, in order
	expect func(w *world) []outcome // instead of want, where it differs between the twins
	stats  map[bpf.Stat]uint64
}

// outcome is what one packet comes to, and what it moves.
type outcome struct {
	reason    bpf.Reason
	monitored bool
	other     bool // counted under no IP family
	uncharged bool // not counted on a source
	list      uint16
	limit     uint8
	threshold bpf.Threshold
	source    string // whom it is charged to, if not the source's /32 or /64
	n         int
}

func (o outcome) times(n int) outcome      { o.n = n; return o }
func (o outcome) on(list uint16) outcome   { o.list = list; return o }
func (o outcome) of(limit uint8) outcome   { o.limit = limit; return o }
func (o outcome) monitor() outcome         { o.monitored = true; return o }
func (o outcome) nobody() outcome          { o.uncharged = true; return o }
func (o outcome) charged() outcome         { o.uncharged = false; return o }
func (o outcome) to(source string) outcome { o.source = source; return o }
func (o outcome) passes() bool             { return !o.reason.Drops() || o.monitored }
func one(reason bpf.Reason) outcome        { return outcome{reason: reason, n: 1, uncharged: true} }
func over(reason bpf.Reason, t bpf.Threshold) outcome {
	return outcome{reason: reason, threshold: t, n: 1}
}

// The outcomes.
var (
	clean        = outcome{reason: bpf.ReasonClean, n: 1}
	nonIP        = outcome{reason: bpf.ReasonNonIP, n: 1, uncharged: true, other: true}
	arp          = outcome{reason: bpf.ReasonControl, n: 1, uncharged: true, other: true}
	cutEthernet  = outcome{reason: bpf.ReasonMalformedL3, n: 1, uncharged: true, other: true}
	panicking    = one(bpf.ReasonPanic)
	allowed      = outcome{reason: bpf.ReasonAllowed, n: 1}
	exempt       = outcome{reason: bpf.ReasonExempt, n: 1}
	control      = one(bpf.ReasonControl)
	untracked    = one(bpf.ReasonUntracked)
	contended    = one(bpf.ReasonContended)
	malformedL3  = one(bpf.ReasonMalformedL3)
	banned       = one(bpf.ReasonBanned)
	martian      = one(bpf.ReasonMartian)
	malformedL4  = one(bpf.ReasonMalformedL4)
	controlCap   = one(bpf.ReasonControlCap)
	penalty      = over(bpf.ReasonPenalty, bpf.CountPenalty)
	overPackets  = over(bpf.ReasonLimitPackets, bpf.ThresholdPackets)
	overBits     = over(bpf.ReasonLimitBits, bpf.ThresholdBits)
	overSYN      = over(bpf.ReasonLimitSYN, bpf.ThresholdSYN)
	overUDP      = over(bpf.ReasonLimitUDP, bpf.ThresholdUDP)
	overICMP     = over(bpf.ReasonLimitICMP, bpf.ThresholdICMP)
	overFrags    = over(bpf.ReasonLimitFragments, bpf.ThresholdFragments)
	overTogether = over(bpf.ReasonLimitAggregate, bpf.CountAggregate)
)

// baseline is the state that every row starts from: a default limit that no row reaches, so that
// every clean packet is charged, and bans of others.
func (w *world) baseline() {
	w.Reset()
	var l rig.Limit
	for i := range l.Thresholds {
		l.Thresholds[i] = rig.Rate{PerSecond: 1e6, Burst: 1e8}
	}
	w.Limit(0, l)
	w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("203.0.113.0/24"), List: 900})
	w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("192.0.2.78/32"), List: 901}) // a neighbour
	w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("2001:db8:bad::/48"), List: 902})
	w.Ban(rig.Ban{Prefix: netip.MustParsePrefix("2001:db8:a1:b2:c3:d4:e5:f5/128"), List: 903})
	w.SetControl(func(c *bpf.Control) { c.SourceIdle = uint64(10 * time.Second) })
}

func (w *world) v6() bool { return w.family == bpf.FamilyIPv6 }

// ip starts a packet from the world's source.
func (w *world) ip() *packet.Packet { return packet.New().IP(w.src, w.dst) }

func (w *world) from(src string) *packet.Packet {
	return packet.New().IP(netip.MustParseAddr(src), w.dst)
}

// icmp adds a message to a packet in the family's own protocol.
func (w *world) icmp(p *packet.Packet, kind4, kind6 uint8) *packet.Packet {
	if w.v6() {
		return p.ICMPv6(kind6, 0)
	}
	return p.ICMP(kind4, 0)
}

// net is the source's prefix of a length for IPv4, or of the twin's for IPv6.
func (w *world) net(length int) netip.Prefix {
	if w.v6() {
		length = map[int]int{32: 128, 28: 96, 24: 64, 20: 56, 16: 48, 12: 32, 8: 20, 4: 16, 1: 1}[length]
	}
	return netip.PrefixFrom(w.src, length).Masked()
}

// prefix is the source's of a family's own length.
func (w *world) prefix(length int) netip.Prefix { return netip.PrefixFrom(w.src, length).Masked() }

// sibling is an address beside the source within its prefix of a length, and outside the next
// longer one.
func (w *world) sibling(length int) netip.Addr { return flip(w.src, length) }

// flip changes one bit of an address, counted from its start.
func flip(a netip.Addr, bit int) netip.Addr {
	b := a.AsSlice()
	b[bit/8] ^= 0x80 >> (bit % 8)
	flipped, _ := netip.AddrFromSlice(b)
	return flipped
}

// group is whom a packet of the source is charged to by default.
func (w *world) group() netip.Addr {
	if w.v6() {
		return w.prefix(64).Addr()
	}
	return w.src
}

// groupLength and aggregateLength are the default limit's.
func (w *world) groupLength() int     { return map[bool]int{false: 32, true: 64}[w.v6()] }
func (w *world) aggregateLength() int { return map[bool]int{false: 24, true: 48}[w.v6()] }

// rewrite changes the source's state under limit 0.
func (w *world) rewrite(change func(*bpf.SourceState)) {
	w.tb.Helper()
	index, err := w.SourceIndex(w.group(), 0)
	if err != nil {
		w.tb.Fatal(err)
	}
	s := w.SourceState(index)
	change(&s)
	w.SetSourceState(index, s)
}

// penalize has the source serve a penalty of this setting until a time, under a limit of three
// packets and one an hour.
func (w *world) penalize(setting time.Duration, until uint64) {
	w.tb.Helper()
	w.Limit(0, rig.Limit{Thresholds: slow(bpf.ThresholdPackets, 3), Penalty: setting})
	w.send(tcp(w))
	w.rewrite(func(s *bpf.SourceState) { s.Tat[bpf.ThresholdPackets] = until | bpf.TATPenalty })
}

// send is for a row's setup.
func (w *world) send(p *packet.Packet) {
	w.tb.Helper()
	run(w.tb, w.Rig, p.Bytes())
	w.sent = true
}

// charged is whom an outcome's packet is charged to.
func (w *world) charged(o outcome) netip.Addr {
	if o.source != "" {
		return netip.MustParseAddr(o.source)
	}
	return w.group()
}

// moves adds what one packet of this outcome moves.
func (w *world) moves(m rig.Moves, o outcome, bytes uint64) {
	family := w.family
	if o.other {
		family = bpf.FamilyOther
	}
	m.Count(w.Slot, o.reason, family, o.monitored, 1, bytes)
	switch {
	case o.reason == bpf.ReasonBanned:
		m.List(o.list, o.monitored, 1, bytes)
	case o.reason >= bpf.ReasonPenalty:
		m.Limit(o.limit, o.threshold, o.monitored, 1, bytes)
	}
	if o.uncharged {
		return
	}
	source := w.charged(o)
	if o.reason >= bpf.ReasonPenalty {
		m.Source(source, o.limit, 0, 0, 1)
	} else {
		m.Source(source, o.limit, 1, bytes, 0)
	}
}

// check sends a row's packets and compares the verdicts, and everything that is counted.
func (w *world) check(r row) {
	w.tb.Helper()
	w.baseline()
	if r.setup != nil {
		r.setup(w)
	}
	if r.expect != nil {
		r.want = r.expect(w)
	}
	frame := r.packet(w).Bytes()
	if w.sent || w.last.Counters == nil {
		w.last = w.snapshot()
	}
	before := w.Resource(w.last)
	want := make(rig.Moves)
	for stat, n := range r.stats {
		want.Stat(stat, n)
	}
	type charge struct {
		source netip.Addr
		limit  uint8
	}
	known := make(map[charge]bool)
	for _, s := range before.Sources {
		known[charge{s.Source, s.Limit}] = true
	}
	sent := 0
	w.sent = true // until all is counted
	for _, o := range r.want {
		for range o.n {
			sent++
			verdict := run(w.tb, w.Rig, frame)
			if (verdict == xdpPass) != o.passes() || verdict != xdpPass && verdict != xdpDrop {
				w.tb.Errorf("packet %d: %s, want %s", sent, action(verdict), o.reason)
			}
			w.moves(want, o, uint64(len(frame)))
			if c := (charge{w.charged(o), o.limit}); !o.uncharged && !known[c] {
				want.Stat(bpf.StatTracked, 1)
				known[c] = true
			}
		}
	}
	w.last, w.sent = w.snapshot(), false
	if diff := w.last.Since(before).Compare(want); diff != "" {
		w.tb.Errorf("%d × % x (%d bytes), %s:%s", sent, frame[:min(len(frame), 128)], len(frame), w.Rig, diff)
	}
}

// TestMutations runs the table: every row asserts the verdict, what was counted, and that nothing
// else was.
func TestMutations(t *testing.T) {
	r := loadDefault(t)
	rows := slices.Concat(ethernetRows(), ipRows(), extensionRows(), transportRows(), controlRows(), martianRows(),
		banRows(), allowRows(), limitRows(), switchRows())
	twins := worlds(t, r)
	twins[0].narrow = true // and its twin
	seen := make(map[string]bool)
	for _, row := range rows {
		if seen[row.name] {
			t.Errorf("two rows are named %q", row.name)
		}
		seen[row.name] = true
		for _, w := range twins {
			if row.only != bpf.FamilyOther && row.only != w.family {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", row.name, w.family), func(t *testing.T) {
				w.tb = t
				w.check(row)
			})
		}
	}
	twins[0].tb = t
	twins[0].settle()
	t.Logf("%d rows", len(rows))
}
