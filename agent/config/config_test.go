package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
)

// The reference says what the defaults are, setting by setting, and names every setting.
func TestReference(t *testing.T) {
	c, err := Parse("levee.yaml", Reference)
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Limits["default"]; l.Mode != state.Monitor || l.Packets == nil || l.Penalty != 0 {
		t.Errorf("default limit: %+v", l)
	}
	c.Limits = nil
	want, got := Default().Settings(), c.Settings()
	for i := range got {
		got[i].From = ""
	}
	for i := range want {
		want[i].From = ""
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the reference differs from the defaults (-default +reference):\n%s", diff)
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		if name := f.Tag.Get("json"); f.IsExported() && !strings.Contains(string(Reference), "\n"+name+":") {
			t.Errorf("the reference lacks %q", name)
		}
	}
	// What the comments propose is right, too.
	var open []string
	for line := range strings.Lines(string(Reference)) {
		for _, intro := range []string{"  # ", "    # "} {
			rest, ok := strings.CutPrefix(line, intro)
			if ok && (strings.HasPrefix(rest, " ") || strings.Contains(rest, ": ") || strings.HasSuffix(strings.TrimSpace(rest), ":")) {
				line = intro[:len(intro)-2] + rest
			}
		}
		open = append(open, line)
	}
	if c, err = Parse("levee.yaml", []byte(strings.Join(open, ""))); err != nil {
		t.Errorf("with what its comments propose: %v", err)
	} else if len(c.Limits) != 3 || c.Limits["default"].Aggregate == nil || c.Limits["default"].Group.IPv6 != 64 {
		t.Errorf("the comments propose %+v", c.Limits)
	}
}

