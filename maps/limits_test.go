package maps

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levee-xdp/levee/bpf"
)

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

// TestPenalty breaks a limit that punishes.
func TestPenalty(t *testing.T) {
	k := load(t, everything())
	limit := packets(3)
	limit.Penalty = 2 * time.Second // a busy machine may take a second of it
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
	if until := top[0].PenaltyUntil; until <= now || until > now+2e9 {
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
	for until := top[0].PenaltyUntil; coarse() <= until; {
		time.Sleep(time.Duration(until-min(until, coarse())) + time.Millisecond)
	}
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
