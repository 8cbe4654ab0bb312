package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/levee-xdp/levee/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server, and returns where it answers and what ends it.
func serve(t *testing.T, health func() state.Health) (string, func()) {
	t.Helper()
	registry, err := NewRegistry(newFake().collector(), NewRecord())
	if err != nil {
		t.Fatal(err)
	}
	s, err := Listen(t.Context(), "127.0.0.1:0", Handler(registry, health), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	var ended bool
	end := func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("it did not end")
		}
	}
	t.Cleanup(end)
	return s.Addr().String(), end
}

func get(t *testing.T, method, url, host string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServer(t *testing.T) {
	h := state.Health{State: "ok"}
	addr, end := serve(t, func() state.Health { return h })
	for _, tt := range []struct {
		method, path, host string
		code               int
		body               string
	}{
		{"GET", "/metrics", "", 200, "levee_build_info{"},
		{"HEAD", "/metrics", "", 200, ""},
		{"GET", "/healthz", "", 200, `{"state":"ok"}`},
		{"GET", "/readyz", "", 200, `{"state":"ok","problems":[]}`},
		{"GET", "/readyz", "localhost:9464", 200, "ok"},
		{"GET", "/readyz", "[::1]:9464", 200, "ok"},
		{"GET", "/metrics", "evil.example:9464", 421, "misdirected"},
		{"POST", "/metrics", "", 405, ""},
		{"GET", "/", "", 404, ""},
		{"GET", "/debug/pprof/", "", 404, ""},
	} {
		if code, body := get(t, tt.method, "http://"+addr+tt.path, tt.host); code != tt.code || !strings.Contains(body, tt.body) {
			t.Errorf("%s %s of %q: %d %.200s", tt.method, tt.path, tt.host, code, body)
		}
	}
	h = state.Health{State: "degraded", Problems: []string{"eth0 is not attached: no such device"}}
	if code, body := get(t, "GET", "http://"+addr+"/readyz", ""); code != 503 || !strings.Contains(body, `"problems":["eth0 is not attached: no such device"]`) {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get(t, "GET", "http://"+addr+"/healthz", ""); code != 200 {
		t.Errorf("alive and not well: %d", code)
	}
	end()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

// Connections that say nothing do not keep others out for long, nor the end from coming.
func TestIdleConnections(t *testing.T) {
	addr, end := serve(t, func() state.Health { return state.Health{State: "ok"} })
	var idle []net.Conn
	soon := time.Now().Add(readTimeout - time.Second) // later, those that are served are closed, too
	for range 2 * maxConnections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	for i, c := range idle[maxConnections:] {
		_ = c.SetReadDeadline(soon)
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("connection %d was not closed: %v", maxConnections+i, err)
		}
	}
	for _, c := range idle {
		c.Close()
	}
	ok := false
	for deadline := time.Now().Add(30 * time.Second); !ok && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			continue
		}
		fmt.Fprint(c, "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
		b, _ := io.ReadAll(c)
		ok = strings.Contains(string(b), "200 OK")
		c.Close()
	}
	if !ok {
		t.Error("no answer after the idle ones had gone")
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	end()
}

func isTimeout(err error) bool {
	var e net.Error
	ok := errors.As(err, &e)
	return ok && e.Timeout()
}

func TestListenErrors(t *testing.T) {
	if _, err := Listen(t.Context(), "192.0.2.1", nil, nil); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Error(err)
	}
	s, err := Listen(t.Context(), "127.0.0.1:0", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Listen(t.Context(), s.Addr().String(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := second.Problem(); !strings.Contains(p, "in use") {
		t.Errorf("an address was taken twice: %q", p)
	}
	second.Close()
	s.Close()
	if _, err := NewRegistry(NewRecord(), NewRecord()); err == nil {
		t.Error("registered twice")
	}
	var _ prometheus.Collector = (*Collector)(nil)
}
