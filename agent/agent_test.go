package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
	kernel "github.com/levee-xdp/levee/maps"
)

// daemon is one that runs in this process, on a kernel that is a value.
type testDaemon struct {
	testing.TB
	*client.Client
	kernel  *fakeKernel
	system  *fakeSystem
	clock   state.Clock
	dir     string
	text    string               // of the configuration
	flags   func(*config.Config) // of the command line, beside those of every test; may be nil
	reload  chan os.Signal
	log     *buffer
	metrics string
	stop    context.CancelFunc
	done    chan error
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func newDaemon(t testing.TB, k *fakeKernel, text string) *testDaemon {
	t.Helper()
	d := &testDaemon{TB: t, kernel: k, system: &fakeSystem{}, dir: t.TempDir(), text: text, reload: make(chan os.Signal, 1), log: &buffer{}}
	d.start()
	t.Cleanup(d.end)
	return d
}

// write gives the configuration's file another text.
func (d *testDaemon) write(text string) {
	d.Helper()
	d.text = text
	if err := os.WriteFile(filepath.Join(d.dir, "levee.yaml"), []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
}

func (d *testDaemon) load() (*config.Config, error) {
	d.write(d.text)
	c, err := config.Load(filepath.Join(d.dir, "levee.yaml"))
	if err != nil {
		return nil, err
	}
	return c, d.overlay(c)
}

// overlay is what flags say.
func (d *testDaemon) overlay(c *config.Config) error {
	c.API.Socket = filepath.Join(d.dir, "s")
	c.API.Group = ""
	c.State.Path = filepath.Join(d.dir, "state.db")
	c.Lock = filepath.Join(d.dir, "lock")
	c.Metrics.Listen = "127.0.0.1:0"
	if d.flags != nil {
		d.flags(c)
	}
	return nil
}

func (d *testDaemon) start() {
	d.Helper()
	c, err := d.load()
	if err != nil {
		d.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready := make(chan string, 1)
	d.stop, d.done = stop, make(chan error, 1)
	go func() {
		d.done <- Run(ctx, Options{Config: c, Overlay: d.overlay, File: filepath.Join(d.dir, "levee.yaml"), Version: "test", Stderr: d.log, Kernel: d.kernel, System: d.system, Clock: d.clock, Ready: ready, Reload: d.reload})
	}()
	select {
	case d.metrics = <-ready:
	case err := <-d.done:
		d.done <- nil
		d.Fatalf("the daemon ended: %v\n%s", err, d.log)
	}
	d.Client = client.New(client.Config{Socket: c.API.Socket})
}

func (d *testDaemon) end() {
	d.Helper()
	d.stop()
	if err := <-d.done; err != nil {
		d.Errorf("the daemon ended with %v", err)
	}
	d.done <- nil
	if d.Client != nil {
		d.Close()
	}
}

func (d *testDaemon) restart() {
	d.Helper()
	d.end()
	d.start()
}

func (d *testDaemon) want(banned string) {
	d.Helper()
	if got := d.kernel.show(); got != banned {
		d.Errorf("in the kernel: %q, want %q", got, banned)
	}
}

func (d *testDaemon) ban(items ...state.BanItem) state.BanResponse {
	d.Helper()
	r, err := d.Ban(d.Context(), state.BanRequest{Bans: items})
	if err != nil {
		d.Fatal(err)
	}
	return r
}

func TestMain(m *testing.M) {
	if os.Getenv("LEVEE_TEST_DAEMON") != "" {
		os.Exit(daemonMain())
	}
	if text := os.Getenv("LEVEE_TEST_CLIENTS"); text != "" {
		os.Exit(clientsMain(text))
	}
	if text := os.Getenv("LEVEE_TEST_READERS"); text != "" {
		os.Exit(readersMain(text))
	}
	// The users that some tests act as must get to what the tests make.
	for dir := os.TempDir(); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if i, err := os.Stat(dir); err == nil && i.Mode().Perm()&0o001 == 0 {
			os.Setenv("TMPDIR", "/tmp")
			break
		}
	}
	goleak.VerifyTestMain(m)
}

func TestBans(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n")
	r := d.ban(
		state.BanItem{Prefix: "203.0.113.7", Origin: "operator", Reason: "test", For: "4h"},
		state.BanItem{Prefix: "2001:db8::1/48"},
		state.BanItem{Prefix: "nonsense"},
		state.BanItem{Prefix: "10.0.0.0/7"},
		state.BanItem{Prefix: "192.0.2.1", For: "soon"},
	)
	if r.Done != 2 || r.Refused != 3 || r.Bans[0].Status != state.StatusAdded || r.Bans[0].Expires.IsZero() || r.Bans[0].Actor == "" ||
		r.Bans[1].Prefix != "2001:db8::/48" || r.Bans[1].Origin != "api" || !r.Bans[1].Expires.IsZero() {
		t.Errorf("%+v", r)
	}
	for i, want := range map[int]string{2: `prefix "nonsense": is neither`, 3: "is wider than /8", 4: `for.duration "soon"`} {
		if e := r.Bans[i].Error; e == nil || !strings.Contains(e.Error(), want) {
			t.Errorf("item %d: %v, want %s", i, e, want)
		}
	}
	d.want("2001:db8::/48 203.0.113.7/32")

	ctx := t.Context()
	c, err := d.Check(ctx, netip.MustParseAddr("203.0.113.7"))
	if err != nil || c.Verdict != state.VerdictBanned || len(c.Claims) != 1 || c.Kernel == nil || c.Kernel.Origin != "operator" ||
		c.Words != "is dropped: 203.0.113.7 is banned by operator, for another 4h" {
		t.Errorf("%+v, %v", c, err)
	}
	page, err := d.Bans(ctx, state.Filter{Origin: "operator"})
	if err != nil || page.Total != 1 || page.Bans[0].Reason != "test" {
		t.Errorf("%+v, %v", page, err)
	}

	d.restart()
	d.want("2001:db8::/48 203.0.113.7/32")
	if strings.Contains(d.log.String(), "level=ERROR") {
		t.Errorf("errors in the log:\n%s", d.log)
	}

	u, err := d.Unban(ctx, state.UnbanRequest{Prefixes: []string{"203.0.113.7"}})
	if err != nil || u.Refused != 1 || u.Bans[0].Error.Code != state.CodeNotFound {
		t.Errorf("%+v, %v", u, err)
	}
	u, err = d.Unban(ctx, state.UnbanRequest{Prefixes: []string{"203.0.113.7", "2001:db8::/48"}, All: true})
	if err != nil || u.Done != 2 || len(u.Bans[0].Removed) != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	d.want("")
	d.ban(state.BanItem{Prefix: "192.0.2.1"}, state.BanItem{Prefix: "192.0.2.2"})
	if u, err = d.Unban(ctx, state.UnbanRequest{Origin: "api"}); err != nil || u.Done != 2 {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := d.Unban(ctx, state.UnbanRequest{All: true}); err == nil {
		t.Error("everything was unbanned without a word of what")
	}
}

// What the kernel does not take is not said to be banned, and not kept on disk, either.
func TestFull(t *testing.T) {
	k := newFakeKernel()
	k.room = 2
	d := newDaemon(t, k, "")
	r := d.ban(state.BanItem{Prefix: "192.0.2.1"}, state.BanItem{Prefix: "192.0.2.2"}, state.BanItem{Prefix: "192.0.2.3"})
	if r.Done != 2 || r.Bans[2].Error == nil || r.Bans[2].Error.Code != state.CodeFull || !strings.Contains(r.Bans[2].Error.Detail, "tables.ipv4_bans") {
		t.Errorf("%+v", r)
	}
	d.restart()
	d.want("192.0.2.1/32 192.0.2.2/32")
}

// A ban that the state has already is not confirmed before the kernel has it, too.
func TestUnchangedIsEnforced(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "")
	item := state.BanItem{Prefix: "192.0.2.1"}
	d.ban(item)
	lose := func(room int) {
		k.mu.Lock()
		defer k.mu.Unlock()
		clear(k.bans)
		k.room = room
	}
	lose(0)
	if r := d.ban(item); r.Refused != 1 || r.Bans[0].Error == nil || r.Bans[0].Error.Code != state.CodeFull {
		t.Errorf("with no room: %+v", r)
	}
	lose(1)
	if r := d.ban(item); r.Done != 1 || r.Bans[0].Status != state.StatusUnchanged {
		t.Errorf("with room: %+v", r)
	}
	d.want("192.0.2.1/32")
}

func TestExpiry(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	d.ban(state.BanItem{Prefix: "192.0.2.1", For: "50ms"}, state.BanItem{Prefix: "192.0.2.2"})
	for until := time.Now().Add(10 * time.Second); d.kernel.show() != "192.0.2.2/32"; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("still in the kernel: %s", d.kernel.show())
		}
	}
	if page, err := d.Bans(t.Context(), state.Filter{}); err != nil || page.Total != 1 {
		t.Errorf("%+v, %v", page, err)
	}
}

