package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
)

// Path is where the file is looked for if nobody says otherwise.
const Path = "/etc/levee/levee.yaml"

// Reference is the file with every setting, its default and what it is for.
//
//go:embed levee.yaml
var Reference []byte

// Config is everything that the file can say, with the defaults where it is silent.
type Config struct {
	Interfaces []Interface                `json:"interfaces"`
	Mode       state.Mode                 `json:"mode"`
	Limits     map[string]state.LimitSpec `json:"limits"`
	Allow      []state.AllowSpec          `json:"allow"`
	Protect    Protect                    `json:"protect"`
	Proxies    []state.Prefix             `json:"trusted_proxies"`
	SourceIdle state.Duration             `json:"source_idle"`
	ControlCap state.Threshold            `json:"control_cap"` // packets
	Events     Events                     `json:"events"`
	Tables     Tables                     `json:"tables"`
	Features   Features                   `json:"features"`
	API        API                        `json:"api"`
	Metrics    Metrics                    `json:"metrics"`
	Notify     Notify                     `json:"notify"`
	State      State                      `json:"state"`
	BPFFS      string                     `json:"bpffs"` // where the program and its maps are pinned
	Lock       string                     `json:"lock"`  // the file that keeps a second daemon out
	Audit      Audit                      `json:"audit"`
	Log        Log                        `json:"log"`
	Compile    Compile                    `json:"compile"`

	file  string
	text  []byte          // of the file; nil if there is none
	lines map[string]int  // of every setting that the file makes
	marks map[string]mark // of what others than the file set
}

// Interface is an interface to shield.
type Interface struct {
	Name string              `json:"name"`
	Mode state.InterfaceMode `json:"mode"`
}

// Protect is which addresses Levee allows by itself.
type Protect struct {
	Own       bool `json:"own"`       // this host's
	Gateways  bool `json:"gateways"`  // next hops of its default routes
	Resolvers bool `json:"resolvers"` // DNS servers that it asks
	SSH       bool `json:"ssh"`       // peers of live SSH sessions
	API       bool `json:"api"`       // clients of the daemon's API
}

// Events is how many dropped packets are sampled.
type Events struct {
	Budget state.Count `json:"budget"` // per CPU and second
}

// Tables is how much the kernel's tables hold, in entries.
type Tables struct {
	IPv4Bans state.Count `json:"ipv4_bans"`
	IPv6Bans state.Count `json:"ipv6_bans"`
	Sources  state.Count `json:"sources"`
	Allows   state.Count `json:"allows"`
}

// Features is which stages the program has, of those that can be left out.
type Features struct {
	Sanity   bool `json:"sanity"`
	Martians bool `json:"martians"`
	Limits   bool `json:"limits"`
	Events   bool `json:"events"`
}

// API is where the daemon is spoken to.
type API struct {
	Socket string `json:"socket"`
	Group  string `json:"group"` // who may, beside root; if there is such a group
	TCP    TCP    `json:"tcp"`
}

// Metrics is where Prometheus reads.
type Metrics struct {
	Listen      string `json:"listen"`       // empty: nowhere
	AllowRemote bool   `json:"allow_remote"` // also where other hosts can reach it
}

// State is where decisions are kept.
type State struct {
	Path string `json:"path"`
}

// Log is what is logged, and how.
type Log struct {
	Level  string `json:"level"`  // debug, info, warn or error
	Format string `json:"format"` // text or json
}

// Compile is whether the program is compiled on this host, for its kernel and CPU.
type Compile struct {
	Enabled bool   `json:"enabled"`
	Clang   string `json:"clang"` // name or path; empty: the newest that is found
	Cache   string `json:"cache"` // where objects are kept
}

