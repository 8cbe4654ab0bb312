package state

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeClock is a clock that a test sets.
type fakeClock struct {
	mu   sync.Mutex
	wall time.Time
	mono uint64
	boot string
}

func newFakeClock() *fakeClock {
	return &fakeClock{wall: time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC), mono: uint64(time.Hour), boot: "boot-1"}
}

func (c *fakeClock) Now() time.Time    { c.mu.Lock(); defer c.mu.Unlock(); return c.wall }
func (c *fakeClock) Monotonic() uint64 { c.mu.Lock(); defer c.mu.Unlock(); return c.mono }
func (c *fakeClock) Boot() string      { c.mu.Lock(); defer c.mu.Unlock(); return c.boot }

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.mono = c.wall.Add(d), c.mono+uint64(d)
}

// set moves the wall clock alone.
func (c *fakeClock) set(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = c.wall.Add(d)
}

// reboot takes a time in which nothing ran.
func (c *fakeClock) reboot(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.mono, c.boot = c.wall.Add(d), uint64(time.Second), c.boot+"+"
}

type harness struct {
	testing.TB
	*Store
	clock *fakeClock
	path  string
}

func open(t testing.TB) *harness {
	t.Helper()
	h := &harness{TB: t, clock: newFakeClock(), path: filepath.Join(t.TempDir(), "state.db")}
	h.reopen()
	t.Cleanup(func() {
		if h.Store != nil {
			h.Close()
		}
	})
	return h
}

func (h *harness) reopen() {
	h.Helper()
	if h.Store != nil {
		if err := h.Close(); err != nil {
			h.Fatal(err)
		}
	}
	s, err := Open(Config{Path: h.path, Clock: h.clock})
	if err != nil {
		h.Store = nil
		h.Fatal(err)
	}
	h.Store = s
}

func prefix(s string) netip.Prefix {
	p, err := ParsePrefix(s)
	if err != nil {
		panic(err)
	}
	return p
}

// try makes one proposal.
func (h *harness) try(p Proposal) Outcome {
	h.Helper()
	out, err := h.Propose([]Proposal{p})
	if err != nil {
		h.Fatal(err)
	}
	return out[0]
}

func (h *harness) ban(s string, origin Origin, d time.Duration) Outcome {
	h.Helper()
	out := h.try(Proposal{Prefix: prefix(s), Origin: origin, For: d, Reason: "test", Actor: "root"})
	if out.Error != nil {
		h.Fatal(out.Error)
	}
	return out
}

