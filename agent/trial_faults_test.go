package agent

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// breakDisk has every write to a file that this process has open fail, until it is mended.
func breakDisk(t *testing.T, path string) (mend func()) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	broken, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	kept := map[int]int{}
	for _, f := range open {
		fd := 0
		_, _ = fmt.Sscan(f.Name(), &fd)
		to, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err != nil || to != path || fd == int(broken.Fd()) {
			continue
		}
		if kept[fd], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(int(broken.Fd()), fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	if len(kept) == 0 {
		t.Fatalf("nobody has %s open", path)
	}
	mended := false
	mend = func() {
		if mended {
			return
		}
		mended = true
		for fd, was := range kept {
			if err := unix.Dup3(was, fd, unix.O_CLOEXEC); err != nil {
				t.Error(err)
			}
			_ = unix.Close(was)
		}
	}
	t.Cleanup(mend)
	return mend
}

func (d *testDaemon) statePath() string { return filepath.Join(d.dir, "state.db") }

// stick has an interface resist to be attached and detached.
func (d *testDaemon) stick(name string) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	d.kernel.stuck = name
}

// problems is what the daemon says of its health.
func (d *testDaemon) problems() string {
	d.Helper()
	o, err := d.Status(d.Context(), 0)
	if err != nil {
		d.Fatal(err)
	}
	return o.Health.State + " " + strings.Join(o.Health.Problems, "; ")
}

// takenBack is what was taken back, by what the daemon says.
func (d *testDaemon) takenBack() string {
	d.Helper()
	l, err := d.Trials(d.Context())
	if err != nil {
		d.Fatal(err)
	}
	var out []string
	for _, t := range l.TakenBack {
		out = append(out, t.ID+" "+t.What)
	}
	return strings.Join(out, ", ")
}

// onClock starts a daemon whose clock the test moves.
func onClock(t *testing.T) (*testDaemon, *movableClock) {
	t.Helper()
	d := newDaemon(t, newFakeKernel(), plainText)
	clock := &movableClock{}
	d.clock = clock
	d.restart()
	return d, clock
}

// past moves the clock, and has the daemon notice: it sleeps by another one.
func (d *testDaemon) past(clock *movableClock, by time.Duration) {
	d.Helper()
	clock.advance(by)
	// Any trial that begins wakes the task; this one outlives the test.
	if _, err := d.Ban(d.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.255", Origin: "operator", Reason: fmt.Sprint(clock.Monotonic())}}, Confirm: state.Duration(state.LongestTrial)}); err != nil {
		d.Fatal(err)
	}
	if _, err := d.Confirm(d.Context()); err != nil {
		d.Fatal(err)
	}
	d.awaitOver()
}

// awaitOver waits until nothing is on trial whose time is over, but for what can't be taken back.
func (d *testDaemon) awaitOver() {
	d.Helper()
	until(d.TB.(*testing.T), func() bool {
		l, err := d.Trials(d.Context())
		if err != nil {
			d.Fatal(err)
		}
		return !slices.ContainsFunc(l.Trials, func(t state.Trial) bool { return t.Problem == "" && !t.Expires.After(d.clock.Now()) })
	})
}

func (d *testDaemon) try(confirm state.Duration, items ...state.BanItem) state.BanResponse {
	d.Helper()
	r, err := d.Ban(d.Context(), state.BanRequest{Bans: items, Confirm: confirm})
	if err != nil {
		d.Fatal(err)
	}
	return r
}

