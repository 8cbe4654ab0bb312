package agent

import (
	"encoding/json"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	kernel "github.com/levee-xdp/levee/maps"
)

// cutShort leaves in the state and in the kernel of a daemon that is down what a kill leaves of an import:
// a part for each line, of which each is a list of prefixes.
func (d *testDaemon) cutShort(lines ...string) {
	d.Helper()
	s, err := state.Open(state.Config{Path: d.statePath()})
	if err != nil {
		d.Fatal(err)
	}
	for _, line := range lines {
		var part []state.Proposal
		for p := range strings.FieldsSeq(line) {
			part = append(part, state.Proposal{Prefix: netip.MustParsePrefix(p), Origin: "operator"})
			d.kernel.bans[part[len(part)-1].Prefix] = kernel.Ban{Prefix: part[len(part)-1].Prefix, Expires: bpf.Forever}
		}
		if err := s.ProposeWhole(part, make([]state.Outcome, len(part))); err != nil {
			d.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		d.Fatal(err)
	}
}

// backOnRecord is what the audit log says of imports that were taken back.
func (d *testDaemon) backOnRecord() (values, reasons []string) {
	d.Helper()
	for _, e := range d.audited() {
		if e.Event.Action == "take-back" {
			value, _ := json.Marshal(e.Levee.Value)
			values, reasons = append(values, e.Levee.Target+" "+string(value)), append(reasons, e.Event.Reason)
		}
	}
	return values, reasons
}

// What was done of an import before one of its lines was refused was told and recorded, so that it was taken
// back is, too.
func TestWholeTakenBackIsTold(t *testing.T) {
	k := newFakeKernel()
	k.room = 2
	d := newDaemon(t, k, plainText)
	d.ban(state.BanItem{Prefix: "192.0.2.1", Origin: "operator", For: "1h"})
	events := d.follow(state.EventFilter{Kinds: []state.EventKind{state.EventDecision}})
	out := d.bulk(state.BulkRequest{Origin: "operator", Whole: true}, client.PlainLines, "192.0.2.1\n192.0.2.2\n192.0.2.3\n")
	if !out.Nothing || out.Refused != 1 {
		t.Fatalf("%+v", out)
	}
	for _, want := range []string{"changed 192.0.2.1", "added 192.0.2.2", "removed 192.0.2.2", "changed 192.0.2.1"} {
		select {
		case e := <-events:
			if got := e.Decision.Op + " " + e.Decision.Subject; got != want || e.Decision.Origin != "operator" {
				t.Errorf("told %s of %s, want %s", got, e.Decision.Origin, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s was not told", want)
		}
	}
	values, reasons := d.backOnRecord()
	if len(values) != 1 || values[0] != `bulk [{"origin":"operator","removed":1,"changed":1}]` || !strings.Contains(reasons[0], "1 of its lines were refused") {
		t.Errorf("on record: %q, %q", values, reasons)
	}
	if text := d.scrape(); !strings.Contains(text, `levee_ban_changes_total{op="removed",origin="operator"} 1`) {
		t.Errorf("not counted:\n%s", text)
	}
}

// Nor is it kept quiet where the daemon was killed in the middle of it.
func TestWholeTakenBackAtStart(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), plainText)
	d.ban(state.BanItem{Prefix: "192.0.2.1", Origin: "operator", For: "1h"})
	d.end()
	d.cutShort("192.0.2.1/32 192.0.2.2/32", "192.0.2.3/32")
	d.start()
	d.want("192.0.2.1/32")
	values, reasons := d.backOnRecord()
	if len(values) != 1 || values[0] != `bulk [{"origin":"operator","removed":2,"changed":1}]` || !strings.Contains(reasons[0], "it was cut short") {
		t.Errorf("on record: %q, %q", values, reasons)
	}
	if got := d.problems(); got != "ok " {
		t.Error(got)
	}
	if text := d.scrape(); !strings.Contains(text, `levee_ban_changes_total{op="removed",origin="operator"} 2`) {
		t.Errorf("not counted:\n%s", text)
	}
}

// startClock breaks the disk when the state begins to take back at start what was cut short, and mends it
// after that.
type startClock struct {
	movableClock
	fail func() (mend func()) // nil: no more
	mend func()
}

func (c *startClock) Monotonic() uint64 {
	switch within := strings.Contains(string(debug.Stack()), "dropLeft"); {
	case within && c.fail != nil:
		c.mend, c.fail = c.fail(), nil
	case !within && c.mend != nil:
		c.mend()
		c.mend = nil
	}
	return c.movableClock.Monotonic()
}

// A disk that is full at start keeps an import in force in part: that is no good health, and it is taken
// back when the disk has room again, without another start.
func TestWholeLeftAtStart(t *testing.T) {
	d := &testDaemon{TB: t, dir: t.TempDir(), kernel: newFakeKernel()}
	d.cutShort("192.0.2.2/32", "192.0.2.3/32")
	fail := func() func() { return breakDisk(t, d.statePath()) }
	clock := &startClock{fail: fail}
	e := onFakeIn(t, d.dir, d.kernel, clock)
	if clock.fail != nil {
		t.Fatal("nothing was taken back at start")
	}
	said := func() string { return strings.Join(e.Health().Problems, "; ") }
	wrong := func(when string) {
		t.Helper()
		d.want("192.0.2.2/32 192.0.2.3/32")
		for _, word := range []string{"an import that was to be done whole or not at all was not", "it is in force", "tried again every minute"} {
			if !strings.Contains(said(), word) {
				t.Errorf("%s: %q is not said: %s", when, word, said())
			}
		}
	}
	wrong("after the start")
	mend := fail()
	if wait := e.endOverdue(); wait != lastRetry {
		t.Errorf("it is tried again in %s", wait)
	}
	wrong("after another try")
	if out, err := e.BanBulk(state.Operator("root"), state.BulkRequest{Origin: "operator", Whole: true}, lined(func() {}, "192.0.2.9")); err == nil {
		t.Errorf("another import began before that was taken back: %+v", out)
	}
	wrong("after another import")
	mend()
	if wait := e.endOverdue(); wait != time.Hour || said() != "" {
		t.Errorf("it is tried again in %s; %s", wait, said())
	}
	d.want("")
	text, err := os.ReadFile(d.dir + "/audit.log")
	if err != nil || strings.Count(string(text), `"action":"take-back"`) != 1 || !strings.Contains(string(text), `[{"origin":"operator","removed":2,"changed":0}]`) {
		t.Errorf("on record: %v\n%s", err, text)
	}
}

// A part of which the note is damaged can't be taken back: that is said and on record; the rest is taken
// back, and other imports can be done.
func TestWholeDamagedNote(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), plainText)
	d.end()
	d.cutShort("192.0.2.1/32", "192.0.2.2/32 192.0.2.3/32", "192.0.2.4/32")
	db, err := bolt.Open(d.statePath(), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("whole"))
		k, v := b.Cursor().Seek([]byte{0, 0, 0, 0, 0, 0, 0, 2})
		bad := append([]byte{}, v...)
		bad[len(bad)-1] ^= 1
		return b.Put(k, bad)
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.want("192.0.2.2/32 192.0.2.3/32")
	for _, word := range []string{"degraded", "in force in part", "2 bans that were made at 20", "levee bans list", "levee unban"} {
		if got := d.problems(); !strings.Contains(got, word) {
			t.Errorf("%q is not said: %s", word, got)
		}
	}
	values, reasons := d.backOnRecord()
	if len(values) != 2 || !strings.Contains(reasons[0], "2 bans that were made at") || values[1] != `bulk [{"origin":"operator","removed":2,"changed":0}]` {
		t.Errorf("on record: %q, %q", values, reasons)
	}
	if out := d.bulk(state.BulkRequest{Origin: "operator", Whole: true}, client.PlainLines, "192.0.2.9\n"); out.Added != 1 {
		t.Errorf("%+v", out)
	}
	d.restart()
	d.want("192.0.2.2/32 192.0.2.3/32 192.0.2.9/32")
}
