package maps

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

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
