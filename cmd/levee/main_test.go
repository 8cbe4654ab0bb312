package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

// noon is when every test happens.
var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// fake is a daemon that answers with what it was given, and notes what it was asked.
type fake struct {
	socket string

	stream http.Handler // of events; nil: there is none

	mu      sync.Mutex
	answers map[string]any // by method and path
	asked   []string
}

type problem struct {
	status int
	body   map[string]any
}

func newFake(t *testing.T) *fake {
	t.Helper()
	// Sockets' paths are short.
	dir, err := os.MkdirTemp("", "levee")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	f := &fake{socket: filepath.Join(dir, "s"), answers: map[string]any{}}
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: f, ReadHeaderTimeout: time.Second}}
	server.Start()
	t.Cleanup(server.Close)
	return f
}

func (f *fake) on(what string, answer any) *fake {
	f.answers[what] = answer
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.stream != nil {
		f.stream.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	f.mu.Lock()
	line := r.Method + " " + r.URL.RequestURI()
	if len(body) > 0 {
		line += " " + string(body)
	}
	f.asked = append(f.asked, line)
	answer, ok := f.answers[line]
	if !ok {
		answer, ok = f.answers[r.Method+" "+r.URL.Path]
	}
	f.mu.Unlock()
	status := http.StatusOK
	switch v := answer.(type) {
	case nil:
		if !ok {
			status, answer = http.StatusNotFound, map[string]any{"title": "Not Found", "detail": "there is nothing at this path", "status": 404}
		} else {
			w.WriteHeader(http.StatusNoContent)
			return
		}
	case problem:
		status, answer = v.status, v.body
	case func([]byte) any:
		answer = v(body)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		panic(err)
	}
}

// call is one run of a command.
type call struct {
	args   []string
	stdin  string
	width  int // of the terminal; 0: none
	env    map[string]string
	change func(*environment)
}

type result struct {
	code           int
	stdout, stderr string
}

func (c call) run(t *testing.T, socket string) result {
	t.Helper()
	var out, errs bytes.Buffer
	env := &environment{
		stdin:     strings.NewReader(c.stdin),
		stdout:    &out,
		stderr:    &errs,
		stdoutTTY: c.width > 0,
		width:     func() int { return c.width },
		getenv: func(name string) string {
			if name == "LEVEE_SOCKET" && c.env[name] == "" {
				return socket
			}
			return c.env[name]
		},
		now:           func() time.Time { return noon },
		wait:          func(context.Context, time.Duration) error { return nil },
		interruptible: context.WithCancel,
		daemon:        func(context.Context, agent.Options) error { return errors.New("no daemon in tests") },
		offline: offline{
			setPanic: func(string, bool) error { return errors.New("no kernel in tests") },
			detach:   func(string, string) error { return errors.New("no kernel in tests") },
			remove:   func(string) ([]string, error) { return nil, errors.New("no kernel in tests") },
		},
	}
	if c.change != nil {
		c.change(env)
	}
	code := execute(t.Context(), env, c.args)
	return result{code, out.String(), errs.String()}
}

// golden compares what a call did with what is kept.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew):\n--- got\n%s\n--- want\n%s", path, got, want)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var defaultLimit = state.LimitView{
	Limit: state.Limit{Name: "default", Source: state.FromAPI, Actor: "root", LimitSpec: state.LimitSpec{
		Packets: &state.Threshold{Rate: must1(state.ParseRate("20k/s"))},
		SYN:     &state.Threshold{Rate: must1(state.ParseRate("200/s")), Burst: must1(state.ParseBurst("1k"))},
		Penalty: state.Duration(10 * time.Second),
	}},
	Exceeded: []state.Exceeded{
		{Threshold: "packets", Packets: 1_234_567, Bytes: 74_074_020, PerSecond: 48_211},
		{Threshold: "syn", Packets: 12, Bytes: 720, Monitored: true},
	},
	Sources: []state.SourceView{{Prefix: prefix("203.0.113.9/32"), Limit: "default", Packets: 2_000_000, Bytes: 120_000_000,
		Dropped: 1_200_000, First: noon.Add(-3 * time.Minute), Seen: noon}},
}

var monitoredLimit = state.LimitView{Limit: state.Limit{Name: "dns", Number: 1, Source: state.FromConfig, LimitSpec: state.LimitSpec{
	Services:  []state.Service{{Protocol: 17, Port: 53}, {Protocol: 6, Port: 53}},
	Packets:   &state.Threshold{Rate: must1(state.ParseRate("1k/s"))},
	Mode:      state.Monitor,
	Aggregate: &state.Aggregate{Rate: must1(state.ParseRate("100k/s")), Always: true},
}}}

var sources = state.SourceList{By: state.ByPackets, Tracked: 51_204, Capacity: 524_288, Sampled: state.Duration(time.Second + 7*time.Millisecond),
	Sources: []state.SourceView{
		{Prefix: prefix("203.0.113.9/32"), Limit: "default", Packets: 2_000_000, Bytes: 120_000_000, Dropped: 1_200_000,
			First: noon.Add(-3 * time.Minute), Seen: noon, PacketsPerSecond: 20_000, BitsPerSecond: 9_600_000, DroppedPerSecond: 48_211,
			PenaltyUntil: noon.Add(8 * time.Second)},
		{Prefix: prefix("2001:db8:1234:5678::/64"), Limit: "default", Packets: 500_000, Bytes: 640_000_000, Dropped: 12,
			First: noon.Add(-26 * time.Hour), Seen: noon, PacketsPerSecond: 812.4, BitsPerSecond: 8_300_000, Allowed: true},
		{Prefix: prefix("198.51.100.4/32"), Limit: "dns", Packets: 70, Bytes: 4_900, Dropped: 7, Monitored: true, First: noon.Add(-time.Hour), Seen: noon.Add(-40 * time.Minute)},
	}}