func TestAllow(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\nallow: [198.51.100.0/24]\n")
	ctx := t.Context()
	d.ban(state.BanItem{Prefix: "192.0.2.1"})
	a, err := d.Allow(ctx, state.AllowRequest{Allow: []state.AllowItem{{Prefix: "192.0.2.0/24", Comment: "office"}, {Prefix: "what"}}})
	if err != nil || a.Done != 1 || a.Refused != 1 || a.Allow[0].Notes[0] != "it overrules 1 ban" || a.Allow[1].Error == nil || a.Allow[1].Prefix != "what" {
		t.Errorf("%+v, %v", a, err)
	}
	if d.kernel.allowed() != "192.0.2.0/24 198.51.100.0/24" {
		t.Errorf("in the kernel: %v", d.kernel.allows)
	}
	if c, err := d.Check(ctx, netip.MustParseAddr("192.0.2.1")); err != nil || c.Verdict != state.VerdictAllowed {
		t.Errorf("%+v, %v", c, err)
	}
	if r := d.ban(state.BanItem{Prefix: "192.0.2.9"}); r.Refused != 1 || r.Bans[0].Error.Code != state.CodeRefused {
		t.Errorf("%+v", r)
	}
	d.restart()
	list, err := d.Allows(ctx)
	if err != nil || len(list.Allow) != 2+5 {
		t.Errorf("%+v, %v", list, err)
	}
	u, err := d.Unallow(ctx, state.UnallowRequest{Prefixes: []string{"192.0.2.0/24", "198.51.100.0/24"}})
	if err != nil || u.Done != 1 || u.Allow[1].Error.Code != state.CodeConflict {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestLimits(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "limits: {default: {packets: 20k/s}}\n")
	ctx := t.Context()
	spec := state.LimitSpec{Services: []state.Service{{Protocol: 6, Port: 443}}, SYN: &state.Threshold{Rate: state.Rate{Count: 100, Per: time.Second}}}
	l, err := d.SetLimit(ctx, "web", spec)
	if err != nil || l.Source != state.FromAPI || l.Number == 0 {
		t.Errorf("%+v, %v", l, err)
	}
	if got := d.kernel.limits[l.Number]; got.Thresholds[bpf.ThresholdSYN].PerSecond != 100 {
		t.Errorf("in the kernel: %+v", d.kernel.limits)
	}
	if _, err := d.SetLimit(ctx, "web2", spec); err == nil || !strings.Contains(err.Error(), `is bound to the limit "web" already`) {
		t.Errorf("%v", err)
	}
	list, err := d.Limits(ctx)
	if err != nil || len(list.Limits) != 2 || list.Limits[0].Name != "default" || list.Limits[0].Source != state.FromConfig {
		t.Errorf("%+v, %v", list, err)
	}
	for name, want := range map[string]string{"default": "is set in the configuration file", "nope": "is no limit", "N O": "is no limit"} {
		if err := d.RemoveLimit(ctx, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.RemoveLimit(ctx, "web"); err != nil || len(d.kernel.limits) != 1 {
		t.Errorf("%v, %+v", err, d.kernel.limits)
	}
	if _, err := d.Limit(ctx, "web"); err == nil {
		t.Error("it is still there")
	}
}

// What is refused has changed nothing: neither what is in force nor what is kept.
func TestLimitsThatFail(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "limits: {default: {packets: 20k/s}}\n")
	ctx := t.Context()
	spec := func(port uint16) state.LimitSpec {
		return state.LimitSpec{Services: []state.Service{{Protocol: 6, Port: port}}, SYN: &state.Threshold{Rate: state.Rate{Count: 100, Per: time.Second}}}
	}
	if _, err := d.SetLimit(ctx, "web", spec(443)); err != nil {
		t.Fatal(err)
	}
	limits := func() string {
		list, err := d.Limits(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Limits {
			list.Limits[i].Exceeded = nil
		}
		return fmt.Sprintf("%+v in force %d", list.Limits, len(d.kernel.limits))
	}
	before := limits()
	for name, try := range map[string]func() error{
		"new":     func() error { _, err := d.SetLimit(ctx, "mail", spec(25)); return err },
		"changed": func() error { _, err := d.SetLimit(ctx, "web", spec(444)); return err },
		"removed": func() error { return d.RemoveLimit(ctx, "web") },
	} {
		d.kernel.noLimits.Store(true)
		err := try()
		d.kernel.noLimits.Store(false)
		if err == nil {
			t.Errorf("%s: not refused", name)
		}
		if got := limits(); got != before {
			t.Errorf("%s, and refused by the kernel: %s\nbefore: %s", name, got, before)
		}
		if name == "removed" {
			continue // its answer says nothing of what it did
		}
		d.kernel.noCounters.Store(true)
		err = try()
		d.kernel.noCounters.Store(false)
		if got := limits(); err == nil || got != before {
			t.Errorf("%s, and its counters can't be read: %v, but %s\nbefore: %s", name, err, got, before)
		}
	}
}

func TestInterfaces(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n")
	ctx := t.Context()
	show := func() string {
		list, err := d.Interfaces(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, i := range list.Interfaces {
			out = append(out, fmt.Sprintf("%s %v %s %s", i.Name, i.Attached, i.Mode, i.Source))
		}
		return strings.Join(out, "; ")
	}
	if got, want := show(), "eth0 true native config"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if v, err := d.Attach(ctx, state.AttachRequest{Name: "eth1", Mode: state.ModeGeneric}); err != nil || v.Mode != "generic" || v.Source != state.FromAPI {
		t.Errorf("%+v, %v", v, err)
	}
	for name, code := range map[string]state.Code{"eth9": state.CodeNotFound, "eth2": state.CodeRefused, "a/b": state.CodeInvalid} {
		_, err := d.Attach(ctx, state.AttachRequest{Name: name})
		e, ok := errors.AsType[*client.Error](err)
		if !ok || e.Code != code || !strings.Contains(err.Error(), name) {
			t.Errorf("attach %s: %v, %+v", name, err, e)
		}
	}
	if err := d.Detach(ctx, "eth0"); err != nil {
		t.Error(err)
	}
	if err := d.Detach(ctx, "eth0"); err == nil {
		t.Error("detached twice")
	}
	if err := d.Detach(ctx, "eth7"); err == nil {
		t.Error("detached what was never attached")
	}
	d.restart()
	if got, want := show(), "eth1 true generic api"; got != want {
		t.Errorf("after a restart: %s, want %s", got, want)
	}
	// The file names eth1 no longer and never did; eth0 was detached and stays so.
	d.write("interfaces: []\n")
	d.restart()
	if got, want := show(), "eth1 true generic api"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// An interface that was attached is told of, though the kernel can no longer be asked.
func TestAttachNeedsNoList(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "")
	k.mu.Lock()
	k.attaching = func() { k.noList.Store(true) }
	k.mu.Unlock()
	v, err := d.Attach(t.Context(), state.AttachRequest{Name: "eth1", Mode: state.ModeGeneric})
	k.noList.Store(false)
	want := state.InterfaceView{Name: "eth1", Attached: true, Mode: "generic", Wanted: state.ModeGeneric, Source: state.FromAPI,
		Ifindex: 2, ProgramID: 7, ProgramTag: "0123456789abcdef"}
	if err != nil || v != want {
		t.Errorf("%+v, %v, want %+v", v, err, want)
	}
	list, err := d.Interfaces(t.Context())
	if err != nil || len(list.Interfaces) != 1 || list.Interfaces[0] != want {
		t.Errorf("listed as %+v, %v", list.Interfaces, err)
	}
}

// A detached interface whose detaching can't be kept is detached all the same, and that is said.
func TestDetachNotKept(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n")
	mend := breakDisk(t, d.statePath())
	err := d.Detach(t.Context(), "eth0")
	mend()
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Code != state.CodeStorage || !strings.Contains(err.Error(), "eth0 is detached, but the daemon's next start would shield it") {
		t.Errorf("%v, %+v", err, e)
	}
	list, err := d.Interfaces(t.Context())
	if err != nil || len(list.Interfaces) != 1 || list.Interfaces[0].Attached {
		t.Errorf("%+v, %v", list.Interfaces, err)
	}
	if err := d.Detach(t.Context(), "eth0"); err != nil { // again, now that it can be kept
		t.Error(err)
	}
}

// An interface that the file no longer names is let go, also when the daemon did not run meanwhile.
func TestInterfaceDropped(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0, eth1]\n")
	d.write("interfaces: [eth1]\n")
	d.restart()
	if len(d.kernel.attachments) != 1 || d.kernel.attachments[0].Name != "eth1" {
		t.Errorf("%+v", d.kernel.attachments)
	}
}

func TestReload(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\nlimits: {default: {packets: 20k/s}}\nallow: [192.0.2.1]\n")
	before := func() string {
		return fmt.Sprint(d.kernel.limits, len(d.kernel.allows), len(d.kernel.attachments), d.kernel.switches.Monitor)
	}
	was := before()
	for _, tt := range []struct{ text, want string }{
		{"limits: {default: {packets: what}}\n", `rate "what"`},
		{"tables: {sources: 64k}\nmode: monitor\n", "takes a restart"},
		{"interfaces: [eth1, eth2]\nmode: monitor\nallow: []\nlimits: {}\n", "eth2"},
	} {
		d.write(tt.text)
		logged := len(d.log.String())
		d.reload <- syscall.SIGHUP
		for until := time.Now().Add(10 * time.Second); !strings.Contains(d.log.String()[logged:], "was not taken"); time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("no answer to %q:\n%s", tt.text, d.log)
			}
		}
		if text := d.log.String()[logged:]; !strings.Contains(strings.ReplaceAll(text, `\"`, `"`), tt.want) && !strings.Contains(text, tt.want) {
			t.Errorf("%q: %s", tt.text, text)
		}
		if got := before(); got != was {
			t.Errorf("%q changed something: %s, was %s", tt.text, got, was)
		}
	}
	d.write("interfaces: [eth1, eth8]\nmode: monitor\nlimits: {default: {packets: 5k/s}}\n")
	d.reload <- syscall.SIGHUP
	for until := time.Now().Add(10 * time.Second); !strings.Contains(d.log.String(), "is in force"); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal(d.log)
		}
	}
	if d.kernel.limits[0].Thresholds[0].PerSecond != 5000 || d.kernel.allowed() != "" || !d.kernel.switches.Monitor ||
		len(d.kernel.attachments) != 1 || d.kernel.attachments[0].Name != "eth1" {
		t.Errorf("%s", before())
	}
	o, err := d.Status(t.Context(), 0)
	if err != nil || o.Health.State != "degraded" || !strings.Contains(strings.Join(o.Health.Problems, ""), "eth8 is not shielded") {
		t.Errorf("%+v, %v", o.Health, err)
	}
}

