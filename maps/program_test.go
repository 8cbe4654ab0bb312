package maps

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levee-xdp/levee/bpf"
)

// everything is a program with every stage, and small tables.
func everything() setup {
	s := onlyBans()
	s.features = bpf.DefaultFeatures()
	return s
}

// TestTopAgainstSent sends what is known and asks for it back.
func TestTopAgainstSent(t *testing.T) {
	k := load(t, everything())
	if err := k.Control.SetSourceIdle(time.Hour); err != nil {
		t.Fatal(err)
	}
	r := seeded(t)
	setLimit(k, 0, packets(20))
	grouped := packets(10)
	grouped.Group4, grouped.Group6 = 24, 48
	grouped.Services = []Service{{protoTCP, 443}}
	setLimit(k, 7, grouped)

	type id struct {
		p     netip.Prefix
		limit uint8
	}
	want := make(map[id]Source)
	began := Monotonic()
	w := newWorld(r)
	var addrs []netip.Addr
	for range 60 {
		addrs = append(addrs, w.addr4(), w.addr6())
	}
	for range 6000 {
		addr := addrs[min(r.IntN(len(addrs)), r.IntN(len(addrs)))]
		if first := addr.AsSlice()[0]; first == 127 || first >= 224 {
			continue // a martian
		}
		number, length, most := uint8(0), 32, uint64(20)
		f := frame(addr)
		if addr.Is6() {
			length = 64
		}
		if r.IntN(3) == 0 {
			number, length, most = 7, 24, 10
			f = frame(addr, toPort(protoTCP, 443))
			if addr.Is6() {
				length = 48
			}
		}
		p, _ := addr.Prefix(length)
		src := want[id{p, number}]
		src.Prefix, src.Limit = p, number
		verdict := uint32(xdpPass)
		if src.Packets < most {
			src.Packets++
			src.Bytes += uint64(len(f))
		} else {
			src.Dropped++
			verdict = xdpDrop
		}
		want[id{p, number}] = src
		if got := k.run(f, 1); got != verdict {
			t.Fatalf("%s: verdict %d, want %d: %+v", addr, got, verdict, src)
		}
	}
	ended := Monotonic()

	check := func(got Source) {
		t.Helper()
		expected, ok := want[id{got.Prefix, got.Limit}]
		if !ok {
			t.Fatalf("%+v was not sent", got)
		}
		const unit = 1 << 24
		now := Monotonic() // a source that owes is seen when that is paid, and till then whenever one looks
		if got.First < began-1e7 || got.First > ended || got.Seen < got.First-unit-1e7 || got.Seen > now+unit {
			t.Errorf("%+v: times are not within %d to %d", got, began, ended)
		}
		expected.First, expected.Seen = got.First, got.Seen
		if got != expected {
			t.Errorf("got %+v, want %+v", got, expected)
		}
	}
	for _, by := range []Order{ByPackets, ByBytes, ByDropped, BySeen} {
		for _, n := range []int{0, 1, 7, 10000} {
			top, err := k.Sources.Top(n, by)
			if err != nil {
				t.Fatal(err)
			}
			if len(top) != min(n, len(want)) {
				t.Fatalf("top %d has %d of %d", n, len(top), len(want))
			}
			rank := func(s Source) uint64 { return [...]uint64{s.Packets, s.Bytes, s.Dropped, s.Seen}[by] }
			var ranks []uint64
			for _, s := range want {
				ranks = append(ranks, rank(s))
			}
			slices.Sort(ranks)
			slices.Reverse(ranks)
			for i, got := range top {
				check(got)
				if by != BySeen && rank(got) != ranks[i] {
					t.Fatalf("order %d: place %d has %d, want %d", by, i, rank(got), ranks[i])
				}
				if i > 0 && rank(got) > rank(top[i-1]) {
					t.Fatalf("order %d: place %d has more than the one before", by, i)
				}
			}
		}
	}
	if n, err := k.Sources.Len(); err != nil || n != len(want) {
		t.Errorf("len: %d, %v, want %d", n, err, len(want))
	}
	stats, err := k.Counters.Stats()
	if err != nil || stats[bpf.StatTracked] != uint64(len(want)) || stats[bpf.StatUntracked] != 0 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	for _, addr := range addrs {
		got, err := k.Sources.Lookup(addr)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for key := range want {
			if key.p.Contains(addr) {
				n++
			}
		}
		if len(got) != n {
			t.Errorf("%s: found %d sources, want %d", addr, len(got), n)
		}
		for _, s := range got {
			check(s)
		}
	}
}

