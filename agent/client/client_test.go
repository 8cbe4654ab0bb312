package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levee-xdp/levee/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a daemon that answers each call with the next of its steps, and notes what it was asked.
type script struct {
	mu    sync.Mutex
	steps []http.HandlerFunc
	asked []*http.Request
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.Clone(context.WithoutCancel(r.Context())))
	step := refuse(500, "", "asked too often")
	if len(s.steps) > 0 {
		step, s.steps = s.steps[0], s.steps[1:]
	}
	s.mu.Unlock()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		panic(err)
	}
	step(w, r)
}

func (s *script) calls() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func answer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

func refuse(status int, code state.Code, detail string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "code": code, "detail": detail})
	}
}

// hangUp ends the connection after the request was read: nobody knows whether it was done.
func hangUp(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	conn.Close()
}

// daemon serves a script at a Unix socket.
func daemon(t *testing.T, steps ...http.HandlerFunc) (*script, *Client) {
	t.Helper()
	dir, err := os.MkdirTemp("", "levee") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &script{steps: steps}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: s}}
	server.Start()
	t.Cleanup(server.Close)
	c := New(Config{Socket: filepath.Join(dir, "s"), Timeout: 20 * time.Second})
	t.Cleanup(c.Close)
	return s, c
}

// What may be done twice is asked again when nobody knows whether it was done; a batch with the same
// key.
func TestRetry(t *testing.T) {
	ban := func(ctx context.Context, c *Client) error {
		r, err := c.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.1"}}})
		if err == nil && r.Done != 1 {
			err = fmt.Errorf("%+v", r)
		}
		return err
	}
	detach := func(ctx context.Context, c *Client) error { return c.Detach(ctx, "eth0") }
	status := func(ctx context.Context, c *Client) error { _, err := c.Stats(ctx); return err }
	done := answer(`{"bans":[],"done":1}`)
	for _, tt := range []struct {
		name   string
		call   func(context.Context, *Client) error
		steps  []http.HandlerFunc
		calls  int
		status int // of the error; 0: none, -1: unreachable
	}{
		{"at once", ban, []http.HandlerFunc{done}, 1, 0},
		{"broken off", ban, []http.HandlerFunc{hangUp, done}, 2, 0},
		{"broken off twice", status, []http.HandlerFunc{hangUp, hangUp, answer("{}")}, 3, 0},
		{"broken off thrice", ban, []http.HandlerFunc{hangUp, hangUp, hangUp, done}, 3, -1},
		{"busy", ban, []http.HandlerFunc{refuse(429, "", "slower", "Retry-After", "1"), done}, 2, 0},
		{"busy for long", ban, []http.HandlerFunc{refuse(429, "", "slower", "Retry-After", "3600"), done}, 1, 429},
		{"still under way", ban, []http.HandlerFunc{hangUp, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"title":"Conflict","code":"conflict","field":"Idempotency-Key"}`)
		}, done}, 3, 0},
		{"a conflict", ban, []http.HandlerFunc{refuse(409, state.CodeConflict, "it contradicts something"), done}, 1, 409},
		{"starting", status, []http.HandlerFunc{refuse(503, "", "starting"), answer("{}")}, 2, 0},
		{"refused", ban, []http.HandlerFunc{refuse(403, state.CodeRefused, "no"), done}, 1, 403},
		{"its own trouble", ban, []http.HandlerFunc{refuse(500, "", "oh"), done}, 1, 500},
		{"gone before", detach, []http.HandlerFunc{refuse(404, state.CodeNotFound, "not attached")}, 1, 404},
		{"gone by the call that broke off", detach, []http.HandlerFunc{hangUp, refuse(404, state.CodeNotFound, "not attached")}, 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, c := daemon(t, tt.steps...)
			err := tt.call(t.Context(), c)
			switch e, ok := errors.AsType[*Error](err); {
			case tt.status == 0 && err != nil, tt.status > 0 && (!ok || e.Status != tt.status), tt.status < 0 && !errors.Is(err, ErrUnreachable):
				t.Errorf("got %v", err)
			}
			asked := s.calls()
			if len(asked) != tt.calls {
				t.Fatalf("asked %d times", len(asked))
			}
			for _, r := range asked {
				if key := r.Header.Get("Idempotency-Key"); (key == "") == (r.Method == http.MethodPost) || key != asked[0].Header.Get("Idempotency-Key") {
					t.Errorf("%s with the key %q, the first had %q", r.Method, key, asked[0].Header.Get("Idempotency-Key"))
				}
			}
		})
	}
}

// Two calls are two changes, even if they say the same.
func TestKeys(t *testing.T) {
	s, c := daemon(t, answer("{}"), answer("{}"))
	for range 2 {
		if _, err := c.Unban(t.Context(), state.UnbanRequest{Prefixes: []string{"192.0.2.1"}}); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := s.calls()[0].Header.Get("Idempotency-Key"), s.calls()[1].Header.Get("Idempotency-Key"); a == b || len(a) < 16 {
		t.Errorf("%q, %q", a, b)
	}
}

// A daemon that is not there is said at once, one that does not answer after the timeout, and a
// context that ends ends the call.
func TestUnreachable(t *testing.T) {
	c := New(Config{Socket: filepath.Join(t.TempDir(), "s")})
	tries := 0
	traced := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GetConn: func(string) { tries++ }})
	if _, err := c.Stats(traced); !errors.Is(err, ErrUnreachable) || !errors.Is(err, os.ErrNotExist) || tries != 1 {
		t.Errorf("%v after %d tries", err, tries)
	}
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	s, slow := daemon(t, hang, hang, hang)
	slow.config.Timeout = time.Second
	if _, err := slow.Stats(t.Context()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no answer within 1s") || len(s.calls()) != 1 {
		t.Errorf("%v after %d calls", err, len(s.calls()))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := slow.Stats(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// What makes no sense is what every call says.
func TestConfig(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Config{
		"kernel says who asks":         {Token: "t"},
		"not https":                    {URL: "http://192.0.2.1", Token: "t"},
		"not of the form":              {URL: "https://192.0.2.1/v1", Token: "t"},
		"give one of them":             {URL: "https://192.0.2.1", Socket: "/s"},
		"both a token and a file":      {URL: "https://192.0.2.1", Token: "t", TokenFile: empty},
		"go together":                  {URL: "https://192.0.2.1", Certificate: empty},
		"none in PEM":                  {URL: "https://192.0.2.1", CA: empty},
		"the client's certificate":     {URL: "https://192.0.2.1", Certificate: empty, Key: empty},
		"there is not one alone":       {URL: "https://192.0.2.1", TokenFile: empty},
		"no such file":                 {URL: "https://192.0.2.1", TokenFile: empty + "x"},
		"the daemon's URL: parse":      {URL: "https://192.0.2.1:port"},
		"the certificates to trust: o": {URL: "https://192.0.2.1", CA: empty + "x"},
	} {
		if _, err := New(c).Stats(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

// Over TLS a token goes with each call, the one that is in the file by then, and nowhere else.
func TestTLS(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a token went elsewhere: %s", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	s := &script{steps: []http.HandlerFunc{answer("{}"), answer("{}"), func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}}}
	server := httptest.NewUnstartedServer(s)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	server.StartTLS()
	defer server.Close()

	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "token")
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	write(token, []byte("first\n"))
	c := New(Config{URL: server.URL, CA: ca, TokenFile: token})
	defer c.Close()
	if _, err := c.Stats(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(token, []byte("second"))
	if _, err := c.Stats(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stats(t.Context()); err == nil {
		t.Error("a redirect was followed, or taken for an answer")
	}
	var got []string
	for _, r := range s.calls() {
		got = append(got, r.Header.Get("Authorization"))
	}
	if want := []string{"Bearer first", "Bearer second", "Bearer second"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}

	stranger := New(Config{URL: server.URL, Token: "t"})
	defer stranger.Close()
	before := len(s.calls())
	if _, err := stranger.Stats(t.Context()); !errors.Is(err, ErrUnreachable) || len(s.calls()) != before {
		t.Errorf("a daemon that nobody vouches for: %v", err)
	}
}

// Pages are asked for until there is none, and no further than they are wanted.
func TestPages(t *testing.T) {
	page := func(from, next int) http.HandlerFunc {
		p := state.BanPage{Bans: []state.Claim{}, Total: 5}
		for i := from; i < min(from+2, 5); i++ {
			p.Bans = append(p.Bans, state.Claim{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)})
		}
		if next > 0 {
			p.Next = fmt.Sprint("c", next)
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return answer(string(text))
	}
	s, c := daemon(t, page(0, 2), page(2, 4), page(4, 0), page(0, 2), page(0, 2), refuse(422, state.CodeInvalid, "no such cursor"))
	n := 0
	for claim, err := range c.Claims(t.Context(), state.Filter{Limit: 2, Origin: "api"}) {
		if err != nil || int(claim.Prefix.Addr().As4()[3]) != n {
			t.Fatalf("%v, %v", claim, err)
		}
		n++
	}
	var asked []string
	for _, r := range s.calls() {
		asked = append(asked, r.URL.RawQuery)
	}
	if want := []string{"limit=2&origin=api", "after=c2&limit=2&origin=api", "after=c4&limit=2&origin=api"}; n != 5 || !slices.Equal(asked, want) {
		t.Errorf("%d claims by %q", n, asked)
	}
	for range c.Claims(t.Context(), state.Filter{}) {
		break
	}
	if len(s.calls()) != 4 {
		t.Errorf("%d calls", len(s.calls()))
	}
	n = 0
	var last error
	for _, err := range c.Claims(t.Context(), state.Filter{}) {
		n++
		last = err
	}
	if e, ok := errors.AsType[*Error](last); !ok || e.Code != state.CodeInvalid || n != 3 {
		t.Errorf("%d, %v", n, last)
	}
}