func TestStatus(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "interfaces: [eth0]\n")
	d.ban(state.BanItem{Prefix: "192.0.2.1", Origin: "operator"})
	k.mu.Lock()
	k.counts = []kernel.Count{{Reason: bpf.ReasonBanned, Family: bpf.FamilyIPv4, Packets: 10, Bytes: 600}, {Reason: bpf.ReasonClean, Family: bpf.FamilyIPv4, Packets: 1000, Bytes: 64000},
		{Reason: bpf.ReasonBanned, Family: bpf.FamilyIPv6, Packets: 5, Bytes: 400}, {Reason: bpf.ReasonLimitSYN, Family: bpf.FamilyIPv4, Monitored: true, Packets: 3}}
	k.lists = []kernel.ListCount{{List: 1, Packets: 15}}
	k.limitCounts = []kernel.LimitCount{{Limit: 0, Threshold: bpf.ThresholdSYN, Monitored: true, Packets: 3}}
	k.sources = []kernel.Source{{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Packets: 7, Dropped: 3, First: kernel.Monotonic(), Seen: kernel.Monotonic()}}
	k.mu.Unlock()
	ctx := t.Context()
	o, err := d.Status(ctx, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range o.Traffic {
		lines = append(lines, fmt.Sprintf("%s %s %d", c.Action, c.Reason, c.Packets))
	}
	if got, want := strings.Join(lines, "; "), "drop banned 15; monitor limit_syn 3; pass clean 1000"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if o.Health.State != "ok" || len(o.Origins) != 1 || o.Origins[0].Packets != 15 || o.Prefixes.IPv4 != 1 || o.Sampled == 0 ||
		len(o.Limits[0].Sources) != 1 || !o.Limits[0].Sources[0].Banned || o.Limits[0].Exceeded[0].Threshold != "syn" || len(o.Interfaces) != 1 {
		t.Errorf("%+v", o)
	}
	list, err := d.Sources(ctx, state.ByDropped, 5, 20*time.Millisecond)
	if err != nil || len(list.Sources) != 1 || list.Sources[0].Limit != "default" || list.Tracked != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	stats, err := d.Stats(ctx)
	if err != nil || len(stats.Counters) != 4 || stats.Lists[0].Origin != "operator" || stats.Counters[0].Interface != "eth0" {
		t.Errorf("%+v, %v", stats, err)
	}
	k.events <- kernel.Event{Time: kernel.Monotonic(), Interface: 1, Reason: bpf.ReasonBanned, Source: netip.MustParseAddr("192.0.2.1"), Protocol: 6, Port: 443, List: 1, Length: 60}
	k.events <- kernel.Event{} // the first one has been taken by now
	c, err := d.Check(ctx, netip.MustParseAddr("192.0.2.1"))
	if err != nil || len(c.Events) != 1 || c.Events[0].Protocol != "tcp" || c.Events[0].Interface != "eth0" || c.Events[0].Origin != "operator" || len(c.Sources) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestPanicSwitch(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n")
	ctx := t.Context()
	d.ban(state.BanItem{Prefix: "192.0.2.1"})
	if p, err := d.SetPanic(ctx, true); err != nil || !p.On || !d.kernel.panic.Load() {
		t.Errorf("%+v, %v", p, err)
	}
	if c, err := d.Check(ctx, netip.MustParseAddr("192.0.2.1")); err != nil || c.Verdict != state.VerdictPasses {
		t.Errorf("%+v, %v", c, err)
	}
	d.restart()
	if p, err := d.Panic(ctx); err != nil || !p.On {
		t.Errorf("a restart ended the panic: %+v, %v", p, err)
	}
}

// A damaged state is set aside, what the kernel holds is kept, and the daemon says that it is not well.
func TestDamagedState(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n")
	d.ban(state.BanItem{Prefix: "192.0.2.1", Origin: "operator", For: "4h"}, state.BanItem{Prefix: "192.0.2.2", Monitor: true})
	for name, damage := range map[string]func(path string) error{
		"garbage": func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("x", 9000)), 0o600) },
		"gone":    os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"cut":     func(path string) error { return os.Truncate(path, 8192) },
		"torn": func(path string) error {
			whole, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for at := 8192; at < len(whole); at += 4096 { // but for the two heads
				clear(whole[at : at+2048])
			}
			return os.WriteFile(path, whole, 0o600)
		},
	} {
		d.end()
		if err := damage(filepath.Join(d.dir, "state.db")); err != nil {
			t.Fatal(err)
		}
		d.start()
		d.want("192.0.2.1/32 192.0.2.2/32 monitor")
		page, err := d.Bans(t.Context(), state.Filter{Origin: state.OriginKernel})
		if err != nil || page.Total != 2 {
			t.Errorf("%s: %+v, %v", name, page, err)
		}
		for _, c := range page.Bans {
			if left := time.Until(c.Expires); c.Prefix.String() == "192.0.2.1/32" && (left > 4*time.Hour || left < 3*time.Hour) {
				t.Errorf("%s: %+v", name, c)
			}
		}
		o, err := d.Status(t.Context(), 0)
		if err != nil || o.Health.State != "degraded" || len(o.Health.Problems) != 1 || !strings.Contains(o.Health.Problems[0], "2 bans that the kernel held were kept") {
			t.Errorf("%s: %+v, %v", name, o.Health, err)
		}
	}
	if aside, err := filepath.Glob(filepath.Join(d.dir, "state.db.corrupt-*")); err != nil || len(aside) != 4 {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	d.restart()
	d.want("192.0.2.1/32 192.0.2.2/32 monitor")

	// The tables have another size now, too: what is in force stands in the set that is replaced.
	d.end()
	if err := os.Truncate(filepath.Join(d.dir, "state.db"), 0); err != nil {
		t.Fatal(err)
	}
	d.kernel.replaced = kernel.Held{Bans: slices.Collect(maps.Values(d.kernel.bans))}
	d.kernel.bans = map[netip.Prefix]kernel.Ban{}
	d.start()
	d.want("192.0.2.1/32 192.0.2.2/32 monitor")
	d.kernel.replaced = kernel.Held{}
}

