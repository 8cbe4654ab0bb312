package config

import (
	"bytes"
	"encoding"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
)

// exampleText is the reference with the # taken off its proposals; "# prose" stays a comment.
func exampleText() []byte {
	var out []byte
	for line := range bytes.Lines(Reference) {
		rest, ok := bytes.CutPrefix(line, []byte("#"))
		if ok && len(rest) > 1 && (rest[0] != ' ' || rest[1] == ' ') {
			line = rest
		}
		out = append(out, line...)
	}
	return out
}

// The reference says what the defaults are.
func TestReferenceIsTheDefault(t *testing.T) {
	c, err := Parse("levee.yaml", Reference)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("the reference differs from the defaults (-default +reference):\n%s", diff)
	}
}

// The reference names every setting that there is, and what it proposes is right.
func TestReferenceIsComplete(t *testing.T) {
	c, err := Parse("levee.yaml", exampleText())
	if err != nil {
		t.Fatalf("with what it proposes: %v", err)
	}
	if len(c.Interfaces) != 2 || len(c.Limits) != 3 || len(c.Allow) != 2 {
		t.Errorf("it proposes %+v", c)
	}
	said := map[string]bool{}
	for path := range c.lines {
		path = regexp.MustCompile(`^limits\.[^.]+`).ReplaceAllString(path, "limits.*")
		said[regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "[]")] = true
	}
	for _, path := range settingsOf(reflect.TypeFor[Config](), "") {
		if !said[path] {
			t.Errorf("it lacks %s", path)
		}
	}
}

// settingsOf returns the paths of all settings of a type.
func settingsOf(t reflect.Type, path string) (paths []string) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[state.Threshold]() && !strings.HasSuffix(path, ".packets") {
		return []string{path} // what it has within is looked for once
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return []string{path}
	}
	switch t.Kind() {
	case reflect.Struct:
		for name, index := range fieldsOf(t) {
			paths = append(paths, settingsOf(t.FieldByIndex(index).Type, join(path, name))...)
		}
	case reflect.Map:
		paths = settingsOf(t.Elem(), path+".*")
	case reflect.Slice:
		paths = settingsOf(t.Elem(), path+"[]")
	default:
		paths = []string{path}
	}
	return paths
}