func overview() state.Overview {
	o := state.Overview{
		Version: "1.0.0", Started: noon.Add(-75 * time.Hour), Time: noon, Mode: state.Enforce, Sampled: state.Duration(time.Second),
		Health: state.Health{State: "ok", Problems: []string{}},
		Interfaces: []state.InterfaceView{
			{Name: "eth0", Attached: true, Mode: "native", Wanted: state.ModeAuto, Source: state.FromConfig},
			{Name: "eth1", Attached: true, Mode: "generic", Wanted: state.ModeAuto, Why: "the driver has no XDP (operation not supported)", Source: state.FromAPI},
			{Name: "eth2", Wanted: state.ModeNative, Why: "there is no such interface", Source: state.FromConfig},
		},
		Traffic: []state.Counted{
			{Action: state.ActionDrop, Reason: "banned", Words: "its source is banned", Packets: 9_876_543, Bytes: 592_592_580, PerSecond: 1_250_321, Bits: 600_154_080},
			{Action: state.ActionDrop, Reason: "limit_packets", Words: "its source sends more packets than its limit", Packets: 1_234_567, Bytes: 74_074_020, PerSecond: 48_211, Bits: 23_141_280},
			{Action: state.ActionMonitor, Reason: "limit_syn", Words: "its source opens more TCP connections than its limit", Packets: 12, Bytes: 720},
			{Action: state.ActionPass, Reason: "clean", Words: "nothing to say against it", Packets: 123_456_789, Bytes: 98_765_431_200, PerSecond: 21_004.5, Bits: 134_428_800},
		},
		Origins: []state.OriginStatus{
			{OriginCount: state.OriginCount{Origin: "operator", IPv4: 12, IPv6: 1}, Packets: 543, PerSecond: 0},
			{OriginCount: state.OriginCount{Origin: "feed:spamhaus", IPv4: 1_204}, Packets: 9_876_000, PerSecond: 1_250_321},
		},
		Trials:    []state.Trial{{ID: "t7", What: "ban 203.0.113.7", Actor: "root", Expires: noon.Add(41 * time.Second)}},
		TakenBack: []state.EndedTrial{{Trial: state.Trial{ID: "t5", What: "attach eth3", Actor: "root"}, Ended: noon.Add(-2 * time.Minute), Why: "nobody confirmed it in time"}},
		Allows:    2, Protected: 9, Limits: []state.LimitView{defaultLimit, monitoredLimit},
		Tables:    []state.Table{{Table: "ipv4_bans", Entries: 1_216, Capacity: 4_194_304}, {Table: "sources", Entries: 500_000, Capacity: 524_288}},
		Reconcile: state.Reconciled{Time: noon.Add(-12 * time.Second)},
	}
	o.Prefixes.IPv4, o.Prefixes.IPv6 = 1_216, 1
	o.Events.Written, o.Events.Lost = 200, 54_321
	return o
}

func claims() []state.Claim {
	return []state.Claim{
		{Prefix: prefix("203.0.113.7/32"), Origin: "operator", Actor: "root", Reason: "credential stuffing", Created: noon.Add(-time.Minute), Expires: noon.Add(4 * time.Hour)},
		{Prefix: prefix("2001:db8:bad::/48"), Origin: "feed:spamhaus", Actor: "root", Reason: "evil\x1b[31m \u202ename, and a long story of what happened on that day", Created: noon.Add(-50 * time.Hour)},
		{Prefix: prefix("198.51.100.0/24"), Origin: "api:gateway-3", Monitor: true, Created: noon.Add(-time.Second), Expires: noon.Add(59 * time.Second)},
	}
}

// banAnswer answers a request for bans: documentation's second range is protected.
func banAnswer(body []byte) any {
	var r state.BanRequest
	if err := json.Unmarshal(body, &r); err != nil {
		panic(err)
	}
	var out state.BanResponse
	for _, b := range r.Bans {
		one := state.BanResult{Prefix: b.Prefix, Status: state.StatusAdded, Origin: b.Origin, Monitor: b.Monitor}
		if b.For != "" {
			one.Expires = noon.Add(time.Duration(must1(state.ParseDuration(b.For))))
		}
		if r.Confirm != 0 {
			out.Trial = &state.Trial{ID: "t7", Expires: noon.Add(time.Duration(r.Confirm))}
		}
		if strings.HasPrefix(b.Prefix, "192.0.2.") {
			one.Status, one.Error = state.StatusRefused, &state.Error{Code: state.CodeProtected, Field: "prefix", Value: b.Prefix, Detail: "is protected: it is this host's gateway"}
			out.Refused++
		} else {
			out.Done++
		}
		out.Bans = append(out.Bans, one)
	}
	return out
}

var effective = state.Effective{Notice: "the configuration file was tried and not confirmed", Settings: []state.Setting{
	{Path: "panic", Value: "on", Origin: state.SettingState, From: "levee panic on"},
	{Path: "mode", Value: "monitor", Origin: state.SettingFlag, From: "--mode"},
	{Path: "limits.web.packets", Value: "20k/s", Origin: state.SettingState, From: "levee limit set, by root"},
	{Path: "limits.levee-api.packets", Value: "20k/s burst 40k", Origin: state.SettingDefault, From: "made for api.tcp.listen"},
	{Path: "allow[0].comment", Value: "evil\x1b[31m", Origin: state.SettingFile, From: "/etc/levee/levee.yaml:7"},
	{Path: "bpffs", Value: "/sys/fs/bpf/levee", Origin: state.SettingDefault, From: "default"},
}}

