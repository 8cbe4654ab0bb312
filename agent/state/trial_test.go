package state

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const minute = Duration(time.Minute)

var root = Actor{Kind: ActorPeer, Name: "root", Scopes: []Scope{ScopeAdmin}}

func thingOf(prefix string, o Origin) Thing { return Thing{About: AboutBan, Name: prefix, Origin: o} }

func (h *harness) propose(p Proposal) {
	h.Helper()
	out, err := h.Propose([]Proposal{p})
	if err != nil || out[0].Error != nil {
		h.Fatalf("%+v, %v", out, err)
	}
}

func (h *harness) begin(things ...Thing) string {
	h.Helper()
	t, err := h.BeginTrial(Attempt{By: root, About: AboutBan, What: "test", For: minute, Things: things, Modes: map[string]string{"eth0": "native"},
		Config: &FileText{Text: []byte("old"), Tried: "new"}})
	if err != nil {
		h.Fatal(err)
	}
	return t.ID
}

func (h *harness) undo(id string) Undone {
	h.Helper()
	u, err := h.Undo(id)
	if err != nil {
		h.Fatal(err)
	}
	return u
}

// over ends a trial that was taken back.
func (h *harness) over(id string) {
	h.Helper()
	if err := h.EndTrial(id); err != nil {
		h.Fatal(err)
	}
}

func (h *harness) next() uint64 { return h.NextTrial(func(string) bool { return false }) }

func (h *harness) claims() string {
	h.Helper()
	var out []string
	page, _, _, _ := h.List(Filter{})
	for _, c := range page {
		out = append(out, fmt.Sprintf("%s %s %q", PrefixString(c.Prefix), c.Origin, c.Reason))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

var trialPrefix = netip.MustParsePrefix("192.0.2.1/32")

func proposal(reason string) Proposal {
	return Proposal{Prefix: trialPrefix, Origin: OriginOperator, Reason: reason}
}

// What was there before a trial comes back exactly as it was, also after a crash at any point between.
func TestTrialOfClaims(t *testing.T) {
	for _, before := range []string{"nothing", "forever", "an hour", "a minute"} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(before, crash), func(t *testing.T) {
				h := open(t)
				p := proposal("before")
				switch before {
				case "an hour":
					p.For = time.Hour
				case "a minute":
					p.For = time.Minute
				}
				if before != "nothing" {
					h.propose(p)
				}
				was, _, _, _ := h.List(Filter{})
				h.clock.advance(time.Second)
				id := h.begin(thingOf("192.0.2.1/32", OriginOperator), thingOf("192.0.2.1/32", "feed:new"))
				if crash {
					h.reopen() // the change was never made
				} else {
					h.propose(proposal("on trial"))
				}
				if before == "nothing" && !crash {
					h.propose(Proposal{Prefix: trialPrefix, Origin: "feed:new"})
				}
				h.reopen()
				if until := h.next(); until != h.clock.Monotonic()+uint64(time.Minute) {
					t.Errorf("it ends at %d", until)
				}
				h.clock.advance(time.Minute)
				for range 2 { // twice is once
					h.undo(id)
				}
				if now, _, _, _ := h.List(Filter{}); before != "a minute" && !slices.Equal(now, was) || before == "a minute" && len(now) != 0 {
					t.Errorf("there is %+v, was %+v", now, was)
				}
				h.over(id)
				h.reopen()
				if h.OnTrial() || before == "forever" && h.claims() != `192.0.2.1 operator "before"` {
					t.Errorf("%v, %s", h.Trials(), h.claims())
				}
			})
		}
	}
}

