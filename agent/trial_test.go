package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

const second = state.Duration(time.Second)

// movableClock is the system's, but for what a test adds.
type movableClock struct {
	state.SystemClock
	mu   sync.Mutex
	more time.Duration
}

func (c *movableClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.more += d
}

func (c *movableClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.SystemClock.Now().Add(c.more)
}

func (c *movableClock) Monotonic() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.SystemClock.Monotonic() + uint64(c.more)
}

// on is what is in force of all that can be put on trial.
func (d *testDaemon) on() string {
	d.Helper()
	k := d.kernel
	banned, allowed := k.show(), k.allowed()
	k.mu.Lock()
	defer k.mu.Unlock()
	var attached []string
	for _, a := range k.attachments {
		attached = append(attached, a.Name+" "+a.Mode.String())
	}
	slices.Sort(attached)
	return fmt.Sprintf("banned [%s] allowed [%s] limit %v attached %v monitor %v", banned, allowed, k.limits[0].Thresholds[0].PerSecond, attached, k.switches.Monitor)
}

func (d *testDaemon) awaitOn(want string) {
	d.Helper()
	for until := time.Now().Add(30 * time.Second); d.on() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			d.Fatalf("in force: %s\nwant      %s\n%s", d.on(), want, d.log)
		}
	}
}

// tryAll puts everything on trial that can be.
func (d *testDaemon) tryAll(confirm state.Duration) {
	d.Helper()
	ctx := d.Context()
	b, err := d.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.1"}, {Prefix: "127.0.0.1"}}, Confirm: confirm})
	if err != nil || b.Done != 1 || b.Trial == nil || b.Trial.What != "ban 192.0.2.1" {
		d.Fatalf("%+v, %v", b, err)
	}
	a, err := d.Allow(ctx, state.AllowRequest{Allow: []state.AllowItem{{Prefix: "198.51.100.1"}}, Confirm: confirm})
	if err != nil || a.Trial == nil {
		d.Fatalf("%+v, %v", a, err)
	}
	spec := state.LimitSpec{Packets: &state.Threshold{Rate: state.Rate{Count: 7, Per: time.Second}}}
	if l, err := d.SetLimitOnTrial(ctx, "default", spec, confirm); err != nil || l.Trial == nil {
		d.Fatalf("%+v, %v", l, err)
	}
	if v, err := d.Attach(ctx, state.AttachRequest{Name: "eth1", Confirm: confirm}); err != nil || v.Trial == nil {
		d.Fatalf("%+v, %v", v, err)
	}
	d.write("interfaces: [eth0]\nmode: monitor\nlimits: {default: {packets: 5k/s}}\n")
	if r, err := d.ReloadOnTrial(ctx, confirm); err != nil || r.Trial == nil {
		d.Fatalf("%+v, %v", r, err)
	}
}

const (
	plainText = "interfaces: [eth0]\nlimits: {default: {packets: 5k/s}}\n"
	asBefore  = "banned [] allowed [] limit 5000 attached [eth0 native] monitor false"
	asTried   = "banned [192.0.2.1/32] allowed [198.51.100.1/32] limit 7 attached [eth0 native eth1 native] monitor true"
)

// What is not confirmed is taken back by itself; what is, stays.
func TestTrials(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), plainText)
	d.tryAll(4 * second)
	if d.on() != asTried {
		t.Errorf("on trial: %s", d.on())
	}
	o, err := d.Status(t.Context(), 0)
	if err != nil || len(o.Trials) != 5 || o.Trials[0].ID != "t1" || o.Trials[4].About != state.AboutConfig {
		t.Errorf("%+v, %v", o.Trials, err)
	}
	d.awaitOn(asBefore)
	for until := time.Now().Add(30 * time.Second); d.state() != ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal(d.state())
		}
	}
	if _, err := d.Confirm(t.Context()); code(err) != state.CodeNotFound {
		t.Errorf("nothing was confirmed: %v", err)
	}
	if o, err := d.Status(t.Context(), 0); err != nil || !strings.Contains(strings.Join(o.Health.Problems, ""), "was tried and not confirmed") {
		t.Errorf("%+v, %v", o.Health, err)
	}
	// The file is still the one that was tried: neither a signal nor a restart puts it in force.
	d.restart()
	if d.on() != asBefore {
		t.Errorf("after a restart: %s", d.on())
	}
	d.reload <- syscall.SIGHUP
	d.awaitLog("was tried and not confirmed")
	if d.on() != asBefore {
		t.Errorf("after a signal: %s", d.on())
	}
	d.tryAll(60 * second)
	if c, err := d.Confirm(t.Context(), "t6", "t8"); err != nil || len(c.Confirmed) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := d.Confirm(t.Context(), "t6"); code(err) != state.CodeNotFound {
		t.Errorf("%v", err)
	}
	if c, err := d.Confirm(t.Context()); err != nil || len(c.Confirmed) != 3 {
		t.Errorf("%+v, %v", c, err)
	}
	d.restart()
	if d.on() != asTried || d.state() != "" {
		t.Errorf("after a confirmation and a restart: %s, %s", d.on(), d.state())
	}
	if o, err := d.Status(t.Context(), 0); err != nil || o.Health.State != "ok" {
		t.Errorf("%+v, %v", o.Health, err)
	}
}