func allAnswers(f *fake) *fake {
	page := state.BanPage{Bans: claims(), Total: 1_217, Next: "x"}
	return f.on("POST /v1/bans", banAnswer).
		on("GET /v1/bans", page).
		on("POST /v1/unban", state.BanResponse{Done: 1, Bans: []state.BanResult{{Prefix: "203.0.113.7/32", Status: state.StatusRemoved, Origin: "operator",
			Removed: claims()[:1], Others: claims()[1:2]}}}).
		on("GET /v1/check/203.0.113.7", state.Check{Address: netip.MustParseAddr("203.0.113.7"), Verdict: state.VerdictBanned, Words: "it is banned by operator",
			Claims: claims()[:1], Kernel: &state.KernelBan{Prefix: prefix("203.0.113.7/32"), Origin: "operator", Expires: noon.Add(4 * time.Hour)},
			Limits: []string{"default"}, Interfaces: 1, Events: []state.EventView{
				{Time: noon.Add(-time.Second), Interface: "eth0", Reason: "banned", Origin: "operator", Protocol: "tcp", Destination: netip.MustParseAddr("192.0.2.1"), Port: 443, Length: 60},
				{Time: noon.Add(-2 * time.Second), Interface: "eth0", Reason: "banned", Origin: "operator", Protocol: "tcp", Destination: netip.MustParseAddr("192.0.2.1"), Port: 443, Length: 60}}}).
		on("GET /v1/check/8.8.8.8", state.Check{Address: netip.MustParseAddr("8.8.8.8"), Verdict: state.VerdictPasses, Words: "it passes, as long as it keeps to its limit",
			Limits: []string{"default", "dns"}, Sources: sources.Sources[2:]}).
		on("GET /v1/check?prefix=203.0.113.0%2F24", state.PrefixCheck{Prefix: prefix("203.0.113.0/24"), Verdict: state.VerdictPartly, Words: "is dropped in part",
			Claims: []state.Claim{}, Containing: []state.Claim{{Prefix: prefix("203.0.0.0/16"), Origin: "feed:spamhaus", Monitor: true, Created: noon.Add(-time.Hour)}},
			Contained: claims()[:1], Total: 1_217, Interfaces: 1,
			Allows: []state.Allow{{Prefix: prefix("203.0.113.1/32"), Comment: "a gateway of this host (eth0)", Source: state.FromProtected}}}).
		on("GET /v1/check?prefix=8.8.8.0%2F24", state.PrefixCheck{Prefix: prefix("8.8.8.0/24"), Verdict: state.VerdictPasses, Words: "passes: no ban touches it",
			Claims: []state.Claim{}, Containing: []state.Claim{}, Contained: []state.Claim{}, Allows: []state.Allow{}}).
		on("GET /v1/allow", state.AllowList{Allow: []state.Allow{{Prefix: prefix("192.0.2.10/32"), Comment: "monitoring", Source: state.FromAPI, Actor: "root", Created: noon.Add(-time.Hour)},
			{Prefix: prefix("198.51.100.0/24"), NoLimits: true, Source: state.FromConfig},
			{Prefix: prefix("203.0.113.0/24"), Comment: "load test", Source: state.FromAPI, Actor: "root", Created: noon.Add(-time.Hour), Expires: noon.Add(time.Hour)},
			{Prefix: prefix("203.0.113.1/32"), Comment: "a gateway of this host (eth0)", Source: state.FromProtected}}}).
		on("POST /v1/allow", state.AllowResponse{Done: 1, Allow: []state.AllowResult{{Prefix: "192.0.2.10/32", Status: state.StatusAdded, Allow: &state.Allow{NoLimits: true}}}}).
		on("POST /v1/unallow", state.AllowResponse{Refused: 1, Allow: []state.AllowResult{{Prefix: "192.0.2.10/32", Status: state.StatusRefused,
			Error: &state.Error{Code: state.CodeNotFound, Field: "prefix", Value: "192.0.2.10", Detail: "is not on the allow list"}}}}).
		on("GET /v1/limits", state.LimitList{Limits: []state.LimitView{defaultLimit, monitoredLimit}}).
		on("GET /v1/limits/default", defaultLimit).
		on("PUT /v1/limits/default", defaultLimit).
		on("DELETE /v1/limits/dns", problem{409, map[string]any{"status": 409, "title": "Conflict", "detail": "is set in the configuration file: take it out there and reload", "code": "conflict", "field": "name", "value": "dns"}}).
		on("GET /v1/interfaces", state.InterfaceList{Interfaces: overview().Interfaces}).
		on("POST /v1/interfaces", overview().Interfaces[1]).
		on("DELETE /v1/interfaces/eth0", nil).
		on("GET /v1/status", overview()).
		on("GET /v1/sources", sources).
		on("POST /v1/confirm", state.ConfirmResponse{Confirmed: []state.Trial{{ID: "t7", What: "ban 203.0.113.7"}}}).
		on("PUT /v1/panic", state.PanicSwitch{On: true}).
		on("GET /v1/config", effective).
		on("POST /v1/config/reload", nil)
}

