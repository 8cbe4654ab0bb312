package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
)

// onKernel starts what a daemon is made of on the real kernel, without its tasks and interfaces.
func onKernel(t *testing.T, dir, more string) (*engine, map[string]*ebpf.Map) {
	t.Helper()
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := loader.Probe("").Err(); err != nil {
		t.Fatal(err)
	}
	root := "/sys/fs/bpf/levee-drift-" + fmt.Sprint(os.Getpid())
	text := fmt.Sprintf("api: {socket: %[1]s/s, group: \"\"}\nstate: {path: %[1]s/state.db}\naudit: {path: %[1]s/audit.log}\nlock: %[1]s/lock\nbpffs: %[2]s\nmetrics: {listen: \"off\"}\nprotect: {own: false, gateways: false, resolvers: false, ssh: false, api: false}\n%[3]s",
		dir, root, more)
	path := filepath.Join(dir, "levee.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	log := &buffer{}
	t.Cleanup(func() {
		if _, err := loader.Remove(root); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log)
		}
	})
	e, _, err := start(t.Context(), &Options{Config: c, Stderr: log})
	if err != nil {
		t.Fatal(err)
	}
	return e, e.shield.(*shield).Maps()
}

const small = "tables: {ipv4_bans: 16k, ipv6_bans: 4k, sources: 4k, allows: 100}\n"

func (e *engine) mustBan(t *testing.T, items ...state.BanItem) {
	t.Helper()
	r, err := e.Ban(state.Operator("test"), state.BanRequest{Bans: items})
	if err != nil || r.Refused > 0 {
		t.Fatal(r, err)
	}
}