// banned is what is in force, as text.
func (h *harness) banned() string {
	var out []string
	for b := range h.Bans() {
		left := "forever"
		if b.Expires != Forever {
			left = Duration(b.Expires - h.clock.Monotonic()).String()
		}
		mode := ""
		if b.Monitor {
			mode = " monitor"
		}
		out = append(out, fmt.Sprintf("%s %s %s%s", PrefixString(b.Prefix), h.OriginOf(b.List), left, mode))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func (h *harness) want(banned string) {
	h.Helper()
	h.Sweep(100)
	if got := h.banned(); got != banned {
		h.Errorf("in force: %q, want %q", got, banned)
	}
}

func TestClaims(t *testing.T) {
	h := open(t)
	if out := h.ban("203.0.113.7", "operator", time.Hour); out.Status != StatusAdded || len(out.Others) != 0 {
		t.Errorf("first claim: %+v", out)
	}
	if out := h.ban("203.0.113.7/32", "api:gateway", 4*time.Hour); out.Status != StatusAdded || len(out.Others) != 1 {
		t.Errorf("second claim: %+v", out)
	}
	h.want("203.0.113.7 operator 4h")
	if out := h.ban("203.0.113.7", "operator", 2*time.Hour); out.Status != StatusChanged {
		t.Errorf("changed claim: %+v", out)
	}
	h.ban("2001:db8::/48", "feed:drop", 0)
	if out := h.ban("2001:db8::/48", "feed:drop", 0); out.Status != StatusUnchanged {
		t.Errorf("same claim: %+v", out)
	}
	h.want("2001:db8::/48 feed:drop forever; 203.0.113.7 operator 4h")

	out := h.try(Proposal{Prefix: prefix("203.0.113.7"), Origin: "feed:drop", Remove: true})
	if out.Error == nil || out.Error.Code != CodeNotFound || !strings.Contains(out.Error.Detail, "api:gateway, operator") {
		t.Errorf("removal of what is not there: %+v", out.Error)
	}
	out = h.try(Proposal{Prefix: prefix("203.0.113.7"), Origin: "api:gateway", Remove: true})
	if out.Status != StatusRemoved || len(out.Others) != 1 || out.Others[0].Origin != "operator" {
		t.Errorf("removal: %+v", out)
	}
	h.want("2001:db8::/48 feed:drop forever; 203.0.113.7 operator 2h")
	h.reopen()
	h.want("2001:db8::/48 feed:drop forever; 203.0.113.7 operator 2h")

	h.ban("203.0.113.7", "detector", time.Minute)
	out = h.try(Proposal{Prefix: prefix("203.0.113.7"), Remove: true, All: true})
	if len(out.Removed) != 2 {
		t.Errorf("removal of all: %+v", out)
	}
	out = h.try(Proposal{Prefix: prefix("2001:db8::1"), Remove: true, All: true})
	if out.Error == nil || out.Error.Detail != "is not banned itself; it lies within the ban of 2001:db8::/48" {
		t.Errorf("removal within: %+v", out.Error)
	}
	h.want("2001:db8::/48 feed:drop forever")
	if n4, n6 := h.Prefixes(); n4 != 0 || n6 != 1 {
		t.Errorf("prefixes %d, %d", n4, n6)
	}
}

func TestEffective(t *testing.T) {
	for _, tt := range []struct {
		name   string
		claims []Proposal
		want   string
	}{
		{"latest expiry, highest precedence", []Proposal{{Origin: "operator", For: time.Minute}, {Origin: "detector", For: time.Hour}}, "192.0.2.1 operator 1h"},
		{"forever is latest", []Proposal{{Origin: "feed:x"}, {Origin: "operator", For: time.Hour}}, "192.0.2.1 operator forever"},
		{"precedence", []Proposal{{Origin: "detector"}, {Origin: "feed:x"}, {Origin: "fleet"}, {Origin: "api"}, {Origin: "operator"}}, "192.0.2.1 operator forever"},
		{"without an operator", []Proposal{{Origin: "detector"}, {Origin: "feed:x"}, {Origin: "fleet"}, {Origin: "api"}}, "192.0.2.1 api forever"},
		{"fleet before feeds", []Proposal{{Origin: "detector"}, {Origin: "feed:x"}, {Origin: "fleet"}}, "192.0.2.1 fleet forever"},
		{"feeds before the detector", []Proposal{{Origin: "detector"}, {Origin: "feed:x"}}, "192.0.2.1 feed:x forever"},
		{"by name among equals", []Proposal{{Origin: "feed:y"}, {Origin: "feed:x", For: time.Hour}}, "192.0.2.1 feed:x forever"},
		{"a monitoring claim adds no time", []Proposal{{Origin: "api", For: time.Minute}, {Origin: "operator", Monitor: true}}, "192.0.2.1 api 1m"},
		{"enforcing before monitoring", []Proposal{{Origin: "operator", Monitor: true}, {Origin: "detector", For: time.Second}}, "192.0.2.1 detector 1s"},
		{"monitoring alone", []Proposal{{Origin: "operator", Monitor: true, For: time.Minute}, {Origin: "api", Monitor: true, For: time.Hour}}, "192.0.2.1 operator 1h monitor"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := open(t)
			for _, p := range tt.claims {
				p.Prefix = prefix("192.0.2.1")
				if out := h.try(p); out.Error != nil {
					t.Fatal(out.Error)
				}
			}
			h.want(tt.want)
			h.reopen()
			h.want(tt.want)
		})
	}
}

func TestRefusals(t *testing.T) {
	h := open(t)
	if out, err := h.ProposeAllows([]AllowProposal{{AllowSpec: AllowSpec{Prefix: Prefix{prefix("10.0.0.0/24")}, Comment: "office"}, Actor: "root"}}); err != nil || out[0].Error != nil {
		t.Fatal(err, out[0].Error)
	}
	for _, tt := range []struct {
		proposal Proposal
		code     Code
		want     string
	}{
		{Proposal{Prefix: prefix("0.0.0.0/0"), Origin: "operator"}, CodeRefused, `prefix "0.0.0.0/0": is wider than /8 (IPv4) or /19 (IPv6); ban it with force if you mean it`},
		{Proposal{Prefix: prefix("10.0.0.0/7"), Origin: "operator"}, CodeRefused, `prefix "10.0.0.0/7": is wider than`},
		{Proposal{Prefix: prefix("2001::/18"), Origin: "operator"}, CodeRefused, `prefix "2001::/18": is wider than`},
		{Proposal{Prefix: prefix("10.0.0.9"), Origin: "operator", Force: true}, CodeRefused, `prefix "10.0.0.9": is allowed by the entry 10.0.0.0/24 ("office", set by root), which no ban may touch`},
		{Proposal{Prefix: prefix("10.0.0.0/24"), Origin: "feed:x"}, CodeRefused, `prefix "10.0.0.0/24": is allowed by`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "nobody"}, CodeInvalid, `origin "nobody": is not known`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "feed"}, CodeInvalid, `origin "feed": lacks the feed's name`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "feed:Ä"}, CodeInvalid, `origin "feed:Ä": its name may have`},
		{Proposal{Prefix: prefix("192.0.2.1")}, CodeInvalid, `origin: is empty`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Reason: "a\nb"}, CodeInvalid, `has a character in it that does not print: \n`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Reason: "a\u009b31m"}, CodeInvalid, `has a character in it that does not print: \u009b`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Reason: "a\u202eb"}, CodeInvalid, `has a character in it that does not print: \u202e`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Reason: "a\u2066b"}, CodeInvalid, `has a character in it that does not print: \u2066`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Reason: "a\u2028b"}, CodeInvalid, `has a character in it that does not print: \u2028`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Reason: strings.Repeat("x", 257)}, CodeInvalid, "is longer than 256 bytes"},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Reason: "\xff"}, CodeInvalid, `reason: is not valid UTF-8`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", For: -1}, CodeInvalid, `for`},
		{Proposal{Prefix: prefix("192.0.2.1"), Origin: "operator", Remove: true}, CodeNotFound, `prefix "192.0.2.1": is not banned`},
	} {
		out := h.try(tt.proposal)
		if out.Error == nil || out.Error.Code != tt.code || !strings.Contains(out.Error.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s: %s", tt.proposal, out.Error, tt.code, tt.want)
		}
	}
	h.want("")
	out := h.try(Proposal{Prefix: prefix("10.0.0.0/8"), Origin: "operator"})
	if out.Error != nil || len(out.Notes) != 1 {
		t.Errorf("a ban around an allow entry: %+v", out)
	}
	out = h.try(Proposal{Prefix: prefix("::/0"), Origin: "operator", Force: true})
	if out.Error != nil {
		t.Errorf("with force: %v", out.Error)
	}
}

