package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levee-xdp/levee/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hook is a webhook that notes what it gets and answers what it is told.
type hook struct {
	*httptest.Server
	mu      sync.Mutex
	answers []int // one a request; 200 when they are used up
	after   string
	got     []*http.Request
	bodies  [][]byte
	arrived chan struct{}
}

func newHook(t *testing.T, answers ...int) *hook {
	t.Helper()
	h := &hook{answers: answers, arrived: make(chan struct{}, 1000)}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.got, h.bodies = append(h.got, r), append(h.bodies, body)
		code := 200
		if len(h.answers) > 0 {
			code, h.answers = h.answers[0], h.answers[1:]
		}
		if h.after != "" {
			w.Header().Set("Retry-After", h.after)
		}
		if code/100 == 3 {
			w.Header().Set("Location", h.URL+"/elsewhere")
		}
		w.WriteHeader(code)
		h.arrived <- struct{}{}
	}))
	t.Cleanup(h.Close)
	return h
}

// pauses notes how long a sender would have waited.
type pauses []time.Duration

func (p *pauses) wait(ctx context.Context, d time.Duration) error {
	*p = append(*p, d)
	return ctx.Err()
}

var wall = time.Unix(1_780_000_000, 0)

func (h *hook) sender(p *pauses) *sender {
	t := Target{URL: h.URL + "/levee?x=secret-token", Secret: []byte("0123456789abcdef"), Timeout: 5 * time.Second, Attempts: 4, Agent: "levee/test"}
	return newSender(t, func() time.Time { return wall }, p.wait)
}