// A token finds room for so many trials and no more; root finds some all the same. What is refused, or
// changes nothing, takes none.
func TestTrialsBounded(t *testing.T) {
	s := newSecure(t, "", "")
	secret := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}, Bounds: &state.AskedBounds{Longest: new(state.Duration(time.Hour)), Origins: []state.Origin{"api:x"}}})
	for range 20 { // nothing of this is any trial
		if r, err := s.remote(client.Config{Token: secret}).Ban(t.Context(), state.BanRequest{Confirm: 60 * second,
			Bans: []state.BanItem{{Prefix: "127.0.0.1", For: "1h"}, {Prefix: "203.0.113.1"}, {Prefix: "203.0.113.1", Origin: "operator", For: "1h"}}}); err != nil || r.Refused != 3 || r.Trial != nil {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	s.ban(state.BanItem{Prefix: "203.0.113.200"})
	for range 20 {
		if r := s.try(60*second, state.BanItem{Prefix: "203.0.113.200"}); r.Trial != nil || r.Bans[0].Status != state.StatusUnchanged {
			t.Fatalf("%+v", r)
		}
	}
	for i := range 9 {
		body := fmt.Sprintf(`{"confirm": "60s", "bans": [{"prefix": "203.0.113.%d", "for": "1h"}]}`, i+1)
		answer, text := s.send(http.MethodPost, "/v1/bans", secret, body)
		if i < 8 {
			s.expect(body, answer, text, 200, fmt.Sprintf(`"id":"t%d"`, i+1))
		} else {
			s.expect(body, answer, text, 409, "you have too much on trial")
		}
	}
	if got := strings.Fields(s.kernel.show()); len(got) != 9 {
		t.Errorf("%d bans are in force: %v", len(got), got)
	}
	if r := s.try(60*second, state.BanItem{Prefix: "203.0.113.100"}); r.Trial == nil || r.Trial.ID != "t9" {
		t.Errorf("%+v", r)
	}
}

// Who takes a ban back, is not to find it again when a trial ends: neither one that nobody sees, since
// the one on trial has ended by itself, nor when all of an origin's are taken back.
func TestTrialBringsNothingBackThatWasRemoved(t *testing.T) {
	for name, remove := range map[string]state.UnbanRequest{
		"the prefix":   {Prefixes: []string{"192.0.2.1"}, All: true},
		"the claim":    {Prefixes: []string{"192.0.2.1"}, Origin: "api:x"},
		"the origin's": {Origin: "api:x"},
		"nothing":      {Prefixes: []string{"192.0.2.2"}, All: true},
		"another's":    {Prefixes: []string{"192.0.2.1"}, Origin: "api:y"},
	} {
		t.Run(name, func(t *testing.T) {
			d, clock := onClock(t)
			d.ban(state.BanItem{Prefix: "192.0.2.1", Origin: "api:x"})
			d.try(60*second, state.BanItem{Prefix: "192.0.2.1", Origin: "api:x", For: "1s"})
			clock.advance(2 * time.Second)
			d.restart()
			d.want("")
			r, err := d.Unban(t.Context(), remove)
			if err != nil {
				t.Fatal(err)
			}
			stays := name == "nothing" || name == "another's"
			if told := strings.Contains(fmt.Sprint(r.Bans), "the end of a trial would have banned it again"); len(remove.Prefixes) > 0 && told == stays {
				t.Errorf("%+v", r)
			}
			d.end()
			clock.advance(time.Minute)
			d.start()
			if want := map[bool]string{true: "192.0.2.1/32"}[stays]; d.kernel.show() != want {
				t.Errorf("in force: %q, want %q", d.kernel.show(), want)
			}
		})
	}
}

// What can't be taken back, as something else stands in its way, is said, and holds up nothing else.
func TestTrialInTheWay(t *testing.T) {
	d, clock := onClock(t)
	ctx := t.Context()
	web := func(port uint16) state.LimitSpec {
		return state.LimitSpec{Services: []state.Service{{Protocol: 6, Port: port}}, Packets: &state.Threshold{Rate: state.Rate{Count: 7, Per: time.Second}}}
	}
	if _, err := d.SetLimit(ctx, "web", web(443)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.SetLimitOnTrial(ctx, "web", web(80), 10*second); err != nil {
		t.Fatal(err)
	}
	d.try(20*second, state.BanItem{Prefix: "192.0.2.1"})
	if _, err := d.SetLimit(ctx, "other", web(443)); err != nil {
		t.Fatal(err)
	}
	d.past(clock, 30*time.Second)
	until(t, func() bool { return !strings.Contains(d.kernel.show(), "192.0.2.1/32") })
	if got := d.problems(); !strings.HasPrefix(got, "degraded the trial t1 (set the limit web) was not confirmed and could not be taken back") || !strings.Contains(got, `bound to the limit "other" already`) {
		t.Error(got)
	}
	if _, err := d.Confirm(ctx, "t1"); code(err) != state.CodeConflict {
		t.Errorf("%v", err)
	}
	if err := d.RemoveLimit(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	d.past(clock, time.Minute)
	until(t, func() bool { return d.state() == "" })
	if l, err := d.Limit(ctx, "web"); err != nil || l.Services[0].Port != 443 {
		t.Errorf("%+v, %v", l, err)
	}
	if got := d.problems(); got != "ok " {
		t.Error(got)
	}
}

// A trial that came due while the daemon was down ends when the interface is as it was, and not before:
// whatever stops that is said, and tried again, over restarts too. It is on record, once.
func TestTrialEndsWhenAllIsBack(t *testing.T) {
	d, clock := onClock(t)
	if v, err := d.Attach(t.Context(), state.AttachRequest{Name: "eth1", Confirm: 10 * second}); err != nil || v.Trial == nil {
		t.Fatalf("%+v, %v", v, err)
	}
	d.end()
	clock.advance(time.Minute)
	d.stick("eth1")
	d.start()
	for range 2 {
		if got := d.problems(); !strings.HasPrefix(got, "degraded the trial t1 (attach eth1)") || !strings.Contains(got, "device or resource busy") || d.state() != "t1 attach eth1" {
			t.Errorf("%s; %s", got, d.state())
		}
		if !strings.Contains(d.on(), "eth1") {
			t.Error(d.on())
		}
		d.restart()
	}
	d.stick("")
	d.awaitOn(asBefore)
	clock.advance(time.Minute)
	until(t, func() bool { return d.state() == "" })
	if got := d.problems(); got != "ok " || d.takenBack() != "t1 attach eth1" {
		t.Errorf("%s; %s", got, d.takenBack())
	}
	if got := strings.Count(d.auditText(), `"action":"take-back"`); got != 1 {
		t.Errorf("it is on record %d times:\n%s", got, d.auditText())
	}
}

func (d *testDaemon) auditText() string {
	d.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "audit.jsonl"))
	if err != nil {
		d.Fatal(err)
	}
	return string(text)
}

// Where the disk fails the change stays until the disk is there again.
func TestTrialEndsWhenTheDiskIsBack(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), plainText)
	d.ban(state.BanItem{Prefix: "192.0.2.1", Reason: "before"})
	d.try(second, state.BanItem{Prefix: "192.0.2.1", Reason: "on trial"}, state.BanItem{Prefix: "192.0.2.2"})
	mend := breakDisk(t, d.statePath())
	until(t, func() bool { return strings.Contains(d.problems(), "t1 (ban 192.0.2.1 and 1 more)") })
	d.want("192.0.2.1/32 192.0.2.2/32")
	mend()
	until(t, func() bool { return d.state() == "" })
	d.want("192.0.2.1/32")
	if page, err := d.Bans(t.Context(), state.Filter{}); err != nil || page.Total != 1 || page.Bans[0].Reason != "before" {
		t.Errorf("%+v, %v", page, err)
	}
}