// A batch's refusals leave its other items alone, and one item sees what another has done.
func TestBatch(t *testing.T) {
	h := open(t)
	out, err := h.Propose([]Proposal{
		{Prefix: prefix("192.0.2.1"), Origin: "api"},
		{Prefix: prefix("0.0.0.0/1"), Origin: "api"},
		{Prefix: prefix("192.0.2.1"), Origin: "api", For: time.Hour},
		{Prefix: prefix("192.0.2.2"), Origin: "api"},
		{Prefix: prefix("192.0.2.2"), Origin: "api", Remove: true},
		{Prefix: prefix("192.0.2.2"), Origin: "feed:a"},
		{Prefix: prefix("192.0.2.2"), Remove: true, All: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range out {
		got = append(got, string(o.Status))
	}
	if want := "added refused changed added removed added removed"; strings.Join(got, " ") != want {
		t.Errorf("statuses %v, want %s", got, want)
	}
	h.want("192.0.2.1 api 1h")
	h.reopen()
	h.want("192.0.2.1 api 1h")
}

func TestExpiry(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", time.Minute)
	h.ban("192.0.2.1", "api", 2*time.Minute)
	h.ban("192.0.2.2", "api", 2*time.Minute)
	h.ban("192.0.2.3", "api", 0)
	if ended, next := h.Sweep(10); len(ended) != 0 || next != h.clock.Monotonic()+uint64(time.Minute) {
		t.Fatalf("swept %v, next %d", ended, next)
	}
	h.clock.advance(time.Minute)
	if ended, _ := h.Sweep(10); len(ended) != 1 || ended[0] != (Expired{prefix("192.0.2.1"), "operator"}) {
		t.Errorf("swept %v", ended)
	}
	h.ban("192.0.2.2", "api", time.Hour)
	h.clock.advance(time.Minute)
	if got := len(h.Covering(prefix("192.0.2.1"))); got != 0 {
		t.Errorf("%d claims that have ended are shown", got)
	}
	if ended, next := h.Sweep(10); len(ended) != 1 || next != h.clock.Monotonic()+uint64(59*time.Minute) {
		t.Errorf("swept %v, next %d", ended, next)
	}
	h.clock.advance(time.Hour)
	h.reopen()
	h.want("192.0.2.3 api forever")
	if _, next := h.Sweep(10); next != Forever {
		t.Errorf("next %d", next)
	}
}

// A ban lasts as long as was promised, whatever someone does to the wall clock, and over a reboot
// it ends when the wall clock says so.
func TestClocks(t *testing.T) {
	day := 24 * time.Hour
	h := open(t)
	h.ban("192.0.2.1", "operator", 4*time.Hour)
	for _, step := range []time.Duration{day, -2 * day, day} {
		h.clock.set(step)
		h.Tick()
		h.want("192.0.2.1 operator 4h")
		h.reopen()
		h.want("192.0.2.1 operator 4h")
		if c := h.Covering(prefix("192.0.2.1"))[0]; !c.Expires.Equal(h.clock.Now().Add(4 * time.Hour)) {
			t.Errorf("after a step of %s it is said to expire at %s, now is %s", step, c.Expires, h.clock.Now())
		}
	}
	h.Close()
	h.Store = nil
	h.clock.reboot(time.Hour)
	h.reopen()
	h.want("192.0.2.1 operator 3h")
	h.clock.advance(time.Hour)
	h.ban("192.0.2.2", "operator", time.Hour)
	h.reopen()
	h.want("192.0.2.1 operator 2h; 192.0.2.2 operator 1h")

	// A clock that says 1970 after a reboot stands still in the meantime; nothing comes back to life.
	h.Close()
	h.Store = nil
	behind := h.clock.Now().Sub(time.Unix(0, 0))
	h.clock.set(-behind)
	h.clock.reboot(time.Minute)
	h.reopen()
	h.want("192.0.2.1 operator 2h; 192.0.2.2 operator 1h")
	h.clock.set(behind)
	if !h.Tick() {
		t.Error("nothing followed the clock")
	}
	h.want("192.0.2.1 operator 1h59m; 192.0.2.2 operator 59m")
	h.clock.set(time.Hour)
	h.Tick()
	h.want("192.0.2.1 operator 59m")
	h.reopen()
	h.want("192.0.2.1 operator 59m")
}

// The log is cleaned as it grows, and what is read back is what was there.
func TestLogIsCleaned(t *testing.T) {
	h := open(t)
	var batch []Proposal
	for i := range 5000 {
		batch = append(batch, Proposal{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 32), Origin: "feed:x", Reason: fmt.Sprint(i % 7)})
	}
	if _, err := h.Propose(batch); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if _, err := h.Propose(batch[:100]); err != nil {
			t.Fatal(err)
		}
		for j := range 100 {
			batch[j].Reason = fmt.Sprint(i)
			batch[j].Remove = i%2 == 0
		}
	}
	want := h.banned()
	if g := h.segments; g.entries > 2*5000+1024+400 {
		t.Errorf("%d entries for %d claims in %d segments", g.entries, h.live, g.next-g.first)
	}
	h.reopen()
	h.want(want)
	// Single changes leave small segments; those are joined.
	for i := range 3000 {
		h.try(Proposal{Prefix: batch[i].Prefix, Origin: "operator"})
	}
	if n := h.segments.next - h.segments.first; n > 2048+uint64(h.live/64)+64 {
		t.Errorf("%d segments", n)
	}
	want = h.banned()
	h.reopen()
	h.want(want)
}

// Whatever is proposed, in whatever order, over restarts, reboots and time: the store says what a
// plain list of claims says.
func TestAgainstModel(t *testing.T) {
	type claim struct {
		expires time.Time
		monitor bool
		reason  string
	}
	type modelKey struct {
		prefix netip.Prefix
		origin Origin
	}
	prefixes := []netip.Prefix{prefix("192.0.2.1"), prefix("192.0.2.0/24"), prefix("192.0.2.2"), prefix("2001:db8::/32"), prefix("2001:db8::1"), prefix("198.51.100.0/23")}
	origins := []Origin{"operator", "api", "feed:a", "feed:b"}
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		h := &harness{TB: t, clock: newFakeClock(), path: filepath.Join(dir, fmt.Sprint(n))}
		h.reopen()
		defer func() { h.Close() }()
		model := map[modelKey]claim{}
		steps := rapid.IntRange(1, 60).Draw(rt, "steps")
		for range steps {
			switch rapid.IntRange(0, 9).Draw(rt, "kind") {
			case 0:
				h.reopen()
			case 1:
				h.clock.advance(time.Duration(rapid.IntRange(1, 50).Draw(rt, "advance")) * time.Minute)
				h.Sweep(rapid.IntRange(0, 3).Draw(rt, "sweep"))
			case 2:
				h.Close()
				h.clock.reboot(time.Minute)
				h.Store = nil
				h.reopen()
			default:
				var batch []Proposal
				for range rapid.IntRange(1, 4).Draw(rt, "batch") {
					p := Proposal{Prefix: rapid.SampledFrom(prefixes).Draw(rt, "prefix"), Origin: rapid.SampledFrom(origins).Draw(rt, "origin"),
						Remove: rapid.IntRange(0, 3).Draw(rt, "remove") == 0, All: rapid.Bool().Draw(rt, "all"), Monitor: rapid.Bool().Draw(rt, "monitor"),
						For:    time.Duration(rapid.IntRange(0, 3).Draw(rt, "for")) * time.Hour,
						Reason: rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "reason")}
					batch = append(batch, p)
					switch {
					case p.Remove && p.All:
						maps.DeleteFunc(model, func(k modelKey, _ claim) bool { return k.prefix == p.Prefix })
					case p.Remove:
						delete(model, modelKey{p.Prefix, p.Origin})
					default:
						c := claim{monitor: p.Monitor, reason: p.Reason}
						if p.For > 0 {
							c.expires = h.clock.Now().Add(p.For)
						}
						model[modelKey{p.Prefix, p.Origin}] = c
					}
				}
				if _, err := h.Propose(batch); err != nil {
					rt.Fatal(err)
				}
			}
			now := h.clock.Now()
			maps.DeleteFunc(model, func(_ modelKey, c claim) bool { return !c.expires.IsZero() && !c.expires.After(now) })
			page, total, _, failed := h.List(Filter{})
			if failed != nil || total != len(model) || len(page) != total {
				rt.Fatalf("%d claims listed, the model has %d: %v", total, len(model), failed)
			}
			for _, c := range page {
				m, ok := model[modelKey{c.Prefix, c.Origin}]
				if !ok || m.monitor != c.Monitor || m.reason != c.Reason || !m.expires.Equal(c.Expires) {
					rt.Fatalf("claim %+v, the model has %+v", c, m)
				}
			}
			h.Sweep(100)
			for b := range h.Bans() {
				var latest time.Time
				enforce, forever := false, false
				for k, c := range model {
					if k.prefix == b.Prefix {
						enforce = enforce || !c.monitor
					}
				}
				for k, c := range model {
					if k.prefix == b.Prefix && c.monitor == !enforce {
						forever = forever || c.expires.IsZero()
						if c.expires.After(latest) {
							latest = c.expires
						}
					}
				}
				if b.Monitor == enforce || forever != (b.Expires == Forever) || !forever && !h.wallTime(b.Expires).Equal(latest) {
					rt.Fatalf("ban %+v, the model says enforce %v until %s", b, enforce, latest)
				}
			}
		}
	})
}

