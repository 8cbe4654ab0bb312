package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/protect"
	"github.com/levee-xdp/levee/agent/state"
)

func found(address, words string) protect.Found {
	a := netip.MustParseAddr(address)
	return protect.Found{Prefix: netip.PrefixFrom(a, a.BitLen()), Words: words}
}

// Protected addresses are in the kernel's allow list before the first packet, refuse bans with the
// reason, and follow the system.
func TestProtected(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "interfaces: [eth0]\n")
	d.system.mu.Lock()
	d.system.own = []protect.Found{found("192.0.2.1", "this host's own address (eth0)")}
	d.system.logins = []protect.Found{found("198.51.100.9", "the peer of a live SSH session")}
	d.system.mu.Unlock()
	ctx := t.Context()
	// Banned while nobody knew, it passes as soon as it is known.
	d.ban(state.BanItem{Prefix: "198.51.100.9"}, state.BanItem{Prefix: "198.51.100.0/24"})
	d.restart()
	if got := k.allowed(); got != "192.0.2.1/32 198.51.100.9/32" {
		t.Errorf("in the kernel: %s", got)
	}
	if c, err := d.Check(ctx, netip.MustParseAddr("198.51.100.9")); err != nil || c.Verdict != state.VerdictAllowed ||
		c.Allows[0].Source != state.FromProtected || !strings.Contains(c.Words, "it is protected: the peer of a live SSH session") {
		t.Errorf("%+v, %v", c, err)
	}
	r := d.ban(state.BanItem{Prefix: "192.0.2.1"}, state.BanItem{Prefix: "192.0.2.0/24", Origin: "feed:x"}, state.BanItem{Prefix: "127.0.0.1"}, state.BanItem{Prefix: "192.0.2.2"})
	if r.Done != 1 || r.Refused != 3 || r.Protected != 3 || r.Bans[0].Error.Code != state.CodeProtected {
		t.Errorf("%+v", r)
	}
	o, err := d.Status(ctx, 0)
	if err != nil || o.Allows != 0 || o.Protected != 2+5 || o.Health.State != "ok" {
		t.Errorf("%+v, %v", o, err)
	}
	if text := d.scrape(); !strings.Contains(text, `levee_ban_changes_total{op="protected",origin="feed:x"} 1`) {
		t.Errorf("the metrics lack what was skipped:\n%s", text)
	}

	d.system.mu.Lock()
	d.system.fail = errors.New("no netlink here")
	d.system.mu.Unlock()
	d.reloadNow()
	if o, err := d.Status(ctx, 0); err != nil || o.Health.State != "degraded" || !strings.Contains(strings.Join(o.Health.Problems, ""), "no netlink here") || o.Protected != 2+5 {
		t.Errorf("%+v, %v", o.Health, err)
	}
	d.system.mu.Lock()
	d.system.fail, d.system.own = nil, nil
	d.system.mu.Unlock()
	d.write("interfaces: [eth0]\nprotect: {ssh: false}\n")
	d.reloadNow()
	if got := k.allowed(); got != "" {
		t.Errorf("in the kernel: %s", got)
	}
}

// Who may change something and asks from another host is protected, until the token is revoked; also where
// the last request comes to its end after that.
func TestProtectedClients(t *testing.T) {
	k := newFakeKernel()
	e := onFake(t, k, nil)
	a := telling{audited{e}}
	token, err := a.AddToken(state.Operator("root"), state.TokenRequest{Name: "gateway", Scopes: []state.Scope{state.ScopeBan}})
	if err != nil {
		t.Fatal(err)
	}
	by, err := e.Authenticate(token.Secret, netip.MustParseAddr("192.0.2.77"))
	if err != nil {
		t.Fatal(err)
	}
	by.Address = netip.MustParseAddrPort("192.0.2.77:4711")
	allowed := func(want string) {
		t.Helper()
		if err := e.finder.Refresh(); err != nil {
			t.Fatal(err)
		}
		if got := k.allowed(); got != want {
			t.Errorf("protected: %q, want %q", got, want)
		}
	}
	e.known(by)
	allowed("192.0.2.77/32")
	if err := a.RemoveToken(state.Operator("root"), "gateway"); err != nil {
		t.Fatal(err)
	}
	allowed("")
	e.known(by)
	allowed("")
}

// What comes by way of a proxy is not banned where it would do nothing.
func TestProxies(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "trusted_proxies: [203.0.113.0/24]\n")
	r := d.ban(
		state.BanItem{Prefix: "203.0.113.9"},
		state.BanItem{Prefix: "192.0.2.7", Via: "203.0.113.9"},
		state.BanItem{Prefix: "192.0.2.7", Via: "198.51.100.1"},
		state.BanItem{Prefix: "192.0.2.7", Via: "nobody"},
		state.BanItem{Prefix: "192.0.2.8", Via: "192.0.2.8"},
	)
	for i, want := range []string{
		"meets the range 203.0.113.0/24 of trusted_proxies",
		"is a trusted proxy (203.0.113.0/24): packets carry its address and not that of 192.0.2.7",
		"is not among trusted_proxies, so what it says of 192.0.2.7 may be forged",
		"is not an address", "",
	} {
		e := r.Bans[i].Error
		switch {
		case want == "" && e != nil, want != "" && (e == nil || !strings.Contains(e.Error(), want)):
			t.Errorf("%d: %v, want %s", i, e, want)
		case i < 3 && e.Code != state.CodeConflict:
			t.Errorf("%d: %s", i, e.Code)
		}
	}
	d.want("192.0.2.8/32")
}

// An allow entry with an end is in the kernel with it, and what it overruled speaks again.
func TestAllowFor(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "")
	a, err := d.Allow(t.Context(), state.AllowRequest{Allow: []state.AllowItem{{Prefix: "192.0.2.1", For: "100ms"}, {Prefix: "192.0.2.2", For: "1h"}}})
	if err != nil || a.Done != 2 || a.Allow[1].Allow.Expires.IsZero() {
		t.Fatalf("%+v, %v", a, err)
	}
	k.mu.Lock()
	until := k.allows[netip.MustParsePrefix("192.0.2.2/32")].Expires
	k.mu.Unlock()
	if left := time.Duration(until - state.SystemClock{}.Monotonic()); left < 59*time.Minute || left > time.Hour {
		t.Errorf("in the kernel for another %s", left)
	}
	for end := time.Now().Add(30 * time.Second); k.allowed() != "192.0.2.2/32"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still allowed: %s", k.allowed())
		}
	}
	for item, want := range map[state.AllowItem]string{
		{Prefix: "192.0.2.3", For: "0s"}:   "is no time at all",
		{Prefix: "192.0.2.3", For: "soon"}: "allow[0].for",
	} {
		if _, err := d.Allow(t.Context(), state.AllowRequest{Allow: []state.AllowItem{item}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
