package docs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// apiHost is a daemon that serves its API on a socket and on TCP, and what a page's examples expect
// to find beside it.
type apiHost struct {
	*testing.T
	dir, socket, port string
	env               []string
}

func newAPIHost(t *testing.T) *apiHost {
	t.Helper()
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "levee-api") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	h := &apiHost{T: t, dir: dir, socket: filepath.Join(dir, "levee.sock"), port: freePort(t)}
	bpffs := fmt.Sprintf("/sys/fs/bpf/levee-api-%d", os.Getpid())
	t.Cleanup(func() {
		os.RemoveAll(dir)
		os.RemoveAll(bpffs)
	})
	h.certificates()
	h.write("levee.yaml", fmt.Appendf(nil, `
bpffs: %[1]s
lock: %[2]s/lock
api: {socket: %[2]s/levee.sock, tcp: {listen: "127.0.0.1:%[3]s", certificate: %[2]s/server.pem, key: %[2]s/server.key}}
metrics: {listen: "off"}
state: {path: %[2]s/state.db}
tables: {ipv4_bans: 4096, ipv6_bans: 4096, sources: 4096}
`, bpffs, dir, h.port))
	// The page's host is this one.
	h.write(".curlrc", []byte("resolve = \"levee.example.net:9465:127.0.0.1\"\nconnect-to = \"levee.example.net:9465:127.0.0.1:"+h.port+"\"\nfail-with-body\nmax-time = 20\n"))
	h.env = append(os.Environ(), "LEVEE_SOCKET="+h.socket, "LEVEE_CONFIG="+filepath.Join(dir, "levee.yaml"), "NO_COLOR=1",
		"CURL_HOME="+dir, "PATH="+dir+":"+os.Getenv("PATH"))
	h.build("levee", "./cmd/levee")
	stop := runDaemon(t, filepath.Join(dir, "levee"), filepath.Join(dir, "levee.yaml"), h.env)
	t.Cleanup(stop)
	return h
}

func (h *apiHost) write(name string, text []byte) {
	h.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), text, 0o600); err != nil {
		h.Fatal(err)
	}
}

func (h *apiHost) build(name, what string) {
	h.Helper()
	build := exec.Command("go", "build", "-o", filepath.Join(h.dir, name), what)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		h.Fatalf("build %s: %v\n%s", what, err, out)
	}
}

// certificates makes ca.pem, server.pem and server.key.
func (h *apiHost) certificates() {
	h.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "levee.example.net"}, DNSNames: []string{"levee.example.net"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	cert, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		h.Fatal(err)
	}
	h.write("server.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	h.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	h.write("server.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// run runs a line of a page.
func (h *apiHost) run(command string) (string, int) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -o pipefail; "+strings.ReplaceAll(command, "/run/levee/levee.sock", h.socket))
	cmd.Dir, cmd.Env = h.dir, h.env
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		h.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// examples are the commands of a page's ```sh blocks, those that go over several lines as one.
func examples(t *testing.T, page string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	inside, open := false, false
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", "\\ ")) {
		line = strings.TrimSpace(line)
		if fence, ok := strings.CutPrefix(line, "```"); ok {
			open = !open
			inside = open && fence == "sh"
			continue
		}
		if inside && line != "" {
			out = append(out, strings.ReplaceAll(line, "\\ ", " "))
		}
	}
	return out
}

// The examples of the API's page are run, in order, against a real daemon.
func TestAPI(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("LEVEE_SETUP") != "" {
			t.Fatalf("scripts/setup has run, and curl is not installed: %v", err)
		}
		t.Skip("curl is not installed: scripts/setup does that")
	}
	h := newAPIHost(t)
	n := 0
	for _, command := range examples(t, filepath.Join(root, "docs", "api.md")) {
		out, code := h.run(command)
		stream := strings.Contains(command, "/v1/events")
		if n++; code != 0 && (!stream || code != 28) { // 28: the time was over
			t.Errorf("`%s`: exit code %d:\n%s", command, code, out)
		}
		if stream && !strings.Contains(out, "retry: ") {
			t.Errorf("`%s`: no stream:\n%s", command, out)
		}
	}
	if n < 20 {
		t.Errorf("only %d examples found: are the page's blocks still marked ```sh?", n)
	}
}