// Any damage to the file is either noticed or harmless: what is read is never something else than
// what was written.
func TestDamage(t *testing.T) {
	h := open(t)
	for i := range 200 {
		h.ban(fmt.Sprintf("192.0.2.%d", i), "operator", 0)
	}
	want := h.banned()
	h.Close()
	h.Store = nil
	whole, err := os.ReadFile(h.path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(h.path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, lost, err := OpenOrSetAside(Config{Path: h.path, Clock: h.clock})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer s.Close()
		if lost == nil {
			if got := (&harness{TB: t, Store: s, clock: h.clock}).banned(); got != want && s.Doubt() == nil {
				t.Errorf("%s went unnoticed, and changed what is in force", name)
			}
			return
		}
		aside, err := os.ReadFile(lost.Aside)
		if err != nil || string(aside) != string(content) {
			t.Errorf("%s: the file was not set aside as it was: %v", name, err)
		}
		os.Remove(lost.Aside)
	}
	try("an empty file", nil)
	try("text", []byte(strings.Repeat("not a state\n", 4096)))
	for _, n := range []int{1, 100, 4096, 8192, 16384, len(whole) / 2, len(whole) - 1} {
		try(fmt.Sprintf("cut to %d bytes", n), whole[:n])
	}
	for at := 0; at < len(whole); at += 509 {
		torn := slices.Clone(whole)
		torn[at] ^= 0x10
		try(fmt.Sprintf("byte %d flipped", at), torn)
	}
	for page := range len(whole) / 4096 {
		torn := slices.Clone(whole)
		clear(torn[page*4096 : (page+1)*4096])
		try(fmt.Sprintf("page %d zeroed", page), torn)
	}
}

func TestSecondProcess(t *testing.T) {
	h := open(t)
	_, err := Open(Config{Path: h.path, Clock: h.clock})
	if err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Errorf("opened twice: %v", err)
	}
	if _, ok := errors.AsType[*DamagedError](err); ok {
		t.Error("a held file is no damaged one")
	}
}

