package state

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// killed is what a daemon finds that starts after this one was killed just now.
func (h *harness) killed() string {
	h.Helper()
	whole, err := os.ReadFile(h.path)
	if err != nil {
		h.Fatal(err)
	}
	next := &harness{TB: h.TB, clock: h.clock, path: filepath.Join(h.TempDir(), "state.db")}
	if err := os.WriteFile(next.path, whole, 0o600); err != nil {
		h.Fatal(err)
	}
	next.reopen()
	defer next.Close()
	if _, found := next.notes(); found {
		h.Error("something of a whole is left")
	}
	return next.banned()
}

// notes tells how many notes of a whole there are, and whether there is room made for any.
func (h *harness) notes() (n int, found bool) {
	if err := h.db.View(func(tx *boltTx) error {
		if b := tx.Bucket(bucketWhole); b != nil {
			found, n = true, b.Stats().KeyN
		}
		return nil
	}); err != nil {
		h.Fatal(err)
	}
	return n, found
}

func (h *harness) part(proposals ...Proposal) {
	h.Helper()
	out := make([]Outcome, len(proposals))
	if err := h.ProposeWhole(proposals, out); err != nil {
		h.Fatal(err)
	}
	h.clock.advance(time.Second)
}

func ban(s string, d time.Duration) Proposal {
	return Proposal{Prefix: prefix(s), Origin: "operator", For: d, Reason: "whole"}
}

// Whenever the daemon is killed, either nothing of a whole is in force after the next start or all of it.
func TestWholeKilled(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", 0)
	h.ban("192.0.2.2", "feed:x", 0)
	h.clock.advance(time.Second)
	before := h.banned()
	parts := func() {
		h.part(ban("192.0.2.1", 100*time.Hour), ban("192.0.2.2", 0), ban("192.0.2.3", 0), ban("192.0.2.3", 200*time.Hour))
		h.part(ban("192.0.2.4", 0), ban("192.0.2.3", 0), ban("192.0.2.1", 0), ban("2001:db8::/48", 0))
		h.part(ban("192.0.2.4", 0)) // unchanged: it makes no note
		h.part(ban("192.0.2.1", 300*time.Hour), ban("192.0.2.4", 400*time.Hour))
	}

	// Killed between any two of its parts.
	for i, p := range [][]Proposal{{ban("192.0.2.1", 100*time.Hour), ban("192.0.2.3", 0), ban("192.0.2.3", 200*time.Hour)}, {ban("192.0.2.3", 0), ban("192.0.2.1", 0)}} {
		h.part(p...)
		if got := h.killed(); got != before {
			t.Errorf("killed after part %d: in force %q, was %q", i, got, before)
		}
	}

	// Killed between any two steps of taking it back.
	for steps := 0; ; steps++ {
		_, left, err := h.DropWhole()
		if err != nil {
			t.Fatal(err)
		}
		if got := h.killed(); got != before {
			t.Errorf("killed after %d steps back: in force %q, was %q", steps, got, before)
		}
		if !left {
			break
		}
	}
	h.want(before)

	// Killed before it is decided, and after that.
	parts()
	after := h.banned()
	if n, _ := h.notes(); n != 3 || after == before {
		t.Fatalf("%d notes, in force %q", n, after)
	}
	if got := h.killed(); got != before {
		t.Errorf("killed before it was decided: in force %q, was %q", got, before)
	}
	if err := h.KeepWhole(); err != nil {
		t.Fatal(err)
	}
	if got := h.killed(); got != after {
		t.Errorf("killed after it was decided: in force %q, want %q", got, after)
	}
	h.reopen()
	h.want(after)
	if err := h.KeepWhole(); err != nil { // there is none
		t.Error(err)
	}
}

// What others say meanwhile stays, whatever becomes of the whole; and so it is where the log was cleaned
// in between.
func TestWholeAndOthers(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", 0)
	h.clock.advance(time.Second)
	h.part(ban("192.0.2.1", 100*time.Hour), ban("192.0.2.2", 0), ban("192.0.2.3", 0))
	h.ban("192.0.2.2", "operator", 7*time.Hour)
	h.ban("192.0.2.3", "api", 8*time.Hour)
	h.ban("192.0.2.9", "operator", 9*time.Hour)
	first := h.segments.first
	for i := range 40 { // history, so that the tail is taken up
		var many []Proposal
		for n := range 200 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 32)
			many = append(many, Proposal{Prefix: p, Origin: "feed:x", For: time.Duration(i%2+1) * time.Minute})
		}
		if _, err := h.Propose(many); err != nil {
			t.Fatal(err)
		}
	}
	if h.segments.first == first {
		t.Fatal("the log was not cleaned")
	}
	h.clock.advance(time.Hour)
	h.Sweep(1000)
	left := fmt.Sprintf("192.0.2.1 operator forever; 192.0.2.2 operator %s; 192.0.2.3 api %s; 192.0.2.9 operator %s", "6h", "7h", "8h")
	if got := h.killed(); got != left {
		t.Errorf("killed: in force %q, want %q", got, left)
	}
	for {
		_, left, err := h.DropWhole()
		if err != nil {
			t.Fatal(err)
		}
		if !left {
			break
		}
	}
	h.want(left)
}

// What could not be taken back at a start is before the next whole begins, which must not make it stay.
func TestWholeLeft(t *testing.T) {
	h := open(t)
	h.part(ban("192.0.2.1", 0))
	for more := true; more; { // as after a start at which the disk was full
		_, left, err := h.DropWhole()
		if err != nil {
			t.Fatal(err)
		}
		more = left
	}
	h.part(ban("192.0.2.2", 0))
	if err := h.KeepWhole(); err != nil {
		t.Fatal(err)
	}
	h.want("192.0.2.2 operator forever")
	h.reopen()
	h.want("192.0.2.2 operator forever")

	// A disk that fails refuses all of it.
	h.db.Close()
	if err := h.ProposeWhole([]Proposal{ban("192.0.2.3", 0)}, make([]Outcome, 1)); err == nil {
		t.Error("it was granted")
	}
	h.want("192.0.2.2 operator forever")
}

