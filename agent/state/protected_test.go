package state

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func protectedEntry(prefix, words string) Allow {
	return Allow{Prefix: netip.MustParsePrefix(prefix), Comment: words}
}

// A ban that touches a protected address is refused, whoever asks, and the answer says why. Force is
// for what contains one, and for a person who means a proxy.
func TestGuard(t *testing.T) {
	h := open(t)
	if err := h.Configure(Configured{Proxies: []Prefix{{netip.MustParsePrefix("192.0.2.0/24")}, {netip.MustParsePrefix("2001:db8:2::/48")}}}); err != nil {
		t.Fatal(err)
	}
	entries := []Allow{protectedEntry("198.51.100.1/32", "a gateway of this host (eth0)"), protectedEntry("2001:db8::1/128", "this host's own address (eth0)"),
		protectedEntry("127.0.0.0/8", "this host's own loopback")}
	for i := range 2 {
		if changed, err := h.Protect(entries); err != nil || changed != (i == 0) {
			t.Errorf("%d: %v, %v", i, changed, err)
		}
	}
	for _, tt := range []struct {
		prefix         string
		origin         Origin
		force, monitor bool
		code           Code // "": granted
		words          string
	}{
		{"198.51.100.1/32", OriginOperator, true, false, CodeProtected, "is protected: it is a gateway of this host (eth0); no ban may touch it"},
		{"198.51.100.1/32", "feed:x", false, false, CodeProtected, "a gateway"},
		{"198.51.100.1/32", "feed:x", false, true, CodeProtected, "a gateway"},
		{"127.0.0.1/32", OriginAPI, true, false, CodeProtected, "loopback"},
		{"198.51.100.0/24", OriginOperator, false, false, CodeProtected, "contains 198.51.100.1, which is protected: it is a gateway"},
		{"198.51.100.0/24", OriginOperator, false, true, "", ""},
		{"198.51.100.0/24", OriginOperator, true, false, "", "1 allow entry lies within 198.51.100.0/24 and still passes"},
		{"2001:db8::/32", OriginDetector, false, false, CodeConflict, "meets the range 2001:db8:2::/48 of trusted_proxies"},
		{"2001:db8::/64", OriginDetector, false, false, CodeProtected, "contains 2001:db8::1"},
		{"198.51.100.2/32", "feed:x", false, false, "", ""},
		{"192.0.2.7/32", OriginAPI, true, false, CodeConflict, "meets the range 192.0.2.0/24 of trusted_proxies"},
		{"192.0.0.0/16", "feed:x", true, false, CodeConflict, "trusted_proxies"},
		{"192.0.2.7/32", OriginOperator, false, false, CodeRefused, "ban it with force if you mean all of them"},
		{"192.0.2.7/32", OriginOperator, true, false, "", ""},
		{"192.0.2.7/32", OriginAPI, false, true, "", ""},
		{"0.0.0.0/0", OriginKernel, true, false, "", ""},
		{"11.0.0.0/7", OriginOperator, false, false, CodeRefused, "wider than /8"},
		{"2001::/18", OriginOperator, false, false, CodeRefused, "/19"},
	} {
		out, err := h.Propose([]Proposal{{Prefix: netip.MustParsePrefix(tt.prefix), Origin: tt.origin, Force: tt.force, Monitor: tt.monitor}})
		if err != nil {
			t.Fatal(err)
		}
		o, code, words := out[0], Code(""), strings.Join(out[0].Notes, " ")
		if o.Error != nil {
			code, words = o.Error.Code, o.Error.Detail
		}
		if code != tt.code || !strings.Contains(words, tt.words) {
			t.Errorf("%s of %s (force %v, monitor %v): %q %s", tt.prefix, tt.origin, tt.force, tt.monitor, code, words)
		}
	}
	if p, ok := h.ProxyOf(netip.MustParseAddr("192.0.2.9")); !ok || p.String() != "192.0.2.0/24" {
		t.Errorf("%v %v", p, ok)
	}
	// They are found anew at every start, so none is kept.
	h.reopen()
	if got := h.Protected(); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// The entries of several sources for a prefix are one, and Levee's own take nothing away from others.
func TestProtectedBesideAllows(t *testing.T) {
	h := open(t)
	wide := AllowSpec{Prefix: Prefix{netip.MustParsePrefix("198.51.100.0/24")}, NoLimits: true}
	if err := h.Configure(Configured{Allows: []AllowSpec{wide}}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Protect([]Allow{protectedEntry("198.51.100.1/32", "a gateway")}); err != nil {
		t.Fatal(err)
	}
	for _, a := range h.EffectiveAllows() {
		if !a.NoLimits {
			t.Errorf("%s is held to limits, though what contains it is not", a.Prefix)
		}
	}
	out, err := h.ProposeAllows([]AllowProposal{{Remove: true, AllowSpec: AllowSpec{Prefix: Prefix{netip.MustParsePrefix("198.51.100.1/32")}}}})
	if err != nil || out[0].Error == nil || out[0].Error.Code != CodeConflict || !strings.Contains(out[0].Error.Detail, "is protected by Levee itself: a gateway") {
		t.Errorf("%+v, %v", out, err)
	}
	spec := AllowSpec{Prefix: Prefix{netip.MustParsePrefix("198.51.100.1/32")}, Comment: "mine"}
	if out, err := h.ProposeAllows([]AllowProposal{{AllowSpec: spec}}); err != nil || out[0].Status != StatusAdded {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := h.Protect(nil); err != nil {
		t.Fatal(err)
	}
	if got := h.AllowsFor(netip.MustParsePrefix("198.51.100.1/32")); len(got) != 2 || got[0].Comment != "mine" {
		t.Errorf("what somebody set went with what Levee found: %+v", got)
	}
}

func allowFor(h *harness, prefix string, d time.Duration) AllowOutcome {
	h.Helper()
	out, err := h.ProposeAllows([]AllowProposal{{AllowSpec: AllowSpec{Prefix: Prefix{netip.MustParsePrefix(prefix)}}, For: d, Actor: "root"}})
	if err != nil || out[0].Error != nil {
		h.Fatalf("%+v, %v", out, err)
	}
	return out[0]
}

// An allow entry ends on time: bans speak again, and nothing brings it back.
func TestAllowEnds(t *testing.T) {
	h := open(t)
	p := netip.MustParsePrefix("192.0.2.1/32")
	banned := func() bool {
		t.Helper()
		out, err := h.Propose([]Proposal{{Prefix: p, Origin: OriginOperator}})
		if err != nil {
			t.Fatal(err)
		}
		return out[0].Error == nil
	}
	a := allowFor(h, "192.0.2.1/32", time.Hour).Allow
	if a.Expires.Sub(h.clock.Now()) != time.Hour || banned() {
		t.Errorf("%+v", a)
	}
	if ended, next := h.SweepAllows(); ended || next != h.clock.Monotonic()+uint64(time.Hour) {
		t.Errorf("%v, %d", ended, next)
	}
	// Within a boot the wall clock is nobody's.
	h.clock.set(-24 * time.Hour)
	h.clock.advance(59 * time.Minute)
	h.reopen()
	h.Tick()
	if banned() {
		t.Error("it ended with the wall clock")
	}
	h.clock.advance(time.Minute)
	if !banned() || len(h.AllowsFor(p)) != 0 {
		t.Error("it goes on")
	}
	if ended, next := h.SweepAllows(); !ended || next != Forever || len(h.Allows()) != 0 {
		t.Errorf("%v, %d, %v", ended, next, h.Allows())
	}
	h.clock.set(-48 * time.Hour)
	h.reopen()
	if len(h.Allows()) != 0 {
		t.Error("it came back")
	}
	// Across boots the wall clock speaks; it may be set late.
	h = open(t)
	allowFor(h, "192.0.2.2/32", time.Hour)
	h.clock.reboot(-10 * time.Hour)
	h.reopen()
	if got := h.AllowsFor(netip.MustParsePrefix("192.0.2.2/32")); len(got) != 1 {
		t.Errorf("%v", got)
	}
	h.clock.set(12 * time.Hour)
	if !h.Tick() {
		t.Error("nothing followed the clock")
	}
	if ended, _ := h.SweepAllows(); !ended {
		t.Error("it outlived its time")
	}
	for name, d := range map[string]time.Duration{"negative": -1, "too long": Longest + 1} {
		out, err := h.ProposeAllows([]AllowProposal{{AllowSpec: AllowSpec{Prefix: Prefix{p}}, For: d}})
		if err != nil || out[0].Error == nil || out[0].Error.Field != "for" {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
	}
}

// In the kernel the longest entry decides alone, also when it has ended; so it ends no earlier than
// what contains it.
func TestAllowEndsWithin(t *testing.T) {
	h := open(t)
	allowFor(h, "192.0.2.0/24", 0)
	allowFor(h, "192.0.2.1/32", time.Minute)
	allowFor(h, "198.51.100.1/32", time.Minute)
	for _, a := range h.EffectiveAllows() {
		if forever := a.Until() == Forever; forever != (a.Prefix.String() != "198.51.100.1/32") {
			t.Errorf("%s until %d", a.Prefix, a.Until())
		}
	}
}
