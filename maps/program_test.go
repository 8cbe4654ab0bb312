package maps

import (
	"context"
	"encoding/binary"
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

func toPort(protocol uint8, port uint16) func([]byte) {
	return func(f []byte) {
		at := 14 + 20
		if f[12] == 0x86 {
			at = 14 + 40
			f[14+6] = protocol
		} else {
			f[14+9] = protocol
		}
		binary.BigEndian.PutUint16(f[at+2:], port)
		if protocol == protoTCP {
			f[at+12], f[at+13] = 0x50, 0x02 // 20 bytes, SYN
		}
	}
}

func setLimit(k *kernel, number uint8, limit Limit) {
	k.t.Helper()
	if err := k.Limits.Put(number, limit); err != nil {
		k.t.Fatal(err)
	}
}

// packets is a limit of so many packets an hour, so that none is earned while a test runs.
func packets(burst float64) (limit Limit) {
	limit.Thresholds[bpf.ThresholdPackets] = Rate{PerSecond: burst / 3600, Burst: burst}
	return limit
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

// TestPenalty breaks a limit that punishes.
func TestPenalty(t *testing.T) {
	k := load(t, everything())
	limit := packets(3)
	limit.Penalty = time.Second
	setLimit(k, 0, limit)
	addr := address("198.51.100.1")
	for i, want := range []uint32{xdpPass, xdpPass, xdpPass, xdpDrop, xdpDrop} {
		if got := k.run(frame(addr), 1); got != want {
			t.Fatalf("packet %d: verdict %d, want %d", i, got, want)
		}
	}
	now := Monotonic()
	top, err := k.Sources.Top(5, ByDropped)
	if err != nil || len(top) != 1 || top[0].Dropped != 2 {
		t.Fatalf("%+v, %v", top, err)
	}
	if until := top[0].PenaltyUntil; until <= now || until > now+1e9 {
		t.Errorf("penalty until %d, now is %d", until, now)
	}
	if seen := top[0].Seen; seen > Monotonic() {
		t.Errorf("seen at %d, that is in the future", seen)
	}
	counts, err := k.Counters.Limits()
	if err != nil {
		t.Fatal(err)
	}
	want := []LimitCount{
		{0, bpf.ThresholdPackets, false, 1, uint64(len(frame(addr)))},
		{0, bpf.CountPenalty, false, 1, uint64(len(frame(addr)))},
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Error(diff)
	}
	time.Sleep(time.Duration(int64(top[0].PenaltyUntil) - int64(Monotonic()) + 20e6))
	if top, err = k.Sources.Top(5, ByDropped); err != nil || len(top) != 1 || top[0].PenaltyUntil != 0 {
		t.Errorf("after the penalty: %+v, %v", top, err)
	}
}

// TestLimitBindings checks which limit a packet falls under, by that limit's number in the source
// table.
func TestLimitBindings(t *testing.T) {
	k := load(t, everything())
	plain := packets(1e6)
	bound := func(sources []string, services ...Service) Limit {
		limit := plain
		for _, s := range sources {
			limit.Sources = append(limit.Sources, prefix(s))
		}
		limit.Services = services
		return limit
	}
	under := func(addr string, change func([]byte), want ...uint8) {
		t.Helper()
		if got := k.run(frame(address(addr), change), 1); got != xdpPass {
			t.Fatalf("verdict %d", got)
		}
		sources, err := k.Sources.Lookup(address(addr))
		if err != nil {
			t.Fatal(err)
		}
		var got []uint8
		for _, s := range sources {
			got = append(got, s.Limit)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is under %v, want %v", addr, got, want)
		}
	}

	setLimit(k, 0, plain)
	under("192.0.2.1", toPort(protoUDP, 53), 0)
	setLimit(k, 1, bound([]string{"192.0.2.0/24", "2001:db8::/32", "::ffff:198.51.100.0/120"}))
	under("192.0.2.2", toPort(protoUDP, 53), 1)
	under("198.51.100.2", toPort(protoUDP, 53), 1)
	under("2001:db8::2", toPort(protoUDP, 53), 1)
	setLimit(k, 2, bound(nil, Service{protoUDP, 53}, Service{protoTCP, 443}, Service{Protocol: protoTCP}))
	setLimit(k, 3, bound([]string{"192.0.2.128/25"}, Service{protoUDP, 65535}, Service{protoTCP, 65535}))
	under("203.0.113.1", toPort(protoUDP, 53), 2)
	under("203.0.113.2", toPort(protoTCP, 443), 2)
	under("203.0.113.3", toPort(protoTCP, 444), 2)
	under("203.0.113.4", toPort(protoUDP, 54), 0)
	under("203.0.113.5", toPort(protoUDP, 65535), 3)
	under("203.0.113.6", toPort(protoTCP, 65535), 3)
	under("192.0.2.130", toPort(protoUDP, 53), 3)
	under("192.0.2.3", toPort(protoUDP, 53), 1)

	// All of IPv6 is not all of IPv4.
	setLimit(k, 4, bound([]string{"::/0"}))
	under("2400::1", toPort(protoUDP, 99), 4)
	under("203.0.113.7", toPort(protoUDP, 53), 2)
	under("203.0.113.8", toPort(protoUDP, 99), 0)

	for number, limit := range map[uint8]Limit{
		5: bound([]string{"192.0.2.5/24"}), 6: bound(nil, Service{Protocol: protoTCP}), 0: bound([]string{"10.0.0.0/8"}),
	} {
		if err := k.Limits.Put(number, limit); err == nil {
			t.Errorf("limit %d was put", number)
		} else {
			t.Log(err)
		}
	}
	if got := k.Limits.Numbers(); !slices.Equal(got, []uint8{0, 1, 2, 3, 4}) {
		t.Errorf("limits %v", got)
	}

	// Bindings move with the limit's next version, and go with the limit.
	setLimit(k, 1, bound([]string{"2001:db8::/32"}, Service{Protocol: 132}))
	under("192.0.2.4", toPort(protoUDP, 99), 0)
	if was, err := k.Limits.Delete(2); !was || err != nil {
		t.Error(was, err)
	}
	if was, err := k.Limits.Delete(2); was || err != nil {
		t.Error(was, err)
	}
	under("203.0.113.9", toPort(protoTCP, 443), 0)
	got, ok := k.Limits.Get(1)
	if !ok || !slices.Equal(got.Sources, []netip.Prefix{prefix("2001:db8::/32")}) || !slices.Equal(got.Services, []Service{{Protocol: 132}}) {
		t.Errorf("got %+v", got)
	}

	// What was there is learnt when the maps are opened anew.
	k.reopen()
	if got, ok := k.Limits.Get(3); !ok || len(got.Sources) != 1 || len(got.Services) != 2 {
		t.Errorf("got %+v", got)
	}
	wanted := map[uint8]Limit{
		0: plain,
		1: bound([]string{"2001:db8::/32"}, Service{Protocol: 132}),
		9: bound([]string{"192.0.2.128/25"}, Service{protoUDP, 53}),
	}
	changes, err := k.Limits.Sync(wanted)
	if want := (Changes{Added: 1, Kept: 2, Removed: 2}); err != nil || changes != want {
		t.Errorf("%+v, %v, want %+v", changes, err, want)
	}
	under("192.0.2.131", toPort(protoUDP, 99), 9)
	under("203.0.113.10", toPort(protoUDP, 53), 9)
	under("203.0.113.11", toPort(protoTCP, 65535), 0)
	under("2400::2", toPort(protoUDP, 99), 0)
	changes, err = k.Limits.Sync(wanted)
	if want := (Changes{Kept: 3}); err != nil || changes != want {
		t.Errorf("again: %+v, %v", changes, err)
	}
	wanted[8] = bound([]string{"192.0.2.129/25"})
	if _, err := k.Limits.Sync(wanted); err == nil {
		t.Error("two limits bind one prefix")
	}
	if _, err := k.Limits.Sync(nil); err != nil || len(k.Limits.Numbers()) != 0 || k.Limits.control.SourceLimits+k.Limits.control.ServiceLimits != 0 {
		t.Error("not empty", err)
	}
}

// TestLimitChangesKeepDebts changes a limit whose source has spent its burst.
func TestLimitChangesKeepDebts(t *testing.T) {
	k := load(t, everything())
	setLimit(k, 0, packets(5))
	addr := address("203.0.113.1")
	run := func(want uint32) {
		t.Helper()
		if got := k.run(frame(addr), 1); got != want {
			t.Errorf("verdict %d, want %d", got, want)
		}
	}
	for range 5 {
		run(xdpPass)
	}
	run(xdpDrop)
	setLimit(k, 0, packets(5)) // the same again
	run(xdpDrop)
	limit := packets(5)
	limit.Thresholds[bpf.ThresholdSYN] = Rate{PerSecond: 1}
	limit.AggregateAlways = true
	setLimit(k, 0, limit)
	run(xdpDrop)
	limit.Monitor = true
	setLimit(k, 0, limit)
	run(xdpPass)
	if n := k.count(bpf.ReasonLimitPackets, true); n != 1 {
		t.Errorf("%d packets were monitored", n)
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

func TestAllows(t *testing.T) {
	k := load(t, everything())
	for _, p := range []string{"0.0.0.0/0", "::/0"} {
		if err := k.Bans.Put(Ban{Prefix: prefix(p), Expires: bpf.Forever}); err != nil {
			t.Fatal(err)
		}
	}
	setLimit(k, 0, packets(1))
	put := func(p string, noLimit bool, expires uint64) {
		t.Helper()
		if err := k.Allows.Put(Allow{Prefix: prefix(p), NoLimit: noLimit, Expires: expires}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(addr string, reasons ...bpf.Reason) {
		t.Helper()
		for _, reason := range reasons {
			before := k.count(reason, false)
			verdict := k.run(frame(address(addr)), 1)
			if (verdict == xdpDrop) != reason.Drops() || k.count(reason, false) != before+1 {
				t.Errorf("%s: verdict %d, want %s", addr, verdict, reason)
			}
		}
	}
	check("192.0.2.1", bpf.ReasonBanned)
	put("192.0.2.0/24", false, bpf.Forever)
	put("::ffff:198.51.100.0/120", true, Monotonic()+3600e9)
	put("2001:db8::/32", true, bpf.Forever)
	put("2001:db8:1::/48", false, 1)
	check("192.0.2.1", bpf.ReasonAllowed, bpf.ReasonLimitPackets)
	check("198.51.100.1", bpf.ReasonAllowed, bpf.ReasonAllowed)
	check("2001:db8::1", bpf.ReasonAllowed, bpf.ReasonAllowed)
	check("2001:db8:1::1", bpf.ReasonBanned)
	check("203.0.113.1", bpf.ReasonBanned)

	// All of IPv6 is not all of IPv4, whatever comes and goes.
	put("::/0", false, bpf.Forever)
	check("2400::1", bpf.ReasonAllowed)
	check("203.0.113.1", bpf.ReasonBanned)
	put("0.0.0.0/0", false, bpf.Forever)
	check("203.0.113.2", bpf.ReasonAllowed)
	if was, err := k.Allows.Delete(prefix("0.0.0.0/0")); !was || err != nil {
		t.Error(was, err)
	}
	check("203.0.113.3", bpf.ReasonBanned)

	all, err := k.Allows.All()
	if err != nil || len(all) != 5 {
		t.Errorf("%+v, %v", all, err)
	}
	changes, err := k.Allows.Sync(slices.Values([]Allow{
		{Prefix: prefix("192.0.2.77/24"), NoLimit: true, Expires: bpf.Forever}, {Prefix: prefix("::/0"), Expires: bpf.Forever}, {Prefix: prefix("10.0.0.0/8"), Expires: 5},
	}))
	if want := (Changes{Added: 1, Updated: 1, Kept: 1, Removed: 3}); err != nil || changes != want {
		t.Errorf("%+v, %v, want %+v", changes, err, want)
	}
	check("192.0.2.9", bpf.ReasonAllowed, bpf.ReasonAllowed)
	check("203.0.113.4", bpf.ReasonBanned)
	if was, err := k.Allows.Delete(prefix("1.0.0.0/8")); was || err != nil {
		t.Error(was, err)
	}
	if err := k.Allows.Put(Allow{}); err == nil {
		t.Error("the prefix that is none is allowed")
	}
	k.reopen()
	if n := k.Allows.Len(); n != 4 { // with the blocker
		t.Errorf("%d entries", n)
	}
}

func TestAllowsFull(t *testing.T) {
	k := load(t, everything())
	host := func(i int) Allow {
		return Allow{Prefix: netip.PrefixFrom(addr4(0x0A000000+uint32(i)), 32), Expires: bpf.Forever}
	}
	room := k.Allows.Capacity()
	for i := range room {
		if err := k.Allows.Put(host(i)); err != nil {
			t.Fatal(err)
		}
	}
	var full *FullError
	if err := k.Allows.Put(host(room)); !errors.As(err, &full) || full.Used != room {
		t.Errorf("%v", err)
	}
	changed := host(3)
	changed.NoLimit = true
	if err := k.Allows.Put(changed); err != nil {
		t.Errorf("changing one in a full table: %v", err)
	}
	// A set that fits, none of which is there: room is made.
	var next []Allow
	for i := range room {
		next = append(next, host(room+i))
	}
	changes, err := k.Allows.Sync(slices.Values(next))
	if want := (Changes{Added: room, Removed: room}); err != nil || changes != want {
		t.Errorf("%+v, %v, want %+v", changes, err, want)
	}
	changes, err = k.Allows.Sync(slices.Values(append(next, host(0), host(1))))
	if !errors.As(err, &full) || changes.Full != 2 || full.More != 1 {
		t.Errorf("%+v, %v", changes, err)
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
	before := Monotonic()
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
			if got.Time < before-1e8 || got.Time > Monotonic() {
				t.Errorf("time %d is not near %d", got.Time, before)
			}
			want.Time, want.Interface = got.Time, got.Interface
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("no event")
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
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