// A trial that ends takes its own change back, and no other, wherever it lies in the pile.
func TestTrialsOfOneThing(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(h *harness, first, second string)
		want string
	}{
		"the first is taken back, then the second": {func(h *harness, first, second string) {
			h.undo(first)
			h.over(first)
			h.reopen()
			h.undo(second)
			h.over(second)
		}, "before"},
		"the second is taken back, then the first": {func(h *harness, first, second string) {
			h.undo(second)
			h.over(second)
			h.undo(first)
			h.over(first)
		}, "before"},
		"the first is taken back, the second goes on": {func(h *harness, first, _ string) { h.undo(first); h.over(first) }, "second"},
		"the second is taken back, the first goes on": {func(h *harness, _, second string) { h.undo(second); h.over(second) }, "first"},
		"the first is confirmed, the second is taken back": {func(h *harness, first, second string) {
			h.confirm(first)
			h.reopen()
			h.undo(second)
			h.over(second)
		}, "first"},
		"the second is confirmed, the first is over": {func(h *harness, first, second string) {
			h.confirm(second)
			if _, err := h.Undo(first); !IsNotFound(err) || h.OnTrial() {
				h.Errorf("what was confirmed is still on the first trial: %v", h.Trials())
			}
		}, "second"},
		"a plain change comes after both": {func(h *harness, _, _ string) {
			h.propose(proposal("plain"))
			if err := h.Release([]Thing{thingOf("192.0.2.1/32", OriginOperator)}); err != nil || h.OnTrial() {
				h.Errorf("%v, %v", err, h.Trials())
			}
		}, "plain"},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t)
			h.propose(proposal("before"))
			first := h.begin(thingOf("192.0.2.1/32", OriginOperator))
			h.clock.advance(time.Second)
			h.propose(proposal("first"))
			h.reopen()
			second := h.begin(thingOf("192.0.2.1/32", OriginOperator))
			h.clock.advance(time.Second)
			h.propose(proposal("second"))
			h.reopen()
			tt.do(h, first, second)
			h.reopen()
			if got := h.claims(); got != fmt.Sprintf("192.0.2.1 operator %q", tt.want) {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

func (h *harness) confirm(ids ...string) {
	h.Helper()
	if _, err := h.Confirm(ids...); err != nil {
		h.Fatal(err)
	}
}

func TestTrialOfSettings(t *testing.T) {
	h := open(t)
	spec := func(n uint64) LimitSpec {
		return LimitSpec{Packets: &Threshold{Rate: Rate{Count: n, Per: time.Second}}}
	}
	set := func(n uint64) {
		t.Helper()
		if _, err := h.SetLimit("default", spec(n), "root"); err != nil {
			t.Fatal(err)
		}
	}
	set(1000)
	allowFor(h, "192.0.2.1/32", time.Hour)
	if err := h.RememberAttached("eth0", ModeGeneric); err != nil {
		t.Fatal(err)
	}
	id := h.begin(Thing{About: AboutLimit, Name: "default"}, Thing{About: AboutAllow, Name: "192.0.2.1/32"}, Thing{About: AboutAllow, Name: "192.0.2.2/32"},
		Thing{About: AboutInterface, Name: "eth0"}, Thing{About: AboutInterface, Name: "eth1"}, Thing{About: AboutConfig})
	set(5)
	allowFor(h, "192.0.2.1/32", 0)
	allowFor(h, "192.0.2.2/32", 0)
	if err := errors.Join(h.RememberAttached("eth0", ModeNative), h.RememberAttached("eth1", ModeNative)); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	u := h.undo(id)
	if !u.Allows || !u.Limits || u.Interfaces["eth0"] != "native" || u.Interfaces["eth1"] != "" || len(u.Interfaces) != 2 || string(u.Config.Text) != "old" {
		t.Errorf("%+v", u)
	}
	h.reopen()
	if l, _ := h.Limit("default"); l.Packets.Rate.Count != 1000 {
		t.Errorf("%+v", l)
	}
	if a := h.Allows(); len(a) != 1 || a[0].Until() != h.clock.Monotonic()+uint64(time.Hour) {
		t.Errorf("%+v", a)
	}
	i, _ := h.Interface("eth0")
	_, known := h.Interface("eth1")
	if i.API != ModeGeneric || known {
		t.Errorf("%+v, %v", i, known)
	}
	if r := h.Rejected(); r == nil || r.Tried != "new" {
		t.Errorf("%+v", r)
	}
	if err := h.Reject(nil); err != nil || h.Rejected() != nil {
		t.Errorf("%v", err)
	}
}

func TestTrialTimes(t *testing.T) {
	h := open(t)
	for _, d := range []Duration{1, -minute, Duration(25 * time.Hour)} {
		if _, err := h.BeginTrial(Attempt{By: root, For: d, Things: []Thing{{About: AboutConfig}}}); err == nil {
			t.Errorf("%s was taken", d)
		}
	}
	first := h.begin(thingOf("192.0.2.1/32", OriginOperator))
	// The wall clock is set a day back, and the host reboots: no trial is longer than it ever was.
	h.clock.set(-24 * time.Hour)
	h.clock.reboot(time.Second)
	h.reopen()
	if at := h.next(); at > h.clock.Monotonic()+uint64(time.Minute) {
		t.Errorf("it ends in %s", time.Duration(at-h.clock.Monotonic()))
	}
	// After a day's rest it is over.
	h.clock.reboot(72 * time.Hour)
	h.reopen()
	if at := h.next(); at > h.clock.Monotonic() || !slices.Equal(h.DueTrials(), []string{first}) {
		t.Errorf("it goes on for %s", time.Duration(at-h.clock.Monotonic()))
	}
	if _, err := h.Confirm("t99"); err == nil || !strings.Contains(err.Error(), "is not on trial") || !h.OnTrial() {
		t.Errorf("%v", err)
	}
	// What is over can't be confirmed any more, however long taking it back lasts.
	if _, err := h.Confirm(first); AsError(err, "").Code != CodeConflict || !h.OnTrial() {
		t.Errorf("%v", err)
	}
	if kept, err := h.Confirm(); kept != nil || err != nil || !h.OnTrial() {
		t.Errorf("%+v, %v", kept, err)
	}
	h.over(first)
	second := h.begin(thingOf("192.0.2.2/32", OriginOperator), thingOf("192.0.2.3/32", OriginOperator))
	if second == first || second != "t2" {
		t.Errorf("%s twice", second)
	}
	if err := h.Trim(second, []Thing{thingOf("192.0.2.3/32", OriginOperator)}); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if u := h.undo(second); len(u.Prefixes) > 1 {
		t.Errorf("%+v", u)
	}
	if _, err := h.Confirm(second, "t99"); !IsNotFound(err) || !h.OnTrial() {
		t.Errorf("%v", err)
	}
	if kept, err := h.Confirm(); err != nil || len(kept) != 1 || h.OnTrial() {
		t.Errorf("%+v, %v", kept, err)
	}
	if kept, err := h.Confirm(); err != nil || kept != nil {
		t.Errorf("%+v, %v", kept, err)
	}
	if id := h.begin(thingOf("192.0.2.2/32", OriginOperator)); id != "t3" {
		t.Errorf("%s: a number was used again", id)
	}
}

// A limit that can't come back since another one is bound to the same by now: what to do is said.
func TestTrialLimitBoundSince(t *testing.T) {
	h := open(t)
	for _, step := range []func() error{
		func() error {
			_, err := h.SetLimit("web", limit(t, `{"services":["tcp/443"],"packets":"1/s"}`), "root")
			return err
		},
		func() error { h.begin(Thing{About: AboutLimit, Name: "web"}); return nil },
		func() error {
			_, err := h.SetLimit("web", limit(t, `{"services":["tcp/80"],"packets":"1/s"}`), "root")
			return err
		},
		func() error {
			_, err := h.SetLimit("other", limit(t, `{"services":["tcp/443"],"packets":"1/s"}`), "root")
			return err
		},
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := h.Undo(h.Trials()[0].ID)
	if AsError(err, "").Code != CodeConflict || !strings.Contains(err.Error(), `"other" already; to have the trial taken back, remove the other limit`) {
		t.Errorf("%v", err)
	}
}
