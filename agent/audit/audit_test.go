package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fixture struct {
	testing.TB
	*Log
	path string
	now  time.Time
	size int64
}

func open(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{TB: t, path: filepath.Join(t.TempDir(), "audit.jsonl"), now: time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC), size: 1 << 20}
	f.reopen("")
	t.Cleanup(func() { f.Close() })
	return f
}

// reopen opens the log anew, and checks what is said to be wrong with it.
func (f *fixture) reopen(want string) {
	f.Helper()
	if f.Log != nil {
		if err := f.Close(); err != nil {
			f.Fatal(err)
		}
	}
	l, problem, err := Open(Config{Path: f.path, Size: f.size, Files: 3, Now: func() time.Time { return f.now }})
	if err != nil {
		f.Fatal(err)
	}
	if f.Log = l; !strings.Contains(problem, want) || want == "" && problem != "" {
		f.Errorf("opened with the problem %q, want %q", problem, want)
	}
}

var root = state.Actor{Kind: state.ActorPeer, Name: "root", ID: "0", PID: 42, Scopes: []state.Scope{state.ScopeAdmin}}

func (f *fixture) ban(n int) {
	for i := range n {
		f.Write(&state.AuditEvent{Action: "ban", By: root, Method: "POST", Path: "/v1/bans", Status: 200,
			Bans: []state.AuditBans{{Status: state.StatusAdded, Origin: "api", Reason: "test", Prefixes: []string{fmt.Sprintf("192.0.2.%d", i)}}}})
	}
}

func (f *fixture) lines() []string {
	f.Helper()
	var out []string
	files, err := Files(f.path)
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")...)
	}
	return out
}

func (f *fixture) verify(wants ...string) {
	f.Helper()
	r, err := Verify(f.path)
	if err != nil {
		f.Fatal(err)
	}
	if len(r.Problems) < len(wants) || len(wants) == 0 && len(r.Problems) > 0 {
		f.Errorf("%d problems: %v, want %d", len(r.Problems), r.Problems, len(wants))
		return
	}
	for i, want := range wants {
		if got := r.Problems[i].String(); !strings.Contains(got, want) {
			f.Errorf("problem %q, want %q", got, want)
		}
	}
}

// A SIEM finds the fields where the schema has them.
func TestFields(t *testing.T) {
	f := open(t)
	by := state.Actor{Kind: state.ActorToken, Name: "gateway", ID: "00ff", Address: netip.MustParseAddrPort("[::ffff:198.51.100.7]:4711"),
		Agent: "curl/8\x1b[31m", Scopes: []state.Scope{state.ScopeBan}}
	f.Write(&state.AuditEvent{Action: "ban", By: by, Method: "POST", Path: "/v1/bans", Status: 207, Bans: []state.AuditBans{
		{Status: state.StatusAdded, Origin: "api:gateway", Reason: "a\nb\u202e", Prefixes: []string{"203.0.113.7"}},
		{Status: state.StatusRefused, Code: state.CodeForbidden, Error: "too wide", Prefixes: []string{"10.0.0.0/8\r\n"}},
	}})
	f.Refuse(&state.AuditEvent{Action: "authenticate", Code: state.CodeUnauthorized, By: state.Actor{Address: by.Address}, Reason: "no token"})
	lines := f.lines()
	for _, want := range []string{
		`{"@timestamp":"2026-11-21T03:00:00Z","ecs":{"version":"8.17.0"},`,
		`"event":{"kind":"event","module":"levee","dataset":"levee.audit","category":["configuration"],"type":["creation"],"action":"ban","outcome":"success","sequence":1}`,
		`"user":{"name":"gateway","id":"00ff","roles":["ban"]}`, `"source":{"ip":"198.51.100.7","port":4711}`,
		`"user_agent":{"original":"curl/8\\x1b[31m"}`, `"reason":"a\\nb\\u202e"`, `"10.0.0.0/8\\r\\n"`,
		`"http":{"request":{"method":"POST"},"response":{"status_code":207}},"url":{"path":"/v1/bans"}`,
		`"message":"token:gateway: ban of 2 prefixes, 1 of them refused"`, `"previous":"` + zeroHash + `"`,
	} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("%s lacks %s", lines[0], want)
		}
	}
	for _, want := range []string{`"category":["authentication"]`, `"outcome":"failure"`, `"message":"somebody unknown: authenticate refused"`, `"previous":"` + hashOf([]byte(strings.TrimSuffix(lines[0], "\n"))) + `"`} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("%s lacks %s", lines[1], want)
		}
	}
}