// A bulk that is taken whole ends a trial only if all of it stays, and no bulk what the kernel did not
// take.
func TestTrialAndBulk(t *testing.T) {
	for _, whole := range []bool{false, true} {
		t.Run(fmt.Sprint(whole), func(t *testing.T) {
			d, clock := onClock(t)
			d.ban(state.BanItem{Prefix: "192.0.2.1", Origin: "feed:x", Reason: "before"}, state.BanItem{Prefix: "192.0.2.2", Origin: "feed:x", Reason: "before"})
			d.try(60*second, state.BanItem{Prefix: "192.0.2.1", Origin: "feed:x", Reason: "on trial"}, state.BanItem{Prefix: "192.0.2.2", Origin: "feed:x", Reason: "on trial"},
				state.BanItem{Prefix: "192.0.2.3", Origin: "feed:x", For: "1s"})
			d.kernel.mu.Lock()
			d.kernel.room = 3
			d.kernel.mu.Unlock()
			r := d.bulk(state.BulkRequest{Origin: "feed:x", Reason: "listed", Whole: whole}, client.PlainLines, "192.0.2.1\n192.0.2.4\n")
			if r.Nothing != whole || r.Refused != 1 {
				t.Fatalf("%+v", r)
			}
			d.kernel.mu.Lock()
			d.kernel.room = 1000
			d.kernel.mu.Unlock()
			d.end()
			clock.advance(time.Minute)
			d.start()
			says := map[string]string{}
			page, err := d.Bans(t.Context(), state.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range page.Bans {
				says[state.PrefixString(c.Prefix)] = c.Reason
			}
			if want := map[bool]string{true: "before", false: "listed"}[whole]; says["192.0.2.1"] != want || says["192.0.2.2"] != "before" || len(says) != 2 {
				t.Errorf("%v", says)
			}
			// All of it goes through: it is the last word.
			d.try(60*second, state.BanItem{Prefix: "192.0.2.1", Origin: "feed:x", Reason: "on trial"})
			d.bulk(state.BulkRequest{Origin: "feed:x", Reason: "kept", Whole: whole}, client.PlainLines, "192.0.2.1\n192.0.2.4\n")
			if d.state() != "" {
				t.Errorf("still on trial: %s", d.state())
			}
		})
	}
}

// An interface whose mode could not be written is as it was. Where that fails, too, the trial stands and
// takes it back as soon as it can.
func TestTrialOfAttachFails(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		for _, confirm := range []state.Duration{0, 60 * second} {
			t.Run(fmt.Sprint(stuck, confirm), func(t *testing.T) {
				d := newDaemon(t, newFakeKernel(), plainText)
				was := d.on()
				d.kernel.mu.Lock()
				mend := func() {}
				d.kernel.attaching = func() { // the disk fails when the kernel has done it
					mend = breakDisk(t, d.statePath())
					if stuck {
						d.kernel.stuck = "eth0"
					}
					d.kernel.attaching = nil
				}
				d.kernel.mu.Unlock()
				_, err := d.Attach(t.Context(), state.AttachRequest{Name: "eth0", Mode: state.ModeGeneric, Confirm: confirm})
				if code(err) != state.CodeStorage {
					t.Errorf("%v", err)
				}
				if !stuck {
					if d.on() != was {
						t.Errorf("it is %s", d.on())
					}
					return
				}
				if onTrial := strings.Contains(err.Error(), "it is taken back as the trial t1"); onTrial != (confirm != 0) {
					t.Errorf("%v", err)
				}
				if confirm == 0 {
					return
				}
				until(t, func() bool { return strings.Contains(d.problems(), "the trial t1 (attach eth0)") })
				mend()
				d.stick("")
				d.awaitOn(was)
				until(t, func() bool { return d.state() == "" })
			})
		}
	}
}