func TestSigned(t *testing.T) {
	h := newHook(t)
	var p pauses
	s := h.sender(&p)
	defer s.http.CloseIdleConnections()
	if err := s.send(t.Context(), message{Start, "id-1", []byte(`{"a":1}`)}); err != nil {
		t.Fatal(err)
	}
	r := h.got[0]
	// Made by: printf '1780000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
	const want = "sha256=bbc5da54367f5e39957fab1768fefa9cb855aa3b2717bef17cedda003c97c1bb"
	for header, want := range map[string]string{
		HeaderEvent: "attack_start", HeaderDelivery: "id-1", HeaderTimestamp: "1780000000", HeaderSignature: want,
		"Content-Type": "application/json", "User-Agent": "levee/test",
	} {
		if got := r.Header.Get(header); got != want {
			t.Errorf("%s is %q, want %q", header, got, want)
		}
	}
	if r.Method != http.MethodPost || string(h.bodies[0]) != `{"a":1}` {
		t.Errorf("%s %s", r.Method, h.bodies[0])
	}
	s.Secret = nil
	if err := s.send(t.Context(), message{Start, "id-2", nil}); err != nil || h.got[1].Header.Get(HeaderSignature) != "" {
		t.Errorf("signed with nothing: %v", err)
	}
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name     string
		answers  []int
		after    string
		requests int
		ok       bool
	}{
		{"at once", nil, "", 1, true},
		{"after a while", []int{500, 503, 429}, "", 4, true},
		{"never", []int{500, 500, 500, 500, 500}, "", 4, false},
		{"refused", []int{400}, "", 1, false},
		{"gone", []int{410}, "", 1, false},
		{"moved", []int{302}, "", 1, false},
		{"asked to wait", []int{503}, "7", 2, true},
		{"asked to wait for a day", []int{503}, "86400", 2, true},
		{"asked for nonsense", []int{503}, "-5 apples", 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHook(t, c.answers...)
			h.after = c.after
			var p pauses
			s := h.sender(&p)
			defer s.http.CloseIdleConnections()
			err := s.send(t.Context(), message{End, "the same", []byte("{}")})
			if (err == nil) != c.ok || len(h.got) != c.requests {
				t.Errorf("%d requests, %v", len(h.got), err)
			}
			if err != nil && strings.Contains(err.Error(), "secret-token") {
				t.Errorf("the URL is in the error: %v", err)
			}
			for i, d := range p {
				if d < firstPause<<i || d > longestPause {
					t.Errorf("pause %d is %s", i, d)
				}
			}
			if c.after == "7" && p[0] != 7*time.Second || c.after == "86400" && p[0] != longestPause {
				t.Errorf("Retry-After %s: %s", c.after, p)
			}
			for _, r := range h.got {
				if r.Header.Get(HeaderDelivery) != "the same" || r.URL.Path != "/levee" {
					t.Errorf("%s %v", r.URL, r.Header)
				}
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	h := newHook(t)
	var p pauses
	s := h.sender(&p)
	h.Close()
	if err := s.send(t.Context(), message{Start, "x", nil}); err == nil || len(p) != 3 || strings.Contains(err.Error(), "secret-token") {
		t.Errorf("%v after %d pauses", err, len(p))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p = nil
	if err := s.send(ctx, message{Start, "x", nil}); !errors.Is(err, context.Canceled) || len(p) > 1 {
		t.Errorf("cancelled: %v", err)
	}
}

// Somebody who never answers costs an attempt's timeout, not more.
func TestSlow(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	var p pauses
	s := newSender(Target{URL: server.URL, Timeout: 50 * time.Millisecond, Attempts: 2}, time.Now, p.wait)
	defer s.http.CloseIdleConnections()
	if err := s.send(t.Context(), message{Start, "x", nil}); err == nil || !strings.Contains(err.Error(), "attempt 2 of 2") {
		t.Error(err)
	}
}

// What a name turns out to be is checked when it is connected to, not when it is read.
func TestGuard(t *testing.T) {
	for _, c := range []struct {
		address                  string
		plain, loopback, private bool // whether it may be connected to, by the guard's setting
	}{
		{"192.0.2.1:443", true, false, true},
		{"[2001:db8::1]:443", true, false, true},
		{"127.0.0.1:443", false, true, false},
		{"[::1]:443", false, true, false},
		{"[::ffff:127.0.0.1]:443", false, true, false},
		{"10.1.2.3:443", false, false, true},
		{"[::ffff:10.1.2.3]:443", false, false, true},
		{"172.16.0.1:443", false, false, true},
		{"192.168.1.1:443", false, false, true},
		{"100.64.1.1:443", false, false, true},
		{"[fd00::1]:443", false, false, true},
		{"169.254.169.254:80", false, false, false},
		{"[fe80::1]:443", false, false, false},
		{"0.0.0.0:443", false, false, false},
		{"[::]:443", false, false, false},
		{"224.0.0.1:443", false, false, false},
		{"255.255.255.255:443", false, false, false},
	} {
		for g, want := range map[guard]bool{{}: c.plain, {loopback: true}: c.loopback, {private: true}: c.private} {
			if err := g.control("tcp", c.address, nil); (err == nil) != want {
				t.Errorf("%s with %+v: %v", c.address, g, err)
			}
		}
	}
	// The guard is in the connection's way, and what it says no to is not tried again.
	var p pauses
	s := newSender(Target{URL: "https://192.168.77.77/", Timeout: time.Second, Attempts: 3}, time.Now, p.wait)
	if err := s.send(t.Context(), message{}); err == nil || len(p) != 0 || !strings.Contains(err.Error(), "allow_private") {
		t.Errorf("%v after %d pauses", err, len(p))
	}
}

// clock is one that the test moves.
type clock struct {
	mu   sync.Mutex
	mono time.Duration
}

func (c *clock) Now() time.Time    { c.mu.Lock(); defer c.mu.Unlock(); return wall.Add(c.mono) }
func (c *clock) Monotonic() uint64 { c.mu.Lock(); defer c.mu.Unlock(); return uint64(c.mono) }
func (c *clock) Boot() string      { return "test" }

// scene is a Notifier whose world the test makes.
type scene struct {
	*testing.T
	Config
	clock *clock
	tick  chan time.Time
	read  chan struct{} // the counters were

	mu      sync.Mutex
	packets uint64
	failing bool
	sources []state.SourceView
	results []string
}

func newScene(t *testing.T, h *hook) *scene {
	s := &scene{T: t, clock: &clock{}, tick: make(chan time.Time), read: make(chan struct{})}
	s.Config = Config{
		Thresholds: Thresholds{Start: 1000, After: 2 * time.Second, End: 100, Quiet: 3 * time.Second},
		Target:     Target{URL: h.URL, Secret: []byte("0123456789abcdef"), Timeout: 5 * time.Second, Attempts: 1},
		Host:       "edge-1", Version: "v1", Clock: s.clock, Tick: s.tick,
		Mode: func() state.Mode { return state.Enforce },
		Counted: func() ([]state.Counted, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.failing {
				return nil, errors.New("the tables are gone")
			}
			return []state.Counted{{Interface: "eth0", Family: "ipv4", Action: state.ActionDrop, Reason: "penalty", Packets: s.packets, Bytes: 60 * s.packets}}, nil
		},
		Sources: func(context.Context, int) ([]state.SourceView, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return slices.Clone(s.sources), nil
		},
		Sent: func(e Event, how Result) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.results = append(s.results, fmt.Sprintf("%s %s", e, how))
		},
	}
	return s
}

func (s *scene) start() {
	counted := s.Counted
	var running context.Context
	s.Counted = func() ([]state.Counted, error) {
		list, err := counted()
		select {
		case s.read <- struct{}{}:
		case <-running.Done():
		}
		return list, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	running = ctx
	n := New(s.Config)
	go func() { done <- n.Run(ctx) }()
	<-s.read
	s.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	})
}

// second lets one pass in which so many packets are dropped.
func (s *scene) second(packets uint64) {
	s.Helper()
	s.mu.Lock()
	s.packets += packets
	s.mu.Unlock()
	s.clock.mu.Lock()
	s.clock.mono += time.Second
	s.clock.mu.Unlock()
	for range 2 { // the second one is taken when all that the first one meant is done
		select {
		case s.tick <- time.Time{}:
		case <-time.After(10 * time.Second):
			s.Fatal("the notifier waits for somebody")
		}
		<-s.read
	}
}

func (s *scene) source(prefix string, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := netip.MustParsePrefix(prefix)
	for i := range s.sources {
		if s.sources[i].Prefix == p {
			s.sources[i].Dropped = dropped
			return
		}
	}
	s.sources = append(s.sources, state.SourceView{Prefix: p, Limit: "default", Dropped: dropped})
}

func (h *hook) await(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case <-h.arrived:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing arrived within 10 s")
		}
	}
}