// Whatever somebody else does to the pinned maps is seen by the next comparison, and put right.
func TestDrift(t *testing.T) {
	e, maps := onKernel(t, t.TempDir(), small+"allow: [203.0.113.0/24]\nlimits: {default: {packets: 1k/s}, web: {services: [tcp/443], syn: 100/s}, net: {sources: [198.18.0.0/15], udp: 1k/s}}\n")
	defer func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
	}()
	many := make([]state.BanItem, 2000)
	for i := range many {
		many[i] = state.BanItem{Prefix: fmt.Sprintf("192.0.%d.%d", i/256, i%256), For: "1h"}
	}
	e.mustBan(t, many...)
	e.mustBan(t, state.BanItem{Prefix: "198.51.100.0/24"}, state.BanItem{Prefix: "2001:db8::/48"}, state.BanItem{Prefix: "2001:db8:1::1"},
		state.BanItem{Prefix: "100.64.0.0/12", Monitor: true})
	all := func() string {
		out := []string{fmt.Sprint(e.tables.Bans.Len()), fmt.Sprint(e.tables.Allows.Len())}
		for _, a := range []string{"192.0.3.77", "198.51.100.9", "2001:db8::9", "2001:db8:1::1", "100.65.1.1", "203.0.113.1", "8.8.8.8"} {
			b, ok := e.tables.Bans.Lookup(netip.MustParseAddr(a))
			out = append(out, fmt.Sprint(a, b, ok))
		}
		for n := range 3 {
			l, ok := e.shield.(*shield).tables.Limits.Get(uint8(n))
			out = append(out, fmt.Sprint(l, ok))
		}
		c := e.shield.(*shield).tables.Control
		return strings.Join(append(out, fmt.Sprint(c.Monitor(), c.EventBudget(), c.SourceIdle())), "\n")
	}
	e.reconciler.Whole(t.Context())
	if last := e.reconciler.Last(); last.Drift != 0 || last.Error != "" {
		t.Fatalf("%+v before anything was done", last)
	}
	want := all()
	zero := func(name string, keys ...uint32) error {
		m := maps[name]
		if len(keys) == 0 {
			for k := range m.MaxEntries() {
				keys = append(keys, k)
			}
		}
		for _, k := range keys {
			if err := m.Put(k, make([]byte, m.ValueSize())); err != nil {
				return err
			}
		}
		return nil
	}
	emptied := func(name string) error {
		m := maps[name]
		key := make([]byte, m.KeySize())
		for m.NextKey(nil, &key) == nil {
			if err := m.Delete(key); err != nil {
				return err
			}
		}
		return nil
	}
	switches := func(f func(*bpf.Control)) error {
		var c bpf.Control
		m := maps[bpf.LeveeMapControls]
		err := m.Lookup(uint32(0), &c)
		f(&c)
		return errors.Join(err, m.Put(uint32(0), c))
	}
	for name, scribble := range map[string]func() error{
		"bans, all":          func() error { return zero(bpf.LeveeMapBan4Table) },
		"bans, all of IPv6":  func() error { return zero(bpf.LeveeMapBan6Table) },
		"what leads to bans": func() error { return zero(bpf.LeveeMapBan4Bits) },
		"classes":            func() error { return zero(bpf.LeveeMapBan4Classes) },
		"wide bans":          func() error { return zero(bpf.LeveeMapBan4Wide) },
		"filter":             func() error { return zero(bpf.LeveeMapBan6Filter) },
		"allows":             func() error { return emptied(bpf.LeveeMapAllows) },
		"limits":             func() error { return zero(bpf.LeveeMapLimits) },
		"limits' sources":    func() error { return emptied(bpf.LeveeMapSourceLimits) },
		"limits' services":   func() error { return zero(bpf.LeveeMapServiceLimits) },
		"monitor":            func() error { return switches(func(c *bpf.Control) { c.Monitor = 1 }) },
		"event budget":       func() error { return switches(func(c *bpf.Control) { c.EventBudget = 1e6 }) },
		"source idle":        func() error { return switches(func(c *bpf.Control) { c.SourceIdle = 1 }) },
		"control cap":        func() error { return switches(func(c *bpf.Control) { c.ControlCost, c.ControlBurst = 1, 1 }) },
		"tiers of IPv6":      func() error { return switches(func(c *bpf.Control) { c.Ban6Tiers = 0 }) },
		"version of IPv6":    func() error { return switches(func(c *bpf.Control) { c.Ban6Version-- }) },
		"sizes of limits":    func() error { return switches(func(c *bpf.Control) { c.SourceLimits, c.ServiceLimits = 0, 0 }) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := scribble(); err != nil {
				t.Fatal(err)
			}
			e.reconciler.Whole(t.Context())
			last := e.reconciler.Last()
			if last.Drift == 0 || last.Error != "" {
				t.Errorf("%+v", last)
			}
			if got := all(); got != want {
				t.Errorf("it is now\n%s\nand was\n%s", got, want)
			}
			o, err := e.Status(t.Context(), 0)
			if err != nil || o.Reconcile.Drift != last.Drift || !strings.Contains(fmt.Sprint(o.Health.Problems), "something else writes them") {
				t.Errorf("status: %+v, %v", o.Health, err)
			}
			e.reconciler.Whole(t.Context())
			if last := e.reconciler.Last(); last.Drift != 0 {
				t.Errorf("once more: %+v", last)
			}
		})
	}
	// Panic is nobody's but the operator's.
	if err := e.SetPanic(state.Operator("test"), true); err != nil {
		t.Fatal(err)
	}
	e.reconciler.Whole(t.Context())
	if last := e.reconciler.Last(); last.Drift != 0 || !e.Panic() {
		t.Errorf("panic: %+v, %v", last, e.Panic())
	}
}