func TestControl(t *testing.T) {
	k := load(t, everything())
	c := k.Control
	addr := address("192.0.2.1")
	if err := k.Bans.Put(Ban{Prefix: prefix("192.0.2.0/24"), List: 5, Expires: bpf.Forever}); err != nil {
		t.Fatal(err)
	}
	check := func(verdict uint32, reason bpf.Reason, monitored bool) {
		t.Helper()
		before := k.count(reason, monitored)
		if got := k.run(frame(addr), 1); got != verdict {
			t.Errorf("verdict %d, want %d", got, verdict)
		}
		if k.count(reason, monitored) != before+1 {
			t.Errorf("%s (monitored: %v) was not counted", reason, monitored)
		}
	}
	check(xdpDrop, bpf.ReasonBanned, false)
	c.SetMonitor(true)
	check(xdpPass, bpf.ReasonBanned, true)
	c.SetPanic(true)
	check(xdpPass, bpf.ReasonPanic, false)
	if !c.Panic() || !c.Monitor() {
		t.Error("switches are not on")
	}
	c.SetPanic(false)
	c.SetMonitor(false)
	check(xdpDrop, bpf.ReasonBanned, false)
	if c.Panic() || c.Monitor() {
		t.Error("switches are not off")
	}

	arp := make([]byte, 60)
	arp[12], arp[13] = 0x08, 0x06
	if err := c.SetControlCap(1.0/3600, 3); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint32{xdpPass, xdpPass, xdpPass, xdpDrop} {
		if got := k.run(arp, 1); got != want {
			t.Errorf("ARP packet %d: verdict %d, want %d", i, got, want)
		}
	}
	if err := c.SetControlCap(0, 0); err != nil || k.run(arp, 1) != xdpPass {
		t.Error("the cap is not lifted", err)
	}
	var ranged *RangeError
	if err := c.SetControlCap(1e9, 0); !errors.As(err, &ranged) {
		t.Error(err)
	}
	if err := c.SetSourceIdle(0); !errors.As(err, &ranged) {
		t.Error(err)
	}
	if err := c.SetSourceIdle(time.Minute); err != nil || c.SourceIdle() != time.Minute {
		t.Error(c.SourceIdle(), err)
	}
	c.SetEventBudget(9)
	if c.EventBudget() != 9 {
		t.Error(c.EventBudget())
	}
}

// TestTopOnCredit sends packets of which most pass on credit, and are neither charged nor counted in their
// source's entry yet.
func TestTopOnCredit(t *testing.T) {
	onCPU(t, 0)
	k := load(t, everything())
	setLimit(k, 0, packets(1e6))
	owed := func() (n int) {
		var sets []bpf.Tabs
		if err := k.maps[bpf.LeveeMapTabs].Lookup(uint32(0), &sets); err != nil {
			t.Fatal(err)
		}
		for _, set := range sets {
			for _, tab := range set.Tab {
				n += int(tab.Owed)
			}
		}
		return n
	}
	for _, addr := range []netip.Addr{address("198.51.100.7"), address("2001:db8:7::1")} {
		f := frame(addr)
		sent, before := uint64(0), owed()
		for sent < 50 || owed() <= before { // a tick may end, and then nothing is owed for a moment
			if got := k.run(f, 1); got != xdpPass {
				t.Fatalf("%s: verdict %d", addr, got)
			}
			if sent++; sent == 1e6 {
				t.Fatalf("%s: nothing passes on credit", addr)
			}
		}
		got, err := k.Sources.Lookup(addr)
		if err != nil || len(got) != 1 || got[0].Packets != sent || got[0].Bytes != sent*uint64(len(f)) || got[0].Dropped != 0 {
			t.Errorf("%s: %+v, %v, of %d packets of %d bytes", addr, got, err, sent, len(f))
		}
	}
}

