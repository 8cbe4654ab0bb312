package protect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levee-xdp/levee/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// values is a system that is what a test says.
type values struct {
	mu                               sync.Mutex
	own, gateways, resolvers, logins []Found
	fail                             map[string]error
}

func (v *values) Own() ([]Found, error)       { return v.answer("own", &v.own) }
func (v *values) Gateways() ([]Found, error)  { return v.answer("gateways", &v.gateways) }
func (v *values) Resolvers() ([]Found, error) { return v.answer("resolvers", &v.resolvers) }
func (v *values) Sessions() ([]Found, error)  { return v.answer("ssh", &v.logins) }

func (v *values) answer(name string, list *[]Found) ([]Found, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.fail[name]; err != nil {
		return nil, err
	}
	return slices.Clone(*list), nil
}

type clock struct {
	mu  sync.Mutex
	now uint64
}

func (c *clock) Now() time.Time    { return time.Unix(0, int64(c.Monotonic())) }
func (c *clock) Monotonic() uint64 { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) Boot() string      { return "b" }
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += uint64(d)
}

// sink is what is in force.
type sink struct {
	mu      sync.Mutex
	entries []state.Allow
	fail    error
	times   int
	told    chan struct{}
}

func (s *sink) protect(entries []state.Allow) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = entries
	s.times++
	select {
	case s.told <- struct{}{}:
	default:
	}
	return s.fail
}

// show is what is in force beside what always is.
func (s *sink) show() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, e := range s.entries {
		if !slices.ContainsFunc(always, func(f Found) bool { return f.Prefix == e.Prefix }) {
			out = append(out, state.PrefixString(e.Prefix)+": "+e.Comment)
		}
	}
	return strings.Join(out, "; ")
}

func found(address, words string) Found {
	a := netip.MustParseAddr(address)
	return Found{netip.PrefixFrom(a, a.BitLen()), words}
}

var all = Kinds{Own: true, Gateways: true, Resolvers: true, SSH: true, API: true}

func newFinder(k Kinds) (*Finder, *values, *sink, *clock) {
	v, s, c := &values{fail: map[string]error{}}, &sink{told: make(chan struct{}, 1)}, &clock{now: uint64(time.Hour)}
	v.own, v.gateways = []Found{found("192.0.2.1", "own")}, []Found{found("192.0.2.254", "gateway")}
	v.resolvers, v.logins = []Found{found("192.0.2.254", "resolver"), found("192.0.2.53", "resolver")}, []Found{found("198.51.100.9", "ssh")}
	return New(Config{System: v, Kinds: k, Protect: s.protect, Clock: c, Interval: time.Hour}), v, s, c
}

func TestRefresh(t *testing.T) {
	f, v, s, c := newFinder(all)
	want := func(what, is string) {
		t.Helper()
		if got := s.show(); got != is {
			t.Errorf("%s: %s\nwant %s", what, got, is)
		}
	}
	if err := f.Refresh(); err != nil {
		t.Fatal(err)
	}
	const base = "192.0.2.1: own; 192.0.2.254: gateway; 192.0.2.53: resolver"
	want("at first", base+"; 198.51.100.9: ssh")
	if len(s.entries) != len(always)+4 || s.entries[0].Source != state.FromProtected {
		t.Errorf("%+v", s.entries)
	}

	// What can't be asked stays as it was, and is said.
	v.fail["own"], v.own = errors.New("no netlink"), nil
	if err := f.Refresh(); err == nil || f.Problem() != "own addresses: no netlink" {
		t.Errorf("%v, %q", err, f.Problem())
	}
	want("with an error", base+"; 198.51.100.9: ssh")
	delete(v.fail, "own")

	// A session that is gone lingers, and then ends. An address that is no longer ours ends at once.
	v.logins = nil
	c.advance(Linger)
	if err := f.Refresh(); err != nil || f.Problem() != "" {
		t.Errorf("%v, %q", err, f.Problem())
	}
	want("the session has ended", "192.0.2.254: gateway; 192.0.2.53: resolver; 198.51.100.9: ssh")
	c.advance(1)
	_ = f.Refresh()
	want("later", "192.0.2.254: gateway; 192.0.2.53: resolver")

	f.Client(netip.MustParseAddr("::ffff:203.0.113.5"), "a")
	f.Client(netip.MustParseAddr("fe80::1%eth0"), "b")
	f.Client(netip.MustParseAddr("127.0.0.1"), "a")
	f.Client(netip.Addr{}, "a")
	f.Set(Kinds{API: true})
	_ = f.Refresh()
	want("clients alone", "203.0.113.5: a client of this daemon's API; fe80::1: a client of this daemon's API")
	f.Set(Kinds{})
	_ = f.Refresh()
	want("nothing", "")

	s.fail = errors.New("the table is full")
	if err := f.Refresh(); err == nil || f.Problem() != "the table is full" {
		t.Errorf("%v, %q", err, f.Problem())
	}
}

