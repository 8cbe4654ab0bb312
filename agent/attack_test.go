package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	gomaps "maps"
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

// watch does as an admin on the Unix socket what one does while an attack is under way, again and again on
// new connections: it asks, bans and limits. It measures what the process holds beyond what it held before.
type watch struct {
	*secure
	calm  map[string]time.Duration // the worst of some before the attack: what the machine itself takes
	times map[string][]time.Duration
	round int
	fake  uint64 // what of the process's live memory is the fake kernel's
	idle  uint64
	most  uint64
}

// answerWithin is how soon an admin is answered.
const answerWithin = 100 * time.Millisecond

// mayGrow is how much memory an attack may take.
const mayGrow = 100 << 20

func newWatch(s *secure) *watch {
	w := &watch{secure: s, calm: map[string]time.Duration{}, times: map[string][]time.Duration{}}
	w.kernel.room++ // for the admin's ban
	for range 5 {
		w.act()
	}
	for what, times := range w.times {
		w.calm[what] = slices.Max(times)
	}
	clear(w.times)
	w.fake = w.kernel.weight()
	debug.FreeOSMemory()
	w.idle = held()
	w.most = w.idle
	return w
}

// weight is how much memory the fake kernel's tables take.
func (k *fakeKernel) weight() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	live := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	bans, sources := gomaps.Clone(k.bans), slices.Clone(k.sources)
	after := live()
	runtime.KeepAlive(bans)
	runtime.KeepAlive(sources)
	return after - min(before, after)
}

// held is what the process holds of memory, without what it has given back.
func held() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}

// act does each thing that an admin does once.
func (w *watch) act() {
	w.Helper()
	w.round++
	acts := []struct {
		what string
		act  func(c *client.Client) error
	}{
		{"panic", func(c *client.Client) error { _, err := c.Panic(w.Context()); return err }},
		{"status", func(c *client.Client) error { _, err := c.Status(w.Context(), 0); return err }},
		{"ban", func(c *client.Client) error {
			r, err := c.Ban(w.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: adminBan, Reason: fmt.Sprint(w.round)}}})
			if err == nil && r.Done != 1 {
				err = fmt.Errorf("%+v", r)
			}
			return err
		}},
		{"limit", func(c *client.Client) error {
			spec := state.LimitSpec{Sources: []state.Prefix{{Prefix: netip.MustParsePrefix(adminBan + "/32")}}, Packets: threshold(w, fmt.Sprintf("%d/s", 1000+w.round))}
			_, err := c.SetLimit(w.Context(), adminLimit, spec)
			return err
		}},
	}
	for _, a := range acts {
		c := client.New(client.Config{Socket: filepath.Join(w.dir, "s"), Retries: -1})
		start := time.Now()
		if err := a.act(c); err != nil {
			w.Errorf("%s: an admin was not answered: %v", a.what, err)
		}
		w.times[a.what] = append(w.times[a.what], time.Since(start))
		w.most = max(w.most, held())
		c.Close()
	}
}

// What the admin bans and limits, which is taken back afterwards.
const (
	adminBan   = "233.252.0.1"
	adminLimit = "admin"
)

