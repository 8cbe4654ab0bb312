package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	kernel "github.com/levee-xdp/levee/maps"
)

// next takes the next events of a stream, as text.
func next(t *testing.T, events <-chan state.Event, n int) (out []string) {
	t.Helper()
	for len(out) < n {
		select {
		case e, ok := <-events:
			switch {
			case !ok:
				t.Fatalf("the stream ended after %q", out)
			case e.Decision != nil:
				out = append(out, fmt.Sprintf("%s %s %s %d", e.Decision.Op, e.Decision.About, e.Decision.Subject, e.Decision.Many))
			case e.Drop != nil:
				out = append(out, fmt.Sprintf("drop %s %s", e.Drop.Reason, e.Drop.Source))
			default:
				out = append(out, string(e.Kind))
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("nothing came after %q", out)
		}
	}
	return out
}

// follow follows events until the test ends; when it returns, the daemon has begun to tell.
func (d *testDaemon) follow(f state.EventFilter) <-chan state.Event {
	d.Helper()
	ctx, cancel := context.WithCancel(d.Context())
	c, out, done := client.New(client.Config{Socket: d.config().Socket}), make(chan state.Event, 5000), make(chan struct{})
	d.Cleanup(func() {
		cancel()
		<-done
		c.Close()
	})
	go func() {
		defer close(done)
		defer close(out)
		for e, err := range c.Events(ctx, f) {
			if err != nil {
				d.Error(err)
				return
			}
			out <- e
		}
	}()
	return out
}

func (d *testDaemon) config() client.Config { return client.Config{Socket: d.dir + "/s"} }

// What is decided and what is dropped is told, in order, also over a restart of the daemon.
func TestEvents(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	first, err := d.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.9"}}})
	if err != nil || first.Done != 1 {
		t.Fatal(first, err)
	}
	events := d.follow(state.EventFilter{After: state.EventID{Run: "ab", Number: 1}}) // of a run before
	if got := next(t, events, 2); !slices.Equal(got, []string{"lost", "added ban 192.0.2.9 0"}) {
		t.Errorf("%q", got)
	}
	d.ban(state.BanItem{Prefix: "192.0.2.9"}, state.BanItem{Prefix: "2001:db8::/64", Monitor: true}, state.BanItem{Prefix: "nonsense"}) // one unchanged, one refused
	d.kernel.events <- kernel.Event{Reason: bpf.ReasonBanned, Family: bpf.FamilyIPv4, Source: netip.MustParseAddr("192.0.2.9"), Packet: []byte("x")}
	if got := next(t, events, 2); !slices.Equal(got, []string{"added ban 2001:db8::/64 0", "drop banned 192.0.2.9"}) {
		t.Errorf("%q", got)
	}
	if _, err := d.Unban(t.Context(), state.UnbanRequest{Prefixes: []string{"192.0.2.9"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.SetPanic(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	many := make([]state.BanItem, listed+1)
	for i := range many {
		many[i].Prefix = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String()
	}
	d.kernel.room = 5000
	d.ban(many...)
	if got := next(t, events, 3); !slices.Equal(got, []string{"removed ban 192.0.2.9 0", "on panic  0", fmt.Sprintf("added ban  %d", listed+1)}) {
		t.Errorf("%q", got)
	}
	d.restart()
	if got := next(t, events, 1); !slices.Equal(got, []string{"lost"}) {
		t.Errorf("%q", got)
	}
	d.ban(state.BanItem{Prefix: "192.0.2.10"})
	if got := next(t, events, 1); !slices.Equal(got, []string{"added ban 192.0.2.10 0"}) {
		t.Errorf("%q", got)
	}
}

// Many changes are told by what was done and by whom, in whichever order those came.
func TestEventsMany(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	d.kernel.room = 5000
	events := d.follow(state.EventFilter{After: state.EventID{Run: "ab", Number: 1}})
	next(t, events, 1)
	many := make([]state.BanItem, 3*listed)
	for i := range many {
		many[i].Prefix = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String()
		if many[i].Origin = "feed:a"; i%3 == 0 {
			many[i].Origin = "feed:b"
		}
	}
	d.ban(many...)
	got := next(t, events, 2)
	slices.Sort(got)
	if !slices.Equal(got, []string{fmt.Sprintf("added ban  %d", listed), fmt.Sprintf("added ban  %d", 2*listed)}) {
		t.Errorf("%q", got)
	}
}

// Kinds and prefixes are what was asked for, and bad questions are refused.
func TestEventsFilter(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	drops := d.follow(state.EventFilter{Kinds: []state.EventKind{state.EventDrop}, Within: netip.MustParsePrefix("203.0.113.0/24"), After: state.EventID{Run: "ab", Number: 1}})
	next(t, drops, 1)
	d.ban(state.BanItem{Prefix: "203.0.113.7"})
	for _, s := range []string{"192.0.2.1", "203.0.113.8"} {
		d.kernel.events <- kernel.Event{Reason: bpf.ReasonLimitPackets, Family: bpf.FamilyIPv4, Source: netip.MustParseAddr(s)}
	}
	if got := next(t, drops, 1); got[0] != "drop limit_packets 203.0.113.8" {
		t.Errorf("%q", got)
	}
	for _, f := range []state.EventFilter{{Kinds: []state.EventKind{"x"}}, {After: state.EventID{Run: "zz", Number: 1}}} {
		for _, err := range d.Events(t.Context(), f) {
			if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 422 {
				t.Errorf("%+v: %v", f, err)
			}
			break
		}
	}
}

// A reader that does not read holds nobody up: bans and drops go on, and the one who reads sees them.
func TestEventsSlow(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	conn, err := net.Dial("unix", d.config().Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/events HTTP/1.1\r\nHost: levee\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 12)
	if _, err := io.ReadFull(conn, head); err != nil || !strings.HasSuffix(string(head), "200") {
		t.Fatalf("%q %v", head, err)
	}
	events := d.follow(state.EventFilter{Kinds: []state.EventKind{state.EventDecision}, After: state.EventID{Run: "ab", Number: 1}})
	next(t, events, 1)
	const many = 20_000 // more than fits a socket
	for i := range many {
		select {
		case d.kernel.events <- kernel.Event{Reason: bpf.ReasonBanned, Family: bpf.FamilyIPv4, Source: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}:
		case <-time.After(10 * time.Second):
			t.Fatalf("the reader of the kernel's events stands still at %d", i)
		}
	}
	d.ban(state.BanItem{Prefix: "192.0.2.1"})
	if got := next(t, events, 1); got[0] != "added ban 192.0.2.1 0" {
		t.Errorf("%q", got)
	}
}