func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name string
		call call
	}{
		{"status", call{args: []string{"status"}}},
		{"status_80", call{args: []string{"status", "--no-color"}, width: 80}},
		{"status_colour", call{args: []string{"status"}, width: 120}},
		{"status_json", call{args: []string{"status", "-o", "json"}}},
		{"top", call{args: []string{"top", "--by", "packets", "-n", "5"}}},
		{"top_80", call{args: []string{"top"}, width: 80, env: map[string]string{"NO_COLOR": "1"}}},
		{"top_interval", call{args: []string{"top", "--interval", "2s", "--times", "2"}}},
		{"top_jsonl", call{args: []string{"top", "-o", "jsonl"}}},
		{"ban", call{args: []string{"ban", "203.0.113.7", "2001:db8::1/64", "--for", "4h", "--reason", "test"}}},
		{"ban_partly", call{args: []string{"ban", "203.0.113.7", "192.0.2.1"}}},
		{"ban_refused", call{args: []string{"ban", "192.0.2.1"}}},
		{"ban_json", call{args: []string{"ban", "192.0.2.1", "203.0.113.7", "-o", "json", "--monitor"}}},
		{"ban_stdin", call{args: []string{"ban", "-", "--origin", "feed:mine"}, stdin: "\ufeff# list\r\n203.0.113.7 ; SBL1\r\n\r\n203.0.113.7/32\n  198.51.100.0/24  # x"}},
		{"ban_stdin_bad", call{args: []string{"ban", "-"}, stdin: "203.0.113.7\n10.0.0.0/33\n010.0.0.1\n1.2.3.4 5.6.7.8\nx\x1by\n"}},
		{"unban", call{args: []string{"unban", "203.0.113.7"}}},
		{"bans", call{args: []string{"bans", "--limit", "3"}}},
		{"bans_80", call{args: []string{"bans", "list", "--limit", "3", "--no-color", "--origin", "feed:x", "--since", "1h", "--within", "10.0.0.0/8"}, width: 80}},
		{"bans_json", call{args: []string{"bans", "--limit", "3", "-o", "json"}}},
		{"bans_jsonl", call{args: []string{"bans", "--limit", "3", "-o", "jsonl"}}},
		{"check_banned", call{args: []string{"check", "203.0.113.7"}}},
		{"check_prefix", call{args: []string{"check", "203.0.113.9/24"}}},
		{"check_prefix_passes", call{args: []string{"check", "8.8.8.0/24"}}},
		{"check_prefix_json", call{args: []string{"check", "8.8.8.0/24", "-o", "jsonl"}}},
		{"check_passes", call{args: []string{"check", "8.8.8.8"}}},
		{"allow_add", call{args: []string{"allow", "add", "192.0.2.10", "--no-limits", "--reason", "monitoring"}}},
		{"allow_add_for", call{args: []string{"allow", "add", "192.0.2.10", "--for", "90m"}}},
		{"allow_add_for_bad", call{args: []string{"allow", "add", "192.0.2.10", "--for", "0s"}}},
		{"allow_rm", call{args: []string{"allow", "rm", "192.0.2.10"}}},
		{"allow_list", call{args: []string{"allow", "list"}}},
		{"limit_set", call{args: []string{"limit", "set", "default", "--mode", "monitor", "--udp", "5k/s", "--packets-burst", "50k", "--syn", "none"}}},
		{"limit_set_replace", call{args: []string{"limit", "set", "default", "--replace", "--bits", "200Mbit/s", "--aggregate", "100k/s", "--aggregate4", "20", "--group6", "56"}}},
		{"limit_set_unbound", call{args: []string{"limit", "set", "web", "--packets", "1k/s"}}},
		{"limit_rm", call{args: []string{"limit", "rm", "dns"}}},
		{"limit_list", call{args: []string{"limit", "list"}}},
		{"limit_show", call{args: []string{"limit", "show", "default"}}},
		{"attach", call{args: []string{"attach", "eth1"}}},
		{"detach", call{args: []string{"detach", "eth0"}}},
		{"detach_all", call{args: []string{"detach", "--all"}}},
		{"panic_on", call{args: []string{"panic", "on"}}},
		{"ban_on_trial", call{args: []string{"ban", "203.0.113.7", "--confirm", "60s"}}},
		{"ban_on_trial_bad", call{args: []string{"ban", "203.0.113.7", "--confirm", "10ms"}}},
		{"confirm", call{args: []string{"confirm"}}},
		{"config_show", call{args: []string{"config", "show"}}},
		{"config_show_json", call{args: []string{"config", "show", "-o", "json"}}},
		{"config_show_jsonl", call{args: []string{"config", "show", "-o", "jsonl"}}},
		{"config_reload", call{args: []string{"config", "reload"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := allAnswers(newFake(t))
			r := c.call.run(t, f.socket)
			if strings.HasPrefix(c.name, "status") && len(f.asked) == 2 && strings.Contains(f.asked[0], "sources") {
				f.asked[0], f.asked[1] = f.asked[1], f.asked[0] // they are asked for at once
			}
			var b strings.Builder
			fmt.Fprintf(&b, "$ levee %s\n", strings.Join(c.call.args, " "))
			for _, line := range f.asked {
				fmt.Fprintf(&b, "> %s\n", line)
			}
			fmt.Fprintf(&b, "%s--- stderr\n%s--- exit %d\n", r.stdout, r.stderr, r.code)
			golden(t, c.name, b.String())
		})
	}
}

func TestEmpty(t *testing.T) {
	f := newFake(t).on("GET /v1/bans", state.BanPage{}).on("GET /v1/allow", state.AllowList{}).
		on("GET /v1/limits", state.LimitList{}).on("GET /v1/sources", state.SourceList{}).
		on("GET /v1/status", state.Overview{Started: noon, Time: noon, Mode: state.Enforce, Health: state.Health{State: "ok"}}).
		on("GET /v1/interfaces", state.InterfaceList{})
	for args, want := range map[string]string{
		"bans":                   "Nothing is banned.",
		"bans --origin operator": "No ban matches.",
		"allow list":             "Nothing is allowed",
		"limit list":             "No limit limits anything yet.",
		"top":                    "No source is tracked",
		"status":                 "None is shielded",
		"detach --all":           "no interface is shielded",
	} {
		r := call{args: strings.Fields(args)}.run(t, f.socket)
		if r.code != exitDone || !strings.Contains(r.stdout, want) {
			t.Errorf("levee %s: exit %d, said %q and %q, want %q", args, r.code, r.stdout, r.stderr, want)
		}
	}
	for _, args := range []string{"bans", "allow list", "limit list", "top", "status"} {
		if r := (call{args: append(strings.Fields(args), "-o", "json")}).run(t, f.socket); !json.Valid([]byte(r.stdout)) {
			t.Errorf("levee %s -o json: %q is not JSON", args, r.stdout)
		}
	}
}

