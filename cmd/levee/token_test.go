package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/audit"
	"github.com/levee-xdp/levee/agent/state"
)

func TestTokenCommands(t *testing.T) {
	gateway := state.Token{ID: "0123456789abcdef", Name: "gateway", Owner: "root", Scopes: []state.Scope{state.ScopeBan}, Bounds: state.DefaultBounds("gateway"),
		Created: noon, Expires: noon.Add(90 * 24 * time.Hour), LastUsed: noon.Add(-time.Minute), LastFrom: netip.MustParseAddr("198.51.100.7")}
	boss := state.Token{Name: "boss", Owner: "eve\x1b[2J", Scopes: []state.Scope{state.ScopeAdmin, state.ScopeRead}, Expires: noon.Add(time.Hour)}
	secret := state.TokenSecret{Token: gateway, Secret: "levee_0123456789abcdef_secret"}
	rotated := secret
	rotated.Overlap = noon.Add(time.Hour)
	for name, args := range map[string]string{
		"token_add":        "token add gateway --scope ban",
		"token_add_bounds": "token add gateway --scope ban,read --ipv4 24 --longest 0s --claims 0 --origin feed:x,api --for 30d --owner me",
		"token_add_any":    "token add gateway --scope ban --unbounded -o json",
		"token_rotate":     "token rotate gateway --overlap 1h",
		"token_rm":         "token rm gateway",
		"token_list":       "token list",
		"token_list_jsonl": "token list -o jsonl",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t).on("POST /v1/tokens", secret).on("POST /v1/tokens/gateway/rotate", rotated).on("DELETE /v1/tokens/gateway", nil).
				on("GET /v1/tokens", state.TokenList{Tokens: []state.Token{boss, gateway}})
			r := call{args: strings.Fields(args)}.run(t, f.socket)
			var b strings.Builder
			fmt.Fprintf(&b, "$ levee %s\n", args)
			for _, line := range f.asked {
				fmt.Fprintf(&b, "> %s\n", line)
			}
			fmt.Fprintf(&b, "%s--- stderr\n%s--- exit %d\n", r.stdout, r.stderr, r.code)
			golden(t, name, b.String())
		})
	}
	f := newFake(t).on("GET /v1/tokens", state.TokenList{})
	if r := (call{args: []string{"token", "list"}}).run(t, f.socket); r.code != exitDone || !strings.Contains(r.stdout, "There are no tokens") {
		t.Errorf("%+v", r)
	}
	for args, want := range map[string]string{
		"token add gateway": "--scope",
		"token add":         "accepts 1 arg",
		"token add gateway --scope ban --unbounded --ipv4 8": "one of them",
		"token add gateway --scope ban --ipv4 99":            `--ipv4 "99"`,
		"token add gateway --scope ban --longest soon":       `--longest "soon"`,
		"token add gateway --scope ban --origin nobody":      "nobody",
		"token":                 "needs a command",
		"status --token-file x": "go with --address",
		"status --address https://h:1 --socket /s":              "two daemons",
		"status --address http://h:1":                           "is not https",
		"status --address https://127.0.0.1:1 --token-file /no": "no such file",
		"audit show --since yesterday":                          "yesterday",
	} {
		if r := (call{args: strings.Fields(args)}).run(t, f.socket); r.code == exitDone || !strings.Contains(r.stderr, want) {
			t.Errorf("levee %s: exit %d, %s; want %s", args, r.code, r.stderr, want)
		}
	}
}

func TestAuditCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	now := noon.Add(-2 * time.Hour)
	l, _, err := audit.Open(audit.Config{Path: path, Size: 1 << 20, Files: 2, Now: func() time.Time { now = now.Add(time.Minute); return now }})
	if err != nil {
		t.Fatal(err)
	}
	root := state.Actor{Kind: state.ActorPeer, Name: "root"}
	l.Write(&state.AuditEvent{Action: "ban", By: root, Bans: []state.AuditBans{{Status: state.StatusAdded, Reason: "test\x1b[2J", Prefixes: []string{"203.0.113.7/32"}}}})
	l.Refuse(&state.AuditEvent{Action: "authenticate", Code: state.CodeUnauthorized, Reason: "there is neither a token nor a certificate",
		By: state.Actor{Address: netip.MustParseAddrPort("198.51.100.7:1")}})
	l.Write(&state.AuditEvent{Action: "set-limit", Target: "web", By: state.Actor{Kind: state.ActorToken, Name: "gateway"}, Value: map[string]string{"packets": "1k/s"}})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	run := func(args string) result {
		return call{args: append(strings.Fields(args), "--file", path)}.run(t, "/nowhere")
	}
	for name, args := range map[string]string{
		"audit_show":         "audit show",
		"audit_show_refused": "audit show --refused",
		"audit_show_user":    "audit show --user gateway -o jsonl",
		"audit_show_action":  "audit show --action ban --limit 1",
		"audit_show_since":   "audit show --since 1m",
		"audit_verify":       "audit verify",
	} {
		r := run(args)
		golden(t, name, strings.ReplaceAll(fmt.Sprintf("$ levee %s\n%s--- stderr\n%s--- exit %d\n", args, r.stdout, r.stderr, r.code), path, "AUDIT"))
	}
	_, hash, _ := strings.Cut(run("audit verify").stdout, "hash ")
	if r := run("audit verify --hash " + strings.TrimSpace(hash)); r.code != exitDone {
		t.Errorf("%+v", r)
	}
	if r := run("audit verify --hash " + strings.Repeat("0", 64)); r.code != exitFailed || !strings.Contains(r.stderr, "made anew") {
		t.Errorf("%+v", r)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte("web"), []byte("dns"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run("audit verify"); r.code != exitFailed || !strings.Contains(r.stderr, path+":3: record 3 is not what was anchored") {
		t.Errorf("%+v", r)
	}
	path = filepath.Join(t.TempDir(), "none")
	for _, args := range []string{"audit verify", "audit show"} {
		if r := run(args); r.code != exitNotFound || !strings.Contains(r.stderr, "there is no audit log") {
			t.Errorf("%+v", r)
		}
	}
}
