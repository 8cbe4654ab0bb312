package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
	kernel "github.com/levee-xdp/levee/maps"
)

// long chooses between the short version of an attack and the whole.
func long(short, whole int) int {
	if os.Getenv("LEVEE_LONG") != "" {
		return whole
	}
	return short
}

// watch asks as an admin on the Unix socket, again and again on new connections, while an attack is
// under way, and measures what the process holds beyond what it held before. Client and server are
// one process here, so what the attacker's side costs is counted, too.
type watch struct {
	*secure
	calm  time.Duration // the worst of some requests before the attack: what the machine itself takes
	idle  uint64
	most  uint64
	times []time.Duration
}

// answerWithin is how soon an admin is answered.
const answerWithin = 100 * time.Millisecond

// mayGrow is how much memory an attack may take.
const mayGrow = 100 << 20

func newWatch(s *secure) *watch {
	w := &watch{secure: s}
	for range 20 {
		w.ask()
		time.Sleep(5 * time.Millisecond)
	}
	w.calm, w.times = slices.Max(w.times), nil
	debug.FreeOSMemory()
	w.idle = held()
	w.most = w.idle
	return w
}

// held is what the process holds of memory, without what it has given back.
func held() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}

func (w *watch) ask() {
	w.Helper()
	c := client.New(client.Config{Socket: filepath.Join(w.dir, "s"), Retries: -1})
	defer c.Close()
	start := time.Now()
	if _, err := c.Panic(w.Context()); err != nil {
		w.Errorf("an admin was not answered: %v", err)
	}
	w.times = append(w.times, time.Since(start))
	w.most = max(w.most, held())
}

// during asks until the attack is over.
func (w *watch) during(attack func()) {
	w.Helper()
	done := make(chan struct{})
	go func() { defer close(done); attack() }()
	for {
		w.ask()
		select {
		case <-done:
			w.judge()
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *watch) judge() {
	w.Helper()
	slices.Sort(w.times)
	median, most, worst := w.times[len(w.times)/2], w.times[len(w.times)*9/10], w.times[len(w.times)-1]
	grown := int64(w.most) - int64(w.idle)
	w.Logf("an admin was answered %d times, half within %s, nine of ten within %s, all within %s (before it: %s); memory grew by %d MB",
		len(w.times), median, most, worst, w.calm, grown>>20)
	// Half, and nine of ten with more room, since others work on this machine, too.
	if bound := answerWithin + w.calm; median > bound || len(w.times) >= 10 && most > 5*bound {
		w.Errorf("half of an admin's requests took %s, nine of ten %s, all %s; they should take %s, and took %s when nothing else was asked", median, most, worst, answerWithin, w.calm)
	}
	if grown > mayGrow {
		w.Errorf("memory grew by %d MB", grown>>20)
	}
}

// Thousands of connections that say nothing, or say it slowly, cost a bounded number of slots, and
// nobody else's.
func TestAttackConnections(t *testing.T) {
	s := newSecure(t, "    connections: 300\n    connections_per_address: 200", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	for _, kind := range []string{"silent", "slow", "Unix"} {
		t.Run(kind, func(t *testing.T) {
			if kind == "Unix" {
				opened(t, s.testDaemon)
			}
			var conns []net.Conn
			defer func() {
				for _, c := range conns {
					c.Close()
				}
			}()
			newWatch(s).during(func() {
				for i := range long(1000, 10_000) {
					network, address := "tcp", s.address
					if kind == "Unix" {
						network, address = "unix", filepath.Join(s.dir, "s")
					}
					var c net.Conn
					var err error
					dial := func() { c, err = net.DialTimeout(network, address, 10*time.Second) }
					if kind == "Unix" {
						asNobody(t, dial)
					} else {
						dial()
					}
					if err != nil {
						t.Error(err)
						return
					}
					if kind != "silent" {
						fmt.Fprintf(c, "GET /v1/status HTTP/1.1\r\nHost: levee.test\r\nX-%d: ", i)
					}
					if conns = append(conns, c); len(conns) > 4000 { // of ours, too, there are not any number
						conns[0].Close()
						conns = conns[1:]
					}
				}
			})
		})
	}
	// From another address a client gets in all the while, and from this one when its rate has recovered.
	until(t, func() bool {
		r, err := s.remote(client.Config{Token: gateway}).Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "203.0.113.7", For: "1h"}}})
		return err == nil && r.Done == 1
	})
}

