package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// TestBeltKeepsOrder says something else of a few prefixes in each part: the last word counts, on the
// disk and in the kernel, whichever part was there first.
func TestBeltKeepsOrder(t *testing.T) {
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