func TestEvents(t *testing.T) {
	k := load(t, everything())
	if err := k.Bans.Put(Ban{Prefix: prefix("192.0.2.0/24"), List: 77, Expires: bpf.Forever}); err != nil {
		t.Fatal(err)
	}
	if err := k.Bans.Put(Ban{Prefix: prefix("2001:db8::/32"), List: 78, Monitor: true, Expires: bpf.Forever}); err != nil {
		t.Fatal(err)
	}
	k.Control.SetEventBudget(1000)
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan Event, 16)
	ended := make(chan error, 1)
	go func() { ended <- k.Events.Run(ctx, func(e Event) { events <- e }) }()

	first, second := frame(address("192.0.2.9")), frame(address("2001:db8::9"), toPort(protoTCP, 80))
	before := coarse()
	k.run(first, 1)
	k.run(second, 1)
	third := append(first[:14:14], 0x45, 0, 0) // cut off
	k.run(third, 1)
	want := []Event{
		{
			Reason: bpf.ReasonBanned, Family: bpf.FamilyIPv4, Source: address("192.0.2.9"), Destination: address("192.0.2.1"),
			Protocol: protoUDP, SourcePort: 4000, Port: 53, List: 77, Length: uint32(len(first)), Packet: first,
		},
		{
			Reason: bpf.ReasonBanned, Family: bpf.FamilyIPv6, Monitored: true, Source: address("2001:db8::9"), Destination: address("2001:db8::1"),
			Protocol: protoTCP, SourcePort: 4000, Port: 80, List: 78, Length: uint32(len(second)), Packet: second,
		},
		{Reason: bpf.ReasonMalformedL3, Family: bpf.FamilyIPv4, Length: 17, Packet: third},
	}
	for _, want := range want {
		select {
		case got := <-events:
			if got.Time < before || got.Time > Monotonic() {
				t.Errorf("time %d is not between %d and now", got.Time, before)
			}
			want.Time, want.Interface = got.Time, got.Interface
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("no event")
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Run does not end")
	}
	if _, err := decodeEvent(make([]byte, 20)); err == nil {
		t.Error("a short event is taken")
	}
}

func TestCountersAndInterfaces(t *testing.T) {
	k := load(t, everything())
	want := []Interface{{3, 7, "test0", ModeGeneric}}
	if got := k.Interfaces.List(); !slices.Equal(got, want) {
		t.Errorf("interfaces %+v, want %+v", got, want)
	}
	if ModeNative.String() != "native" || ModeGeneric.String() != "generic" || AttachMode(9).String() != "unknown" {
		t.Error("words of modes")
	}
	f4, f6 := frame(address("198.51.100.1")), frame(address("2400::1"))
	for range 3 {
		k.run(f4, 1)
	}
	k.run(f6, 1)
	counts := []Count{
		{3, bpf.ReasonClean, bpf.FamilyIPv4, false, 3, 3 * uint64(len(f4))},
		{3, bpf.ReasonClean, bpf.FamilyIPv6, false, 1, uint64(len(f6))},
	}
	for _, single := range []bool{false, true} {
		k.Counters.counters.single = single
		got, err := k.Counters.Read()
		if diff := cmp.Diff(counts, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
	for _, single := range []bool{false, true} {
		k.Counters.lists.single, k.Counters.limits.single = single, single
		lists, err := k.Counters.Lists()
		if err != nil || len(lists) != 0 {
			t.Errorf("%+v, %v", lists, err)
		}
		limits, err := k.Counters.Limits()
		if err != nil || len(limits) != 0 {
			t.Errorf("%+v, %v", limits, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	k := load(t, everything())
	all := k.maps
	without := func(name string) error {
		m := all[name]
		delete(all, name)
		defer func() { all[name] = m }()
		tables, err := Open(all)
		if err == nil {
			tables.Close()
		}
		return err
	}
	for name := range map[string]bool{bpf.LeveeMapMeta: true, bpf.LeveeMapBan6Wide: true, bpf.LeveeMapEvents: true, bpf.LeveeMapAllows: true, bpf.LeveeMapTabs: true} {
		if err := without(name); err == nil {
			t.Errorf("opened without %s", name)
		}
	}
	if err := all[bpf.LeveeMapMeta].Put(uint32(0), bpf.Meta{Schema: 99}); err != nil {
		t.Fatal(err)
	}
	if tables, err := Open(all); err == nil {
		tables.Close()
		t.Error("opened a schema of the future")
	}
}