// Clients that send their headers byte by byte are let go of.
func TestAttackSlowloris(t *testing.T) {
	s := newSecure(t, "", "")
	conn, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: s.pool, ServerName: "levee.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	start := time.Now()
	go func() {
		for i := 0; i < 600; i++ {
			if _, err := conn.Write([]byte("X")); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadAll(conn); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("after %s it still listens", time.Since(start))
	}
}

// A hundred thousand bad tokens are throttled, counted, and cost nothing that lasts.
func TestAttackTokens(t *testing.T) {
	attempts := long(3000, 100_000)
	s := newSecure(t, "", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	before := len(s.audited())
	var codes [600]atomic.Int64
	newWatch(s).during(func() {
		var group sync.WaitGroup
		var next atomic.Int64
		for range 8 {
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}}
			group.Go(func() {
				defer transport.CloseIdleConnections()
				for i := next.Add(1); i <= int64(attempts); i = next.Add(1) {
					r, _ := http.NewRequest("GET", "https://"+s.address+"/v1/status", nil)
					r.Header.Set("Authorization", fmt.Sprintf("Bearer levee_%016x_%s", i, gateway[23:]))
					answer, err := transport.RoundTrip(r)
					if err != nil {
						t.Error(err)
						return
					}
					io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
					if codes[answer.StatusCode].Add(1); answer.StatusCode == 429 && answer.Header.Get("Retry-After") == "" {
						t.Error("no Retry-After")
					}
				}
			})
		}
		group.Wait()
	})
	if codes[401].Load()+codes[429].Load() != int64(attempts) || codes[429].Load() < codes[401].Load() {
		t.Errorf("%d were told 401, %d 429", codes[401].Load(), codes[429].Load())
	}
	s.end() // writes what was only counted
	records := s.audited()[before:]
	var refusals uint64
	for _, e := range records {
		if e.Event.Action == "authenticate" || e.Event.Action == "request" {
			refusals += 1 + e.Levee.Suppressed
		}
	}
	if refusals != uint64(attempts) || len(records) > 200 {
		t.Errorf("%d records tell of %d refusals, want few that tell of %d", len(records), refusals, attempts)
	}
	s.start()
}