func TestAttackIsTold(t *testing.T) {
	h := newHook(t)
	s := newScene(t, h)
	var said bytes.Buffer
	s.Log = slog.New(slog.NewTextHandler(&said, nil))
	t.Cleanup(func() { // when nobody writes any more
		begun, over := strings.Index(said.String(), "an attack has begun"), strings.Index(said.String(), "an attack is over")
		if begun < 0 || over < begun || strings.Contains(said.String(), "goes on") {
			t.Errorf("the log: %s", said.String())
		}
	})
	s.source("198.51.100.1/32", 5)
	s.source("198.51.100.2/32", 1_000_000) // long ago
	s.start()
	s.second(0)
	s.second(0)
	s.second(3000)
	s.source("198.51.100.1/32", 4005)
	for i := range 20 {
		s.source(fmt.Sprintf("203.0.113.%d/32", i), uint64(i))
	}
	s.second(5000)
	h.await(t, 1)
	for range 4 {
		s.second(0)
	}
	h.await(t, 1)

	var bodies []Body
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, text := range h.bodies {
		var b Body
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, b)
		r := h.got[i]
		if r.Header.Get(HeaderSignature) != Sign([]byte("0123456789abcdef"), r.Header.Get(HeaderTimestamp), text) {
			t.Error("a false signature")
		}
	}
	start, end := bodies[0], bodies[1]
	if start.Event != Start || start.Version != 1 || start.Host != "edge-1" || start.Levee != "v1" || start.Mode != "enforce" {
		t.Errorf("%+v", start)
	}
	if a := start.Attack; a.Packets != 8000 || a.Bytes != 480_000 || a.Peak != 5000 || len(a.Reasons) != 1 || a.Reasons[0].Name != "penalty" {
		t.Errorf("%+v", a)
	}
	top := start.Attack.Sources
	if len(top) != most || top[0] != (TopSource{"198.51.100.1/32", "default", 4000}) || top[1].Prefix != "203.0.113.19/32" {
		t.Errorf("%+v", top)
	}
	if end.Event != End || end.Attack.ID != start.Attack.ID || end.Attack.Ended.IsZero() || h.got[0].Header.Get(HeaderDelivery) == h.got[1].Header.Get(HeaderDelivery) {
		t.Errorf("%+v", end)
	}
	if len(h.bodies[0]) > 8<<10 {
		t.Errorf("%d bytes", len(h.bodies[0]))
	}
}

// A webhook that hangs holds nobody up: what does not fit the queue is left out, and counted.
func TestQueueIsBounded(t *testing.T) {
	h := newHook(t)
	s := newScene(t, h)
	s.After, s.Quiet, s.End = 0, 0, 1000
	hang := make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(hang) }) }
	defer release()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(release)
	s.URL, s.Timeout = server.URL, time.Minute
	s.start()
	for range 40 { // an attack a second second
		s.second(5000)
		s.second(0)
	}
	s.second(0)
	s.mu.Lock()
	dropped := 0
	for _, r := range s.results {
		if strings.HasSuffix(r, string(Dropped)) {
			dropped++
		}
	}
	s.mu.Unlock()
	if dropped < 80-queued-2 || dropped > 80-queued {
		t.Errorf("%d of 80 were left out, with a queue of %d: %q", dropped, queued, s.results)
	}
}

// Counters that cannot be read for a while make no attack when they come back, beyond what was dropped.
func TestUnreadable(t *testing.T) {
	h := newHook(t)
	s := newScene(t, h)
	s.start()
	s.second(10)
	s.mu.Lock()
	s.failing = true
	s.mu.Unlock()
	for range 10 {
		s.second(100)
	}
	s.mu.Lock()
	s.failing = false
	s.mu.Unlock()
	for range 5 {
		s.second(100)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.results) != 0 {
		t.Error(s.results)
	}
}

// The documentation shows a body with every field that there is, and no other.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../docs/notify.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```json\n")
	text, _, _ = strings.Cut(text, "```")
	var b Body
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		t.Fatal(err)
	}
	for _, of := range []reflect.Type{reflect.TypeFor[Body](), reflect.TypeFor[Attack](), reflect.TypeFor[Share](), reflect.TypeFor[TopSource]()} {
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			if !strings.Contains(text, `"`+name+`":`) {
				t.Errorf("it lacks %s of %s", name, of)
			}
		}
	}
	for _, word := range []string{string(Start), string(Summary), string(End), HeaderEvent, HeaderDelivery, HeaderTimestamp, HeaderSignature} {
		if !strings.Contains(string(page), "`"+word+"`") {
			t.Errorf("it lacks %s", word)
		}
	}
}