// A state that is damaged when the tables' sizes have changed, too, loses no ban: it stands in the set
// that is replaced.
func TestDamagedAndResized(t *testing.T) {
	dir := t.TempDir()
	e, _ := onKernel(t, dir, small)
	e.mustBan(t, state.BanItem{Prefix: "192.0.2.1", For: "4h"}, state.BanItem{Prefix: "198.51.100.0/22"}, state.BanItem{Prefix: "2001:db8::/48", Monitor: true})
	if err := e.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "state.db"), 0); err != nil {
		t.Fatal(err)
	}
	e, _ = onKernel(t, dir, "tables: {ipv4_bans: 64k, ipv6_bans: 8k, sources: 4k, allows: 100}\n")
	defer func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
	}()
	if adopted, _ := e.shield.Adopted(); adopted {
		t.Fatal("the set was adopted: the test is none")
	}
	for addr, monitor := range map[string]bool{"192.0.2.1": false, "198.51.103.255": false, "2001:db8::1": true} {
		if b, ok := e.tables.Bans.Lookup(netip.MustParseAddr(addr)); !ok || b.Monitor != monitor {
			t.Errorf("%s: %+v %v", addr, b, ok)
		}
	}
	if page, err := e.Bans(state.Filter{Origin: state.OriginKernel}); err != nil || page.Total != 3 {
		t.Errorf("%+v, %v", page, err)
	}
	if h := e.Health(); !strings.Contains(fmt.Sprint(h.Problems), "3 bans that the kernel held were kept") {
		t.Errorf("%+v", h)
	}
}

// 100,000 bans end at random times: each is there until its time and not after it, and the sweep keeps
// up with them.
func TestManyEnd(t *testing.T) {
	const n = 100_000
	e, _ := onKernel(t, t.TempDir(), "tables: {ipv4_bans: 256k, ipv6_bans: 4k, sources: 4k, allows: 100}\n")
	defer func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
	}()
	r := rand.New(rand.NewPCG(1, 2))
	// All must be in place before the first one ends; on a slow machine that takes longer.
	var begun time.Time
	for ahead := 4 * time.Second; ; ahead *= 3 {
		begun = e.clock.Now().Add(ahead)
		out, err := e.BanBulk(state.Operator("test"), state.BulkRequest{Origin: "feed:x"}, func(yield func(state.BulkLine) bool) error {
			for i := range n {
				addr := netip.AddrFrom4([4]byte{100, 64 + byte(i>>16), byte(i >> 8), byte(i)})
				if !yield(state.BulkLine{Number: i + 1, Item: state.BanItem{Prefix: addr.String(), Expires: begun.Add(time.Duration(r.Int64N(int64(4 * time.Second))))}}) {
					break
				}
			}
			return nil
		})
		if err == nil && out.Added+out.Changed == n && e.clock.Now().Before(begun) {
			break
		}
		if ahead > 30*time.Second {
			t.Fatal(counted(out), err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.reconciler.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	ends := make(map[netip.Addr]uint64, n)
	for b := range e.state.Bans() {
		ends[b.Prefix.Addr()] = b.Expires
	}
	// The tables go by the kernel's coarse clock: late by a tick at most, 10 ms at 100 Hz. Only where the
	// machine itself stands still is it later, so a ban is held to this clock, and the clock's lag is told.
	asked, lag := 0, uint64(0)
	for e.clock.Now().Before(begun.Add(4 * time.Second)) {
		for addr, end := range ends {
			exact, before := e.clock.Monotonic(), coarse(t)
			_, banned := e.tables.Bans.Lookup(addr)
			after := e.clock.Monotonic()
			if banned && before >= end || !banned && after < end {
				t.Fatalf("%s banned %v, asked from %d to %d, ends at %d", addr, banned, before, after, end)
			}
			lag = max(lag, exact-min(exact, before))
			if asked++; asked%1000 == 0 {
				break
			}
		}
	}
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		v4, v6 := e.state.Prefixes()
		k4, k6 := e.tables.Bans.Len()
		if v4+v6+k4+k6 == 0 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%d claims and %d bans were not swept", v4+v6, k4+k6)
		}
	}
	t.Logf("asked %d times; the tables' clock was late by %v at most", asked, time.Duration(lag))
}

// coarse returns the time that the tables compare with what bans last until, as user space reads it.
func coarse(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}
