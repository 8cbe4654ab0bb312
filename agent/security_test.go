package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/audit"
	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

// authority makes certificates.
type authority struct {
	testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{TB: t}
	a.cert, a.key = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	a.last++
	c.SerialNumber, c.NotBefore = big.NewInt(a.last), time.Now().Add(-time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.Fatal(err)
	}
	return made, key
}

// write puts a certificate and its key into files.
func (a *authority) write(cert, key string, c *x509.Certificate) {
	a.Helper()
	made, k := a.sign(c)
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: made.Raw}, key: {Type: "EC PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.Fatal(err)
		}
	}
}

// secure is a daemon that other hosts may speak to.
type secure struct {
	*testDaemon
	ca      *authority
	certs   string
	address string
	pool    *x509.CertPool
}

// newSecure starts one; settings are lines of api.tcp's, and rest is the rest of the file.
func newSecure(t testing.TB, settings, rest string) *secure {
	t.Helper()
	s := &secure{ca: newAuthority(t), certs: t.TempDir(), pool: x509.NewCertPool()}
	s.pool.AddCert(s.ca.cert)
	s.ca.write(s.file("server.pem"), s.file("server.key"), s.serverCert())
	if err := os.WriteFile(s.file("ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = free.Addr().String()
	free.Close()
	s.testDaemon = newDaemon(t, newFakeKernel(), fmt.Sprintf("api:\n  tcp:\n    listen: %s\n    certificate: %s\n    key: %s\n    client_ca: %s\n%s\n%s\n",
		s.address, s.file("server.pem"), s.file("server.key"), s.file("ca.pem"), settings, rest))
	return s
}

func (s *secure) file(name string) string { return filepath.Join(s.certs, name) }

func (s *secure) serverCert() *x509.Certificate {
	return &x509.Certificate{DNSNames: []string{"levee.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
}

// token makes a token.
func (s *secure) token(name string, r state.TokenRequest) string {
	s.Helper()
	r.Name = name
	t, err := s.AddToken(s.Context(), r)
	if err != nil {
		s.Fatal(err)
	}
	return t.Secret
}

// remote is a client of the TCP listener's.
func (s *secure) remote(c client.Config) *client.Client {
	c.URL, c.CA, c.Retries = "https://"+s.address, s.file("ca.pem"), -1
	out := client.New(c)
	s.Cleanup(out.Close)
	return out
}

// send sends a request to the TCP listener, and checks what every answer has.
func (s *secure) send(method, path, token, body string, header ...string) (*http.Response, string) {
	s.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequest(method, "https://"+s.address+path, strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		switch header[i] {
		case "Host":
			r.Host = header[i+1]
		case "Content-Type":
			r.Header.Set(header[i], header[i+1])
		default:
			r.Header.Add(header[i], header[i+1])
		}
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		s.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.Fatal(err)
	}
	s.decent(answer, string(text))
	return answer, string(text)
}

func (s *secure) decent(answer *http.Response, text string) {
	s.Helper()
	for _, name := range []string{"X-Content-Type-Options", "Cache-Control", "Content-Security-Policy", "Strict-Transport-Security", "Referrer-Policy"} {
		if answer.Header.Get(name) == "" {
			s.Errorf("%d lacks the header %s", answer.StatusCode, name)
		}
	}
	for name := range answer.Header {
		if strings.HasPrefix(name, "Access-Control") {
			s.Errorf("%d has the header %s", answer.StatusCode, name)
		}
	}
	if answer.StatusCode < 400 {
		return
	}
	var p struct {
		Type, Title, Detail, Code string
		Status                    int
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil || p.Status != answer.StatusCode || p.Type == "" || p.Title == "" || p.Detail == "" ||
		p.Code == "" && p.Status < 500 || answer.Header.Get("Content-Type") != "application/problem+json" {
		s.Errorf("%d is no problem document: %s", answer.StatusCode, text)
	}
	if strings.Contains(text, s.dir) || strings.Contains(text, "goroutine") {
		s.Errorf("the answer tells of the inside: %s", text)
	}
}

// want checks the status of an answer and a part of its text.
func (s *secure) expect(what string, answer *http.Response, text string, status int, part string) {
	s.Helper()
	if answer.StatusCode != status || !strings.Contains(text, part) {
		s.Errorf("%s: %d %.300s; want %d, %s", what, answer.StatusCode, text, status, part)
	}
}

// audited returns the audit log's records, after it was verified.
func (d *testDaemon) audited() (out []audit.Entry) {
	d.Helper()
	path := filepath.Join(d.dir, "audit.jsonl")
	if r, err := audit.Verify(path); err != nil || len(r.Problems) > 0 {
		d.Errorf("the audit log: %v, %v", r.Problems, err)
	}
	for e, err := range audit.Read(path) {
		if err != nil {
			d.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// Who has no right to a thing does not get it, nothing changes, and it is on record who tried.
func TestSecurityWho(t *testing.T) {
	s := newSecure(t, "", "allow: [192.0.2.10]")
	s.ban(state.BanItem{Prefix: "203.0.113.1", Origin: "operator"})
	day := "24h"
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	other := s.token("other", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	reader := s.token("reader", state.TokenRequest{Scopes: []state.Scope{state.ScopeRead}})
	limiter := s.token("limiter", state.TokenRequest{Scopes: []state.Scope{state.ScopeLimit}})
	few := s.token("few", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}, Bounds: &state.AskedBounds{Claims: new(1), Longest: new(state.Duration(0))}})
	revoked := s.token("revoked", state.TokenRequest{Scopes: []state.Scope{state.ScopeAdmin}})
	expired := s.token("expired", state.TokenRequest{Scopes: []state.Scope{state.ScopeAdmin}, For: "1s"})
	if err := s.RemoveToken(t.Context(), "revoked"); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool {
		r, _ := s.send("GET", "/v1/status", expired, "")
		return r.StatusCode == 401
	})
	answer, text := s.send("POST", "/v1/bans", other, `{"bans":[{"prefix":"203.0.113.2","for":"1h"}]}`)
	s.expect("a ban", answer, text, 200, `"origin":"api:other"`)
	answer, text = s.send("POST", "/v1/bans", few, `{"bans":[{"prefix":"203.0.113.3"},{"prefix":"203.0.113.4"}]}`)
	s.expect("too many claims", answer, text, 207, "would be one too many: 1 claims of api:few live")
	before := "203.0.113.1/32 203.0.113.2/32 203.0.113.3/32"
	s.want(before)
	one := `{"bans":[{"prefix":"203.0.113.9","for":"1h"}]}`
	for _, c := range []struct {
		what, token, method, path, body string
		status                          int
		want                            string
	}{
		{"no token", "", "POST", "/v1/bans", one, 401, "unauthorized"},
		{"no token, reading", "", "GET", "/v1/status", "", 401, "unauthorized"},
		{"no token, the document", "", "GET", "/openapi.json", "", 401, "unauthorized"},
		{"no token, health", "", "GET", "/healthz", "", 401, "unauthorized"},
		{"no token, nothing", "", "GET", "/nothing", "", 401, "unauthorized"},
		{"a wrong token", gateway[:len(gateway)-1] + "!", "POST", "/v1/bans", one, 401, "unauthorized"},
		{"another's secret", gateway[:22] + other[22:], "POST", "/v1/bans", one, 401, "unauthorized"},
		{"an expired token", expired, "POST", "/v1/bans", one, 401, "unauthorized"},
		{"a revoked token", revoked, "POST", "/v1/bans", one, 401, "unauthorized"},
		{"a huge token", strings.Repeat("x", 10_000), "POST", "/v1/bans", one, 401, "unauthorized"},
		{"reader bans", reader, "POST", "/v1/bans", one, 403, `"value":"ban"`},
		{"reader bans in bulk", reader, "POST", "/v1/bans/bulk", "203.0.113.9\n", 403, `"value":"ban"`},
		{"reader unbans", reader, "DELETE", "/v1/bans?prefix=203.0.113.1&all=true", "", 403, `"value":"ban"`},
		{"reader allows", reader, "POST", "/v1/allow", `{"allow":[{"prefix":"203.0.113.1"}]}`, 403, `"value":"admin"`},
		{"reader makes a token", reader, "POST", "/v1/tokens", `{"name":"mine","scopes":["admin"]}`, 403, `"value":"admin"`},
		{"reader sees tokens", reader, "GET", "/v1/tokens", "", 403, `"value":"admin"`},
		{"gateway reads", gateway, "GET", "/v1/bans", "", 403, `"value":"read"`},
		{"gateway reads the configuration", gateway, "GET", "/v1/config", "", 403, `"value":"read"`},
		{"gateway limits", gateway, "PUT", "/v1/limits/web", `{"services":["tcp/443"],"packets":"1/s"}`, 403, `"value":"limit"`},
		{"gateway panics", gateway, "PUT", "/v1/panic", `{"on":true}`, 403, `"value":"admin"`},
		{"gateway reloads", gateway, "POST", "/v1/config/reload", "", 403, `"value":"admin"`},
		{"gateway detaches", gateway, "DELETE", "/v1/interfaces/eth0", "", 403, `"value":"admin"`},
		{"gateway revokes", gateway, "DELETE", "/v1/tokens/other", "", 403, `"value":"admin"`},
		{"gateway rotates", gateway, "POST", "/v1/tokens/other/rotate", "{}", 403, `"value":"admin"`},
		{"limiter bans", limiter, "POST", "/v1/bans", one, 403, `"value":"ban"`},
		{"too wide", gateway, "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.0/24","for":"1h"}]}`, 207, "is wider than the /32"},
		{"too wide, IPv6", gateway, "POST", "/v1/bans", `{"bans":[{"prefix":"2001:db8::/48","for":"1h"}]}`, 207, "is wider than the /64"},
		{"everything, by force", gateway, "POST", "/v1/bans", `{"force":true,"bans":[{"prefix":"0.0.0.0/0","for":"1h"}]}`, 403, `"field":"force"`},
		{"too long", gateway, "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9","for":"25h"}]}`, 207, "is longer than the 1d"},
		{"until too late", gateway, "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9","expires":"` + time.Now().Add(25*time.Hour).UTC().Format(time.RFC3339) + `"}]}`, 207, "is longer than the 1d"},
		{"without an end", gateway, "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9"}]}`, 207, `is missing: you may ban for 1d`},
		{"as the operator", gateway, "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9","for":"` + day + `","origin":"operator"}]}`, 207, "is not yours"},
		{"in bulk too wide", gateway, "POST", "/v1/bans/bulk?for=1h", "203.0.113.0/24\n", 207, "is wider than the /32"},
		{"in bulk as the operator", gateway, "POST", "/v1/bans/bulk?for=1h&origin=operator", "203.0.113.9\n", 207, "is not yours"},
		{"a protected address", gateway, "POST", "/v1/bans", `{"bans":[{"prefix":"192.0.2.10","for":"1h"}]}`, 207, `"refused"`},
		{"another's claim", gateway, "DELETE", "/v1/bans?prefix=203.0.113.2&origin=api:other", "", 207, "is not yours"},
		{"the operator's claim", gateway, "DELETE", "/v1/bans?prefix=203.0.113.1&origin=operator", "", 207, "is not yours"},
		{"everybody's claim", gateway, "DELETE", "/v1/bans?prefix=203.0.113.1&all=true", "", 207, "is not for you"},
		{"what is not its own", gateway, "DELETE", "/v1/bans?prefix=203.0.113.2", "", 207, "not_found"},
		{"all of another's", gateway, "POST", "/v1/unban", `{"origin":"api:other"}`, 403, "is not yours"},
		{"another method", gateway, "PATCH", "/v1/bans", "", 405, "this path takes GET, POST, DELETE"},
	} {
		kind := "application/json"
		if strings.Contains(c.path, "bulk") {
			kind = "text/plain"
		}
		answer, text = s.send(c.method, c.path, c.token, c.body, "Content-Type", kind)
		s.expect(c.what, answer, text, c.status, c.want)
		if answer.StatusCode == 401 && answer.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", c.what)
		}
	}
	s.want(before)
	if len(s.kernel.limits) != 2 || s.kernel.panic.Load() || len(s.state(t).Tokens) != 6 {
		t.Error("something changed")
	}
	// Both secrets and headers beside it: the first alone does not count.
	answer, text = s.send("GET", "/v1/status", reader, "", "Authorization", "Bearer "+gateway)
	s.expect("two tokens", answer, text, 401, "unauthorized")
	answer, text = s.send("GET", "/v1/status", "", "", "Authorization", "Basic cm9vdDo=")
	s.expect("a password", answer, text, 401, "unauthorized")

	seen := map[string]bool{}
	for _, e := range s.audited() {
		_, reason, _ := strings.Cut(e.Event.Reason, ": ")
		seen[e.Event.Action+" "+e.Event.Outcome+" "+e.Event.Reason] = true
		seen[e.Event.Action+" "+e.Event.Outcome+" "+reason] = true
		if e.Levee.Bans != nil {
			for _, b := range e.Levee.Bans {
				seen[b.Error] = true
			}
		}
	}
	for _, want := range []string{
		"authenticate failure there is neither a token nor a certificate", "authenticate failure it has expired", "authenticate failure there is no such token, or it was revoked",
		"authenticate failure the secret is wrong, or was replaced", "ban failure scope: this takes the scope ban, which you do not have",
		"is wider than the /32 that you may ban", "is not yours: you may speak for api:gateway", "add-token success ",
	} {
		if !seen[want] {
			t.Errorf("the audit log lacks %q", want)
		}
	}
	for _, secret := range []string{gateway, other, reader, limiter, few, revoked, expired} {
		log, err := os.ReadFile(filepath.Join(s.dir, "audit.jsonl"))
		if err != nil || bytes.Contains(log, []byte(secret[22:])) || strings.Contains(s.log.String(), secret[22:]) {
			t.Error("a token's secret is in a log")
		}
	}
}

func (s *secure) state(t *testing.T) state.TokenList {
	t.Helper()
	l, err := s.Tokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// until waits for something to come true.
func until(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come true")
		}
	}
}

// What no honest client sends is refused, and nothing changes.
func TestSecurityRequests(t *testing.T) {
	s := newSecure(t, "    hosts: [Levee.Example.]", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan, state.ScopeRead, state.ScopeLimit}})
	one := `{"bans":[{"prefix":"203.0.113.9","for":"1h"}]}`
	for _, c := range []struct {
		what, method, path, body string
		status                   int
		want                     string
		header                   []string
	}{
		{"another host", "POST", "/v1/bans", one, 421, "host", []string{"Host", "evil.example"}},
		{"another host with our port", "POST", "/v1/bans", one, 421, "host", []string{"Host", "evil.example:9465"}},
		{"another address", "POST", "/v1/bans", one, 421, "host", []string{"Host", "192.0.2.1"}},
		{"localhost", "POST", "/v1/bans", one, 421, "host", []string{"Host", "localhost"}},
		{"our name", "GET", "/v1/limits", "", 200, "", []string{"Host", "LEVEE.test:9465"}},
		{"our other name", "GET", "/v1/limits", "", 200, "", []string{"Host", "levee.example"}},
		{"a page", "POST", "/v1/bans", one, 403, "origin", []string{"Origin", "https://evil.example"}},
		{"no page", "POST", "/v1/bans", one, 403, "origin", []string{"Origin", "null"}},
		{"a page over http", "POST", "/v1/bans", one, 403, "origin", []string{"Origin", "http://" + s.address}},
		{"a page, it says", "POST", "/v1/bans", one, 403, "sec-fetch-site", []string{"Sec-Fetch-Site", "cross-site"}},
		{"a page asks first", "OPTIONS", "/v1/bans", "", 403, "origin", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST"}},
		{"our own page", "GET", "/v1/limits", "", 200, "", []string{"Origin", "https://" + s.address}},
		{"dots", "GET", "/v1/../v1/bans", "", 400, "path", nil},
		{"dots in disguise", "GET", "/v1/%2e%2e/v1/bans", "", 400, "path", nil},
		{"two slashes", "GET", "//v1/bans", "", 400, "path", nil},
		{"a slash too many", "GET", "/v1/bans/", "", 400, "path", nil},
		{"a slash in disguise", "GET", "/v1%2fbans", "", 400, "path", nil},
		{"a slash in a name", "DELETE", "/v1/limits/..%2f..%2fbans", "", 400, "path", nil},
		{"a backslash", "GET", "/v1%5cbans", "", 400, "path", nil},
		{"a zero", "GET", "/v1/bans%00", "", 400, "path", nil},
		{"a line's end", "GET", "/v1/bans%0d%0aX:%20y", "", 400, "path", nil},
		{"another case", "GET", "/V1/bans", "", 404, "not_found", nil},
		{"a query that is not known", "GET", "/v1/bans?prefixx=1", "", 422, "prefixx", nil},
		{"an empty body", "POST", "/v1/bans", "", 400, "", nil},
		{"another kind", "POST", "/v1/bans", "prefix=203.0.113.9", 415, "", []string{"Content-Type", "application/x-www-form-urlencoded"}},
		{"no JSON", "POST", "/v1/bans", "{", 400, "", nil},
		{"deep JSON", "POST", "/v1/bans", `{"bans":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}", 400, "nested deeper", nil},
		{"doubled names", "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9","prefix":"203.0.113.8"}]}`, 400, "stands twice", nil},
		{"doubled names, written otherwise", "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9","pref\u0069x":"203.0.113.8"}]}`, 400, "stands twice", nil},
		{"doubled names in another case", "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9","Prefix":"203.0.113.8"}]}`, 400, "stands twice", nil},
		{"doubled names in an odd case", "POST", "/v1/bans", `{"bans":[{"monitor":true,"reason":"a","rea\u017fon":"b","prefix":"203.0.113.9"}]}`, 400, "stands twice", nil},
		{"unknown names", "POST", "/v1/bans", `{"bans":[{"prefix":"203.0.113.9","admin":true}]}`, 422, "admin", nil},
		{"bad UTF-8", "POST", "/v1/bans", "{\"bans\":[{\"prefix\":\"203.0.113.9\",\"reason\":\"\xff\"}]}", 400, "UTF-8", nil},
		{"two documents", "POST", "/v1/bans", one + one, 400, "", nil},
		{"too many values", "POST", "/v1/bans", `{"bans":[` + strings.Repeat("0,", 200_000) + "0]}", 400, "more than", nil},
		{"too many items", "POST", "/v1/bans", `{"bans":[` + strings.Repeat(`{"prefix":"1.2.3.4"},`, 10_001) + `{"prefix":"1.2.3.4"}]}`, 422, "", nil},
		{"a body of 9 MB", "POST", "/v1/bans", strings.Repeat(" ", 9<<20), 413, "", nil},
		{"a line of 1 MB", "POST", "/v1/bans/bulk", strings.Repeat("1", 1<<20), 207, "longer than", []string{"Content-Type", "text/plain"}},
		{"a bad key", "POST", "/v1/bans", one, 400, "Idempotency-Key", []string{"Idempotency-Key", strings.Repeat("k", 200)}},
		{"two keys", "POST", "/v1/bans", one, 400, "Idempotency-Key", []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}},
	} {
		answer, text := s.send(c.method, c.path, gateway, c.body, c.header...)
		s.expect(c.what, answer, text, c.status, c.want)
	}
	s.want("")

	// What HTTP's library does not let a client say.
	for _, c := range []struct {
		what, raw string
		status    int
	}{
		{"an absolute path", "GET https://evil.example/v1/bans HTTP/1.1\r\nHost: levee.test\r\n", 421},
		{"a star", "OPTIONS * HTTP/1.1\r\nHost: levee.test\r\n", 400},
		{"no host", "GET /v1/bans HTTP/1.1\r\n", 400},
		{"two hosts", "GET /v1/bans HTTP/1.1\r\nHost: levee.test\r\nHost: evil.example\r\n", 400},
		{"two lengths", "POST /v1/bans HTTP/1.1\r\nHost: levee.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400},
		{"large headers", "GET /v1/bans HTTP/1.1\r\nHost: levee.test\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n", 431},
		{"HTTP/1.0", "POST /v1/bans HTTP/1.0\r\nContent-Length: 0\r\n", 421},
	} {
		conn, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: s.pool, ServerName: "levee.test"})
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "%sAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", c.raw, gateway)
		text, _ := io.ReadAll(conn)
		conn.Close()
		if _, rest, _ := strings.Cut(string(text), " "); !strings.HasPrefix(rest, strconv.Itoa(c.status)) {
			t.Errorf("%s: %.200q, want %d", c.what, text, c.status)
		}
	}
	s.want("")
	s.audited()
}

// A body of a gigabyte costs neither the time nor the memory to read it.
func TestSecurityHugeBody(t *testing.T) {
	s := newSecure(t, "", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	for _, length := range []int64{1 << 30, -1} {
		read := &countedBody{Reader: io.LimitReader(blanks{}, 1<<30)}
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}}
		r, err := http.NewRequest("POST", "https://"+s.address+"/v1/bans", read)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+gateway)
		answer, err := transport.RoundTrip(r)
		if err == nil { // or the connection was closed while we were still sending
			text, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			s.expect("1 GiB", answer, string(text), 413, "")
		}
		transport.CloseIdleConnections()
		if n := read.count(); n > 64<<20 {
			t.Errorf("%d bytes were taken", n)
		}
	}
	s.want("")
}

type blanks struct{}

func (blanks) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

type countedBody struct {
	io.Reader
	mu sync.Mutex
	n  int64
}

func (c *countedBody) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += int64(n)
	return n, err
}

func (c *countedBody) count() int64 { c.mu.Lock(); defer c.mu.Unlock(); return c.n }

// TLS 1.3 alone, and certificates are who they say.
func TestSecurityTLS(t *testing.T) {
	s := newSecure(t, `    clients:
      - {name: gateway.test, owner: gateway, scopes: [ban, read]}
      - {name: old.test, scopes: [read]}
`, "")
	for _, c := range []struct {
		name string
		tls  *tls.Config
	}{
		{"TLS 1.2", &tls.Config{RootCAs: s.pool, MaxVersion: tls.VersionTLS12}},
	} {
		if conn, err := tls.Dial("tcp", s.address, c.tls); err == nil {
			conn.Close()
			t.Errorf("%s is taken", c.name)
		}
	}
	plain, err := http.Get("http://" + s.address + "/v1/status")
	if err == nil {
		plain.Body.Close()
		if plain.StatusCode != 400 {
			t.Errorf("without TLS: %d", plain.StatusCode)
		}
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	stranger := newAuthority(t)
	for _, c := range []struct {
		name string
		by   *authority
		cert *x509.Certificate
		want string // of the error; empty: it works
	}{
		{"known", s.ca, &x509.Certificate{DNSNames: []string{"gateway.test"}, ExtKeyUsage: usage}, ""},
		{"by common name", s.ca, &x509.Certificate{Subject: pkix.Name{CommonName: "gateway.test"}, ExtKeyUsage: usage}, ""},
		{"the common name does not count", s.ca, &x509.Certificate{Subject: pkix.Name{CommonName: "gateway.test"}, DNSNames: []string{"x.test"}, ExtKeyUsage: usage}, "token or a client certificate"},
		{"not named", s.ca, &x509.Certificate{DNSNames: []string{"evil.test"}, ExtKeyUsage: usage}, "token or a client certificate"},
		{"no wildcards", s.ca, &x509.Certificate{DNSNames: []string{"*.test"}, ExtKeyUsage: usage}, "token or a client certificate"},
		{"a stranger's", stranger, &x509.Certificate{DNSNames: []string{"gateway.test"}, ExtKeyUsage: usage}, "can't be reached"},
		{"expired", s.ca, &x509.Certificate{DNSNames: []string{"gateway.test"}, ExtKeyUsage: usage, NotAfter: time.Now().Add(-time.Minute)}, "can't be reached"},
		{"a server's", s.ca, &x509.Certificate{DNSNames: []string{"gateway.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "can't be reached"},
		{"too small a scope", s.ca, &x509.Certificate{DNSNames: []string{"old.test"}, ExtKeyUsage: usage}, "takes the scope ban"},
	} {
		c.by.write(s.file("c.pem"), s.file("c.key"), c.cert)
		remote := s.remote(client.Config{Certificate: s.file("c.pem"), Key: s.file("c.key")})
		r, err := remote.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "203.0.113.7", For: "1h"}}})
		switch {
		case c.want == "" && (err != nil || r.Done != 1 || r.Bans[0].Origin != "api:gateway" || r.Bans[0].Actor != "certificate:gateway"):
			t.Errorf("%s: %+v, %v", c.name, r, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if r, err := remote.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "203.0.113.0/24", For: "1h"}}}); err == nil && r.Done > 0 {
			t.Errorf("%s: no bounds", c.name)
		}
	}
	s.want("203.0.113.7/32")

	// A certificate that is renewed is shown without a restart, and one that can't be read is not.
	serial := func() string {
		conn, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: s.pool, ServerName: "levee.test"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	if err := os.WriteFile(s.file("server.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { serial(); return strings.Contains(s.log.String(), "those before stand") })
	if serial() != before {
		t.Error("nonsense was taken")
	}
	s.ca.write(s.file("server.pem"), s.file("server.key"), s.serverCert())
	until(t, func() bool { return serial() != before })
}

// A certificate is no longer taken once those it goes back to are withdrawn, on open connections neither.
func TestSecurityWithdrawn(t *testing.T) {
	s := newSecure(t, "    clients: [{name: gateway.test, owner: gateway, scopes: [ban, read]}]", "")
	s.ca.write(s.file("c.pem"), s.file("c.key"), &x509.Certificate{DNSNames: []string{"gateway.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	pair, err := tls.LoadX509KeyPair(s.file("c.pem"), s.file("c.key"))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool, Certificates: []tls.Certificate{pair}}, MaxConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	var reused bool
	ask := func() int {
		r, _ := http.NewRequest("GET", "https://"+s.address+"/v1/panic", nil)
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
		answer, err := transport.RoundTrip(r.WithContext(httptrace.WithClientTrace(t.Context(), trace)))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		_, _ = io.Copy(io.Discard, answer.Body)
		return answer.StatusCode
	}
	for range 2 {
		if code := ask(); code != 200 {
			t.Fatalf("before: %d", code)
		}
	}
	other := newAuthority(t)
	if err := os.WriteFile(s.file("ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { // new connections find the file
		c, err := tls.Dial("tcp", s.address, transport.TLSClientConfig)
		if err != nil {
			return true
		}
		defer c.Close()
		// In TLS 1.3 the server looks at a certificate after the client's handshake is over.
		_, _ = io.WriteString(c, "GET /v1/panic HTTP/1.1\r\nHost: "+s.address+"\r\nConnection: close\r\n\r\n")
		_, err = c.Read(make([]byte, 1))
		return err != nil
	})
	if code := ask(); code != 401 {
		t.Errorf("after: %d", code)
	}
	if !reused {
		t.Error("it was another connection")
	}
}

// A request that is made again is not done again, whoever else has the same key.
func TestSecurityReplay(t *testing.T) {
	s := newSecure(t, "", "")
	gateway := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	other := s.token("other", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	one, two := `{"bans":[{"prefix":"203.0.113.1","for":"1h"}]}`, `{"bans":[{"prefix":"203.0.113.2","for":"1h"}]}`
	first, text := s.send("POST", "/v1/bans", gateway, one, "Idempotency-Key", "k1")
	s.expect("first", first, text, 200, `"added"`)
	if _, err := s.Unban(t.Context(), state.UnbanRequest{Prefixes: []string{"203.0.113.1"}, Origin: "api:gateway"}); err != nil {
		t.Fatal(err)
	}
	again, same := s.send("POST", "/v1/bans", gateway, one, "Idempotency-Key", "k1")
	if again.StatusCode != 200 || same != text || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("again: %d %s", again.StatusCode, same)
	}
	s.want("")
	again, text = s.send("POST", "/v1/bans", gateway, two, "Idempotency-Key", "k1")
	s.expect("another request", again, text, 422, "another request")
	again, text = s.send("POST", "/v1/unban", gateway, one, "Idempotency-Key", "k1")
	s.expect("another path", again, text, 422, "another request")
	s.want("")
	again, text = s.send("POST", "/v1/bans", other, two, "Idempotency-Key", "k1")
	s.expect("another actor", again, text, 200, `"api:other"`)
	s.want("203.0.113.2/32")
	again, text = s.send("POST", "/v1/bans", gateway, `{"bans":[{"prefix":"203.0.113.3"}]}`, "Idempotency-Key", "k2")
	s.expect("all refused", again, text, 207, `"refused"`)
	again, text = s.send("POST", "/v1/bans", gateway, `{"bans":[{}]}`, "Idempotency-Key", "k3")
	s.expect("bad", again, text, 422, "")
	again, text = s.send("POST", "/v1/bans", gateway, one, "Idempotency-Key", "k3")
	s.expect("a key whose request came to nothing", again, text, 200, `"added"`)
	// Revoked, its answers are nobody's.
	if err := s.RemoveToken(t.Context(), "gateway"); err != nil {
		t.Fatal(err)
	}
	again, text = s.send("POST", "/v1/bans", gateway, one, "Idempotency-Key", "k1")
	s.expect("after it was revoked", again, text, 401, "")
}

// The listener's port has a limit of its own, unless somebody has one for it.
func TestSecurityLimit(t *testing.T) {
	s := newSecure(t, "", "")
	_, port, _ := net.SplitHostPort(s.address)
	l, err := s.Limit(t.Context(), config.BuiltInLimit)
	if err != nil || len(l.Services) != 1 || l.Services[0].String() != "tcp/"+port || l.SYN == nil || l.Packets == nil || len(s.kernel.limits) != 2 {
		t.Fatalf("%+v, %v", l, err)
	}
	spec := l.LimitSpec
	spec.SYN = nil
	if _, err := s.SetLimit(t.Context(), config.BuiltInLimit, spec); err != nil {
		t.Error(err)
	}
	s.restart()
	if l, err := s.Limit(t.Context(), config.BuiltInLimit); err != nil || l.SYN != nil {
		t.Errorf("%+v, %v", l, err)
	}
	if err := s.RemoveLimit(t.Context(), config.BuiltInLimit); err != nil {
		t.Error(err)
	}
	s.text += "limits:\n  mine: {services: [tcp/" + port + "], packets: 1k/s}\n"
	s.restart()
	if l, err := s.Limit(t.Context(), config.BuiltInLimit); err == nil {
		t.Errorf("%+v", l)
	}
	s.text = strings.Replace(s.text, "tcp/"+port, "tcp/1", 1)
	if s.restart(); len(s.kernel.limits) != 3 {
		t.Error("there is no limit")
	}
	s.text = strings.Replace(s.text, "  tcp:\n", "  tcp:\n    limit: false\n", 1)
	if s.restart(); len(s.kernel.limits) != 2 {
		t.Error("there is a limit")
	}
}

// While changes can't be recorded they go on, or are refused, as the configuration says; the panic
// switch works.
func TestSecurityAuditFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	for _, refuse := range []bool{false, true} {
		dir := t.TempDir()
		if err := unix.Mount("levee-test", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, 0) })
		mode := map[bool]string{false: "continue", true: "refuse"}[refuse]
		d := newDaemon(t, newFakeKernel(), fmt.Sprintf("audit: {path: %s/audit.jsonl, on_full: %s}", dir, mode))
		var failed error
		for i := 0; i < 200 && failed == nil; i++ {
			_, failed = d.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: fmt.Sprintf("203.0.113.%d", i), Reason: strings.Repeat("x", 256)}}})
		}
		if (failed != nil) != refuse || refuse && !strings.Contains(failed.Error(), "can't be recorded") {
			t.Errorf("%s: %v", mode, failed)
		}
		if s, err := d.Status(t.Context(), 0); err != nil || s.Health.State != "degraded" || !strings.Contains(strings.Join(s.Health.Problems, " "), "audit log") {
			t.Errorf("%s: %+v, %v", mode, s.Health, err)
		}
		if _, err := d.SetPanic(t.Context(), true); err != nil {
			t.Error(err)
		}
		if err := unix.Mount("levee-test", dir, "tmpfs", unix.MS_REMOUNT, "size=4m"); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "198.51.100.1"}}}); err != nil {
			t.Errorf("%s: with room again: %v", mode, err)
		}
		if s, err := d.Status(context.Background(), 0); err != nil || s.Health.State != "ok" {
			t.Errorf("%s: with room again: %+v, %v", mode, s.Health, err)
		}
		if r, err := audit.Verify(filepath.Join(dir, "audit.jsonl")); err != nil || len(r.Problems) > 0 {
			t.Errorf("%s: %v, %v", mode, r.Problems, err)
		}
		d.end()
	}
}

// Whoever is refused many bans writes little into the audit log, whatever he gives as prefixes and reasons:
// how many there were, and the first of them.
func TestSecurityRefusedBatch(t *testing.T) {
	s := newSecure(t, "", "")
	token := s.token("gateway", state.TokenRequest{Scopes: []state.Scope{state.ScopeBan}})
	const many = 200
	var items []string
	for i := range many {
		items = append(items, fmt.Sprintf(`{"prefix":"127.0.0.%d","for":"%dm","reason":"%s%d"}`, i, i+1, strings.Repeat("x", 200), i))
	}
	done := `{"prefix":"203.0.113.9","for":"1h","reason":"it is done"}`
	answer, text := s.send("POST", "/v1/bans/bulk", token, strings.Join(append(items, done), "\n"), "Content-Type", "application/x-ndjson")
	s.expect("a bulk", answer, text, 207, `"refused":200`)
	answer, text = s.send("POST", "/v1/bans", token, `{"force":true,"bans":[`+strings.Join(items, ",")+`]}`)
	s.expect("a batch", answer, text, 403, `"field":"force"`)
	told, reasons := 0, ""
	for _, e := range s.audited() {
		for _, b := range e.Levee.Bans {
			told++
			if reasons += b.Reason; b.Status == state.StatusRefused && (len(b.Prefixes) != namedRefusals || b.Prefixes[0] != "127.0.0.0" || b.Others != many-namedRefusals) {
				t.Errorf("%d of %d refused prefixes are named, %d not: %+v", len(b.Prefixes), many, b.Others, b)
			}
		}
	}
	if told != 3 || reasons != "it is done" {
		t.Errorf("%d groups of prefixes, with the reasons %.300q", told, reasons)
	}

	// Of which each speaks for somebody else.
	items = items[:0]
	for i := range many {
		items = append(items, fmt.Sprintf(`{"prefix":"203.0.113.%d","origin":"feed:%s%d"}`, i, strings.Repeat("y", 20), i))
	}
	answer, text = s.send("POST", "/v1/bans/bulk", token, strings.Join(items, "\n"), "Content-Type", "application/x-ndjson")
	s.expect("a bulk of others' origins", answer, text, 207, `"refused":200`)
	refused := 0
	for _, e := range s.audited() {
		if e.Levee.Target != "bulk" || e.Levee.Bans[0].Code != state.CodeForbidden {
			continue
		}
		for _, b := range e.Levee.Bans {
			refused += len(b.Prefixes) + b.Others
		}
		if n := len(e.Levee.Bans); n != namedRefusals+1 {
			t.Errorf("%d groups of prefixes", n)
		}
		if !strings.Contains(e.Message, "200 prefixes") {
			t.Errorf("it says %q", e.Message)
		}
	}
	if refused != many {
		t.Errorf("%d of %d refused lines are on record", refused, many)
	}
}

// A change that Levee takes back itself is on record, as are the one before and one that is confirmed.
func TestSecurityTrials(t *testing.T) {
	s := newSecure(t, "", "")
	for i, prefix := range []string{"203.0.113.1", "203.0.113.2"} {
		if _, err := s.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: prefix}}, Confirm: state.Duration([]time.Duration{time.Minute, time.Second}[i])}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := s.Confirm(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	until(t, func() bool { return s.kernel.show() == "203.0.113.1/32" })
	var actions []string
	until(t, func() bool {
		actions = nil
		for _, e := range s.audited() {
			actions = append(actions, e.Event.Action)
		}
		return len(actions) == 4
	})
	if got := strings.Join(actions, " "); got != "ban confirm ban take-back" {
		t.Error(got)
	}
}

// Force takes the scope admin or a token that says so; no other bound, however wide, includes it.
func TestSecurityForce(t *testing.T) {
	s := newSecure(t, "", "")
	ban := []state.Scope{state.ScopeBan}
	all := &state.AskedBounds{IPv4: new(0), IPv6: new(0), Longest: new(state.Duration(0)), Claims: new(0), Origins: []state.Origin{}}
	forced := *all
	forced.Force = new(true)
	for name, tt := range map[string]struct {
		r   state.TokenRequest
		may bool
	}{
		"plain":  {state.TokenRequest{Scopes: ban}, false},
		"wide":   {state.TokenRequest{Scopes: ban, Bounds: all}, false},
		"forced": {state.TokenRequest{Scopes: ban, Bounds: &forced}, true},
		"admin":  {state.TokenRequest{Scopes: []state.Scope{state.ScopeAdmin}}, true},
	} {
		secret := s.token(name, tt.r)
		for path, body := range map[string]string{"/v1/bans": `{"force": true, "bans": [{"prefix": "64.0.0.0/7"}]}`, "/v1/bans/bulk?force=true": "64.0.0.0/7", "/v1/bans/bulk?force=true&whole=true": "64.0.0.0/7"} {
			before := s.kernel.show()
			answer, text := s.send(http.MethodPost, path, secret, body, "Content-Type", map[bool]string{true: "text/plain", false: "application/json"}[strings.Contains(path, "bulk")])
			if tt.may {
				s.expect(name+path, answer, text, 200, "")
				if s.kernel.show() != "64.0.0.0/7" {
					t.Errorf("%s: %s", name, s.kernel.show())
				}
				if _, err := s.Unban(t.Context(), state.UnbanRequest{Prefixes: []string{"64.0.0.0/7"}, All: true}); err != nil {
					t.Fatal(err)
				}
				continue
			}
			s.expect(name+path, answer, text, 403, `"field":"force"`)
			if s.kernel.show() != before {
				t.Errorf("%s: %s", name, s.kernel.show())
			}
		}
	}
}

// What is refused before the daemon has decided anything is recorded as well.
func TestSecurityRefusedEarly(t *testing.T) {
	s := newSecure(t, "", "")
	admin := s.token("boss", state.TokenRequest{Scopes: []state.Scope{state.ScopeAdmin}})
	for action, r := range map[string][3]string{
		"set-limit": {"PUT", "/v1/limits/web?confirm=soon", `{"services":["tcp/443"],"packets":"20k/s"}`},
		"reload":    {"POST", "/v1/config/reload?confirm=soon", ""},
		"ban-bulk":  {"POST", "/v1/bans/bulk", "{}"}, // of no type that it takes
	} {
		answer, text := s.send(r[0], r[1], admin, r[2])
		s.expect(action, answer, text, map[bool]int{true: 415, false: 422}[action == "ban-bulk"], "")
		n := 0
		for _, e := range s.audited() {
			if e.Event.Action == action && e.Refused() && e.User != nil && e.User.Name == "boss" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s: %d refusals are recorded, want 1", action, n)
		}
	}
}

// What is left of a body that is too large is never taken for requests.
func TestSecurityLeftOfBody(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), "")
	hidden := "PUT /v1/panic HTTP/1.1\r\nHost: levee\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"on\":true}"
	for _, header := range []string{"", "Idempotency-Key: a\r\n"} {
		for _, path := range []string{"/v1/bans", "/v1/bans/bulk", "/v1/status", "/v1/nothing"} {
			conn, err := net.Dial("unix", filepath.Join(d.dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			body := strings.Repeat("\r\n", 4<<20) // as far as it is read
			body += strings.Repeat(hidden, 1<<20/len(hidden))
			go func() { // it is cut off
				_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: levee\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", path, header, len(body), body)
			}()
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			answers, _ := io.ReadAll(conn) // it may be reset
			conn.Close()
			if n := strings.Count(string(answers), "HTTP/1.1 "); n > 1 {
				t.Errorf("%s %s: %d answers to one request: %.300q", path, header, n, answers)
			}
		}
	}
	if on, err := d.Panic(t.Context()); err != nil || on.On {
		t.Errorf("the panic switch is on: %t, %v", on.On, err)
	}
}
