package state

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAround(t *testing.T) {
	h := open(t)
	h.ban("203.0.0.0/16", "feed:x", 0)
	h.ban("203.0.113.0/24", "operator", 0)
	h.ban("203.0.113.0/24", "api", 0)
	h.ban("203.0.114.0/24", "api", 0)
	for i := range 150 {
		h.clock.advance(time.Second)
		h.ban(fmt.Sprintf("203.0.113.%d", i), "api", 0)
	}
	h.ban("2001:db8::/32", "api", 0)
	if _, err := h.ProposeAllows([]AllowProposal{{AllowSpec: AllowSpec{Prefix: Prefix{prefix("203.0.113.200")}}},
		{AllowSpec: AllowSpec{Prefix: Prefix{prefix("198.51.100.0/24")}}}}); err != nil {
		t.Fatal(err)
	}
	a := h.Around(prefix("203.0.113.0/24"), 100)
	if len(a.Claims) != 2 || a.Claims[0].Origin != "operator" || len(a.Containing) != 1 || a.Containing[0].Origin != "feed:x" ||
		len(a.Contained) != 100 || a.Total != 150 || a.Contained[0].Prefix != prefix("203.0.113.149") ||
		len(a.Allows) != 1 || a.Enforced != Part || a.Overruled {
		t.Errorf("%+v", a)
	}
	if a := h.Around(prefix("203.0.113.0/25"), 100); a.Enforced != Whole || len(a.Containing) != 3 || len(a.Claims) != 0 || len(a.Allows) != 0 {
		t.Errorf("%+v", a)
	}
	if a := h.Around(prefix("192.0.2.0/24"), 100); a.Banned != None || a.Overruled || a.Total != 0 {
		t.Errorf("%+v", a)
	}
	if a := h.Around(prefix("::/0"), 100); a.Enforced != Part || a.Total != 1 {
		t.Errorf("%+v", a)
	}
}

// What is said of a prefix is what follows from each of its addresses.
func TestExtent(t *testing.T) {
	h := open(t)
	rapid.Check(t, func(rt *rapid.T) {
		sub := rapid.Custom(func(rt *rapid.T) netip.Prefix {
			at := byte(rapid.IntRange(0, 15).Draw(rt, "at"))
			p, _ := netip.AddrFrom4([4]byte{192, 0, 2, at}).Prefix(rapid.IntRange(27, 32).Draw(rt, "bits"))
			return p
		})
		type ban struct {
			p       netip.Prefix
			monitor bool
		}
		var bans []ban
		var undo []Proposal
		var undoAllows []AllowProposal
		for range rapid.IntRange(0, 8).Draw(rt, "bans") {
			p, monitor := sub.Draw(rt, "ban"), rapid.IntRange(0, 3).Draw(rt, "monitor") == 0
			origin := Origin("api")
			if monitor {
				origin = "feed:monitor"
			}
			out := h.try(Proposal{Prefix: p, Origin: origin, Monitor: monitor, Actor: "root", Force: true})
			if out.Error != nil {
				rt.Fatal(out.Error)
			}
			bans = append(bans, ban{p, monitor})
			undo = append(undo, Proposal{Prefix: p, Origin: origin, Remove: true})
		}
		var allows []netip.Prefix
		for range rapid.IntRange(0, 4).Draw(rt, "allows") {
			p := sub.Draw(rt, "allow")
			allows = append(allows, p)
			spec := AllowProposal{AllowSpec: AllowSpec{Prefix: Prefix{p}}}
			if _, err := h.ProposeAllows([]AllowProposal{spec}); err != nil {
				rt.Fatal(err)
			}
			spec.Remove = true
			undoAllows = append(undoAllows, spec)
		}
		defer func() {
			if _, err := h.Propose(undo); err != nil {
				rt.Fatal(err)
			}
			if _, err := h.ProposeAllows(undoAllows); err != nil {
				rt.Fatal(err)
			}
		}()

		asked := sub.Draw(rt, "asked")
		var size, enforced, banned int
		overruled := false
		for a := asked.Addr(); asked.Contains(a); a = a.Next() {
			size++
			var drops, any, allowed bool
			for _, b := range bans {
				if b.p.Contains(a) {
					any, drops = true, drops || !b.monitor
				}
			}
			for _, p := range allows {
				allowed = allowed || p.Contains(a)
			}
			overruled = overruled || any && allowed
			if drops && !allowed {
				enforced++
			}
			if any && !allowed {
				banned++
			}
		}
		extent := func(n int) Extent {
			switch n {
			case 0:
				return None
			case size:
				return Whole
			}
			return Part
		}
		got := h.Around(asked, 1)
		if got.Enforced != extent(enforced) || got.Banned != extent(banned) || got.Overruled != (overruled && banned == 0) {
			rt.Errorf("%s: %+v; bans %v, allows %v: want %v, %v", asked, got, bans, allows, extent(enforced), extent(banned))
		}
	})
}

func BenchmarkAround(b *testing.B) {
	h := open(b)
	var all []Proposal
	for i := range 100_000 {
		all = append(all, Proposal{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{9, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Origin: "api", Actor: "root"})
	}
	if _, err := h.Propose(all); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		h.Around(prefix("0.0.0.0/0"), 100)
	}
}