func TestStartFails(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "")
	run := func(k *fakeKernel, change func(*config.Config)) error {
		c, err := d.load()
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		return Run(t.Context(), Options{Config: c, Stderr: io.Discard, Kernel: k})
	}
	for name, tt := range map[string]struct {
		kernel *fakeKernel
		change func(*config.Config)
		want   string
	}{
		"a second daemon":             {k, func(*config.Config) {}, "4711"},
		"no privileges":               {&fakeKernel{findings: []loader.Finding{{Severity: loader.Fatal, Subject: "privileges", Message: "missing"}}}, func(*config.Config) {}, "this host can't run Levee"},
		"a held state":                {newFakeKernel(), func(*config.Config) {}, "another process holds it"},
		"a socket in use":             {newFakeKernel(), func(c *config.Config) { c.State.Path += "2" }, "somebody answers there"},
		"a state that is a directory": {newFakeKernel(), func(c *config.Config) { c.State.Path = d.dir }, "is not a regular file"},
		"a socket that is a file":     {newFakeKernel(), func(c *config.Config) { c.State.Path += "4"; c.API.Socket = filepath.Join(d.dir, "levee.yaml") }, "is not a socket"},
	} {
		if err := run(tt.kernel, tt.change); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	if r := d.ban(state.BanItem{Prefix: "192.0.2.1"}); r.Done != 1 {
		t.Errorf("the first daemon is not as it was: %+v", r)
	}
}