// TestBad has bad input refused before anybody is asked.
func TestBad(t *testing.T) {
	for _, c := range []struct {
		args, want string
	}{
		{"ban 10.0.0.0/33", `"10.0.0.0/33"`},
		{"ban 010.0.0.1", "10.0.0.1"},
		{"ban fe80::1%eth0", "zone"},
		{"ban example.com", `"example.com"`},
		{"ban 10.0.0.1 - 10.0.0.2", "stdin"},
		{"ban", "requires at least 1 arg"},
		{"ban 10.0.0.1 --for 4", `--for "4"`},
		{"ban 10.0.0.1 --for 0s", `--for "0s"`},
		{"ban 10.0.0.1 --for -1h", `--for "-1h"`},
		{"ban 10.0.0.1 --for 200000w", `--for "200000w"`},
		{"ban 10.0.0.1 --origin nobody", `--origin "nobody"`},
		{"ban 10.0.0.1 --origin feed", `--origin "feed"`},
		{"ban 10.0.0.1 --origin kernel", `--origin "kernel"`},
		{"ban 10.0.0.1 --reason a\x1bb", "does not print"},
		{"ban 10.0.0.1 --reason " + strings.Repeat("x", 300), "longer than 256"},
		{"ban 10.0.0.1 --nonsense", "--nonsense"},
		{"unban 10.0.0.1 --origin operator --all", "exclude"},
		{"unban", "--everything"},
		{"unban --everything", "--origin"},
		{"unban --everything --all", "one origin's word"},
		{"unban 10.0.0.1 --everything --all", "no two"},
		{"unban 10.0.0.1 --file list", "no two"},
		{"unban --file list --everything --all", "no two"},
		{"unban --file /nonexistent", "no such file"},
		{"unban --file list --format yaml", "is none of auto, plain"},
		{"unban 10.0.0.1 --format csv", "--file"},
		{"check 10.0.0.0/33", `"33"`},
		{"check nothing", `"nothing"`},
		{"check", "accepts 1 arg"},
		{"bans --limit -1", "--limit -1"},
		{"bans --since yesterday", `--since "yesterday"`},
		{"bans --within 10.0.0.0/99", `--within "10.0.0.0/99"`},
		{"bans --origin who", `--origin "who"`},
		{"bans lsit", `"lsit"`},
		{"allow", "add, list, rm"},
		{"allow frob", `"frob"`},
		{"allow add 1.2.3", `"1.2.3"`},
		{"limit set UPPER --packets 1k/s", `"UPPER"`},
		{"limit set default --packets 20k", `--packets "20k"`},
		{"limit set default --packets 20MB/s", `--packets "20MB/s"`},
		{"limit set default --packets 200Mbit/s", `--packets "200Mbit/s"`},
		{"limit set default --bits 20k/s", `--bits "20k/s"`},
		{"limit set default --packets -1/s", `--packets "-1/s"`},
		{"limit set default --packets 99G/s", `--packets "99G/s"`},
		{"limit set default --syn-burst many", `--syn-burst "many"`},
		{"limit set default --packets-burst 3MiB", `--packets-burst "3MiB"`},
		{"limit set default --packets none --packets-burst 3", "--packets-burst"},
		{"limit set default --mode off", `--mode "off"`},
		{"limit set default --penalty long", `--penalty "long"`},
		{"limit set default --group4 33", "--group4 33"},
		{"limit set default --group6 8", "--group6 8"},
		{"limit set default --aggregate6 64", "--aggregate6 64"},
		{"limit set default --aggregate 1Mbit/s", `--aggregate "1Mbit/s"`},
		{"limit set web --service tcp/99999", `--service "tcp/99999"`},
		{"limit set web --service gre/1", `--service "gre/1"`},
		{"limit set web --source 1.2.3.4/40", `--source "1.2.3.4/40"`},
		{"limit show ../x", `"../x"`},
		{"limit rm x/y", `"x/y"`},
		{"attach eth0/1", `"eth0/1"`},
		{"attach a-name-that-is-too-long", "a-name-that-is-too-long"},
		{"attach eth0 --mode fast", `"fast"`},
		{"detach", "--all"},
		{"detach eth0 --all", "not both"},
		{"top --by size", `--by "size"`},
		{"top -n 0", "--number 0"},
		{"top --interval 1ms", `--interval "1ms"`},
		{"top --sample 1h", `--sample "1h"`},
		{"top --times 3", "--interval"},
		{"status --sample x", `--sample "x"`},
		{"status -o yaml", `"yaml"`},
		{"panic", "off, on"},
		{"panic maybe", `"maybe"`},
		{"config check a b", "at most 1 arg"},
		{"run --mode off", `--mode "off"`},
		{"run --interface eth0:fast!", "eth0:fast!"},
		{"run --log-level loud", "loud"},
		{"run extra", `"extra"`},
		{"frobnicate", `"frobnicate"`},
		{"staus", "did you mean status"},
	} {
		t.Run(c.args, func(t *testing.T) {
			f := newFake(t)
			r := call{args: strings.Split(c.args, " ")}.run(t, f.socket)
			if r.code != exitUsage {
				t.Errorf("exit %d, want %d", r.code, exitUsage)
			}
			if !strings.Contains(r.stderr, c.want) {
				t.Errorf("said %q, want %q in it", r.stderr, c.want)
			}
			if strings.ContainsRune(r.stderr, 0x1b) {
				t.Errorf("control characters in %q", r.stderr)
			}
			for _, line := range f.asked {
				t.Errorf("asked %s", line)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	for _, args := range []string{"status", "top", "ban 10.0.0.1", "unban 10.0.0.1", "check 10.0.0.1", "bans", "allow list", "limit list",
		"limit set default --packets 1k/s", "attach eth0", "config reload"} {
		r := call{args: strings.Fields(args)}.run(t, "/nonexistent/levee.sock")
		if r.code != exitUnreachable || !strings.Contains(r.stderr, "/nonexistent/levee.sock") || r.stdout != "" {
			t.Errorf("levee %s: exit %d, %q, %q", args, r.code, r.stdout, r.stderr)
		}
	}
}

func TestWithoutDaemon(t *testing.T) {
	type thrown struct {
		root string
		on   bool
	}
	var did []any
	env := func(e *environment) {
		e.offline = offline{
			setPanic: func(root string, on bool) error { did = append(did, thrown{root, on}); return nil },
			detach: func(_, name string) error {
				if name == "eth9" {
					return &codeError{exitNotFound, agent.ErrNotAttached}
				}
				did = append(did, name)
				return nil
			},
			remove: func(root string) ([]string, error) { return []string{"detached eth0"}, nil },
		}
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"panic on --bpffs /sys/fs/bpf/x", 0, "everything passes"},
		{"panic off --bpffs /sys/fs/bpf/x", 0, "in force"},
		{"detach eth0", 0, "eth0 is no longer shielded"},
		{"detach eth9", exitNotFound, ""},
		{"detach eth0 eth9", exitPartly, "eth0 is no longer shielded"},
		{"detach --all", 0, "the shield is down"},
	} {
		r := call{args: strings.Fields(c.args), change: env}.run(t, "/nonexistent/levee.sock")
		if r.code != c.code || !strings.Contains(r.stdout, c.says) {
			t.Errorf("levee %s: exit %d, %q, %q", c.args, r.code, r.stdout, r.stderr)
		}
	}
	if len(did) != 4 || did[0] != (thrown{"/sys/fs/bpf/x", true}) || did[1] != (thrown{"/sys/fs/bpf/x", false}) {
		t.Errorf("did %v", did)
	}
	nothing := func(e *environment) {
		e.offline.setPanic = func(string, bool) error { return agent.ErrNothingPinned }
	}
	if r := (call{args: []string{"panic", "on"}, change: nothing}).run(t, "/nonexistent/levee.sock"); r.code != exitNotFound || !strings.Contains(r.stderr, "everything passes anyway") {
		t.Errorf("panic without a shield: exit %d, %q", r.code, r.stderr)
	}
	barred := func(e *environment) {
		denied := &fs.PathError{Op: "open", Path: "/sys/fs/bpf/levee", Err: syscall.EACCES}
		e.offline.setPanic = func(string, bool) error { return denied }
		e.offline.detach = func(string, string) error { return denied }
		e.offline.remove = func(string) ([]string, error) { return nil, fmt.Errorf("list sets: %w", denied) }
	}
	for _, args := range []string{"panic on", "detach --all", "detach eth0"} {
		if r := (call{args: strings.Fields(args), change: barred}).run(t, "/nonexistent/levee.sock"); r.code != exitFailed || !strings.Contains(r.stderr, "this needs root") {
			t.Errorf("%s as nobody: exit %d, %q", args, r.code, r.stderr)
		}
	}
}

// A daemon that a configuration file names is asked where that says, and the pins below it are let alone.
func TestDaemonOfFile(t *testing.T) {
	for _, c := range []struct{ args, asked string }{
		{"panic on", "PUT /v1/panic"},
		{"detach eth0", "DELETE /v1/interfaces/eth0"},
		{"detach --all", "GET /v1/interfaces"},
		{"config reload", "POST /v1/config/reload"},
	} {
		f := newFake(t).
			on("GET /v1/interfaces", state.InterfaceList{Interfaces: overview().Interfaces}).
			on("DELETE /v1/interfaces/eth0", nil).on("DELETE /v1/interfaces/eth1", nil).on("DELETE /v1/interfaces/eth2", nil).
			on("PUT /v1/panic", state.PanicSwitch{On: true}).
			on("POST /v1/config/reload", nil)
		file := filepath.Join(t.TempDir(), "levee.yaml")
		if err := os.WriteFile(file, []byte("api: {socket: "+f.socket+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args := append(strings.Fields(c.args), "--config", file)
		r := call{args: args}.run(t, "")
		if r.code != 0 || !slices.ContainsFunc(f.asked, func(line string) bool { return strings.HasPrefix(line, c.asked) }) {
			t.Errorf("levee %s: exit %d, %q; asked %q", c.args, r.code, r.stderr, f.asked)
		}
		asked := len(f.asked)
		if r := (call{args: append(args, "--socket", "/nonexistent/levee.sock")}).run(t, ""); r.code == 0 || len(f.asked) != asked {
			t.Errorf("levee %s: --socket names another daemon: exit %d, asked %q", c.args, r.code, f.asked)
		}
	}
}

// What names nothing that is to change makes no limit of its own over the file's.
func TestLimitSetNothing(t *testing.T) {
	f := newFake(t).on("GET /v1/limits/default", defaultLimit)
	for _, args := range []string{"limit set default", "limit set default --confirm 60s"} {
		r := call{args: strings.Fields(args)}.run(t, f.socket)
		if r.code != exitUsage || !strings.Contains(r.stderr, "what of limit default is to change") {
			t.Errorf("levee %s: exit %d, %q", args, r.code, r.stderr)
		}
	}
	if slices.ContainsFunc(f.asked, func(line string) bool { return !strings.HasPrefix(line, "GET ") }) {
		t.Errorf("asked %q", f.asked)
	}
}

// A limit that the file has, too, is not gone.
func TestLimitRemoved(t *testing.T) {
	f := newFake(t).on("DELETE /v1/limits/default", nil).on("DELETE /v1/limits/dns", nil).on("GET /v1/limits/dns", monitoredLimit)
	if r := (call{args: []string{"limit", "rm", "default", "dns"}}).run(t, f.socket); r.code != 0 ||
		r.stdout != "limit default is removed\nlimit dns is removed; the configuration file's of that name is in force again, mode monitor\n" {
		t.Errorf("exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
}

func TestProblems(t *testing.T) {
	for _, c := range []struct {
		status int
		code   state.Code
		want   int
	}{
		{422, state.CodeInvalid, exitUsage}, {403, state.CodeRefused, exitRefused}, {404, state.CodeNotFound, exitNotFound},
		{409, state.CodeConflict, exitFailed}, {507, state.CodeFull, exitFailed}, {500, "", exitFailed},
	} {
		f := newFake(t).on("GET /v1/bans", problem{c.status, map[string]any{"status": c.status, "title": "T", "detail": "why \x1b[2J", "code": c.code, "field": "f", "value": "v"}})
		r := call{args: []string{"bans"}}.run(t, f.socket)
		if want := `levee: f "v": why \x1b[2J` + "\n"; r.code != c.want || r.stderr != want {
			t.Errorf("%d %s: exit %d, %q", c.status, c.code, r.code, r.stderr)
		}
	}
	f := newFake(t).on("GET /v1/bans", "no document")
	if r := (call{args: []string{"bans"}}).run(t, f.socket); r.code != exitFailed || !strings.Contains(r.stderr, "can't be read") {
		t.Errorf("no document: exit %d, %q", r.code, r.stderr)
	}
}

// TestMany sends a list in several requests.
func TestMany(t *testing.T) {
	f := newFake(t).on("POST /v1/bans", banAnswer)
	var list strings.Builder
	for i := range 25_000 {
		fmt.Fprintf(&list, "10.%d.%d.%d\n", i>>16, i>>8&255, i&255)
	}
	list.WriteString("192.0.2.7\n")
	r := call{args: []string{"ban", "-"}, stdin: list.String()}.run(t, f.socket)
	if r.code != exitPartly || len(f.asked) != 3 || !strings.Contains(r.stdout, "25,001 prefixes: 25,000 added and 1 refused") ||
		!strings.Contains(r.stderr, "192.0.2.7: is protected") {
		t.Errorf("exit %d after %d requests: %q, %q", r.code, len(f.asked), r.stdout, r.stderr)
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	for path, text := range map[string]string{good: "interfaces: [eth0]\nmode: monitor\n", bad: "mode: off\nnonsense: 1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := (call{args: []string{"config", "check", good}}).run(t, ""); r.code != 0 || !strings.Contains(r.stdout, "is fine: 1 interface, 0 limits") {
		t.Errorf("check: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if _, err := os.Stat(config.Path); err != nil { // of a file that is not there it does not say that it is fine
		if r := (call{args: []string{"config", "check"}}).run(t, ""); r.code != 0 || !strings.Contains(r.stdout, "there is no "+config.Path+": the defaults are in force") {
			t.Errorf("check: exit %d, %q, %q", r.code, r.stdout, r.stderr)
		}
		if r := (call{args: []string{"config", "check", "-o", "json"}}).run(t, ""); r.code != 0 || !strings.Contains(r.stdout, `"found": false`) {
			t.Errorf("check: exit %d, %q, %q", r.code, r.stdout, r.stderr)
		}
	}
	if r := (call{args: []string{"config", "check", bad}}).run(t, ""); r.code != exitUsage || !strings.Contains(r.stderr, "nonsense") {
		t.Errorf("check: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if r := (call{args: []string{"config", "show", "-c", good}}).run(t, ""); r.code != 0 || !strings.Contains(r.stdout, "good.yaml:2") {
		t.Errorf("show: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	// Where no daemon runs, the file speaks, and a word says so; but not for one on another host.
	none := filepath.Join(dir, "none")
	r := call{args: []string{"config", "show", "-o", "json"}}.run(t, none)
	var shown state.Effective
	if err := json.Unmarshal([]byte(r.stdout), &shown); r.code != 0 || err != nil || len(shown.Settings) < 20 || !strings.Contains(r.stderr, none) || !strings.Contains(r.stderr, config.Path) {
		t.Errorf("show: exit %d, %v, %q, %q", r.code, err, r.stdout, r.stderr)
	}
	if r := (call{args: []string{"config", "show", "--address", "https://127.0.0.1:1"}}).run(t, ""); r.code != exitUnreachable || r.stdout != "" {
		t.Errorf("show: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	f := newFake(t).on("GET /v1/config", problem{403, map[string]any{"status": 403, "title": "Forbidden", "detail": "you may not", "code": "forbidden"}})
	if r := (call{args: []string{"config", "show"}}).run(t, f.socket); r.code != exitRefused || r.stdout != "" {
		t.Errorf("show: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if r := (call{args: []string{"config", "show", good}}).run(t, f.socket); r.code != 0 || len(f.asked) != 1 {
		t.Errorf("show: exit %d, %q, %q", r.code, f.asked, r.stderr)
	}
	var got agent.Options
	ran := func(e *environment) {
		e.daemon = func(_ context.Context, o agent.Options) error { got = o; return nil }
	}
	r = call{args: []string{"run", "-c", good, "-i", "eth1:native", "--mode", "enforce", "--metrics", "off", "--socket", "/run/x.sock"}, change: ran}.run(t, "")
	if r.code != 0 || got.Config == nil {
		t.Fatalf("run: exit %d, %q", r.code, r.stderr)
	}
	again, err := config.Load(got.File)
	if err == nil {
		err = got.Overlay(again)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []any{got.Config, again} {
		text := fmt.Sprintf("%+v", c)
		for _, want := range []string{"{Name:eth0 Mode:auto}", "{Name:eth1 Mode:native}", "Mode:enforce", "Socket:/run/x.sock", "Metrics:{Listen: "} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %s", text, want)
			}
		}
	}
}

// Every flag of levee run that sets something says so in the settings.
func TestFlagOrigins(t *testing.T) {
	file := filepath.Join(t.TempDir(), "levee.yaml")
	if err := os.WriteFile(file, []byte("interfaces: [eth0, eth1]\nmode: monitor\nlog: {level: warn}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got agent.Options
	ran := func(e *environment) {
		e.daemon = func(_ context.Context, o agent.Options) error { got = o; return nil }
	}
	origins := func(env map[string]string, args ...string) string {
		t.Helper()
		r := call{args: append([]string{"run", "-c", file}, args...), env: env, change: ran}.run(t, "")
		if r.code != 0 {
			t.Fatalf("run %v: exit %d, %s", args, r.code, r.stderr)
		}
		again, err := config.Load(file)
		if err == nil {
			err = got.Overlay(again)
		}
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range again.Settings() { // as after a reload
			if s.Origin == state.SettingFlag {
				out = append(out, s.Path+"="+s.Value+" "+s.From)
			}
		}
		return strings.Join(out, "\n")
	}
	if s := origins(nil); s != "" {
		t.Errorf("no flags: %s", s)
	}
	if s := origins(map[string]string{"LEVEE_SOCKET": "/run/y.sock"}); s != "api.socket=/run/y.sock $LEVEE_SOCKET" {
		t.Errorf("the environment: %s", s)
	}
	want := `interfaces[1].name=eth1 --interface
interfaces[1].mode=native --interface
interfaces[2].name=eth2 --interface
interfaces[2].mode=auto --interface
mode=enforce --mode
api.socket=/run/x.sock --socket
metrics.listen= --metrics
state.path=/s/db --state
bpffs=/sys/fs/bpf/x --bpffs
lock=/run/x.lock --lock
log.level=debug --log-level
log.format=json --log-format
compile.enabled=true --compile
compile.clang=clang-19 --clang`
	if s := origins(nil, "-i", "eth1:native,eth2", "--mode", "enforce", "--socket", "/run/x.sock", "--metrics", "off", "--state", "/s/db", "--bpffs", "/sys/fs/bpf/x",
		"--lock", "/run/x.lock", "--log-level", "debug", "--log-format", "json", "--compile", "--clang", "clang-19"); s != want {
		t.Errorf("got:\n%s\nwant:\n%s", s, want)
	}
}

func TestCompletion(t *testing.T) {
	f := allAnswers(newFake(t))
	for args, want := range map[string]string{
		"limit show":   "dns",
		"detach":       "eth1",
		"ban --origin": "feed:spamhaus",
		"top --by":     "dropped",
		"status -o":    "jsonl",
	} {
		r := call{args: append(append([]string{"__complete"}, strings.Fields(args)...), "")}.run(t, f.socket)
		if r.code != 0 || !strings.Contains(r.stdout, want+"\n") {
			t.Errorf("completion of %q: exit %d, %q", args, r.code, r.stdout)
		}
	}
	if r := (call{args: []string{"completion", "bash"}}).run(t, f.socket); r.code != 0 || !strings.Contains(r.stdout, "bash completion") {
		t.Errorf("completion bash: exit %d", r.code)
	}
}

// TestHelp has every command explain itself.
func TestHelp(t *testing.T) {
	a := &app{environment: &environment{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}}
	var walk func(prefix []string)
	walk = func(prefix []string) {
		cmd, _, err := a.root().Find(prefix)
		if err != nil {
			t.Fatal(err)
		}
		if cmd.Short == "" {
			t.Errorf("%v has no description", prefix)
		}
		for _, c := range cmd.Commands() {
			walk(append(prefix[:len(prefix):len(prefix)], c.Name()))
		}
	}
	walk(nil)
}

func TestNumbers(t *testing.T) {
	for in, want := range map[float64]string{0: "0", 6: "6", 0.5: "0.5", 9.96: "10", 999: "999", 999.6: "1.00k", 1234: "1.23k", 12_345: "12.3k",
		999_949: "1.00M", 1_250_321: "1.25M", 1e12: "1.00T"} {
		if got := short(in); got != want {
			t.Errorf("short(%v) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[time.Duration]string{0: "<1s", 59 * time.Second: "59s", 90 * time.Second: "1m30s", time.Hour: "1h", 26*time.Hour + time.Minute: "1d2h"} {
		if got := span(in); got != want {
			t.Errorf("span(%v) = %s, want %s", in, got, want)
		}
	}
	if got := count(1_234_567); got != "1,234,567" {
		t.Errorf("count = %s", got)
	}
	if got := string(cleanJSON([]byte("\"a\u009bb\x7f\u202e\U000e0001é\"\n"))); got != `"a\u009bb\u007f\u202e\udb40\udc01é"`+"\n" {
		t.Errorf("cleanJSON = %s", got)
	}
	if got := clean("a\x1b[0m\n\xff\u009b"); got != `a\x1b[0m\n\xff\u009b` {
		t.Errorf("clean = %s", got)
	}
}

// FuzzReadPrefixes has the list's parser take anything: what it takes is canonical and without
// doubles, and reading what it took again gives the same.
func FuzzReadPrefixes(f *testing.F) {
	for _, seed := range []string{"", "10.0.0.1\n", "10.0.0.0/8 # x\r\n;\n::ffff:1.2.3.4\n", "x\n\xff\x00", "2001:db8::/32", strings.Repeat("1", 5000) + "\n1.1.1.1"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		found, err := readPrefixes(bytes.NewReader(text))
		if err != nil {
			if found != nil {
				t.Fatal("took a part of a bad list")
			}
			if s := cleanLines(err.Error()); strings.ContainsRune(s, 0x1b) {
				t.Fatalf("control characters in %q", s)
			}
			return
		}
		var again strings.Builder
		for _, p := range found {
			if p != p.Masked() || p.Addr().Is4In6() {
				t.Fatalf("%s is not canonical", p)
			}
			fmt.Fprintln(&again, p)
		}
		second, err := readPrefixes(strings.NewReader(again.String()))
		if err != nil || len(second) != len(found) {
			t.Fatalf("read again: %v, %d prefixes of %d", err, len(second), len(found))
		}
	})
}