// After a write that failed, nothing has changed, in memory or on disk, and the next one works.
func TestWriteFails(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", 0)
	h.db.Close()
	if _, err := h.Propose([]Proposal{{Prefix: prefix("192.0.2.2"), Origin: "operator"}}); err == nil || AsError(err, "").Code != CodeStorage {
		t.Fatalf("the write should have failed: %v", err)
	}
	if h.Failure() == nil {
		t.Error("the failure is not remembered")
	}
	if _, err := h.SetLimit("default", LimitSpec{Packets: &Threshold{Rate: Rate{Count: 1, Per: time.Second}}}, "root"); err == nil {
		t.Error("a limit was set")
	}
	if err := h.RememberAttached("eth9", ModeAuto); err == nil {
		t.Error("an interface was remembered")
	}
	if _, err := h.ProposeAllows([]AllowProposal{{AllowSpec: AllowSpec{Prefix: Prefix{prefix("192.0.2.9")}}}}); err == nil {
		t.Error("an allow entry was made")
	}
	h.want("192.0.2.1 operator forever")
	if len(h.Allows())+len(h.Interfaces()) != 0 || h.Limits()[0].Source != FromDefault {
		t.Error("something changed")
	}
	h.reopen()
	h.want("192.0.2.1 operator forever")
	h.ban("192.0.2.2", "operator", 0)
	if h.Failure() != nil {
		t.Error("the failure is still remembered")
	}
}

