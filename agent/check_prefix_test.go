package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
)

func TestCheckPrefix(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\nallow: [198.51.100.0/24]\n")
	ctx := t.Context()
	check := func(p string, verdict state.Verdict, words string) state.PrefixCheck {
		t.Helper()
		c, err := d.CheckPrefix(ctx, netip.MustParsePrefix(p))
		if err != nil || c.Verdict != verdict || !strings.Contains(c.Words, words) || c.Interfaces != 1 {
			t.Errorf("%s: %+v, %v; want %s, %q", p, c, err, verdict, words)
		}
		return c
	}
	check("192.0.2.0/24", state.VerdictPasses, "no ban touches it")
	d.ban(state.BanItem{Prefix: "192.0.2.0/25", Origin: "operator"}, state.BanItem{Prefix: "192.0.2.7"})
	c := check("192.0.2.0/24", state.VerdictPartly, "in part")
	if len(c.Contained) != 2 || c.Total != 2 || len(c.Claims) != 0 {
		t.Errorf("%+v", c)
	}
	c = check("192.0.2.0/25", state.VerdictBanned, "all of it")
	if len(c.Claims) != 1 || c.Total != 1 {
		t.Errorf("%+v", c)
	}
	c = check("192.0.2.0/26", state.VerdictBanned, "all of it")
	if len(c.Containing) != 1 || c.Total != 1 {
		t.Errorf("%+v", c)
	}
	d.ban(state.BanItem{Prefix: "192.0.2.128/25"})
	check("192.0.2.0/24", state.VerdictBanned, "all of it")
	d.ban(state.BanItem{Prefix: "203.0.113.0/24", Monitor: true})
	check("203.0.113.0/24", state.VerdictMonitored, "only monitor")
	if c := check("198.51.100.0/25", state.VerdictPasses, "no ban"); len(c.Allows) != 1 {
		t.Errorf("%+v", c)
	}
	if _, err := d.Allow(ctx, state.AllowRequest{Allow: []state.AllowItem{{Prefix: "192.0.2.200"}}}); err != nil {
		t.Fatal(err)
	}
	check("192.0.2.0/24", state.VerdictPartly, "in part")
	if _, err := d.Allow(ctx, state.AllowRequest{Allow: []state.AllowItem{{Prefix: "192.0.2.0/24"}}}); err != nil {
		t.Fatal(err)
	}
	if c := check("192.0.2.0/25", state.VerdictAllowed, "overrule"); len(c.Allows) != 1 {
		t.Errorf("%+v", c)
	}
	if _, err := d.SetPanic(ctx, true); err != nil {
		t.Fatal(err)
	}
	check("192.0.2.0/24", state.VerdictPasses, "panic")
}
