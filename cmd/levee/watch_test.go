package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// happened is what a daemon tells of.
func happened() []state.Event {
	claim := claims()[0]
	at := func(n uint64) state.Event {
		return state.Event{ID: state.EventID{Run: "ab", Number: n}, Time: noon.Add(time.Duration(n) * time.Millisecond)}
	}
	decision := func(n uint64, d state.Decision) state.Event {
		e := at(n)
		e.Kind, e.Decision = state.EventDecision, &d
		return e
	}
	drop, monitored, lost := at(6), at(7), at(8)
	drop.Kind, drop.Drop = state.EventDrop, &state.EventView{Time: noon, Interface: "eth0", Reason: "banned", Origin: "operator", Protocol: "tcp",
		Source: netip.MustParseAddr("203.0.113.7"), SourcePort: 4711, Destination: netip.MustParseAddr("192.0.2.1"), Port: 443, Length: 60}
	monitored.Kind, monitored.Drop = state.EventDrop, &state.EventView{Time: noon, Interface: "eth0", Reason: "limit_packets", Limit: "dns", Monitored: true, Protocol: "icmpv6",
		Source: netip.MustParseAddr("2001:db8::1"), Destination: netip.MustParseAddr("2001:db8::2"), Length: 1400}
	lost.Kind, lost.Lost = state.EventLost, &state.LostEvents{Events: 1234, Why: "the reader is too slow"}
	evil := claims()[1]
	return []state.Event{
		decision(1, state.Decision{About: state.AboutBan, Op: "added", Subject: "203.0.113.7", Origin: "operator", Actor: "root", Claim: &claim}),
		decision(2, state.Decision{About: state.AboutBan, Op: "added", Subject: "2001:db8:bad::/48", Origin: "feed:spamhaus", Claim: &evil}),
		decision(3, state.Decision{About: state.AboutBan, Op: "expired", Subject: "198.51.100.0/24", Origin: "api:gateway-3"}),
		decision(4, state.Decision{About: state.AboutBan, Op: "removed", Origin: "feed:spamhaus", Actor: "root", Many: 70_000}),
		decision(5, state.Decision{About: state.AboutPanic, Op: "on", Actor: "root"}),
		drop, monitored, lost,
	}
}

// follow serves a stream of them.
func follow(t *testing.T) string {
	t.Helper()
	f := newFake(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, e := range happened() {
			if kind := r.URL.Query()["kind"]; len(kind) > 0 && kind[0] != string(e.Kind) {
				continue
			}
			fmt.Fprintf(w, "id: %s\ndata: %s\n\n", e.ID, must1(json.Marshal(e)))
		}
	})
	f.stream = mux
	return f.socket
}

func TestWatch(t *testing.T) {
	time.Local = time.UTC // the times on the lines are local ones
	socket := follow(t)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"watch", []string{"watch", "-n", "8"}},
		{"watch_jsonl", []string{"watch", "--kind", "drop", "-n", "2", "-o", "jsonl"}},
	} {
		r := call{args: c.args}.run(t, socket)
		if r.code != 0 || r.stderr != "" {
			t.Errorf("%s: %d %s", c.name, r.code, r.stderr)
		}
		golden(t, c.name, r.stdout)
	}
	for _, args := range [][]string{{"--kind", "lost"}, {"--within", "x"}, {"--after", "x"}, {"-n", "-1"}} {
		if r := (call{args: append([]string{"watch"}, args...)}).run(t, socket); r.code != exitUsage || !strings.Contains(r.stderr, strings.TrimPrefix(args[0], "--")) && args[0] != "-n" {
			t.Errorf("%v: %d %s", args, r.code, r.stderr)
		}
	}
}