func TestParse(t *testing.T) {
	c, err := Parse("test.yaml", []byte(`
interfaces:
  - eth0
  - {name: eth1, mode: native}
mode: monitor
limits:
  default:
    packets: 20k/s
    bits: {rate: 200Mbit/s, burst: 2MiB}
  web:
    services: [tcp/443, tcp/80]
    syn: 100/m
    penalty: 1d
allow:
  - 192.0.2.1
  - {prefix: "2001:db8::1/32", comment: "us", no_limits: yes please}
`))
	if c != nil || err == nil {
		t.Fatal("half a file was taken")
	}
	c, err = Parse("test.yaml", []byte(`
interfaces:
  - eth0
  - {name: eth1, mode: native}
mode: monitor
limits:
  default:
    packets: 20k/s
    bits: {rate: 200Mbit/s, burst: 2MiB}
  web:
    services: [tcp/443, tcp/80]
    syn: 100/m
    penalty: 1d
    group: {ipv6: 56}
allow:
  - 192.0.2.1
  - {prefix: "2001:db8::1/32", comment: "us", no_limits: true}
tables: {sources: 64k}
control:
  cap: {rate: 1k/s, burst: 5k}
metrics: {listen: "[::1]:9999"}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != state.Monitor || c.Interfaces[1].Mode != state.ModeNative || c.Tables.Sources != 64000 || c.Tables.Ban4Entries != 1<<20 ||
		time.Duration(c.Limits["web"].Penalty) != 24*time.Hour || c.Limits["web"].SYN.String() != "100/m" || c.Limits["default"].Bits.String() != "200Mbit/s burst 2MiB" ||
		c.Allow[1].Prefix.String() != "2001:db8::/32" || !c.Allow[1].NoLimits || c.Control.Cap.String() != "1k/s burst 5k" || c.Limits["web"].Group.IPv6 != 56 {
		t.Errorf("%+v", c)
	}
	if s := c.Tables.Sizes(); s != (bpf.Sizes{Ban4Entries: 1 << 20, Ban6Entries: 100_000, Sources: 64000, Allows: 1 << 14}) {
		t.Errorf("%+v", s)
	}
	var from []string
	for _, s := range c.Settings() {
		if s.From != "default" {
			from = append(from, fmt.Sprintf("%s=%s %s", s.Path, s.Value, strings.TrimPrefix(s.From, "test.yaml:")))
		}
	}
	want := `interfaces[0].name=eth0 3
interfaces[1].name=eth1 4
interfaces[1].mode=native 4
mode=monitor 5
limits.default.packets=20k/s 8
limits.default.bits=200Mbit/s burst 2MiB 9
limits.web.services[0]=tcp/80 11
limits.web.services[1]=tcp/443 11
limits.web.syn=100/m 12
limits.web.penalty=1d 13
limits.web.group.ipv6=56 14
allow[0].prefix=192.0.2.1/32 16
allow[1].prefix=2001:db8::/32 17
allow[1].no_limits=true 17
allow[1].comment=us 17
control.cap=1k/s burst 5k 20
tables.sources=64000 18
metrics.listen=[::1]:9999 21`
	if diff := cmp.Diff(want, strings.Join(from, "\n")); diff != "" {
		t.Error(diff)
	}
	same, _ := Parse("", nil)
	if names := same.NeedsRestart(c); !cmp.Equal(names, []string{"tables", "metrics"}) {
		t.Errorf("needs a restart: %v", names)
	}
}

func TestBadFiles(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", "limts: {}\n", `f.yaml:1:1: "limts" is not a setting; is "limits" meant?
  1 | limts: {}
    | ^`},
		{"unknown key below", "api:\n  port: 80\n", `f.yaml:2:3: api: "port" is not a setting; there are group, socket
  2 |   port: 80
    |   ^`},
		{"doubled key", "mode: enforce\nmode: monitor\n", `f.yaml:2:1: mapping key "mode" already defined at [1:1]
  2 | mode: monitor
    | ^`},
		{"doubled key below", "limits:\n  default: {packets: 1/s, packets: 2/s}\n", `f.yaml:2:27: mapping key "packets" already defined`},
		{"rate", "limits:\n  default:\n    packets: 20x/s\n", `f.yaml:3:14: limits.default.packets: rate "20x/s": is not a rate; write packets as 20k/s or 100/m, bits as 200Mbit/s
  3 |     packets: 20x/s
    |              ^`},
		{"rate of the wrong kind", "limits:\n  default:\n    bits: 20k/s\n", `f.yaml:3:11: limits.default.bits.rate "20k/s": counts packets; write bits, as in 200Mbit/s`},
		{"threshold's key", "limits:\n  default:\n    packets: {rate: 1/s, brust: 5}\n", `"brust" is not a setting; is "burst" meant?`},
		{"prefix", "allow:\n  - 10.0.0.1\n  - 10.0.0.0/33\n", `f.yaml:3:5: allow[1]: prefix "10.0.0.0/33": its length "33" is not a number from 0 to 32
  3 |   - 10.0.0.0/33
    |     ^`},
		{"prefix twice", "allow: [10.0.0.1, 10.0.0.1/32]\n", `f.yaml:1:19: allow[1] "10.0.0.1/32": stands here twice`},
		{"duration", "source_idle: 5\n", `f.yaml:1:14: source_idle: duration "5": has no unit`},
		{"duration out of range", "source_idle: 2h\n", `source_idle "2h": is not within 20ms to 1h`},
		{"mode", "mode: drop\n", `mode "drop": is neither enforce nor monitor`},
		{"interface", "interfaces: [an-interface-with-a-long-name]\n", `interfaces[0].interface "an-interface-with-a-long-name": is not an interface's name`},
		{"interface twice", "interfaces: [eth0, {name: eth0}]\n", `interfaces[1].name "eth0": stands here twice`},
		{"interface mode", "interfaces: [{name: eth0, mode: offload}]\n", `interfaces[0].mode: mode "offload": is none of auto, native and generic`},
		{"table", "tables: {ban4_entries: 5}\n", `tables.ban4_entries "5": 5 is not within 1024 to 16777216`},
		{"table not a number", "tables: {sources: many}\n", `tables.sources: number "many": is not a number`},
		{"negative number", "events: {budget: -1}\n", `events.budget: number "-1": is not a number`},
		{"budget", "events: {budget: 1M}\n", `events.budget "1000000": is more than 100000`},
		{"list", "limits: [a]\n", `limits: is a list, and should be a group of settings`},
		{"group", "mode: {a: b}\n", `mode: is a group of settings, and should be one value`},
		{"bool", "features: {bans: 1}\n", `features.bans: is "1", and should be true or false`},
		{"whole number", "limits: {default: {group: {ipv4: x}}}\n", `limits.default.group.ipv4: is "x", and should be a whole number`},
		{"group out of range", "limits: {default: {group: {ipv4: 99}}}\n", `limits.default.group.ipv4 "99": is not a prefix length from 8 to 32`},
		{"service", "limits: {web: {services: [tcp/99999]}}\n", `limits.web.services[0]: service "tcp/99999": its port is not within 1 to 65535`},
		{"bound twice", "limits:\n  a: {services: [tcp/80]}\n  b: {services: [tcp/80]}\n", `f.yaml:3:17: limits.b.services "tcp/80": is bound to the limit "a" already`},
		{"bound to nothing", "limits:\n  a: {packets: 1/s}\n", `limits.a.sources: the limit is bound to nothing`},
		{"limit's name", "limits:\n  Ä: {packets: 1/s, services: [tcp/1]}\n", `is not a limit's name`},
		{"open listener", "metrics: {listen: \"0.0.0.0:9464\"}\n", `metrics.listen "0.0.0.0:9464": can be reached from other hosts; set expose: true`},
		{"listener everywhere", "metrics: {listen: \":9464\"}\n", `can be reached from other hosts`},
		{"listener by name", "metrics: {listen: \"example.com:80\"}\n", `its host is not an address`},
		{"listener without port", "metrics: {listen: \"127.0.0.1\"}\n", `is not an address and a port`},
		{"relative path", "state: {path: state.db}\n", `state.path "state.db": is not an absolute path`},
		{"long socket", "api: {socket: /" + strings.Repeat("x", 120) + "}\n", `is longer than the 107 bytes`},
		{"log level", "log: {level: loud}\n", `log.level "loud": is none of debug, info, warn and error`},
		{"anchors", "mode: &m enforce\n", `anchors, aliases, tags and merge keys are not used here`},
		{"second document", "mode: enforce\n---\nmode: monitor\n", `a second document`},
		{"a scalar", "hello\n", `is "hello", and should be a group of settings`},
		{"tab", "limits:\n\tdefault: {}\n", `f.yaml:2:`},
		{"unclosed", "allow: [10.0.0.1\n", `f.yaml:`},
		{"not text", "mode: \xff\n", `f.yaml: is not valid UTF-8`},
		{"empty item", "allow: [10.0.0.1, ]\nmode: what\n", `mode "what"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("f.yaml", []byte(tt.text))
			if c != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v\nwant: %s", err, tt.want)
			}
		})
	}
}

// Every problem is shown, not just the first.
func TestAllProblems(t *testing.T) {
	_, err := Parse("f.yaml", []byte("mode: x\nlimits:\n  default: {packets: 1, syn: 2}\nallow: [nobody]\nfoo: 1\n"))
	e, ok := errors.AsType[*Error](err)
	if !ok || len(e.Problems) != 5 {
		t.Errorf("%v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.yaml")); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("a file that was named and is not there: %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory was read")
	}
	path := filepath.Join(dir, "levee.yaml")
	for text, want := range map[string]state.Mode{"": state.Enforce, "# nothing\n": state.Enforce, "mode:\n": state.Enforce, "mode: monitor\r\n": state.Monitor, "\ufeffmode: monitor\n": state.Monitor} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Load(path); err != nil || c.Mode != want {
			t.Errorf("%q: %v, %v", text, c, err)
		}
	}
	if err := Default().Check(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Reference)
	f.Add([]byte("limits:\n  default:\n    packets: {rate: 1/s, burst: 5}\n"))
	f.Add([]byte("allow: [10.0.0.1, {prefix: ::/0}]\n"))
	f.Add([]byte("interfaces: [eth0]\nmode: &a x\nb: *a\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1<<12 {
			return
		}
		c, err := Parse("f.yaml", text)
		if (c == nil) == (err == nil) {
			t.Fatal("neither or both")
		}
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("%T", err)
			}
			_ = err.Error()
			return
		}
		if err := c.Check(); err != nil {
			t.Errorf("taken, and then %v", err)
		}
		_ = c.Settings()
	})
}