// during acts until the attack is over.
func (w *watch) during(attack func()) {
	w.Helper()
	done := make(chan struct{})
	go func() { defer close(done); attack() }()
	for {
		w.act()
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
	for _, what := range slices.Sorted(gomaps.Keys(w.times)) {
		times, calm := w.times[what], w.calm[what]
		slices.Sort(times)
		median, most, worst := times[len(times)/2], times[len(times)*9/10], times[len(times)-1]
		w.Logf("%s: an admin was answered %d times, half within %s, nine of ten within %s, all within %s (before it: %s)", what, len(times), median, most, worst, calm)
		// Half, and nine of ten with more room, since others work on this machine, too. A few answers can't tell
		// its disk's bad moment from a slow daemon, so they all have ten times the time.
		bound := answerWithin + calm
		late := median > bound || most > 5*bound
		if len(times) < 10 {
			late = worst > 10*bound
		}
		if late {
			w.Errorf("%s: half of an admin's requests took %s, nine of ten %s, all %s; they should take %s, and took %s when nothing else was asked", what, median, most, worst, answerWithin, calm)
		}
	}
	// Until the collector's next turn there is as much garbage as there is in use. What it leaves for the
	// fake kernel's sake, the daemon does not take: a real kernel's tables are not on its heap.
	grown, fake := int64(w.most)-int64(w.idle), int64(w.fake)
	w.Logf("memory grew by %d MB, of which up to %d MB is for the fake kernel's sake", grown>>20, fake>>20)
	if grown-fake > mayGrow {
		w.Errorf("memory grew by %d MB, and %d MB of that at most is for the fake kernel's sake", grown>>20, fake>>20)
	}
	if _, err := w.Unban(w.Context(), state.UnbanRequest{Prefixes: []string{adminBan}}); err != nil {
		w.Error(err)
	}
	if err := w.RemoveLimit(w.Context(), adminLimit); err != nil {
		w.Error(err)
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
	var refusals uint64
	records := 0
	for _, e := range s.audited()[before:] {
		if e.Event.Action == "authenticate" || e.Event.Action == "request" {
			records++
			refusals += 1 + e.Levee.Suppressed
		}
	}
	if refusals != uint64(attempts) || records > 200 {
		t.Errorf("%d records tell of %d refusals, want few that tell of %d", records, refusals, attempts)
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
	newWatch(s).during(func() { elsewhere(t, "LEVEE_TEST_CLIENTS", a) })
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
	many := long(10_000, 300_000)
	s.kernel.room = 2 * many
	var lines strings.Builder
	for i := range many {
		fmt.Fprintf(&lines, "100.%d.%d.%d\n", i>>16, i>>8&255, i&255)
		s.kernel.sources = append(s.kernel.sources, kernel.Source{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Packets: uint64(i)})
	}
	s.bulk(state.BulkRequest{Origin: "feed:x"}, client.PlainLines, lines.String())
	paths := []string{"/v1/sources?sample=2s&n=10000", "/v1/check?prefix=0.0.0.0/0", "/v1/bans/bulk", "/v1/bans?within=100.0.0.0/8&limit=10000", "/v1/status?sample=2s",
		"/v1/config", "/v1/allow"}
	a := manyReaders{URL: "https://" + s.address, CA: s.file("ca.pem"), Tokens: []string{reader, other}, Paths: paths, Clients: 30, Each: long(2, 10)}
	var codes map[int]int
	newWatch(s).during(func() {
		out := elsewhere(t, "LEVEE_TEST_READERS", a)
		if err := json.Unmarshal(out, &codes); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	if ok, busy := codes[200], codes[503]; ok == 0 || busy == 0 || ok+busy != a.Clients*a.Each {
		t.Errorf("answered: %v", codes)
	}
}

// manyReaders is clients that read at once, in a process of their own, and say how often which code came.
type manyReaders struct {
	URL, CA       string
	Tokens, Paths []string
	Clients, Each int
}

func readersMain(text string) int {
	fail := func(v ...any) int { fmt.Fprintln(os.Stderr, v...); return 1 }
	var a manyReaders
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return fail(err)
	}
	ca, err := os.ReadFile(a.CA)
	if err != nil {
		return fail(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	var group sync.WaitGroup
	var failed atomic.Int32
	var mu sync.Mutex
	codes := map[int]int{}
	for i := range a.Clients {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
		group.Go(func() {
			defer transport.CloseIdleConnections()
			for j := range a.Each {
				r, _ := http.NewRequest("GET", a.URL+a.Paths[(i+j)%len(a.Paths)], nil)
				r.Header.Set("Authorization", "Bearer "+a.Tokens[i%len(a.Tokens)])
				answer, err := transport.RoundTrip(r)
				if err != nil {
					failed.Store(int32(fail(err)))
					return
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				if answer.StatusCode == 503 && answer.Header.Get("Retry-After") == "" {
					failed.Store(int32(fail("no Retry-After")))
				}
				mu.Lock()
				codes[answer.StatusCode]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(codes); err != nil {
		return fail(err)
	}
	return int(failed.Load())
}

// elsewhere runs attackers as a process of their own, so that the daemon's memory and scheduling are measured
// and not theirs, and returns what they say.
func elsewhere(t *testing.T, name string, a any) []byte {
	t.Helper()
	text, err := json.Marshal(a)
	if err != nil {
		t.Error(err)
		return nil
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), name+"="+string(text))
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %s", err, problems.String())
	}
	return out
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