// No text that somebody sends does more in the log than stand there.
func FuzzText(f *testing.F) {
	for _, s := range []string{"a", "\x1b]0;x\x07", "a\nb", "\u2028\u202e\u009b", "\xff\xfe", strings.Repeat("x", 10_000), `"},"x":{"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := &state.AuditEvent{Action: s, Reason: s, Target: s, Path: s, Method: s + "x", By: state.Actor{Name: s, ID: s, Agent: s},
			Bans: []state.AuditBans{{Origin: state.Origin(s), Reason: s, Error: s, Prefixes: []string{s}}}}
		for _, r := range records(e, time.Unix(0, 0)) {
			line, err := encode(&r)
			if err != nil || !json.Valid(line) || len(line) > 64<<10 {
				t.Fatalf("%v %q", err, line)
			}
			for _, c := range string(line) {
				if !unicode.IsPrint(c) {
					t.Fatalf("%q in %q", c, line)
				}
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("{}\n"), []byte(`{"sequence":1}`))
	f.Add([]byte(`{"event":{"sequence":1},"levee":{"previous":"`+zeroHash+`"}}`+"\n"), []byte(`{"sequence":1,"hash":"`+zeroHash+`","first":1}`))
	f.Fuzz(func(t *testing.T, log, head []byte) {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		if err := os.WriteFile(path, log, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(headPath(path), head, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(path); err != nil && len(log) < maxLine {
			t.Error(err)
		}
		l, _, err := Open(Config{Path: path, Size: 1 << 20, Files: 2})
		if err != nil {
			t.Fatal(err)
		}
		l.Write(&state.AuditEvent{Action: "ban"})
		if err := l.Failing(); err != nil {
			t.Error(err)
		}
		l.Close()
	})
}

// Whatever is done to the log is found, and the place is named.
func TestTampering(t *testing.T) {
	f := open(t)
	f.ban(10)
	f.verify()
	f.reopen("")
	f.ban(10)
	f.Close()
	f.verify()
	whole, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	line := func(n int) string { return lines[n-1] }
	span := func(from, to int) string { return strings.Join(lines[from-1:to], "") }
	for name, c := range map[string]struct{ text, want string }{
		"a letter":               {span(1, 4) + strings.Replace(line(5), "root", "toor", 1) + span(6, 20), ":5: record 5 is not what"},
		"the first":              {strings.Replace(line(1), "root", "toor", 1) + span(2, 20), ":1: record 1 is not what"},
		"the last":               {span(1, 19) + strings.Replace(line(20), "root", "toor", 1), ":20: record 20 is not what was anchored"},
		"a blank":                {span(1, 4) + strings.Replace(line(5), ",", ", ", 1) + span(6, 20), ":5: record 5 is not what"},
		"one gone":               {span(1, 4) + span(6, 20), ":5: record 6 follows record 4: record 5 is missing"},
		"some gone":              {span(1, 4) + span(8, 20), ":5: record 8 follows record 4: records 5 to 7 are missing"},
		"the beginning gone":     {span(3, 20), ":1: the log begins with record 3, and should with 1"},
		"the end gone":           {span(1, 17), ":17: the log ends here with record 17: records 18 to 20 are missing"},
		"the last gone":          {span(1, 19), ":19: the log ends here with record 19: record 20 is missing"},
		"all gone":               {"", "the log is empty, and had 20 records"},
		"cut within a line":      {span(1, 9) + line(10)[:40], ":10: is no whole line"},
		"the last cut":           {span(1, 19) + line(20)[:40], ":20: is no whole line"},
		"reordered":              {span(1, 4) + line(6) + line(5) + span(7, 20), ":5: record 6 follows record 4"},
		"doubled":                {span(1, 5) + line(5) + span(6, 20), ":6: record 5 stands behind record 5"},
		"garbage":                {span(1, 4) + "garbage\n" + span(6, 20), ":5: is no record"},
		"renumbered":             {span(1, 4) + strings.Replace(line(5), `"sequence":5`, `"sequence":50`, 1) + span(6, 20), ":5: record 50 follows record 4"},
		"forged at the end":      {span(1, 20) + strings.Replace(line(20), `"sequence":20`, `"sequence":21`, 1), ":20: record 20 is not what"},
		"nothing but white":      {"\n\n", ":1: is no record"},
		"a record of another's":  {strings.Replace(line(1), `"`+zeroHash, `"1`+zeroHash[1:], 1) + span(2, 20), ":1: record 1 says that one was before it"},
		"somewhere else, sealed": {reseal(t, lines, 5), ":20: record 20 is not what was anchored"},
	} {
		if err := os.WriteFile(f.path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Verify(f.path)
		if err != nil || len(r.Problems) == 0 || !strings.Contains(r.Problems[0].String(), c.want) {
			t.Errorf("%s: %v, %v, want %q", name, r.Problems, err, c.want)
		}
	}
	if err := os.WriteFile(f.path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	f.verify()
	if err := os.Remove(headPath(f.path)); err != nil {
		t.Fatal(err)
	}
	f.verify(".head: is missing")
}

// reseal changes a record and chains all that follow anew, as somebody would who knows how.
func reseal(t *testing.T, lines []string, n int) string {
	t.Helper()
	var out strings.Builder
	previous := zeroHash
	for i, line := range lines {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if r.Levee.Previous = previous; i+1 == n {
			r.User.Name = "mallory"
		}
		text, err := encode(&r)
		if err != nil {
			t.Fatal(err)
		}
		previous = hashOf(text)
		out.Write(append(text, '\n'))
	}
	return out.String()
}

// The chain goes on over files and restarts, and what is kept is bounded.
func TestRotation(t *testing.T) {
	f := open(t)
	f.size = 8 << 10
	for range 10 {
		f.reopen("")
		f.ban(20)
		f.verify()
	}
	files, err := Files(f.path)
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	var total int64
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(info, err)
		}
		total += info.Size()
	}
	if total > 3*(f.size+2<<10) {
		t.Errorf("%d bytes are kept", total)
	}
	r, err := Verify(f.path)
	if err != nil || r.Last != 200 || r.First < 100 || r.Records != int(r.Last-r.First)+1 {
		t.Errorf("%+v, %v", r, err)
	}
	// A file that is taken from the middle or the beginning is missed.
	kept, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	f.verify("the beginning is missing")
	if err := os.WriteFile(files[0], kept, 0o600); err != nil {
		t.Fatal(err)
	}
	f.verify()
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	f.verify("missing here")
}

// A daemon that died in the middle of a write leaves a log that goes on, and says what happened.
func TestTorn(t *testing.T) {
	f := open(t)
	f.ban(3)
	f.Close()
	text, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path, append(text, `{"@timestamp":"20`...), 0o600); err != nil {
		t.Fatal(err)
	}
	f.reopen("")
	f.ban(1)
	f.verify()
	if l := f.lines(); len(l) != 5 || !strings.Contains(l[3], "the last 17 bytes were no whole record") {
		t.Errorf("%q", l)
	}
}

// Where the end was cut off before a start, the log says so itself, and goes on behind the gap.
func TestCutOff(t *testing.T) {
	f := open(t)
	f.ban(5)
	f.Close()
	l := f.lines()
	if err := os.WriteFile(f.path, []byte(strings.Join(l[:3], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	f.reopen("it ends with record 3, and ended with record 5")
	f.ban(1)
	f.verify(":4: record 6 follows record 3: records 4 to 5 are missing here")
	f.reopen("")
	if l := f.lines(); !strings.Contains(l[3], `"action":"audit-broken"`) {
		t.Error(l[3])
	}
	f.Close()
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.reopen("the end was cut off")
}

// A power failure may take what was not anchored yet; that is no tampering.
func TestNotAnchored(t *testing.T) {
	f := open(t)
	f.ban(5)
	f.flush()
	f.ban(5)
	l := f.lines()
	if err := os.WriteFile(f.path, []byte(strings.Join(l[:7], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	f.verify()
}

// A full disk costs records and not changes; they are counted, and the log says so when it can.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	dir := t.TempDir()
	if err := unix.Mount("levee-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	f := &fixture{TB: t, path: filepath.Join(dir, "audit.jsonl"), now: time.Now(), size: 1 << 20}
	f.reopen("")
	defer func() { f.Close() }()
	for range 200 {
		f.ban(1)
	}
	if f.Failing() == nil || f.Probe() == nil {
		t.Fatal("the disk has more room than it should")
	}
	lost := f.lost
	f.verify() // no half a record
	if err := unix.Mount("levee-test", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := f.Probe(); err != nil {
		t.Fatal(err)
	}
	f.ban(1)
	if f.Failing() != nil {
		t.Error(f.Failing())
	}
	f.verify()
	l := f.lines()
	if got := l[len(l)-2]; lost == 0 || !strings.Contains(got, fmt.Sprintf("%d records could not be written", lost)) || !strings.Contains(got, "no space left") {
		t.Errorf("%d lost: %s", lost, got)
	}
}

// However many are refused, the log and the memory stay small, and how many there were is known.
func TestRefusals(t *testing.T) {
	f := open(t)
	attempts := 100_000
	if testing.Short() {
		attempts /= 10
	}
	refuse := func(n int, address func(int) string) {
		for i := range n {
			f.Refuse(&state.AuditEvent{Action: "authenticate", Code: state.CodeUnauthorized, Reason: strings.Repeat("x", 1000),
				By: state.Actor{Address: netip.MustParseAddrPort(address(i))}})
		}
	}
	told := func() (records int, refusals uint64) {
		for _, line := range f.lines() {
			var r Record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			records, refusals = records+1, refusals+1+r.Levee.Suppressed
		}
		return records, refusals
	}
	refuse(attempts, func(int) string { return "198.51.100.7:1" })
	f.now = f.now.Add(time.Minute)
	f.flush()
	if n, all := told(); n > 2*perLogin || all != uint64(attempts) {
		t.Errorf("%d records of %d refusals, want few of %d", n, all, attempts)
	}
	before := heap()
	refuse(attempts, func(i int) string { return fmt.Sprintf("[2001:db8:%x:%x::1]:1", i>>16, i&0xffff) })
	if grown := heap() - before; grown > 16<<20 || len(f.limiters.others.kinds) > maxKinds+1 {
		t.Errorf("%d bytes for %d kinds", grown, len(f.limiters.others.kinds))
	}
	for range 2 * maxKinds {
		f.now = f.now.Add(allEvery)
		f.flush()
	}
	if n, all := told(); n > 2*perLogin+allBurst+maxKinds+1 || all != uint64(2*attempts) {
		t.Errorf("%d records of %d refusals, want %d", n, all, 2*attempts)
	}
	f.now = f.now.Add(time.Hour)
	if f.flush(); len(f.limiters.others.kinds) != 0 {
		t.Errorf("%d kinds are kept", len(f.limiters.others.kinds))
	}
	f.verify()
}

// A batch of which all was refused is a failure and says why; one of which a part was is none, and is
// found all the same.
func TestRefusedBatch(t *testing.T) {
	f := open(t)
	refused := state.AuditBans{Status: state.StatusRefused, Code: state.CodeProtected, Error: "is this host", Prefixes: []string{"127.0.0.1"}}
	added := state.AuditBans{Status: state.StatusAdded, Prefixes: []string{"192.0.2.1"}}
	for _, c := range []struct {
		bans                  []state.AuditBans
		outcome, code, reason string
		refused               bool
	}{
		{[]state.AuditBans{refused}, "failure", "protected", "is this host", true},
		{[]state.AuditBans{added, refused}, "success", "", "", true},
		{[]state.AuditBans{added}, "success", "", "", false},
	} {
		f.Write(&state.AuditEvent{Action: "ban", Bans: c.bans})
		lines := f.lines()
		var r Record
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
			t.Fatal(err)
		}
		if e := r.Event; e.Outcome != c.outcome || e.Code != c.code || e.Reason != c.reason || r.Refused() != c.refused {
			t.Errorf("%+v: %+v, refused %t", c.bans, e, r.Refused())
		}
	}
}

// Whether a token that was tried is one that there is makes no difference to what is written.
func TestRefusedTokens(t *testing.T) {
	f := open(t)
	refuse := func(name string) int {
		before := len(f.lines())
		f.Refuse(&state.AuditEvent{Action: "authenticate", Code: state.CodeUnauthorized, Reason: "x",
			By: state.Actor{Kind: state.ActorToken, Name: name, Address: netip.MustParseAddrPort("198.51.100.7:1")}})
		return len(f.lines()) - before
	}
	for range 3 * perLogin {
		refuse("")
	}
	for _, name := range []string{"", "gateway", "other"} {
		if n := refuse(name); n != 0 {
			t.Errorf("%q: %d records were written", name, n)
		}
	}
}

// A flood of strangers from many addresses hides no refusal of who is known.
func TestRefusalOfKnown(t *testing.T) {
	f := open(t)
	for i := range 2 * maxKinds {
		f.Refuse(&state.AuditEvent{Action: authenticate, Code: state.CodeUnauthorized,
			By: state.Actor{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 1)}})
	}
	before := len(f.lines())
	f.Refuse(&state.AuditEvent{Action: "allow", Code: state.CodeForbidden,
		By: state.Actor{Kind: state.ActorToken, Name: "gateway", Scopes: []state.Scope{state.ScopeBan}, Address: netip.MustParseAddrPort("198.51.100.7:1")}})
	if lines := f.lines(); len(lines) != before+1 || !strings.Contains(lines[before], `"gateway"`) {
		t.Errorf("%d records were written: %q", len(lines)-before, lines[before:])
	}
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// A large change is recorded whole, in lines that are bounded.
func TestParts(t *testing.T) {
	f := open(t)
	bans := state.AuditBans{Status: state.StatusAdded, Origin: "api"}
	for i := range 10_000 {
		bans.Prefixes = append(bans.Prefixes, fmt.Sprintf("2001:db8::%x", i))
	}
	f.Write(&state.AuditEvent{Action: "ban", By: root, Bans: []state.AuditBans{{Status: state.StatusRefused, Prefixes: []string{"x"}}, bans}})
	l := f.lines()
	if len(l) != 11 || !strings.Contains(l[10], `"part":11,"parts":11`) {
		t.Fatalf("%d lines", len(l))
	}
	for _, line := range l {
		if len(line) > 32<<10 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	// Those that are not named are counted, once.
	f.Write(&state.AuditEvent{Action: "ban", By: root, Bans: []state.AuditBans{{Status: state.StatusRefused, Code: state.CodeForbidden, Others: 7}, bans}})
	if l = f.lines()[11:]; len(l) != 10 || strings.Count(strings.Join(l, ""), `"prefixes":[],"others":7}`) != 1 || !strings.Contains(l[0], "ban of 10007 prefixes") {
		t.Errorf("%d lines: %.1000s", len(l), l[0])
	}
	f.verify()
}

// Copies arrive at the socket, and a receiver that is gone or asleep holds nothing up.
func TestCopies(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "log")
	listen := func() *net.UnixConn {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	l, _, err := Open(Config{Path: filepath.Join(dir, "audit.jsonl"), Size: 1 << 20, Files: 2, Copy: NewSink(socket)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	f := &fixture{TB: t, Log: l, path: filepath.Join(dir, "audit.jsonl")}
	for round := range 2 { // the receiver restarts
		c := listen()
		f.ban(1)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 64<<10)
		n, err := c.Read(b)
		if err != nil || !bytes.HasPrefix(b, []byte("<85>")) || !bytes.Contains(b[:n], []byte(`levee-audit[`)) || !bytes.Contains(b[:n], []byte(`"action":"ban"`)) {
			t.Errorf("round %d: %q, %v", round, b[:n], err)
		}
		c.Close()
		os.Remove(socket)
	}
	asleep := listen()
	defer asleep.Close()
	start := time.Now()
	for range 100 {
		f.ban(100)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("10,000 records took %s", took)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	f.verify()
}

func BenchmarkWrite(b *testing.B) {
	f := open(b)
	for b.Loop() {
		f.ban(1)
	}
}

// Records that are written while the log is synced and files are set aside are all there.
func TestTogether(t *testing.T) {
	f := open(t)
	f.size = 32 << 10
	f.reopen("")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			f.flush()
		}
	}()
	const writers, each = 4, 50
	var group sync.WaitGroup
	for range writers {
		group.Go(func() { f.ban(each) })
	}
	group.Wait()
	<-done
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(f.path)
	if err != nil || len(r.Problems) > 0 || r.Last != writers*each {
		t.Errorf("%+v, %v", r, err)
	}
}

// A value that is too large for a record is not passed over in silence.
func TestLargeValue(t *testing.T) {
	value := func(v any) string {
		return string(records(&state.AuditEvent{Action: "set-limit", Value: v}, time.Now())[0].Levee.Value)
	}
	fits := strings.Repeat("x", maxValue-2) // beside the quotes
	if got := value(fits); got != `"`+fits+`"` {
		t.Errorf("%.100s", got)
	}
	want := fmt.Sprintf(`{"left_out":"it is too large","bytes":%d,"sha256":"%x"}`, maxValue+1, sha256.Sum256([]byte(`"`+fits+`x"`)))
	if got := value(fits + "x"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := value(func() {}); !strings.Contains(got, `"left_out":"it can't be written: `) {
		t.Error(got)
	}
}