// The defaults and ranges are those of the packages that use them.
func TestAgreement(t *testing.T) {
	c := Default()
	if c.BPFFS != loader.DefaultRoot || c.Lock != loader.DefaultLock || c.Compile.Cache != loader.DefaultCache {
		t.Errorf("%s, %s and %s are not the loader's defaults", c.BPFFS, c.Lock, c.Compile.Cache)
	}
	if c.Tables.Sizes() != bpf.DefaultSizes() {
		t.Errorf("sizes: %+v", c.Tables)
	}
	features := bpf.DefaultFeatures()
	if c.Features.Program() != features {
		t.Errorf("features: %+v", c.Features)
	}
	for _, f := range []struct {
		set   func(*Tables) *state.Count
		bound [2]state.Count
	}{
		{func(t *Tables) *state.Count { return &t.IPv4Bans }, ranges.bans4},
		{func(t *Tables) *state.Count { return &t.IPv6Bans }, ranges.bans6},
		{func(t *Tables) *state.Count { return &t.Sources }, ranges.sources},
		{func(t *Tables) *state.Count { return &t.Allows }, ranges.allows},
	} {
		for _, n := range []state.Count{f.bound[0] - 1, f.bound[0], f.bound[1], f.bound[1] + 1} {
			tables := Default().Tables
			*f.set(&tables) = n
			if ours, theirs := len(tables.problems()) == 0, tables.Sizes().Validate() == nil; ours != theirs {
				t.Errorf("%+v: taken here: %v, in the kernel: %v", tables, ours, theirs)
			}
		}
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
control_cap: {rate: 1k/s, burst: 5k}
metrics: {listen: "[::1]:9999"}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != state.Monitor || c.Interfaces[1].Mode != state.ModeNative || c.Tables.Sources != 64000 || c.Tables.IPv4Bans != 1<<20 ||
		time.Duration(c.Limits["web"].Penalty) != 24*time.Hour || c.Limits["web"].SYN.String() != "100/m" || c.Limits["default"].Bits.String() != "200Mbit/s burst 2MiB" ||
		c.Allow[1].Prefix.String() != "2001:db8::/32" || !c.Allow[1].NoLimits || c.ControlCap.String() != "1k/s burst 5k" || c.Limits["web"].Group.IPv6 != 56 {
		t.Errorf("%+v", c)
	}
	if s := c.Tables.Sizes(); s != (bpf.Sizes{Ban4Entries: 1 << 20, Ban6Entries: 100_000, Sources: 64000, Allows: 1 << 14}) {
		t.Errorf("%+v", s)
	}
	var from []string
	for _, s := range c.Settings() {
		if (s.Origin == state.SettingDefault) != (s.From == "default") || s.Origin != state.SettingDefault && s.Origin != state.SettingFile {
			t.Errorf("%+v", s)
		}
		if s.Origin == state.SettingFile {
			from = append(from, fmt.Sprintf("%s=%s %s", s.Path, s.Value, strings.TrimPrefix(s.From, "test.yaml:")))
		}
	}
	want := `interfaces[0].name=eth0 3
interfaces[0].mode=auto 3
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
control_cap=1k/s burst 5k 19
tables.sources=64000 18
metrics.listen=[::1]:9999 20`
	if diff := cmp.Diff(want, strings.Join(from, "\n")); diff != "" {
		t.Error(diff)
	}
	same, _ := Parse("", nil)
	if names := same.NeedsRestart(c); !cmp.Equal(names, []string{"tables", "metrics"}) {
		t.Errorf("needs a restart: %v", names)
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// Each file of testdata/bad is refused with the words that stand beside it.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse("levee.yaml", text)
			if c != nil || err == nil {
				t.Fatal("it was taken")
			}
			got := err.Error() + "\n"
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
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
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none.yaml") {
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

// What was set elsewhere goes before the file's lines, for all that is below its path, and only there.
func TestMark(t *testing.T) {
	c, err := Parse("f.yaml", []byte("mode: monitor\ninterfaces: [eth0, eth1]\nlimits:\n  web: {services: [tcp/80], packets: 1k/s}\n  webs: {services: [tcp/443], packets: 1k/s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	other := *c
	c.Mark("interfaces[1]", state.SettingFlag, "--interface")
	c.Mark("log.level", state.SettingFlag, "--log-level")
	c.Mark("limits.web", state.SettingState, "levee limit set")
	c.Mark("mode", state.SettingFlag, "--mode")
	c.Mark("mode", state.SettingState, "again")
	var got []string
	for _, s := range c.Settings() {
		if s.Origin != state.SettingDefault {
			got = append(got, s.Path+" "+string(s.Origin)+" "+s.From)
		}
	}
	want := []string{"interfaces[0].name file f.yaml:2", "interfaces[0].mode file f.yaml:2", "interfaces[1].name flag --interface", "interfaces[1].mode flag --interface",
		"mode state again", "limits.web.services[0] state levee limit set", "limits.web.packets state levee limit set",
		"limits.webs.services[0] file f.yaml:5", "limits.webs.packets file f.yaml:5", "log.level flag --log-level"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, s := range other.Settings() {
		if s.Origin != state.SettingDefault && s.Origin != state.SettingFile {
			t.Errorf("a copy was marked, too: %+v", s)
		}
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

// A client that names one bound keeps the others, and one that wants none says so.
func TestClientBounds(t *testing.T) {
	day := state.Duration(24 * time.Hour)
	for text, want := range map[string]*state.Bounds{
		"scopes: [ban]":                       {IPv4: 32, IPv6: 64, Longest: day, Claims: 100_000, Origins: []state.Origin{"api:gw"}},
		"scopes: [ban], ipv4: 24":             {IPv4: 24, IPv6: 64, Longest: day, Claims: 100_000, Origins: []state.Origin{"api:gw"}},
		"scopes: [ban], longest: 0s":          {IPv4: 32, IPv6: 64, Claims: 100_000, Origins: []state.Origin{"api:gw"}},
		"scopes: [ban], ipv6: 0, claims: 0":   {IPv4: 32, Longest: day, Origins: []state.Origin{"api:gw"}},
		"scopes: [ban], origins: [\"api:x\"]": {IPv4: 32, IPv6: 64, Longest: day, Claims: 100_000, Origins: []state.Origin{"api:x"}},
		"scopes: [ban], origins: []":          {IPv4: 32, IPv6: 64, Longest: day},
		"scopes: [admin]":                     nil,
		"scopes: [admin], ipv4: 24":           {IPv4: 24, IPv6: 64, Longest: day, Claims: 100_000, Origins: []state.Origin{"api:gw"}},
		"scopes: [admin], ipv6: 48":           {IPv4: 32, IPv6: 48, Longest: day, Claims: 100_000, Origins: []state.Origin{"api:gw"}},
		"scopes: [admin], longest: 1h":        {IPv4: 32, IPv6: 64, Longest: day / 24, Claims: 100_000, Origins: []state.Origin{"api:gw"}},
		"scopes: [admin], claims: 7":          {IPv4: 32, IPv6: 64, Longest: day, Claims: 7, Origins: []state.Origin{"api:gw"}},
		"scopes: [admin], force: false":       {IPv4: 32, IPv6: 64, Longest: day, Claims: 100_000, Origins: []state.Origin{"api:gw"}},
		"scopes: [admin], origins: [api]":     {IPv4: 32, IPv6: 64, Longest: day, Claims: 100_000, Origins: []state.Origin{"api"}},
	} {
		c, err := Parse("levee.yaml", []byte("api:\n  tcp:\n    listen: 192.0.2.1:9465\n    certificate: /c\n    key: /k\n    client_ca: /a\n    clients:\n      - {name: gw, "+text+"}\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := c.API.TCP.Clients[0].Bounds(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}