func TestRevert(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", time.Hour)
	h.clock.advance(time.Minute)
	out, err := h.Propose([]Proposal{
		{Prefix: prefix("192.0.2.1"), Origin: "operator", For: 9 * time.Hour},
		{Prefix: prefix("192.0.2.2"), Origin: "operator"},
		{Prefix: prefix("192.0.2.3"), Origin: "operator"},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.clock.advance(time.Minute)
	h.ban("192.0.2.3", "operator", 0) // unchanged
	h.ban("192.0.2.3", "operator", 5*time.Hour)
	var made []Made
	for i := range out {
		if m, ok := out[i].Made(); ok {
			made = append(made, m)
		}
	}
	if err := h.Revert(made); err != nil {
		t.Fatal(err)
	}
	h.want("192.0.2.1 operator 58m; 192.0.2.3 operator 5h")
	h.reopen()
	h.want("192.0.2.1 operator 58m; 192.0.2.3 operator 5h")
}

func TestConcurrentProposals(t *testing.T) {
	h := open(t)
	var wg sync.WaitGroup
	for g := range 20 {
		wg.Go(func() {
			for i := range 20 {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(g), byte(i)}), 32)
				out, err := h.Propose([]Proposal{{Prefix: p, Origin: "api", Reason: "r"}})
				if err != nil || out[0].Status != StatusAdded {
					t.Error(err, out)
				}
				if _, ok := h.Effective(p); !ok {
					t.Errorf("%s is answered and not there", p)
				}
			}
		})
	}
	wg.Wait()
	if n, _ := h.Prefixes(); n != 400 {
		t.Errorf("%d prefixes", n)
	}
	h.reopen()
	if n, _ := h.Prefixes(); n != 400 {
		t.Errorf("%d prefixes read back", n)
	}
}