// However many authenticate, memory and the kernel's table are bounded, and the latest are kept.
func TestManyClients(t *testing.T) {
	f, _, s, c := newFinder(Kinds{API: true})
	for i := range 3 * maxPeers {
		c.advance(1)
		f.Client(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), fmt.Sprint(i))
	}
	_ = f.Refresh()
	if n := len(s.entries) - len(always); n != maxPeers {
		t.Errorf("%d clients, want %d", n, maxPeers)
	}
	if got := s.show(); !strings.Contains(got, "10.0.11.255:") || strings.Contains(got, "10.0.0.1:") {
		t.Errorf("the latest is not there, or the first is")
	}
}

// Whoever holds one credential protects few addresses with it, and pushes out nobody else's; one that is
// revoked protects none.
func TestClientsOfActor(t *testing.T) {
	f, _, s, c := newFinder(Kinds{API: true})
	f.Client(netip.MustParseAddr("198.51.100.1"), "good")
	f.Client(netip.MustParseAddr("10.0.0.255"), "good")
	for i := range 3 * maxPeers {
		c.advance(1)
		f.Client(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), "evil")
	}
	_ = f.Refresh()
	if n := len(s.entries) - len(always); n != maxOfActor+2 {
		t.Errorf("%d clients, want %d", n, maxOfActor+2)
	}
	f.Client(netip.MustParseAddr("10.0.0.255"), "evil")
	f.Forget("evil")
	_ = f.Refresh()
	if got := s.show(); got != "10.0.0.255: a client of this daemon's API; 198.51.100.1: a client of this daemon's API" {
		t.Error(got)
	}
	// Nor do many: of those who have many, one gives way.
	for actor := range maxPeers / maxOfActor {
		for i := range maxOfActor {
			c.advance(1)
			f.Client(netip.AddrFrom4([4]byte{10, 1, byte(actor), byte(i)}), fmt.Sprint("evil", actor))
		}
	}
	_ = f.Refresh()
	if got := s.show(); len(s.entries) != len(always)+maxPeers || !strings.Contains(got, "198.51.100.1:") || !strings.Contains(got, "10.0.0.255:") {
		t.Errorf("%d clients, or one of who has few is not among them", len(s.entries)-len(always))
	}
}

// However many clients are new, the system is not looked at for each.
func TestWake(t *testing.T) {
	f, _, s, _ := newFinder(all)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	for i := range 1000 {
		f.Client(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), fmt.Sprint(i))
		if i%100 == 0 {
			time.Sleep(time.Millisecond) // it gets to look
		}
	}
	for end := time.Now().Add(30 * time.Second); !strings.Contains(s.show(), "10.0.3.231:"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the last is not protected")
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.times > 3 {
		t.Errorf("the system was looked at %d times", s.times)
	}
}

// A new client is protected without waiting for the interval.
func TestRun(t *testing.T) {
	f, _, s, _ := newFinder(all)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	f.Client(netip.MustParseAddr("203.0.113.5"), "a")
	select {
	case <-s.told:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing happened")
	}
	if got := s.show(); !strings.Contains(got, "203.0.113.5: a client") {
		t.Error(got)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNameservers(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 192.0.2.53\n":       "[192.0.2.53]",
		"# nameserver 192.0.2.1\n":      "[]",
		"; nameserver 192.0.2.1\n":      "[]",
		"nameserver\t2001:db8::53 \r\n": "[2001:db8::53]",
		"nameserver fe80::1%eth0\nsearch example\nnameserver ::ffff:192.0.2.5": "[fe80::1 192.0.2.5]",
		"nameserver 0.0.0.0\nnameserver name\nnameserver\noptions edns0\n":     "[]",
	} {
		if got := fmt.Sprint(nameservers([]byte(text))); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func FuzzNameservers(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.53\noptions x\n"))
	f.Add([]byte("nameserver fe80::1%eth0"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, a := range nameservers(text) {
			if !a.IsValid() || a.IsUnspecified() || a.Zone() != "" || a.Is4In6() {
				t.Errorf("%s", a)
			}
		}
	})
}