// A daemon that does not get the lock neither begins a state nor sets one aside: the one that holds it
// may just have begun that file.
func TestStateAfterLock(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "")
	dir := t.TempDir()
	damaged := filepath.Join(dir, "damaged.db")
	if err := os.WriteFile(damaged, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{damaged, filepath.Join(dir, "none.db")} {
		c, err := d.load()
		if err != nil {
			t.Fatal(err)
		}
		c.State.Path = path
		if err := Run(t.Context(), Options{Config: c, Stderr: io.Discard, Kernel: k}); err == nil || !strings.Contains(err.Error(), "4711") {
			t.Errorf("a second daemon: %v", err)
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 1 || files[0].Name() != "damaged.db" {
			t.Errorf("%v, %v", files, err)
		}
	}
}

func TestMetricsAndHealth(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n")
	d.ban(state.BanItem{Prefix: "192.0.2.1"})
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + d.metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	defer http.DefaultClient.CloseIdleConnections()
	if code, body := get("/readyz"); code != 200 || !strings.Contains(body, `"ok"`) {
		t.Errorf("%d %s", code, body)
	}
	code, body := get("/metrics")
	for _, want := range []string{`levee_bans{family="ipv4",origin="api"} 1`, `levee_ban_changes_total{op="added",origin="api"} 1`,
		`levee_interface_attached{interface="eth0",mode="native"} 1`, `levee_reconcile_drift`, `levee_api_requests_total{code="200",route="POST /v1/bans"} 1`, `levee_build_info{`,
		`levee_banned_prefixes{family="ipv4"} 1`, `levee_table_entries{table="ipv4_bans"} 1`, `levee_table_capacity{table="sources"} `,
		`levee_sources_tracked 0`, `levee_panic 0`, `levee_monitor_mode 0`, `levee_scrape_errors_total{part="state"} 0`} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// raw speaks HTTP to the socket without the client's good manners.
// scrape returns what Prometheus would read.
func (d *testDaemon) scrape() string {
	d.Helper()
	r, err := http.Get("http://" + d.metrics + "/metrics")
	if err != nil {
		d.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		d.Fatal(err)
	}
	return string(text)
}

// reloadNow has the daemon read its file again, as a signal does.
func (d *testDaemon) reloadNow() {
	d.Helper()
	if err := d.Reload(d.Context()); err != nil {
		d.Fatal(err)
	}
}

func (d *testDaemon) raw(method, path, body string) (int, map[string]any) {
	d.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", filepath.Join(d.dir, "s"))
	}}
	request, err := http.NewRequestWithContext(d.Context(), method, "http://levee"+path, strings.NewReader(body))
	if err != nil {
		d.Fatal(err)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		d.Fatal(err)
	}
	defer response.Body.Close()
	var answer map[string]any
	text, err := io.ReadAll(response.Body)
	if err != nil {
		d.Fatal(err)
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			d.Fatalf("%s %s: %v: %s", method, path, err, text)
		}
	}
	if response.StatusCode >= 400 {
		if got := response.Header.Get("Content-Type"); got != "application/problem+json" {
			d.Errorf("%s %s: a problem of type %s", method, path, got)
		}
	}
	return response.StatusCode, answer
}