// The examples of the audit log's page are run on the log of a daemon that has granted and refused.
func TestAudit(t *testing.T) {
	h := newAPIHost(t)
	path := filepath.Join(h.dir, "audit.jsonl")
	for _, command := range []string{"levee ban 203.0.113.7 --for 1h", "levee unban 203.0.113.7", "levee token add gateway --scope read -q"} {
		if out, code := h.run(command); code != 0 {
			t.Fatalf("`%s`: exit code %d:\n%s", command, code, out)
		}
	}
	if out, code := h.run("levee ban 127.0.0.1"); code != 4 {
		t.Fatalf("a ban of this host: exit code %d:\n%s", code, out)
	}
	hash := regexp.MustCompile("[0-9a-f]{64}")
	kept := ""
	n := 0
	for _, command := range examples(t, filepath.Join(root, "docs", "audit.md")) {
		command = hash.ReplaceAllString(command, kept) // which an earlier example has printed
		out, code := h.run(command)
		if n++; code != 0 {
			t.Errorf("`%s`: exit code %d:\n%s", command, code, out)
		}
		switch {
		case strings.Contains(command, "verify"):
			if kept = hash.FindString(out); kept == "" {
				t.Errorf("`%s` printed no hash:\n%s", command, out)
			}
		case strings.Contains(command, "--refused"):
			if !strings.Contains(out, "127.0.0.1") || strings.Contains(out, "gateway") {
				t.Errorf("`%s`:\n%s", command, out)
			}
		default:
			if !strings.Contains(out, "203.0.113.7") || !strings.Contains(out, "gateway") {
				t.Errorf("`%s`:\n%s", command, out)
			}
		}
	}
	if n < 4 {
		t.Errorf("only %d examples found: are the page's blocks still marked ```sh?", n)
	}
	if out, code := h.run("levee audit verify --hash " + strings.Repeat("0", 64)); code != 1 {
		t.Errorf("a hash that is not in the log: exit code %d:\n%s", code, out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h.write("audit.jsonl", bytes.Replace(text, []byte("203.0.113.7"), []byte("203.0.113.8"), 1))
	if out, code := h.run("levee audit verify"); code != 1 || !strings.Contains(out, "audit.jsonl:") {
		t.Errorf("a record was changed: exit code %d:\n%s", code, out)
	}
}

// The example programs do what they are for.
func TestExamples(t *testing.T) {
	h := newAPIHost(t)
	h.build("push", "./scripts/examples/push")
	h.build("guarded", "./scripts/examples/guarded")
	out, code := h.run("printf '%s\\n' 203.0.113.9 nonsense | push -socket /run/levee/levee.sock -for 5m")
	if code != 0 || !strings.Contains(out, "203.0.113.9/32: added\nnonsense: refused: is neither") || !strings.Contains(out, "1 claims live") {
		t.Errorf("push: exit code %d:\n%s", code, out)
	}
	if out, code := h.run("levee bans"); code != 0 || !strings.Contains(out, "pushed") {
		t.Errorf("levee bans: exit code %d:\n%s", code, out)
	}
	if out, code := h.run("push -socket /nonexistent < /dev/null"); code != 1 || !strings.Contains(out, "can't be reached") {
		t.Errorf("push without a daemon: exit code %d:\n%s", code, out)
	}

	cmd := exec.Command(filepath.Join(h.dir, "guarded"), "-listen", "127.0.0.1:0", "-socket", h.socket)
	var said bytes.Buffer
	cmd.Stderr = &said
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("guarded: %v\n%s", err, said.String())
	}
	base := "http://" + strings.TrimSpace(strings.TrimPrefix(line, "serving at "))
	login := func(password string) *http.Response {
		t.Helper()
		r, err := http.PostForm(base+"/login", url.Values{"password": {password}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		_, _ = io.Copy(io.Discard, r.Body)
		return r
	}
	if r := login("correct horse battery staple"); r.StatusCode != 200 || r.Header.Get("RateLimit") != `"address";r=58;t=1` {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	for range 5 {
		if r := login("guess"); r.StatusCode != http.StatusUnauthorized {
			t.Errorf("%d", r.StatusCode)
		}
	}
	if r := login("correct horse battery staple"); r.StatusCode != http.StatusTooManyRequests || r.Header.Get("Retry-After") == "" {
		t.Errorf("after five guesses: %d %v", r.StatusCode, r.Header)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("guarded did not end cleanly: %v\n%s", err, said.String())
	}
}