// Default is the configuration where there is no file. It attaches to nothing by itself and limits
// nobody; bans that someone sets are enforced.
func Default() *Config {
	sizes := bpf.DefaultSizes()
	return &Config{
		Mode:       state.Enforce,
		SourceIdle: state.Duration(500 * time.Millisecond),
		ControlCap: state.Threshold{Rate: state.Rate{Count: 10_000, Per: time.Second}, Burst: state.Burst{Units: 10_000}},
		Protect:    Protect{Own: true, Gateways: true, Resolvers: true, SSH: true, API: true},
		Events:     Events{Budget: 100},
		Tables: Tables{
			IPv4Bans: state.Count(sizes.Ban4Entries), IPv6Bans: state.Count(sizes.Ban6Entries),
			Sources: state.Count(sizes.Sources), Allows: state.Count(sizes.Allows),
		},
		Features: Features{Sanity: true, Martians: true, Limits: true, Events: true},
		API:      API{Socket: "/run/levee/levee.sock", Group: "levee", TCP: defaultTCP()},
		Audit:    defaultAudit(),
		Metrics:  Metrics{Listen: "127.0.0.1:9464"},
		Notify:   defaultNotify(),
		State:    State{Path: "/var/lib/levee/state.db"},
		BPFFS:    "/sys/fs/bpf/levee",
		Lock:     "/run/levee/lock",
		Log:      Log{Level: "info", Format: "text"},
		Compile:  Compile{Cache: "/var/cache/levee"},
	}
}

// maxFile bounds the file, in bytes: a hundred thousand allow entries.
const maxFile = 4 << 20