// What is in force again is told of to who follows, with the trial that it was.
func TestTrialTellsOfTakeBacks(t *testing.T) {
	d, _ := onClock(t)
	d.ban(state.BanItem{Prefix: "192.0.2.2", Reason: "before"})
	ctx := t.Context()
	told := make(chan string, 100)
	started := make(chan struct{})
	go func() {
		defer close(told)
		first := true
		for e, err := range d.Events(ctx, state.EventFilter{Kinds: []state.EventKind{state.EventDecision}}) {
			if err != nil {
				return
			}
			if first {
				first = false
				close(started)
				continue
			}
			v := e.Decision
			reason := ""
			if v.Claim != nil {
				reason = v.Claim.Reason
			}
			told <- strings.TrimSpace(fmt.Sprint(v.Trial, " ", v.About, " ", v.Op, " ", v.Subject, " ", reason))
		}
	}()
	for connected := false; !connected; { // until the first is told, nobody may be listening
		d.ban(state.BanItem{Prefix: "192.0.2.9", For: "1h", Reason: fmt.Sprint(time.Now())})
		select {
		case <-started:
			connected = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	d.tryAll(second)
	d.try(second, state.BanItem{Prefix: "192.0.2.2", Reason: "on trial"})
	want := []string{"t1 ban removed 192.0.2.1", "t2 allow removed 198.51.100.1", "t3 limit changed default", "t4 interface removed eth1", "t5 config reloaded", "t6 ban changed 192.0.2.2 before"}
	var got []string
	deadline := time.After(30 * time.Second)
	for len(got) < len(want) {
		select {
		case s := <-told:
			if strings.HasPrefix(s, "t") {
				got = append(got, s)
			}
		case <-deadline:
			t.Fatalf("told: %q", got)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
