package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/levee-xdp/levee/agent/state"
)

func stream1(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, text)
	}
}

func event(id string) string {
	return "id: " + id + "\nevent: decision\ndata: {\"id\":\"" + id + "\",\"kind\":\"decision\"}\n\n"
}

// A stream that breaks is had again behind the last event, until nobody wants it any more.
func TestEvents(t *testing.T) {
	s, c := daemon(t,
		stream1("retry: 1\nid: a-0\n\n"),                     // nothing happened yet
		stream1("retry: 1\n\n: hello\n\n"+event("a-1")),      // and then something
		stream1("retry: 1\n\n"+event("a-2")+"data: {\"id\""), // broken off within an event
		refuse(503, "", "starting"),
		stream1(event("a-3")+event("a-4")),
	)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got, from []string
	for e, err := range c.Events(ctx, state.EventFilter{Kinds: []state.EventKind{state.EventDecision, state.EventLost}}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, e.ID.String()); e.ID.Number == 3 {
			break
		}
	}
	for _, r := range s.calls() {
		from = append(from, r.Header.Get("Last-Event-ID"))
		if r.URL.RawQuery != "kind=decision&kind=lost" || r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("asked for %q as %q", r.URL.RawQuery, r.Header.Get("Accept"))
		}
	}
	if want := []string{"a-1", "a-2", "a-3"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if want := []string{"", "a-0", "a-1", "a-2", "a-2"}; !slices.Equal(from, want) {
		t.Errorf("went on from %q", from)
	}
}

// A refusal ends it, and so does the context.
func TestEventsEnd(t *testing.T) {
	_, c := daemon(t, refuse(403, state.CodeRefused, "the scope read is missing"))
	n := 0
	for _, err := range c.Events(t.Context(), state.EventFilter{}) {
		if e, ok := errors.AsType[*Error](err); !ok || e.Status != 403 {
			t.Error(err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d rounds", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, c := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		cancel()
		<-r.Context().Done()
	})
	for e, err := range c.Events(ctx, state.EventFilter{}) {
		t.Errorf("%v, %v", e, err)
	}
	if len(s.calls()) != 1 {
		t.Errorf("%d calls", len(s.calls()))
	}
	nobody := New(Config{Socket: "/nonexistent/socket"})
	for _, err := range nobody.Events(t.Context(), state.EventFilter{}) {
		if !errors.Is(err, ErrUnreachable) {
			t.Error(err)
		}
	}
}

// The cases of the HTML standard, section 9.2.6.
func TestDecoder(t *testing.T) {
	for _, tt := range []struct{ name, stream, want string }{
		{"lines of data", "data: YHOO\ndata: +2\ndata: 10\n\n", `||YHOO\n+2\n10`},
		{"a comment, and an id taken back", ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n", `1||first event;||second event;|| third event`},
		{"no data", "data\n\ndata\ndata\n\ndata:", `||;||\n`},
		{"a space more or less", "data:test\n\ndata: test\n\n", `||test;||test`},
		{"ends of lines", "data: a\rdata: b\r\ndata: c\n\r\ndata: d\r\r", `||a\nb\nc;||d`},
		{"BOM", "\ufeffdata: a\n\n", `||a`},
		{"an event's name does not last", "event: drop\ndata: a\n\ndata: b\n\n", `|drop|a;||b`},
		{"an event without data", "event: drop\n\ndata: b\n\n", `||b`},
		{"an id lasts", "id: 7\n\ndata: a\n\n", `7||a`},
		{"NUL in an id", "id: 7\nid: 8\x00\ndata: a\n\n", `7||a`},
		{"broken off", "data: a\n\ndata: b\n", `||a`},
		{"not UTF-8", "data: \xff\n\n", "||\ufffd"},
		{"unknown fields", "foo: bar\nretry: x\ndata: a\n\n", `||a`},
	} {
		for _, r := range []io.Reader{strings.NewReader(tt.stream), iotest.OneByteReader(strings.NewReader(tt.stream))} {
			var got []string
			d := newDecoder(r, nil)
			for {
				m, err := d.next()
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Errorf("%s: %v", tt.name, err)
					}
					break
				}
				got = append(got, m.id+"|"+m.event+"|"+strings.ReplaceAll(string(m.data), "\n", `\n`))
			}
			if strings.Join(got, ";") != tt.want {
				t.Errorf("%s: %q, want %q", tt.name, strings.Join(got, ";"), tt.want)
			}
		}
	}
	for _, s := range []string{strings.Repeat("a", maxMessage+1), strings.Repeat("data: "+strings.Repeat("a", 1<<16)+"\n", 20)} {
		if _, err := newDecoder(strings.NewReader(s), nil).next(); !errors.Is(err, errLong) {
			t.Errorf("%v", err)
		}
	}
}

// Whatever a stream says, its messages are bounded, and what was written as an event is read as it.
func FuzzSSE(f *testing.F) {
	for _, s := range []string{"data: a\n\n", "id: a-1\nevent: drop\ndata: {\"a\":1}\n\n", ": c\r\rdata\r\n\r\n", "\ufeffretry: 10\ndata: x\ndata:\n\n", "id: \x00\ndata\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDecoder(bytes.NewReader(b), nil)
		for {
			m, err := d.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, errLong) {
					t.Fatal(err)
				}
				break
			}
			if len(m.data) > maxMessage || bytes.ContainsRune(m.data, '\r') || strings.ContainsAny(m.id+m.event, "\r\n\x00") && !strings.Contains(m.event, "\x00") {
				t.Fatalf("%q", m)
			}
			// Said again as the daemon says it, it is the same.
			again := "event: " + m.event + "\n"
			for line := range strings.SplitSeq(string(m.data), "\n") {
				again += "data: " + line + "\n"
			}
			n, err := newDecoder(strings.NewReader(again+"\n"), nil).next()
			if err != nil && len(again) < maxMessage || err == nil && (n.event != m.event || !bytes.Equal(n.data, m.data)) {
				t.Fatalf("%q came back as %q: %v", m, n, err)
			}
		}
	})
}