// A token that bans without an end to it is held to its rate, and told when to come again.
func TestAttackRate(t *testing.T) {
	s := newSecure(t, "    requests: {rate: 10/s, burst: 20}", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	other := s.token("other", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	limited := 0
	for i := range 40 {
		answer, text := s.send("POST", "/v1/bans", gateway, fmt.Sprintf(`{"bans":[{"prefix":"203.0.113.%d","for":"1h"}]}`, i))
		if answer.StatusCode == 429 {
			limited++
			if answer.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q", answer.Header.Get("Retry-After"))
			}
			s.expect("too often", answer, text, 429, "limited")
		}
	}
	if limited == 0 {
		t.Error("nothing was limited")
	}
	answer, text := s.send("POST", "/v1/bans", other, `{"bans":[{"prefix":"198.51.100.1","for":"1h"}]}`)
	s.expect("another token", answer, text, 200, "added")
}

// Two hundred clients at once all get their answers, and what they were told is so.
func TestAttackClients(t *testing.T) {
	s := newSecure(t, "    connections_per_address: 1000\n    requests: {rate: 100k/s, burst: 100k}\n    requests_per_address: {rate: 100k/s, burst: 100k}", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	s.kernel.room = 10_000
	a := manyClients{Here: filepath.Join(s.dir, "s"), URL: "https://" + s.address, CA: s.file("ca.pem"), Token: gateway, Clients: 200, Each: long(5, 50)}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	newWatch(s).during(func() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LEVEE_TEST_CLIENTS="+string(text))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	if n := len(strings.Fields(s.kernel.show())); n != a.Clients*a.Each {
		t.Errorf("%d are banned, want %d", n, a.Clients*a.Each)
	}
}

// manyClients is clients that ban at once, half of them on this host and half by TCP. They are a process
// of their own, so that the daemon's own scheduling is measured and not theirs.
type manyClients struct {
	Here, URL, CA, Token string
	Clients, Each        int
}

func clientsMain(text string) int {
	var a manyClients
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var group sync.WaitGroup
	var failed atomic.Int32
	for i := range a.Clients {
		config := client.Config{Socket: a.Here, Timeout: time.Minute}
		if i%2 == 1 {
			config = client.Config{URL: a.URL, CA: a.CA, Token: a.Token, Timeout: time.Minute}
		}
		c := client.New(config)
		group.Go(func() {
			defer c.Close()
			for j := range a.Each {
				r, err := c.Ban(context.Background(), state.BanRequest{Bans: []state.BanItem{{Prefix: fmt.Sprintf("198.51.%d.%d", j, i), For: "1h"}}})
				if err != nil || r.Done != 1 {
					fmt.Fprintf(os.Stderr, "%+v, %v\n", r, err)
					failed.Store(1)
				}
			}
		})
	}
	group.Wait()
	return int(failed.Load())
}

// Large bodies, many at once, of one who may ban: memory stays bounded, and an admin is answered.
func TestAttackBodies(t *testing.T) {
	s := newSecure(t, "    requests: {rate: 1k/s, burst: 1k}", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	body := `{"bans":[` + strings.Repeat(`{"prefix":"203.0.113.7/31","for":"1h","reason":"`+strings.Repeat("x", 256)+`"},`, 9_999) + `{"prefix":"203.0.113.7/31"}]}`
	rounds := long(1, 5)
	newWatch(s).during(func() {
		var group sync.WaitGroup
		for range 20 {
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}}
			group.Go(func() {
				defer transport.CloseIdleConnections()
				for range rounds {
					r, _ := http.NewRequest("POST", "https://"+s.address+"/v1/bans", strings.NewReader(body))
					r.Header.Set("Content-Type", "application/json")
					r.Header.Set("Authorization", "Bearer "+gateway)
					answer, err := transport.RoundTrip(r)
					if err != nil {
						continue // it was let go of while it still sent
					}
					io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
					if answer.StatusCode != 207 && answer.StatusCode != 503 {
						t.Errorf("%d", answer.StatusCode)
					}
				}
			})
		}
		group.Wait()
	})
	s.want("")
}

// A token that may only read asks for all that is costly, on many connections: few are under way at once,
// the others are told to come again.
func TestAttackReads(t *testing.T) {
	s := newSecure(t, "    requests: {rate: 10k/s, burst: 10k}\n    requests_per_address: {rate: 10k/s, burst: 10k}", "")
	reader := s.token("reader", state.TokenRequest{Scopes: []state.Scope{state.ScopeRead}})
	other := s.token("other", state.TokenRequest{Scopes: []state.Scope{state.ScopeRead}})
	many := long(50_000, 300_000)
	s.kernel.room = 2 * many
	var lines strings.Builder
	for i := range many {
		fmt.Fprintf(&lines, "100.%d.%d.%d\n", i>>16, i>>8&255, i&255)
		s.kernel.sources = append(s.kernel.sources, kernel.Source{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Packets: uint64(i)})
	}
	s.bulk(state.BulkRequest{Origin: "feed:x"}, client.PlainLines, lines.String())
	paths := []string{"/v1/sources?sample=2s&n=10000", "/v1/check?prefix=0.0.0.0/0", "/v1/bans/bulk", "/v1/bans?within=100.0.0.0/8&limit=10000", "/v1/status?sample=1s"}
	var codes [600]atomic.Int64
	newWatch(s).during(func() {
		var group sync.WaitGroup
		for i := range 30 {
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}}
			group.Go(func() {
				defer transport.CloseIdleConnections()
				for j := range long(3, 10) {
					r, _ := http.NewRequest("GET", "https://"+s.address+paths[(i+j)%len(paths)], nil)
					r.Header.Set("Authorization", "Bearer "+[]string{reader, other}[i%2])
					answer, err := transport.RoundTrip(r)
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
					if codes[answer.StatusCode].Add(1); answer.StatusCode == 503 && answer.Header.Get("Retry-After") == "" {
						t.Error("no Retry-After")
					}
				}
			})
		}
		group.Wait()
	})
	if ok, busy := codes[200].Load(), codes[503].Load(); ok == 0 || busy == 0 || ok+busy != int64(30*long(3, 10)) {
		t.Errorf("%d were answered, %d told to come again", ok, busy)
	}
}

// opened lets every user of the host reach the socket, as a mistake might.
func opened(t *testing.T, d *testDaemon) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("acting as another user takes root")
	}
	for path, mode := range map[string]os.FileMode{filepath.Dir(d.dir): 0o755, d.dir: 0o755, filepath.Join(d.dir, "s"): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// asNobody does something as the user nobody, on a thread of its own.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		const nobody, same = 65534, ^uintptr(0)
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := unix.RawSyscall(call, same, nobody, same); errno != 0 {
				t.Error(errno)
				return
			}
		}
		f()
	}()
	<-done
}

// Who may write to the socket, and is neither root nor in the group, may do nothing all the same.
func TestSecurityStranger(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	opened(t, d)
	for _, path := range []string{"/v1/status", "/healthz", "/openapi.json", "/nothing"} {
		asNobody(t, func() {
			conn, err := net.Dial("unix", filepath.Join(d.dir, "s"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: levee\r\nConnection: close\r\n\r\n", path)
			text, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 403") || !strings.Contains(string(text), `"forbidden"`) {
				t.Errorf("%s: %q, %v", path, text, err)
			}
		})
	}
}
