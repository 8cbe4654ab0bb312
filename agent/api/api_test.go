package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// stub is a backend that grants everything and counts how often it was asked for a change.
type stub struct {
	Backend
	asked int
	actor state.Actor
	err   error
}

func (s *stub) Ban(by state.Actor, r state.BanRequest) (state.BanResponse, error) {
	s.asked++
	s.actor = by
	return state.BanResponse{Bans: make([]state.BanResult, len(r.Bans)), Done: len(r.Bans)}, s.err
}
func (s *stub) Unban(state.Actor, state.UnbanRequest) (state.BanResponse, error) {
	s.asked++
	return state.BanResponse{}, s.err
}
func (s *stub) Allow(state.Actor, state.AllowRequest) (state.AllowResponse, error) {
	s.asked++
	return state.AllowResponse{}, s.err
}
func (s *stub) Unallow(state.Actor, state.UnallowRequest) (state.AllowResponse, error) {
	s.asked++
	return state.AllowResponse{}, s.err
}
func (s *stub) SetLimit(state.Actor, string, state.LimitSpec, state.Duration) (state.LimitView, error) {
	s.asked++
	return state.LimitView{}, s.err
}
func (s *stub) Attach(state.Actor, state.AttachRequest) (state.InterfaceView, error) {
	s.asked++
	return state.InterfaceView{}, s.err
}
func (s *stub) SetPanic(state.Actor, bool) error      { s.asked++; return s.err }
func (s *stub) Check(netip.Addr) (state.Check, error) { return state.Check{}, s.err }
func (s *stub) CheckPrefix(context.Context, netip.Prefix) (state.PrefixCheck, error) {
	return state.PrefixCheck{}, s.err
}
func (s *stub) Bans(state.Filter) (state.BanPage, error) { return state.BanPage{}, s.err }
func (s *stub) Health() state.Health                     { return state.Health{State: "degraded", Problems: []string{"x"}} }
func (s *stub) Stats() (state.Stats, error)              { return state.Stats{}, s.err }
func (s *stub) Status(context.Context, time.Duration) (state.Overview, error) {
	return state.Overview{}, s.err
}

func ask(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	return askAs(h, state.Operator("test"), method, path, body)
}

func askAs(h http.Handler, by state.Actor, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	h.ServeHTTP(w, r.WithContext(withActor(r.Context(), by)))
	return w
}

// What kind an error is decides the status, and what is nobody's business stays within.
func TestErrors(t *testing.T) {
	s := &stub{}
	h := Handler(Config{Backend: s})
	for code, status := range map[state.Code]int{
		state.CodeInvalid: 422, state.CodeRefused: 403, state.CodeConflict: 409, state.CodeNotFound: 404,
		state.CodeFull: 507, state.CodeStorage: 507, state.CodeKernel: 500,
	} {
		s.err = &state.Error{Code: code, Field: "prefix", Value: "v", Detail: "because"}
		w := ask(h, "GET", "/v1/check/192.0.2.1", "")
		var p Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
		if w.Code != status || p.Status != status || p.Code != code || p.Field != "prefix" || p.Value != "v" || p.Detail != "because" || p.Title == "" ||
			w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", code, w.Code, w.Body)
		}
	}
	s.err = errors.New("open /secret/path: no such file")
	if w := ask(h, "GET", "/v1/check/192.0.2.1", ""); w.Code != 500 || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	s.err = fmt.Errorf("measure rates: %w", context.Canceled)
	if w := ask(h, "GET", "/v1/check/192.0.2.1", ""); w.Code != 500 || !strings.Contains(w.Body.String(), "the daemon is stopping") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestHealth(t *testing.T) {
	h := Handler(Config{Backend: &stub{}})
	if w := ask(h, "GET", "/healthz", ""); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(h, "GET", "/readyz", ""); w.Code != 503 || !strings.Contains(w.Body.String(), `"problems":["x"]`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Who asks is who the kernel says.
func TestActor(t *testing.T) {
	s := &stub{}
	path := filepath.Join(t.TempDir(), "s")
	server := New(Config{Socket: path, Backend: s})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.Run(ctx) }()
	<-server.Ready()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	client := http.Client{Transport: transport}
	response, err := client.Post("http://levee/v1/bans", "application/json", strings.NewReader(`{"bans":[{"prefix":"192.0.2.1"}]}`))
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("%v, %v", response, err)
	}
	response.Body.Close()
	if s.actor.Name == "" {
		t.Error("nobody asked")
	}
	transport.CloseIdleConnections()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whatever a body says, it is answered: with a change if it is right, with a problem if not, and
// never with a failure of the daemon's.
func FuzzBody(f *testing.F) {
	paths := []string{"POST /v1/bans", "POST /v1/unban", "POST /v1/allow", "POST /v1/unallow", "PUT /v1/limits/web", "POST /v1/interfaces", "PUT /v1/panic"}
	for i, body := range []string{
		`{"bans":[{"prefix":"192.0.2.1","for":"4h","reason":"x","origin":"api:a","monitor":true}],"force":true}`,
		`{"prefixes":["192.0.2.1"],"all":true}`,
		`{"allow":[{"prefix":"192.0.2.0/24","no_limits":true}]}`,
		`{"prefixes":["192.0.2.0/24"]}`,
		`{"services":["tcp/443"],"packets":"20k/s","bits":{"rate":"1Mbit/s","burst":"1MiB"},"penalty":"1m","group":{"ipv6":48},"aggregate":{"rate":"1k/s"}}`,
		`{"name":"eth0","mode":"native"}`,
		`{"on":true}`,
	} {
		f.Add(uint8(i), body)
	}
	s := &stub{}
	h := Handler(Config{Backend: s})
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		method, path, _ := strings.Cut(paths[int(which)%len(paths)], " ")
		before := s.asked
		w := ask(h, method, path, body)
		switch {
		case w.Code >= 500:
			t.Errorf("%s %s %q: %d %s", method, path, body, w.Code, w.Body)
		case w.Code >= 400 && s.asked != before:
			t.Errorf("%s %s %q: refused and done", method, path, body)
		case w.Code >= 400:
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Detail == "" || p.Status != w.Code {
				t.Errorf("%s %s %q: %s", method, path, body, w.Body)
			}
		case s.asked == before:
			t.Errorf("%s %s %q: %d, and nothing was done", method, path, body, w.Code)
		}
	})
}

func FuzzStrictJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,{"b":null}],"c":"d"}`, `{"a":1,"a":2}`, `[[[[[[[[[[]]]]]]]]]]`, `{`, `{} {}`, "\xff", `{"a":{"a":{}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var v any
		if strictJSON(b, &v) == nil && !json.Valid(b) {
			t.Errorf("%q passed", b)
		}
	})
}

// Known are those on other hosts who may change something, by what they may ask for: not who only reads,
// who asks in vain, or who is on this host.
func TestKnown(t *testing.T) {
	var known []string
	h := Handler(Config{Backend: &stub{}, Known: func(a state.Actor) { known = append(known, a.ID) }})
	far := netip.MustParseAddrPort("192.0.2.77:4711")
	by := func(id string, from netip.AddrPort, scopes ...state.Scope) state.Actor {
		return state.Actor{Kind: state.ActorToken, ID: id, Address: from, Scopes: scopes}
	}
	const body = `{"bans":[{"prefix":"192.0.2.1"}]}`
	for _, r := range []struct {
		by                 state.Actor
		method, path, body string
		code               int
	}{
		{by("reader", far, state.ScopeRead), "GET", "/v1/stats", "", 200},
		{by("reader", far, state.ScopeRead), "POST", "/v1/bans", body, 403},
		{by("in vain", far, state.ScopeBan), "PUT", "/v1/panic", `{"on":true}`, 403},
		{by("nowhere", far, state.ScopeBan), "GET", "/nothing", "", 404},
		{by("here", netip.AddrPort{}, state.ScopeAdmin), "POST", "/v1/bans", body, 200},
		{by("banner", far, state.ScopeBan), "POST", "/v1/bans", body, 200},
		{by("admin", far, state.ScopeAdmin), "GET", "/v1/stats", "", 200},
	} {
		if w := askAs(h, r.by, r.method, r.path, r.body); w.Code != r.code {
			t.Errorf("%s: %s %s: %d %s", r.by.ID, r.method, r.path, w.Code, w.Body)
		}
	}
	if got := strings.Join(known, " "); got != "banner admin" {
		t.Errorf("known: %s", got)
	}
}

// Every operation says which scope it takes, and no actor without it gets any further.
func TestScopes(t *testing.T) {
	s := &stub{}
	h := Handler(Config{Backend: s})
	changes := map[string]state.Scope{
		"POST /v1/bans": state.ScopeBan, "POST /v1/bans/bulk": state.ScopeBan, "POST /v1/unban": state.ScopeBan, "DELETE /v1/bans": state.ScopeBan,
		"GET /v1/tokens": state.ScopeAdmin, "PUT /v1/limits/{name}": state.ScopeLimit, "DELETE /v1/limits/{name}": state.ScopeLimit,
	}
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string                `json:"operationId"`
			Security    []map[string][]string `json:"security"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(ask(h, "GET", "/openapi.json", "").Body.Bytes(), &doc); err != nil || len(doc.Paths) == 0 {
		t.Fatal(err)
	}
	for path, methods := range doc.Paths {
		if path == "/healthz" || path == "/readyz" {
			continue // for everybody who is known, whatever the scope
		}
		for method, op := range methods {
			method = strings.ToUpper(method)
			want, ok := changes[method+" "+path]
			if want == "" && method != "GET" {
				want = state.ScopeAdmin
			} else if !ok {
				want = state.ScopeRead
			}
			if len(op.Security) == 0 || op.Security[0]["bearer"][0] != string(want) {
				t.Errorf("%s %s takes %v, want %s", method, path, op.Security, want)
			}
			for _, held := range append(state.Scopes, "") {
				if held == want || held == state.ScopeAdmin {
					continue
				}
				w := askAs(h, state.Actor{Kind: state.ActorToken, Name: "x", Scopes: []state.Scope{held}}, method, strings.NewReplacer("{name}", "web", "{address}", "192.0.2.1").Replace(path), "")
				if w.Code != 403 || !strings.Contains(w.Body.String(), `"code":"forbidden"`) {
					t.Errorf("%s %s with %s: %d %s", method, path, held, w.Code, w.Body)
				}
			}
		}
	}
	if s.asked != 0 {
		t.Error("something was done")
	}
}