// Each bad request is a problem that names what is wrong with which value, and changes nothing.
func TestBadRequests(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n")
	d.ban(state.BanItem{Prefix: "192.0.2.1"})
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/v1/bans", ``, 400, "required"},
		{"POST", "/v1/bans", `{`, 400, "unexpected end"},
		{"POST", "/v1/bans", `[]`, 422, "expected object"},
		{"POST", "/v1/bans", `{"bans":[]}`, 422, "bans"},
		{"POST", "/v1/bans", `{"bans":[{}]}`, 422, "prefix"},
		{"POST", "/v1/bans", `{"bans":[{"prefix":5}]}`, 422, "body.bans[0].prefix"},
		{"POST", "/v1/bans", `{"bans":[{"prefix":"192.0.2.9","for":true}]}`, 422, "body.bans[0].for"},
		{"POST", "/v1/bans", `{"bans":[{"prefix":"192.0.2.9","expires":"tomorrow"}]}`, 422, "body.bans[0].expires"},
		{"POST", "/v1/bans", `{"bans":[{"prefix":"192.0.2.9","prefixx":"x"}]}`, 422, "prefixx"},
		{"POST", "/v1/bans", `{"bans":[{"prefix":"192.0.2.9","prefix":"192.0.2.8"}]}`, 400, "twice"},
		{"POST", "/v1/bans", `{"bans":[{"prefix":"192.0.2.9","reason":"` + "\xff" + `"}]}`, 400, "UTF-8"},
		{"POST", "/v1/bans", `{"bans":` + strings.Repeat("[", 2000), 400, "nested deeper"},
		{"POST", "/v1/bans", `{"bans":[{"prefix":"192.0.2.9"}]} {}`, 400, ""},
		{"POST", "/v1/bans", `{"bans":[` + strings.Repeat(`{"prefix":"192.0.2.9"},`, 10000) + `{"prefix":"192.0.2.9"}]}`, 422, "10000"},
		{"POST", "/v1/bans", strings.Repeat(" ", 8<<20+1000), 413, "too large"},
		{"GET", "/v1/bans?limit=0", ``, 422, "limit"},
		{"GET", "/v1/bans?limit=x", ``, 422, "limit"},
		{"GET", "/v1/bans?after=x", ``, 422, "cursor"},
		{"GET", "/v1/bans?within=x", ``, 422, "within"},
		{"GET", "/v1/bans?what=x", ``, 422, "what"},
		{"GET", "/v1/check/nobody", ``, 422, "nobody"},
		{"GET", "/v1/check/fe80::1%25eth0", ``, 422, "zone"},
		{"GET", "/v1/check", ``, 422, "prefix"},
		{"GET", "/v1/check?prefix=10.0.0.0/33", ``, 422, "0 to 32"},
		{"GET", "/v1/check?prefix=fe80::%25eth0/64", ``, 422, "zone"},
		{"GET", "/v1/sources?by=size", ``, 422, "by"},
		{"GET", "/v1/sources?n=0", ``, 422, "n"},
		{"GET", "/v1/status?sample=1y", ``, 422, "sample"},
		{"GET", "/v1/status?sample=1h", ``, 422, "longer than 10s"},
		{"PUT", "/v1/limits/web", `{"packets":"lots"}`, 422, "lots"},
		{"PUT", "/v1/limits/web", `{"services":["tcp/0"]}`, 422, "tcp/0"},
		{"PUT", "/v1/limits/web", `{"services":["tcp/1"],"penalty":"8d"}`, 422, "8d"},
		{"PUT", "/v1/limits/WEB", `{"services":["tcp/1"]}`, 422, "WEB"},
		{"PUT", "/v1/limits/web", `{"services":["tcp/1"],"mode":"kill"}`, 422, "mode"},
		{"PUT", "/v1/limits/web", `{"packets":{"rate":"1/s","brust":"1"}}`, 422, "brust"},
		{"DELETE", "/v1/limits/web", ``, 404, "web"},
		{"POST", "/v1/interfaces", `{"name":"eth9"}`, 404, "eth9"},
		{"POST", "/v1/interfaces", `{"name":"eth0","mode":"fast"}`, 422, "mode"},
		{"DELETE", "/v1/interfaces/eth9", ``, 404, "eth9"},
		{"PUT", "/v1/panic", `{}`, 422, "on"},
		{"PUT", "/v1/panic", `{"on":"yes"}`, 422, "on"},
		{"GET", "/v2/bans", ``, 404, "nothing at this path"},
		{"GET", "/v1/../etc/passwd", ``, 400, "path"},
	} {
		status, answer := d.raw(tt.method, tt.path, tt.body)
		text, _ := json.Marshal(answer)
		if status != tt.status || !strings.Contains(string(text), tt.want) {
			t.Errorf("%s %s %.60s: %d %.300s; want %d, %s", tt.method, tt.path, tt.body, status, text, tt.status, tt.want)
		}
		if strings.Contains(string(text), d.dir) {
			t.Errorf("%s %s: the answer tells of paths: %s", tt.method, tt.path, text)
		}
	}
	d.want("192.0.2.1/32")
	if d.kernel.panic.Load() || len(d.kernel.limits) != 1 || len(d.kernel.attachments) != 1 {
		t.Error("something changed")
	}
}

