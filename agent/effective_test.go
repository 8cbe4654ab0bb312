package agent

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

// origins is the settings of some paths, as text.
func origins(t testing.TB, e state.Effective, paths ...string) string {
	t.Helper()
	var out []string
	for _, s := range e.Settings {
		if s.Value == "" && s.Origin == "" || s.From == "" {
			t.Errorf("%+v", s)
		}
		for _, p := range paths {
			if s.Path == p || strings.HasPrefix(s.Path, p+".") || strings.HasPrefix(s.Path, p+"[") {
				from := s.From
				if i := strings.LastIndex(from, "levee.yaml:"); i >= 0 {
					from = from[i:]
				}
				out = append(out, s.Path+"="+s.Value+" "+string(s.Origin)+" "+from)
			}
		}
	}
	return strings.Join(out, "\n")
}

func threshold(t testing.TB, text string) *state.Threshold {
	t.Helper()
	r, err := state.ParseRate(text)
	if err != nil {
		t.Fatal(err)
	}
	return &state.Threshold{Rate: r}
}

// Every setting says which value is in force, and whether nobody, the file, a flag or somebody at run
// time gave it; and the file's comes back with what was set at run time.
func TestEffective(t *testing.T) {
	k := newFakeKernel()
	k.foreign = ""
	d := &testDaemon{TB: t, kernel: k, system: &fakeSystem{}, dir: t.TempDir(), log: &buffer{}, text: `interfaces: [eth0, eth1]
limits:
  web: {services: [tcp/80], packets: 1k/s}
  dns: {services: [udp/53], packets: 1k/s}
allow:
  - 192.0.2.1
  - {prefix: 192.0.2.2, no_limits: true}
`}
	d.flags = func(c *config.Config) {
		c.Mode = state.Monitor
		c.Mark("mode", state.SettingFlag, "--mode")
	}
	d.start()
	t.Cleanup(d.end)
	show := func(paths ...string) string {
		t.Helper()
		e, err := d.Settings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return origins(t, e, paths...)
	}
	all := []string{"panic", "interfaces", "mode", "limits", "allow", "source_idle"}
	before := `panic=off default default
interfaces[0].name=eth0 file levee.yaml:1
interfaces[0].mode=auto file levee.yaml:1
interfaces[1].name=eth1 file levee.yaml:1
interfaces[1].mode=auto file levee.yaml:1
mode=monitor flag --mode
limits.dns.services[0]=udp/53 file levee.yaml:4
limits.dns.packets=1k/s file levee.yaml:4
limits.web.services[0]=tcp/80 file levee.yaml:3
limits.web.packets=1k/s file levee.yaml:3
allow[0].prefix=192.0.2.1/32 file levee.yaml:6
allow[1].prefix=192.0.2.2/32 file levee.yaml:7
allow[1].no_limits=true file levee.yaml:7
source_idle=500ms default default`
	if got := show(all...); got != before {
		t.Errorf("at start:\n%s", got)
	}

	spec := state.LimitSpec{Services: []state.Service{{Protocol: 6, Port: 80}}, Packets: threshold(t, "5k/s"), Mode: state.Monitor}
	_, errLimit := d.SetLimit(t.Context(), "web", spec)
	_, errDefault := d.SetLimit(t.Context(), state.DefaultLimit, state.LimitSpec{Packets: threshold(t, "20k/s")})
	_, errAllow := d.Allow(t.Context(), state.AllowRequest{Allow: []state.AllowItem{{Prefix: "192.0.2.2", Comment: "mine"}, {Prefix: "198.51.100.0/24", For: "1h"}}})
	_, errAttach := d.Attach(t.Context(), state.AttachRequest{Name: "eth2", Mode: state.ModeGeneric})
	_, errMode := d.Attach(t.Context(), state.AttachRequest{Name: "eth0", Mode: state.ModeGeneric})
	errDetach := d.Detach(t.Context(), "eth1")
	_, errPanic := d.SetPanic(t.Context(), true)
	for _, err := range []error{errLimit, errDefault, errAllow, errAttach, errMode, errDetach, errPanic} {
		if err != nil {
			t.Fatal(err)
		}
	}
	limit, err := d.Limit(t.Context(), "web")
	if err != nil || limit.Actor == "" {
		t.Fatalf("%+v, %v", limit, err)
	}
	now := func(s string) string {
		i := strings.Index(s, ", until 20") // a time that is not known here
		if i < 0 {
			t.Fatalf("no end: %s", s)
		}
		return s[:i] + s[i+len(", until 2026-01-01T00:00:00Z"):]
	}
	want := `panic=on state levee panic on
interfaces[0].name=eth0 file levee.yaml:1
interfaces[0].mode=generic state levee attach
interfaces[1].name=eth1 file levee.yaml:1
interfaces[1].mode=detached state levee detach
interfaces[2].name=eth2 state levee attach
interfaces[2].mode=generic state levee attach
mode=monitor flag --mode
limits.default.packets=20k/s state levee limit set, by ME
limits.dns.services[0]=udp/53 file levee.yaml:4
limits.dns.packets=1k/s file levee.yaml:4
limits.web.services[0]=tcp/80 state levee limit set, by ME
limits.web.packets=5k/s state levee limit set, by ME
limits.web.mode=monitor state levee limit set, by ME
allow[0].prefix=192.0.2.1/32 file levee.yaml:6
allow[1].prefix=192.0.2.2/32 state levee allow add, by ME
allow[1].comment=mine state levee allow add, by ME
allow[2].prefix=198.51.100.0/24 state levee allow add, by ME
source_idle=500ms default default`
	want = strings.ReplaceAll(want, "ME", limit.Actor)
	if got := now(show(all...)); got != want {
		t.Errorf("changed:\n%s\nwant:\n%s", got, want)
	}
	d.restart()
	if got := now(show(all...)); got != want {
		t.Errorf("after a restart:\n%s", got)
	}

	if err := d.RemoveLimit(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if got := show("limits.web"); got != "limits.web.services[0]=tcp/80 file levee.yaml:3\nlimits.web.packets=1k/s file levee.yaml:3" {
		t.Errorf("taken back: %s", got)
	}
}

// Who may only read does not learn what may be a secret of the webhook's URL; and a limit that Levee
// makes is shown as its own.
func TestEffectiveSecrets(t *testing.T) {
	c, err := config.Parse("levee.yaml", []byte("notify: {url: \"https://hooks.example.com/services/T0/SECRET?k=SECRET\"}\n"+
		"api: {tcp: {listen: \"127.0.0.1:9465\", certificate: /c.pem, key: /k.pem}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c.State.Path, c.Lock, c.Metrics.Listen = filepath.Join(dir, "state.db"), filepath.Join(dir, "lock"), ""
	e, _, err := start(t.Context(), &Options{Config: c, Kernel: newFakeKernel(), System: &fakeSystem{}, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	reader := state.Actor{Kind: state.ActorToken, Name: "reader", Scopes: []state.Scope{state.ScopeRead}}
	if got := origins(t, e.Effective(state.Operator("root")), "notify.url"); got != "notify.url=https://hooks.example.com/services/T0/SECRET?k=SECRET file levee.yaml:1" {
		t.Errorf("an administrator: %s", got)
	}
	if got := origins(t, e.Effective(reader), "notify.url"); got != "notify.url=https://hooks.example.com/… file levee.yaml:1" {
		t.Errorf("a reader: %s", got)
	}
	if got := c.Notify.URL; !strings.HasSuffix(got, "SECRET") {
		t.Errorf("the configuration itself is now %s", got)
	}
	if got := origins(t, e.Effective(reader), "limits.levee-api"); !strings.Contains(got, "limits.levee-api.services[0]=tcp/9465 default made for api.tcp.listen\n") {
		t.Errorf("the limit of the listener: %s", got)
	}
	for in, want := range map[string]string{"": "", "https://user:pass@hooks.example.com/services/SECRET?k=SECRET": "https://hooks.example.com/…", "https:SECRET": ""} {
		if got := withoutSecrets(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
