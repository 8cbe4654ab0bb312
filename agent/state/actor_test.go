package state

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestMay(t *testing.T) {
	for _, c := range []struct {
		has  []Scope
		asks Scope
		may  bool
	}{
		{nil, ScopeRead, false},
		{nil, "", false},
		{[]Scope{""}, "", false},
		{[]Scope{ScopeAdmin}, "", false},
		{[]Scope{ScopeRead}, ScopeRead, true},
		{[]Scope{ScopeRead}, ScopeBan, false},
		{[]Scope{ScopeBan}, ScopeRead, false},
		{[]Scope{ScopeBan, ScopeLimit}, ScopeAdmin, false},
		{[]Scope{ScopeAdmin}, ScopeLimit, true},
	} {
		if got := (Actor{Scopes: c.has}).May(c.asks); got != c.may {
			t.Errorf("%v may %q: %v", c.has, c.asks, got)
		}
	}
}

func TestBounds(t *testing.T) {
	b := &Bounds{IPv4: 24, IPv6: 64, Longest: Duration(time.Hour), Origins: []Origin{"api:gateway", "fail2ban"}}
	if err := b.Validate(); err != nil {
		t.Fatal(err)
	}
	hour := time.Hour
	for _, c := range []struct {
		prefix string
		p      Proposal
		field  string // of the refusal; "" none
	}{
		{"192.0.2.0/24", Proposal{Origin: "api:gateway", For: hour}, ""},
		{"192.0.2.0/23", Proposal{Origin: "api:gateway", For: hour}, "prefix"},
		{"2001:db8::/64", Proposal{Origin: "fail2ban", For: hour}, ""},
		{"2001:db8::/63", Proposal{Origin: "fail2ban", For: hour}, "prefix"},
		{"::ffff:192.0.2.0/119", Proposal{Origin: "fail2ban", For: hour}, "prefix"}, // 192.0.2.0/23
		{"192.0.2.1", Proposal{Origin: "api:gateway", For: hour + 1}, "for"},
		{"192.0.2.1", Proposal{Origin: "api:gateway"}, "for"},
		{"192.0.2.1", Proposal{Origin: "operator", For: hour}, "origin"},
		{"192.0.2.1", Proposal{Origin: "api", For: hour}, "origin"},
		{"192.0.2.1", Proposal{Origin: "operator", Remove: true}, "origin"},
		{"192.0.2.1", Proposal{All: true, Remove: true}, "all"},
		{"192.0.2.1", Proposal{Origin: "api:gateway", Remove: true}, ""},
		{"192.0.0.0/16", Proposal{Origin: "api:gateway", Remove: true}, ""},
	} {
		p := c.p
		p.Prefix, p.Bounds = mustPrefix(t, c.prefix), b
		err := p.Validate()
		switch {
		case c.field == "" && err != nil:
			t.Errorf("%s %+v: %v", c.prefix, c.p, err)
		case c.field != "" && (err == nil || err.Field != c.field || err.Code != CodeForbidden):
			t.Errorf("%s %+v: %v, want one about %s", c.prefix, c.p, err, c.field)
		}
	}
	for _, bad := range []Bounds{{IPv4: 33}, {IPv6: -1}, {Longest: -1}, {Claims: -1}, {Claims: 1}, {Origins: []Origin{"kernel"}}, {Origins: []Origin{"api", "api"}}} {
		if bad.Validate() == nil {
			t.Errorf("%+v passed", bad)
		}
	}
}

func mustPrefix(t *testing.T, s string) netip.Prefix {
	t.Helper()
	if !strings.Contains(s, "/") {
		a := netip.MustParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.MustParsePrefix(s)
}

// However the claims come, in one request or many, no more live than the bounds say; one that ends
// makes room, and changing one takes none.
func TestMostClaims(t *testing.T) {
	h := open(t)
	b := &Bounds{Claims: 3, Origins: []Origin{"api:gateway", "api:other"}}
	ban := func(origin Origin, prefixes ...string) (refused int) {
		var ps []Proposal
		for _, s := range prefixes {
			ps = append(ps, Proposal{Prefix: mustPrefix(t, s), Origin: origin, For: time.Hour, Bounds: b})
		}
		out, err := h.Propose(ps)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range out {
			if o.Error != nil {
				if o.Error.Code != CodeForbidden {
					t.Error(o.Error)
				}
				refused++
			}
		}
		return refused
	}
	if n := ban("api:gateway", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.1"); n != 0 {
		t.Error(n)
	}
	if n := ban("api:other", "192.0.2.1", "192.0.2.3", "192.0.2.1"); n != 1 {
		t.Error("a fourth claim was granted")
	}
	if n := ban("api:gateway", "192.0.2.1"); n != 0 {
		t.Error("changing a claim was refused")
	}
	out, err := h.Propose([]Proposal{
		{Prefix: mustPrefix(t, "192.0.2.1"), Origin: "api:other", Remove: true, Bounds: b},
		{Prefix: mustPrefix(t, "192.0.2.9"), Origin: "api:other", For: time.Hour, Bounds: b},
		{Prefix: mustPrefix(t, "192.0.2.10"), Origin: "api:other", For: time.Hour, Bounds: b},
	})
	if err != nil || out[0].Error != nil || out[1].Error != nil || out[2].Error == nil {
		t.Errorf("%+v, %v", out, err)
	}
}