// What somebody says meanwhile stays though the whole that had said the same is taken back, and though both
// came in one transaction.
func TestWholeSaidAgain(t *testing.T) {
	h := open(t)
	h.part(ban("192.0.2.1", 0), ban("192.0.2.2", 0), ban("192.0.2.9", 0))
	if out := h.try(ban("192.0.2.1", 0)); out.Status != StatusUnchanged {
		t.Errorf("%+v", out)
	}
	whole := &request{proposals: []Proposal{ban("192.0.2.3", 0), ban("192.0.2.4", 0)}, whole: true}
	h.writer.Lock()
	h.commit([]*request{whole, {proposals: []Proposal{ban("192.0.2.3", time.Hour), ban("192.0.2.4", 0), ban("192.0.2.2", 0)}}})
	h.writer.Unlock()
	want := "192.0.2.1 operator forever; 192.0.2.2 operator forever; 192.0.2.3 operator 1h; 192.0.2.4 operator forever"
	if got := h.killed(); got != want {
		t.Errorf("killed: in force %q, want %q", got, want)
	}
	for more := true; more; {
		_, left, err := h.DropWhole()
		if err != nil {
			t.Fatal(err)
		}
		more = left
	}
	h.want(want)
	before := h.segments.next // and then what is said again is not written again
	if out := h.try(ban("192.0.2.1", 0)); out.Status != StatusUnchanged || h.segments.next != before {
		t.Errorf("%+v", out)
	}
}

// The last proposal about a prefix is taken back first.
func TestRevertTwice(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", time.Hour)
	h.clock.advance(time.Minute)
	var made []Made
	for _, d := range []time.Duration{9 * time.Hour, 8 * time.Hour, 7 * time.Hour} {
		for _, p := range []string{"192.0.2.1", "192.0.2.2"} {
			out := h.ban(p, "operator", d)
			m, ok := out.Made()
			if !ok {
				t.Fatalf("%+v", out)
			}
			made = append(made, m)
		}
		h.clock.advance(time.Minute)
	}
	if err := h.Revert(made); err != nil {
		t.Fatal(err)
	}
	h.want("192.0.2.1 operator 56m")

	allow := func(comment string) AllowProposal {
		return AllowProposal{AllowSpec: AllowSpec{Prefix: Prefix{prefix("198.51.100.1")}, Comment: comment}}
	}
	if _, err := h.ProposeAllows([]AllowProposal{allow("before")}); err != nil {
		t.Fatal(err)
	}
	out, err := h.ProposeAllows([]AllowProposal{allow("one"), {AllowSpec: allow("").AllowSpec, Remove: true}, allow("two")})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RevertAllows(out); err != nil || len(h.Allows()) != 1 || h.Allows()[0].Comment != "before" {
		t.Errorf("%v, %+v", err, h.Allows())
	}
	if out, err = h.ProposeAllows([]AllowProposal{allow("one")}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ProposeAllows([]AllowProposal{allow("somebody else's")}); err != nil {
		t.Fatal(err)
	}
	if err := h.RevertAllows(out); err != nil || h.Allows()[0].Comment != "somebody else's" {
		t.Errorf("%v, %+v", err, h.Allows())
	}
}

// hookedClock does something once, when what was cut short begins to be taken back.
type hookedClock struct {
	*fakeClock
	then func()
}

func (c *hookedClock) Monotonic() uint64 {
	if c.then != nil && strings.Contains(string(debug.Stack()), "dropPart") {
		then := c.then
		c.then = nil
		then()
	}
	return c.fakeClock.Monotonic()
}

// Where a page that leads to the notes can't be read, a running daemon says so, and one that starts has the
// file set aside, as with any other page.
func TestWholeUnreadable(t *testing.T) {
	h := open(t)
	h.part(ban("192.0.2.1", 0))
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(h.path)
	if err != nil {
		t.Fatal(err)
	}
	cut := func(path string) func() {
		return func() {
			if err := os.Truncate(path, 2*int64(os.Getpagesize())); err != nil {
				t.Error(err)
			}
		}
	}
	clock := &hookedClock{fakeClock: h.clock, then: cut(h.path)}
	s, lost, err := OpenOrSetAside(Config{Path: h.path, Clock: clock})
	if err != nil || lost == nil || lost.Aside == "" || !s.Fresh() {
		t.Fatalf("%+v, %v", lost, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	if err := os.WriteFile(h.path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Store = nil
	h.reopen()
	h.part(ban("192.0.2.2", 0))
	cut(h.path)()
	if _, left, err := h.DropWhole(); err == nil || left || h.Left() == nil {
		t.Errorf("%t, %v, %v", left, err, h.Left())
	}
	h.want("192.0.2.2 operator forever")
}

// What is kept is on no trial any more from that moment on: no kill in between has a trial take it back.
func TestWholeKeptOffTrials(t *testing.T) {
	h := open(t)
	thing := Thing{About: AboutBan, Name: "192.0.2.1/32", Origin: "operator"}
	h.begin(thing)
	h.part(ban("192.0.2.1", 0))
	if err := h.KeepWhole(thing); err != nil || h.OnTrial() {
		t.Errorf("%v, %+v", err, h.Trials())
	}
	h.reopen()
	if h.want("192.0.2.1 operator forever"); h.OnTrial() {
		t.Errorf("%+v", h.Trials())
	}
}