func TestOpenAPI(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	status, doc := d.raw("GET", "/openapi.json", "")
	paths, _ := doc["paths"].(map[string]any)
	var got []string
	for p := range paths {
		got = append(got, p)
	}
	slices.Sort(got)
	want := "/healthz /readyz /v1/allow /v1/bans /v1/bans/bulk /v1/check /v1/check/{address} /v1/config /v1/config/reload /v1/confirm /v1/events /v1/interfaces /v1/interfaces/{name} /v1/limits /v1/limits/{name} /v1/panic /v1/sources /v1/stats /v1/status /v1/tokens /v1/tokens/{name} /v1/tokens/{name}/rotate /v1/trials /v1/unallow /v1/unban"
	if status != 200 || doc["openapi"] != "3.1.0" || strings.Join(got, " ") != want {
		t.Errorf("%d %v", status, got)
	}
}

func TestSocket(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	info, err := os.Stat(filepath.Join(d.dir, "s"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	d.end()
	if _, err := d.Status(t.Context(), 0); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	d.start()
}

// The comparison of the whole never falls between a change of the state and its way into the kernel.
func TestNoFalseDrift(t *testing.T) {
	k := newFakeKernel()
	k.room = 1 << 20
	c := config.Default()
	dir := t.TempDir()
	c.State.Path, c.Lock, c.Metrics.Listen = filepath.Join(dir, "state.db"), filepath.Join(dir, "lock"), ""
	e, _, err := start(t.Context(), &Options{Config: c, Kernel: k, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20 {
				var r state.BanRequest
				for j := range 50 {
					r.Bans = append(r.Bans, state.BanItem{Prefix: fmt.Sprintf("10.%d.%d.%d", g, i, j), For: "10ms"})
				}
				if _, err := e.Ban(state.Operator("root"), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	changing := make(chan struct{})
	go func() { wg.Wait(); close(changing) }()
	for {
		if done, err := e.reconciler.Sync(); err != nil || done.Drift != 0 {
			t.Fatalf("%+v, %v", done, err)
		}
		select {
		case <-changing:
			return
		default:
		}
	}
}

// Why an interface is not shielded is not made up: it may be there all the same.
func TestWhyNotShielded(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "interfaces: [eth0, eth2, lo, nowhere0]\n")
	list, err := d.Interfaces(t.Context())
	if err != nil || len(list.Interfaces) != 4 {
		t.Fatal(list, err)
	}
	for i, says := range []string{"", "is not Levee's", "levee attach lo", "there is no such interface"} {
		v := list.Interfaces[i]
		if !strings.Contains(v.Why, says) || v.Attached != (says == "") || v.Attached && v.Why != "" {
			t.Errorf("%+v, not %q", v, says)
		}
	}
}
