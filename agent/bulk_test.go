package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

func (d *testDaemon) bulk(r state.BulkRequest, kind, lines string) state.BulkResponse {
	d.Helper()
	out, err := d.BanBulk(d.Context(), r, kind, strings.NewReader(lines))
	if err != nil {
		d.Fatal(err)
	}
	return out
}

func refusals(r state.BulkResponse) string {
	var out []string
	for _, e := range r.Errors {
		out = append(out, fmt.Sprintf("%d %s %s", e.Line, e.Prefix, e.Error.Code))
	}
	return strings.Join(out, "; ")
}

func counted(r state.BulkResponse) string {
	return fmt.Sprintf("%d lines: %d added, %d changed, %d unchanged, %d refused", r.Lines, r.Added, r.Changed, r.Unchanged, r.Refused)
}

func TestBulk(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "allow: [192.0.2.7]\n")
	list := "\ufeff# a list\n192.0.2.1\n\n 198.51.100.0/24 ; a comment\r\n2001:db8::/48\n192.0.2.7\nnonsense\n192.0.2.1 2\n0.0.0.0/0\n192.0.2.1\n203.0.113.9"
	r := d.bulk(state.BulkRequest{Origin: "feed:x", Reason: "listed", For: "4h"}, client.PlainLines, list)
	if got, want := counted(r), "9 lines: 4 added, 1 changed, 0 unchanged, 4 refused"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := refusals(r), "6 192.0.2.7 refused; 7 nonsense invalid; 8 192.0.2.1 2 invalid; 9 0.0.0.0/0 refused"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	d.want("192.0.2.1/32 198.51.100.0/24 2001:db8::/48 203.0.113.9/32")
	page, err := d.Bans(t.Context(), state.Filter{Origin: "feed:x"})
	if err != nil || page.Total != 4 || page.Bans[0].Reason != "listed" || time.Until(page.Bans[0].Expires) < 3*time.Hour {
		t.Errorf("%+v, %v", page, err)
	}

	// As items, each says what it will, and the query the rest.
	r = d.bulk(state.BulkRequest{Origin: "api:import", Reason: "imported", Monitor: true}, client.JSONLines,
		`{"prefix":"192.0.2.1","origin":"operator","for":"1h"}
{"prefix":"192.0.2.2"}
{"prefix":"192.0.2.3","reason":"mine","expires":"2100-01-01T00:00:00Z"}
{"prefix":"192.0.2.4","for":"soon"}
{"prefix":"192.0.2.4","unknown":1}
{"prefix":"192.0.2.4"}{"prefix":"192.0.2.5"}
["192.0.2.4"]
{"prefix":"192.0.2.6","origin":"kernel"}
`)
	if got, want := counted(r), "8 lines: 3 added, 0 changed, 0 unchanged, 5 refused"; got != want {
		t.Errorf("%s, want %s: %s", got, want, refusals(r))
	}
	var all []string
	for c, err := range d.AllBans(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %s %s %t", state.PrefixString(c.Prefix), c.Origin, c.Reason, c.Monitor))
	}
	slices.Sort(all)
	want := []string{"192.0.2.1 feed:x listed false", "192.0.2.1 operator imported true", "192.0.2.2 api:import imported true",
		"192.0.2.3 api:import mine true", "198.51.100.0/24 feed:x listed false", "2001:db8::/48 feed:x listed false", "203.0.113.9 feed:x listed false"}
	if !slices.Equal(all, want) {
		t.Errorf("%q", all)
	}
	n := 0
	for range d.AllBans(t.Context(), "feed:x") {
		n++
	}
	if n != 4 {
		t.Errorf("%d claims of feed:x", n)
	}

	// Once more, nothing is new.
	before := d.kernel.show()
	if r = d.bulk(state.BulkRequest{Origin: "feed:y"}, client.PlainLines, "192.0.2.1\n"); r.Added != 1 {
		t.Error(counted(r))
	}
	if r = d.bulk(state.BulkRequest{Origin: "feed:y"}, client.PlainLines, "192.0.2.1\n"); r.Unchanged != 1 {
		t.Error(counted(r))
	}
	d.want(before)
	d.restart()
	d.want(before)
}