// Load reads a file. With an empty path it reads Path, and the defaults are in force where there is
// none.
func Load(path string) (*Config, error) {
	given := path
	if path == "" {
		path = Path
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && given == "" {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("configuration: %s is not a regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse reads a file's text. The error is an *Error with every problem that was found.
func Parse(file string, text []byte) (*Config, error) {
	c := Default()
	c.file, c.text = file, slices.Clone(text)
	d := newDecoder(file, text)
	d.decode(c)
	c.lines = d.lines()
	c.complete()
	if len(d.problems) == 0 {
		for _, err := range c.problems() {
			d.problemAt(err)
		}
	}
	if len(d.problems) > 0 {
		return nil, d.err()
	}
	return c, nil
}

// Text returns the text of the file, and whether there was none.
func (c *Config) Text() (text []byte, none bool) { return c.text, c.file == "" }

// Sum names the text of the file: the same for the same text.
func (c *Config) Sum() string {
	if c.file == "" {
		return "none"
	}
	sum := sha256.Sum256(c.text)
	return hex.EncodeToString(sum[:])
}

// complete gives what can be written in several ways one form.
func (c *Config) complete() {
	for i := range c.Interfaces {
		if c.Interfaces[i].Mode == "" {
			c.Interfaces[i].Mode = state.ModeAuto
		}
	}
	if c.API.TCP.Listen == off {
		c.API.TCP.Listen = ""
	}
	c.API.TCP.complete()
	if c.Audit.Copy == off {
		c.Audit.Copy = ""
	}
	if c.Notify.URL == off {
		c.Notify.URL = ""
	}
	if c.Metrics.Listen == off {
		c.Metrics.Listen = ""
	}
}

// problems checks what the file says, setting by setting and against each other.
func (c *Config) problems() []*state.Error {
	var found []*state.Error
	report := func(path string, err error) {
		if err != nil {
			found = append(found, state.AsError(err, state.CodeInvalid).In(path))
		}
	}
	bad := func(path, value, detail string) {
		found = append(found, &state.Error{Code: state.CodeInvalid, Field: path, Value: value, Detail: detail})
	}
	seen := map[string]bool{}
	for i, ifc := range c.Interfaces {
		path := "interfaces[" + strconv.Itoa(i) + "]"
		if err := state.CheckInterface(ifc.Name, ifc.Mode); err != nil {
			if err.Field == "interface" {
				err.Field = "name"
			}
			report(path, err)
		}
		if seen[ifc.Name] {
			bad(path+".name", ifc.Name, "stands here twice")
		}
		seen[ifc.Name] = true
	}
	for name, l := range c.Limits {
		if err := l.Validate(name); err != nil {
			report("limits."+name, err)
		}
		c.Limits[name] = l
	}
	if err := state.CheckLimits(c.Limits, ""); err != nil {
		found = append(found, err)
	}
	allowed := map[netip.Prefix]bool{}
	for i := range c.Allow {
		a := &c.Allow[i]
		path := "allow[" + strconv.Itoa(i) + "]"
		if err := a.Validate(); err != nil {
			report(path, err)
		}
		if p := a.Prefix.Prefix; allowed[p] {
			bad(path, p.String(), "stands here twice")
		}
		allowed[a.Prefix.Prefix] = true
	}
	proxies := map[netip.Prefix]bool{}
	for i, p := range c.Proxies {
		path := "trusted_proxies[" + strconv.Itoa(i) + "]"
		switch {
		case proxies[p.Prefix]:
			bad(path, p.String(), "stands here twice")
		case p.Bits() == 0:
			bad(path, p.String(), "is everybody; name the proxies' own ranges")
		}
		proxies[p.Prefix] = true
	}
	if d := time.Duration(c.SourceIdle); d < 20*time.Millisecond || d > time.Hour {
		bad("source_idle", c.SourceIdle.String(), "is not within 20ms to 1h")
	}
	l := state.LimitSpec{Packets: &c.ControlCap}
	if err := l.Validate(state.DefaultLimit); err != nil {
		err.Field = strings.TrimPrefix(err.Field, "packets.")
		report("control_cap", err)
	}
	if c.Events.Budget > 100_000 {
		bad("events.budget", c.Events.Budget.String(), "is more than 100000 a second and CPU")
	}
	found = append(found, c.Tables.problems()...)
	found = append(found, c.pathProblems()...)
	found = append(found, c.API.TCP.problems()...)
	found = append(found, c.Audit.problems()...)
	found = append(found, c.Notify.problems()...)
	if err := c.Metrics.check(); err != nil {
		report("metrics", err)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		bad("log.level", c.Log.Level, "is none of debug, info, warn and error")
	}
	switch c.Log.Format {
	case "text", "json":
	default:
		bad("log.format", c.Log.Format, "is neither text nor json")
	}
	return found
}

// ranges are the sizes of tables that bpf.Sizes takes, in entries.
var ranges = struct{ bans4, bans6, sources, allows [2]state.Count }{
	bans4:   [2]state.Count{1 << 10, 1 << 24},
	bans6:   [2]state.Count{1 << 10, 1 << 22},
	sources: [2]state.Count{1 << 10, 1 << 24},
	allows:  [2]state.Count{1 << 4, 1 << 20},
}

func (t Tables) problems() []*state.Error {
	var found []*state.Error
	for _, f := range []struct {
		name  string
		value state.Count
		bound [2]state.Count
	}{
		{"ipv4_bans", t.IPv4Bans, ranges.bans4},
		{"ipv6_bans", t.IPv6Bans, ranges.bans6},
		{"sources", t.Sources, ranges.sources},
		{"allows", t.Allows, ranges.allows},
	} {
		if f.value < f.bound[0] || f.value > f.bound[1] {
			found = append(found, &state.Error{Code: state.CodeInvalid, Field: "tables." + f.name, Value: f.value.String(),
				Detail: fmt.Sprintf("is not within %s to %s entries", f.bound[0], f.bound[1])})
		}
	}
	return found
}

// Sizes returns the tables' sizes as the kernel's side takes them.
func (t Tables) Sizes() bpf.Sizes {
	return bpf.Sizes{Ban4Entries: int(t.IPv4Bans), Ban6Entries: int(t.IPv6Bans), Sources: int(t.Sources), Allows: int(t.Allows)}
}

// Program returns the features as the kernel's side takes them. Bans are always there.
func (f Features) Program() bpf.Features {
	return bpf.Features{Bans: true, Sanity: f.Sanity, Martians: f.Martians, Limits: f.Limits, Events: f.Events}
}

func (c *Config) pathProblems() []*state.Error {
	var found []*state.Error
	for _, f := range []struct{ name, value string }{
		{"api.socket", c.API.Socket},
		{"state.path", c.State.Path},
		{"audit.path", c.Audit.Path},
		{"bpffs", c.BPFFS},
		{"lock", c.Lock},
		{"compile.cache", c.Compile.Cache},
	} {
		e := &state.Error{Code: state.CodeInvalid, Field: f.name, Value: f.value}
		switch {
		case f.name == "audit.path" && f.value == "":
			continue
		case !filepath.IsAbs(f.value) || filepath.Clean(f.value) != f.value:
			e.Detail = "is not an absolute path without . and .. in it"
		case strings.ContainsRune(f.value, 0):
			e.Detail = "is not a path"
		case f.name == "api.socket" && len(f.value) > maxSocketPath:
			e.Detail = fmt.Sprintf("has %d bytes; a socket's path has %d at most", len(f.value), maxSocketPath)
		default:
			continue
		}
		found = append(found, e)
	}
	return found
}

// maxSocketPath is what sockaddr_un has room for, without the 0 at its end.
const maxSocketPath = 107

// off is what can be written for "nowhere".
const off = "off"

func (m Metrics) check() error {
	if m.Listen == "" {
		return nil
	}
	const forms = "write 127.0.0.1:9464, or off"
	bad := func(detail string) error {
		return &state.Error{Code: state.CodeInvalid, Field: "listen", Value: m.Listen, Detail: detail}
	}
	host, port, err := net.SplitHostPort(m.Listen)
	if err != nil {
		return bad("is not an address and a port; " + forms)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return bad(fmt.Sprintf("its port %q is not within 1 to 65535 (0: any that is free)", port))
	}
	if host == "localhost" {
		return nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil && host != "" {
		return bad(fmt.Sprintf("its host %q is not an address; %s", host, forms))
	}
	if !addr.IsLoopback() && !m.AllowRemote {
		return bad("can be reached from other hosts, and tells everybody what is dropped; set metrics.allow_remote: true if that is meant")
	}
	return nil
}

// Check checks a configuration that was changed after it was read, by flags. It returns the first
// problem, a *state.Error.
func (c *Config) Check() error {
	c.complete()
	for _, err := range c.problems() {
		return err
	}
	return nil
}

// Configured is what the file says of the state's things.
func (c *Config) Configured() state.Configured {
	s := state.Configured{Limits: c.Limits, Allows: c.Allow, Interfaces: map[string]state.InterfaceMode{}, BuiltIn: c.API.TCP.limit(),
		Proxies: c.Proxies}
	for _, i := range c.Interfaces {
		s.Interfaces[i.Name] = i.Mode
	}
	return s
}

// NeedsRestart names the settings that differ and cannot be changed while the daemon runs.
func (c *Config) NeedsRestart(next *Config) []string {
	var names []string
	for _, f := range []struct {
		name string
		a, b any
	}{
		{"tables", c.Tables, next.Tables},
		{"features", c.Features, next.Features},
		{"api", c.API, next.API},
		{"audit", c.Audit, next.Audit},
		{"metrics", c.Metrics, next.Metrics},
		{"notify", c.Notify, next.Notify},
		{"state", c.State, next.State},
		{"bpffs", c.BPFFS, next.BPFFS},
		{"lock", c.Lock, next.Lock},
		{"log.format", c.Log.Format, next.Log.Format},
		{"compile", c.Compile, next.Compile},
	} {
		if !reflect.DeepEqual(f.a, f.b) {
			names = append(names, f.name)
		}
	}
	return names
}
