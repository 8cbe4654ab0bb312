package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// TestBeltKeepsOrder has the part behind wait until the one before is on the disk, and not for the kernel;
// and though it is through sooner, it is told of later.
func TestBeltKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []string
		note := func(what string, p *part) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprint(what, p.lines[0]))
		}
		answers := func() [2]chan error { return [2]chan error{make(chan error, 1), make(chan error, 1)} }
		disk, kernel := answers(), answers()
		b := newBelt(func(p *part, decided func(error)) error {
			note("begun ", p)
			decided(<-disk[p.lines[0]])
			return <-kernel[p.lines[0]]
		}, func(p *part) { note("told ", p) })
		for i := range disk {
			p := newPart()
			p.add(state.Proposal{}, i)
			if _, err := b.take(p); err != nil {
				t.Fatal(err)
			}
		}
		step := func(done chan error, want ...string) {
			t.Helper()
			if done != nil {
				done <- nil
			}
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(seen, want) {
				t.Errorf("%q, want %q", seen, want)
			}
		}
		step(nil, "begun 0")
		step(disk[0], "begun 0", "begun 1")
		step(disk[1], "begun 0", "begun 1")
		step(kernel[1], "begun 0", "begun 1")
		step(kernel[0], "begun 0", "begun 1", "told 0", "told 1")
		if err := b.end(); err != nil {
			t.Error(err)
		}
	})
}

// TestBulkLastWord says something else of a few prefixes in each part: the last word counts, on the
// disk and in the kernel, whichever part was there first.
func TestBulkLastWord(t *testing.T) {
	k := newFakeKernel()
	k.room = 1 << 20
	d := newDaemon(t, k, "")
	const parts = 12
	var lines strings.Builder
	for part := range parts {
		for i := range bulkPart {
			if i < 4 {
				fmt.Fprintf(&lines, `{"prefix":"192.0.2.%d","reason":"part %d"}`+"\n", i, part)
			} else {
				fmt.Fprintf(&lines, `{"prefix":"2001:db8:%x:%x::/64"}`+"\n", part, i)
			}
		}
	}
	r := d.bulk(state.BulkRequest{Origin: "feed:x"}, client.JSONLines, lines.String())
	want := fmt.Sprintf("%d lines: %d added, %d changed, 0 unchanged, 0 refused", parts*bulkPart, parts*(bulkPart-4)+4, (parts-1)*4)
	if got := counted(r); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	page, err := d.Bans(t.Context(), state.Filter{Within: netip.MustParsePrefix("192.0.2.0/24")})
	if err != nil || len(page.Bans) != 4 {
		t.Fatalf("%+v, %v", page, err)
	}
	for _, c := range page.Bans {
		if c.Reason != fmt.Sprintf("part %d", parts-1) {
			t.Errorf("%s: %q was not the last word", c.Prefix, c.Reason)
		}
	}
}

// TestBeltStops has a part fail: those behind it are not begun, and the reader is told.
func TestBeltStops(t *testing.T) {
	broken := errors.New("broken")
	var b belt
	b.stopped.Store(true)
	b.group.Go(func() error { return broken })
	p := newPart()
	if _, err := b.take(p); !errors.Is(err, errStopped) {
		t.Errorf("a part was taken after one had failed: %v", err)
	}
	if err := b.end(); !errors.Is(err, broken) {
		t.Errorf("the cause is %v", err)
	}
}