func TestPages(t *testing.T) {
	h := open(t)
	for i := range 25 {
		h.ban(fmt.Sprintf("192.0.2.%d", i), "operator", 0)
		h.ban(fmt.Sprintf("192.0.2.%d", i), "feed:x", 0)
		h.clock.advance(time.Second)
	}
	var seen []string
	f := Filter{Origin: "operator", Limit: 10}
	for {
		page, total, next, err := h.List(f)
		if err != nil || total != 25 {
			t.Fatal(total, err)
		}
		for _, c := range page {
			seen = append(seen, PrefixString(c.Prefix))
		}
		if next == "" {
			break
		}
		f.After = next
		h.ban("203.0.113.9", "operator", 0) // newer: on no later page
		h.try(Proposal{Prefix: prefix("203.0.113.9"), Origin: "operator", Remove: true})
	}
	if len(seen) != 25 || seen[0] != "192.0.2.24" || seen[24] != "192.0.2.0" {
		t.Errorf("pages: %v", seen)
	}
	if _, total, _, _ := h.List(Filter{Within: prefix("192.0.2.8/29")}); total != 16 {
		t.Errorf("%d claims within", total)
	}
	if _, total, _, _ := h.List(Filter{Since: h.clock.Now().Add(-3 * time.Second)}); total != 6 {
		t.Errorf("%d claims since", total)
	}
	if _, _, _, err := h.List(Filter{After: "nonsense"}); err == nil {
		t.Error("a nonsense cursor was taken")
	}
}

func FuzzSegment(f *testing.F) {
	f.Add(encodeSegment([]entry{
		{key: keyOf(prefix("192.0.2.0/24")), list: 1, created: 5, expires: Forever, words: words{"root", "x"}},
		{key: keyOf(prefix("2001:db8::1")), list: 2, boot: 1, expires: 77, monitor: true},
		{key: keyOf(prefix("192.0.2.0/24")), list: 1, remove: true},
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum keeps accidents out; what has a right one must still not crash.
		if len(b) >= 5 {
			b = sealed(b)
		}
		var entries []entry
		if err := decodeSegment(b, func(e *entry) error { entries = append(entries, *e); return nil }); err != nil {
			return
		}
		var again []entry
		if err := decodeSegment(encodeSegment(entries), func(e *entry) error { again = append(again, *e); return nil }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(normal(entries), normal(again)) {
			t.Errorf("%+v became %+v", entries, again)
		}
	})
}

func normal(entries []entry) []entry {
	for i := range entries {
		if e := &entries[i]; e.expires == Forever {
			e.boot = 0
		}
	}
	return entries
}

func BenchmarkPropose(b *testing.B) {
	for _, size := range []int{10_000, 4096} {
		for _, brief := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/brief=%t", size, brief), func(b *testing.B) { benchmarkPropose(b, size, brief) })
		}
	}
}

func benchmarkPropose(b *testing.B, size int, brief bool) {
	h := open(b)
	var batch []Proposal
	for range size {
		batch = append(batch, Proposal{Origin: "feed:x", Reason: "listed"})
	}
	out := make([]Outcome, size)
	n := uint32(0)
	for b.Loop() {
		for i := range batch {
			n++
			batch[i].Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10 + byte(n>>24), byte(n >> 16), byte(n >> 8), byte(n)}), 32)
		}
		var err error
		if brief {
			err = h.ProposeBriefly(batch, out)
		} else {
			_, err = h.Propose(batch)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/ban")
}

// A state that was begun stays new until it is filled, however often the daemon dies in between.
func TestFreshUntilFilled(t *testing.T) {
	h := open(t)
	for range 2 {
		if !h.Fresh() {
			t.Fatal("a state that was never filled is not new")
		}
		h.reopen()
	}
	if err := h.Filled(); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if h.Fresh() {
		t.Error("a state that was filled is new")
	}
}