// All or none: what one line is refused for, for want of room too, leaves nothing of the others.
func TestBulkWhole(t *testing.T) {
	k := newFakeKernel()
	d := newDaemon(t, k, "")
	whole := state.BulkRequest{Origin: "feed:x", Whole: true}
	r := d.bulk(whole, client.PlainLines, "192.0.2.1\n192.0.2.2\nnonsense\n")
	if !r.Nothing || r.Added != 0 || r.Refused != 1 {
		t.Errorf("%+v", r)
	}
	d.want("")
	if r = d.bulk(whole, client.PlainLines, "192.0.2.1\n192.0.2.2\n"); r.Nothing || r.Added != 2 {
		t.Errorf("%+v", r)
	}
	d.ban(state.BanItem{Prefix: "192.0.2.3", Origin: "feed:x", For: "1h", Reason: "before"})
	before, err := d.Bans(t.Context(), state.Filter{Origin: "feed:x"})
	if err != nil {
		t.Fatal(err)
	}

	var lines strings.Builder // more than a part, so that one is in force when the next is refused
	lines.WriteString("192.0.2.3\n")
	for i := range bulkPart + 100 {
		fmt.Fprintf(&lines, "198.51.%d.%d\n", i/256, i%256)
	}
	k.mu.Lock()
	k.room = bulkPart + 50
	k.mu.Unlock()
	r = d.bulk(whole, client.PlainLines, lines.String())
	if !r.Nothing || r.Added+r.Changed+r.Unchanged != 0 || r.Refused == 0 || r.Errors[0].Error.Code != state.CodeFull {
		t.Errorf("%+v", r)
	}
	d.want("192.0.2.1/32 192.0.2.2/32 192.0.2.3/32")
	after, err := d.Bans(t.Context(), state.Filter{Origin: "feed:x"})
	if err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("%v became %v, %v", before, after, err)
	}
	// Without whole, what has room stays.
	r = d.bulk(state.BulkRequest{Origin: "feed:x"}, client.PlainLines, lines.String())
	if r.Nothing || r.Added != bulkPart+47 || r.Changed != 1 || r.Refused != 53 {
		t.Error(counted(r))
	}
	d.restart()
	if n := len(k.bans); n != bulkPart+50 {
		t.Errorf("%d bans in the kernel", n)
	}
}

// A list that breaks off: what came before stands, but for a list that is whole or not at all.
func TestBulkBreaksOff(t *testing.T) {
	var lines strings.Builder
	for i := range bulkPart + 10 {
		fmt.Fprintf(&lines, "198.51.%d.%d\n", i/256, i%256)
	}
	k := newFakeKernel()
	k.room = 1 << 20
	d := newDaemon(t, k, "")
	for _, whole := range []bool{true, false} {
		broken := io.MultiReader(strings.NewReader(lines.String()), iotest.ErrReader(errors.New("the disk is gone")))
		if _, err := d.BanBulk(t.Context(), state.BulkRequest{Whole: whole}, client.PlainLines, broken); err == nil {
			t.Errorf("whole %t: no error", whole)
		}
		// The daemon may still be at what it has read.
		d.Close()
		want := 0
		if !whole {
			want = bulkPart
		}
		if n := d.settled(want); n != want && n != bulkPart+10 || whole && n != 0 {
			t.Errorf("whole %t: %d bans", whole, n)
		}
	}
	if _, err := d.BanBulk(t.Context(), state.BulkRequest{}, "text/csv", strings.NewReader("x")); statusOf(err) != 415 {
		t.Errorf("text/csv: %v", err)
	}
	r := d.bulk(state.BulkRequest{}, client.PlainLines, strings.Repeat("1", 100_000)+"\n192.0.2.1\n")
	if r.Refused != 1 || r.Added != 1 || r.Errors[0].Line != 1 {
		t.Errorf("a long line: %+v", r)
	}
	for i := range 3 {
		r = d.bulk(state.BulkRequest{}, client.PlainLines, strings.Repeat("nonsense\n", state.MaxBulkErrors*i))
		if r.Refused != state.MaxBulkErrors*i || len(r.Errors) > state.MaxBulkErrors {
			t.Errorf("%d refused, %d told", r.Refused, len(r.Errors))
		}
	}
}

// settled waits until there are at least so many bans, and returns how many there are.
func (d *testDaemon) settled(least int) int {
	ctx, cancel := context.WithTimeout(d.Context(), 30*time.Second)
	defer cancel()
	for {
		d.kernel.mu.Lock()
		n := len(d.kernel.bans)
		d.kernel.mu.Unlock()
		if n >= least || ctx.Err() != nil {
			return n
		}
		time.Sleep(time.Millisecond)
	}
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Status
	}
	return 0
}