// state is what is on trial.
func (d *testDaemon) state() string {
	d.Helper()
	l, err := d.Trials(d.Context())
	if err != nil {
		d.Fatal(err)
	}
	var out []string
	for _, t := range l.Trials {
		out = append(out, t.ID+" "+t.What)
	}
	return strings.Join(out, ", ")
}

func (d *testDaemon) awaitLog(want string) {
	d.Helper()
	for until := time.Now().Add(30 * time.Second); !strings.Contains(d.log.String(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			d.Fatalf("the log lacks %q:\n%s", want, d.log)
		}
	}
}

func code(err error) state.Code {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Code
	}
	return ""
}

// A restart does not end a trial, nor lengthen it: past its time, the start itself takes it back.
func TestTrialsOverRestarts(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), plainText)
	clock := &movableClock{}
	d.clock = clock
	d.restart()
	d.tryAll(60 * second)
	d.restart()
	if d.on() != asTried || strings.Count(d.state(), ",") != 4 {
		t.Errorf("after a restart in time: %s, %s", d.on(), d.state())
	}
	d.end()
	clock.advance(time.Minute)
	d.start()
	if d.on() != asBefore || d.state() != "" {
		t.Errorf("after a restart too late: %s, %s", d.on(), d.state())
	}
	// Another file is a newer word than the one that was tried.
	d.write("interfaces: [eth0]\nlimits: {default: {packets: 6k/s}}\n")
	d.restart()
	if want := strings.Replace(asBefore, "5000", "6000", 1); d.on() != want {
		t.Errorf("with another file: %s", d.on())
	}
	if o, err := d.Status(t.Context(), 0); err != nil || o.Health.State != "ok" {
		t.Errorf("%+v, %v", o.Health, err)
	}
}

// A plain change during a trial is the last word on what it is about, and on nothing else.
func TestPlainDuringTrial(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), plainText)
	clock := &movableClock{}
	d.clock = clock
	d.restart()
	ctx := t.Context()
	r, err := d.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.1"}, {Prefix: "192.0.2.2"}, {Prefix: "192.0.2.3"}, {Prefix: "192.0.2.4"}}, Confirm: 60 * second})
	if err != nil || r.Done != 4 {
		t.Fatalf("%+v, %v", r, err)
	}
	d.ban(state.BanItem{Prefix: "192.0.2.1"}) // said again, and meant
	if u, err := d.Unban(ctx, state.UnbanRequest{Prefixes: []string{"192.0.2.2"}}); err != nil || u.Done != 1 {
		t.Fatalf("%+v, %v", u, err)
	}
	d.ban(state.BanItem{Prefix: "192.0.2.3", Origin: "operator"}) // another's word
	if _, err := d.ReloadOnTrial(ctx, 60*second); err != nil {
		t.Fatal(err)
	}
	d.reloadNow()
	if d.state() != "t1 ban 192.0.2.1 and 3 more" {
		t.Errorf("on trial: %s", d.state())
	}
	d.end()
	clock.advance(time.Minute)
	d.start()
	d.want("192.0.2.1/32 192.0.2.3/32")
	c, err := d.Check(ctx, netip.MustParseAddr("192.0.2.3"))
	if err != nil || len(c.Claims) != 1 || c.Claims[0].Origin != "operator" {
		t.Errorf("%+v, %v", c, err)
	}
}

// A change that fails leaves no trial behind.
func TestTrialOfNothing(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, plainText)
	ctx := t.Context()
	if r, err := d.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: "127.0.0.1"}}, Confirm: second}); err != nil || r.Trial != nil || r.Refused != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := d.Attach(ctx, state.AttachRequest{Name: "eth2", Confirm: second}); code(err) != state.CodeRefused {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "levee.yaml"), []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReloadOnTrial(ctx, second); code(err) != state.CodeInvalid {
		t.Errorf("%v", err)
	}
	if _, err := d.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.1"}}, Confirm: 1}); code(err) != state.CodeInvalid {
		t.Errorf("%v", err)
	}
	if d.state() != "" || d.on() != asBefore {
		t.Errorf("%s, %s", d.state(), d.on())
	}
}
