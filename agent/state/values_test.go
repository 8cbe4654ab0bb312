package state

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.7":           "203.0.113.7/32",
		"203.0.113.7/24":        "203.0.113.0/24",
		"10.1.2.3/8":            "10.0.0.0/8",
		"0.0.0.0/0":             "0.0.0.0/0",
		"2001:db8::1":           "2001:db8::1/128",
		"2001:DB8::1/32":        "2001:db8::/32",
		"::/0":                  "::/0",
		"::ffff:192.0.2.1":      "192.0.2.1/32",
		"::ffff:192.0.2.77/120": "192.0.2.0/24",
		"::ffff:0:0/96":         "0.0.0.0/0",
	} {
		p, err := ParsePrefix(in)
		if err != nil || p.String() != want {
			t.Errorf("%q: %v, %v; want %s", in, p, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                   "prefix: is empty",
		"example.com":        `prefix "example.com": is neither an address nor a prefix`,
		"203.0.113.256":      `prefix "203.0.113.256": is neither`,
		"203.0.113":          `prefix "203.0.113": is neither`,
		"010.1.2.3":          `prefix "010.1.2.3": has leading zeros, which some read as octal; write 10.1.2.3`,
		"010.01.2.003/24":    `write 10.1.2.3/24`,
		"10.0.0.0/33":        `prefix "10.0.0.0/33": its length "33" is not a number from 0 to 32`,
		"10.0.0.0/024":       `its length "024" is not a number from 0 to 32`,
		"10.0.0.0/-1":        `its length "-1"`,
		"10.0.0.0/":          `its length ""`,
		"10.0.0.0/8/8":       `its length "8/8"`,
		"2001:db8::/129":     `is not a number from 0 to 128`,
		"fe80::1%eth0":       `prefix "fe80::1%eth0": has a zone; packets carry none, write fe80::1`,
		"fe80::1%eth0/64":    `has a zone`,
		"::ffff:192.0.2.0/8": `is IPv4 mapped into IPv6, but wider than all of IPv4`,
		" 10.0.0.1":          `prefix " 10.0.0.1": is neither`,
		"10.0.0.1-10.0.0.9":  `is neither an address nor a prefix`,
	} {
		p, err := ParsePrefix(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %s", in, p, err, want)
		}
	}
}

func TestUnits(t *testing.T) {
	type parser func(string) (string, error)
	rate := func(s string) (string, error) { v, err := ParseRate(s); return v.String(), err }
	burst := func(s string) (string, error) { v, err := ParseBurst(s); return v.String(), err }
	duration := func(s string) (string, error) { v, err := ParseDuration(s); return v.String(), err }
	service := func(s string) (string, error) { v, err := ParseService(s); return v.String(), err }
	for _, tt := range []struct {
		parse    parser
		in, want string
	}{
		{rate, "20k/s", "20k/s"},
		{rate, "20000/s", "20k/s"},
		{rate, "1.5k/s", "1500/s"},
		{rate, "0.5M/s", "500k/s"},
		{rate, "100/m", "100/m"},
		{rate, "100/min", "100/m"},
		{rate, "1/h", "1/h"},
		{rate, "200Mbit/s", "200Mbit/s"},
		{rate, "1.25 Gbit/s", "1250Mbit/s"},
		{rate, "64kbit/s", "64kbit/s"},
		{rate, "5 / s", "5/s"},
		{burst, "40k", "40k"},
		{burst, "1", "1"},
		{burst, "16Mbit", "16Mbit"},
		{burst, "256KiB", "256KiB"},
		{burst, "1MB", "8Mbit"},
		{burst, "2MiB", "2MiB"},
		{duration, "4h", "4h"},
		{duration, "1d12h", "1d12h"},
		{duration, "36h", "1d12h"},
		{duration, "1.5h", "1h30m"},
		{duration, "90s", "1m30s"},
		{duration, "1w", "7d"},
		{duration, "250ms", "250ms"},
		{duration, "0", "0s"},
		{service, "tcp/443", "tcp/443"},
		{service, "UDP/53", "udp/53"},
		{service, "icmp", "icmp"},
		{service, "6/22", "tcp/22"},
		{service, "99", "99"},
	} {
		got, err := tt.parse(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("%q: %q, %v; want %q", tt.in, got, err, tt.want)
			continue
		}
		if again, err := tt.parse(got); err != nil || again != got {
			t.Errorf("%q is not read back: %q, %v", got, again, err)
		}
	}
	for _, tt := range []struct {
		parse    parser
		in, want string
	}{
		{rate, "20k", `rate "20k": has no time; write packets as 20k/s or 100/m`},
		{rate, "", "rate: has no time"},
		{rate, "/s", `rate "/s": is not a rate`},
		{rate, "-5/s", "is not a rate"},
		{rate, "0/s", `rate "0/s": is not within 1/h to 10M/s`},
		{rate, "20x/s", "is not a rate"},
		{rate, "20k/fortnight", `its time "fortnight" is none of s, m and h`},
		{rate, "1.0001/s", "is not a rate"},
		{rate, "99999999999999999999/s", "is not a rate"},
		{rate, "100M/s", "is not within 1/h to 10M/s"},
		{rate, "1bit/s", "is not within 1kbit/s to 100Gbit/s"},
		{rate, "25MB/s", "counts bytes"},
		{rate, "1e3/s", "is not a rate"},
		{rate, "NaN/s", "is not a rate"},
		{burst, "lots", `burst "lots": is not an amount`},
		{burst, "0", "is not an amount"},
		{burst, "-1", "is not an amount"},
		{duration, "4", `duration "4": has no unit`},
		{duration, "4 hours", `its unit "hours" is none of`},
		{duration, "soon", "is not a time"},
		{duration, "-4h", "is not a time"},
		{duration, "4h-1m", "is not a time"},
		{duration, "", "is empty"},
		{duration, "200000d", "is longer than 100 years"},
		{duration, "1y", `its unit "y"`},
		{service, "tcp/0", `service "tcp/0": its port is not within 1 to 65535`},
		{service, "tcp/65536", "its port"},
		{service, "icmp/8", "has a port; only tcp and udp"},
		{service, "http", "its protocol is not known"},
		{service, "256", "its protocol is not known"},
	} {
		got, err := tt.parse(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %q, %v; want the error %q", tt.in, got, err, tt.want)
		}
	}
}

func limit(t *testing.T, text string) LimitSpec {
	t.Helper()
	var l LimitSpec
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLimitSpec(t *testing.T) {
	text := `{"sources":["192.0.2.0/24","2001:db8::/32"],"services":["udp/53","tcp/443"],"packets":"20k/s","bits":{"rate":"200Mbit/s","burst":"256KiB"},"penalty":"30s","mode":"monitor","group":{"ipv6":56},"aggregate":{"rate":"100k/s","burst":"200k","ipv4":24,"always":true}}`
	l := limit(t, text)
	if err := l.Validate("web"); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(text, `["udp/53","tcp/443"]`, `["tcp/443","udp/53"]`, 1)
	got, err := json.Marshal(l)
	if diff := cmp.Diff(want, string(got)); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if b := l.Packets.BurstUnits(); b != 20000 {
		t.Errorf("default burst %v", b)
	}
	if b := (Threshold{Rate: Rate{1000, time.Second, true}}).BurstUnits(); b != 64<<10*8 {
		t.Errorf("default burst of bits %v", b)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"web", `{"packets":"1/s"}`, "sources: the limit is bound to nothing"},
		{"default", `{"services":["tcp/80"]}`, "sources: the default limit is for whatever"},
		{"Web!", `{"services":["tcp/80"]}`, `name "Web!": is not a limit's name`},
		{"default", `{"packets":"1Mbit/s"}`, `packets.rate "1Mbit/s": counts bits; write packets`},
		{"default", `{"bits":"1k/s"}`, `bits.rate "1k/s": counts packets; write bits`},
		{"default", `{"bits":{"rate":"1Mbit/s","burst":"5"}}`, `bits.burst "5": counts packets`},
		{"default", `{"syn":{"rate":"1/s","burst":"1Mbit"}}`, `syn.burst "1Mbit": counts bits`},
		{"default", `{"bits":{"rate":"1Mbit/s","burst":"800bit"}}`, `bits.burst "800bit": is less than a packet`},
		{"default", `{"packets":{"rate":"1/h","burst":"100"}}`, `packets.burst "100": is more than a day's worth of 1/h`},
		{"default", `{"penalty":"8d"}`, `penalty "8d": is longer than 7d`},
		{"default", `{"group":{"ipv4":7}}`, `group.ipv4 "7": is not a prefix length from 8 to 32`},
		{"default", `{"group":{"ipv6":129}}`, `group.ipv6 "129"`},
		{"default", `{"aggregate":{"rate":"1k/s","ipv6":64}}`, `aggregate.ipv6 "64": is not a prefix length from 16 to 48`},
		{"default", `{"aggregate":{"rate":"1Mbit/s"}}`, `aggregate.rate "1Mbit/s": counts bits`},
		{"web", `{"services":["tcp/80","tcp/80"]}`, `services "tcp/80": stands here twice`},
		{"web", `{"sources":["192.0.2.1","192.0.2.1/32"]}`, `sources "192.0.2.1/32": stands here twice`},
	} {
		l := limit(t, tt.text)
		if err := l.Validate(tt.name); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %v; want %s", tt.name, tt.text, err, tt.want)
		}
	}
}

func TestLimits(t *testing.T) {
	h := open(t)
	if l := h.Limits(); len(l) != 1 || l[0].Source != FromDefault || l[0].Number != 0 {
		t.Errorf("limits at first: %+v", l)
	}
	web := limit(t, `{"services":["tcp/443"],"packets":"1k/s"}`)
	conf := Configured{Limits: map[string]LimitSpec{"web": web, "default": limit(t, `{"packets":"20k/s"}`)}}
	if err := h.Configure(conf); err != nil {
		t.Fatal(err)
	}
	if _, err := h.SetLimit("web", limit(t, `{"services":["tcp/443"],"packets":"2k/s"}`), "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.SetLimit("dns", limit(t, `{"services":["tcp/443"]}`), "root"); err == nil || !strings.Contains(err.Error(), `is bound to the limit "web" already`) {
		t.Errorf("bound twice: %v", err)
	}
	dns, err := h.SetLimit("dns", limit(t, `{"services":["udp/53"]}`), "root")
	if err != nil {
		t.Fatal(err)
	}
	show := func() string {
		var out []string
		for _, l := range h.Limits() {
			s := "-"
			if l.Packets != nil {
				s = l.Packets.String()
			}
			out = append(out, l.Name+" "+string(l.Source)+" "+s)
		}
		return strings.Join(out, "; ")
	}
	if got, want := show(), "default config 20k/s; dns api -; web api 2k/s"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	h.reopen()
	if got, want := show(), "default default -; dns api -; web api 2k/s"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := h.Configure(Configured{Limits: map[string]LimitSpec{"other": limit(t, `{"services":["udp/53"]}`)}}); err == nil {
		t.Error("a file that contradicts a limit of the run time was taken")
	}
	if err := h.Configure(conf); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveLimit("web"); err != nil {
		t.Fatal(err)
	}
	if got, want := show(), "default config 20k/s; dns api -; web config 1k/s"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := h.RemoveLimit("web"); err == nil || AsError(err, "").Code != CodeConflict {
		t.Errorf("the file's limit was removed: %v", err)
	}
	if err := h.RemoveLimit("nope"); err == nil || AsError(err, "").Code != CodeNotFound {
		t.Errorf("a limit that is none was removed: %v", err)
	}
	// A limit that comes back has the number that it had, and its counters with it.
	if err := h.RemoveLimit("dns"); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if l, err := h.SetLimit("aaa", limit(t, `{"services":["udp/99"]}`), ""); err != nil || l.Number == dns.Number {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := h.SetLimit("dns", limit(t, `{"services":["udp/53"]}`), ""); err != nil || l.Number != dns.Number {
		t.Errorf("%+v, %v, want the number %d", l, err, dns.Number)
	}
}

func TestAllows(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.9", "operator", 0)
	h.ban("192.0.2.0/23", "operator", 0)
	if err := h.Configure(Configured{Allows: []AllowSpec{{Prefix: Prefix{prefix("192.0.2.0/24")}, Comment: "lab"}}}); err != nil {
		t.Fatal(err)
	}
	do := func(p AllowProposal) AllowOutcome {
		t.Helper()
		out, err := h.ProposeAllows([]AllowProposal{p})
		if err != nil {
			t.Fatal(err)
		}
		return out[0]
	}
	mine := AllowSpec{Prefix: Prefix{prefix("192.0.2.0/24")}, NoLimits: true}
	if out := do(AllowProposal{AllowSpec: mine, Actor: "root"}); out.Status != StatusAdded || len(out.Notes) != 1 || out.Notes[0] != "it overrules 2 bans" {
		t.Errorf("%+v", out)
	}
	if got := h.EffectiveAllows(); len(got) != 1 || !got[0].NoLimits {
		t.Errorf("in force: %+v", got)
	}
	if got := h.Allows(); len(got) != 2 || got[0].Source != FromAPI || got[1].Source != FromConfig {
		t.Errorf("listed: %+v", got)
	}
	h.reopen()
	if got := h.Allows(); len(got) != 1 || got[0].Source != FromAPI || got[0].Actor != "root" {
		t.Errorf("after a restart: %+v", got)
	}
	if out := do(AllowProposal{AllowSpec: mine, Remove: true}); out.Status != StatusRemoved {
		t.Errorf("%+v", out)
	}
	if out := do(AllowProposal{AllowSpec: mine, Remove: true}); out.Error == nil || out.Error.Code != CodeNotFound {
		t.Errorf("%+v", out)
	}
	if err := h.Configure(Configured{Allows: []AllowSpec{mine}}); err != nil {
		t.Fatal(err)
	}
	if out := do(AllowProposal{AllowSpec: mine, Remove: true}); out.Error == nil || out.Error.Code != CodeConflict {
		t.Errorf("the file's entry was removed: %+v", out)
	}
	out := do(AllowProposal{AllowSpec: AllowSpec{Prefix: Prefix{prefix("198.51.100.1")}}})
	if err := h.RevertAllows([]AllowOutcome{out}); err != nil || len(h.Allows()) != 1 {
		t.Errorf("%v, %+v", err, h.Allows())
	}
}

func TestInterfaces(t *testing.T) {
	h := open(t)
	show := func() string {
		var out []string
		for _, i := range h.Interfaces() {
			mode, source, ok := i.Wanted()
			if ok {
				out = append(out, i.Name+" "+string(mode)+" "+string(source))
			} else {
				out = append(out, i.Name+" detached")
			}
		}
		return strings.Join(out, "; ")
	}
	step := func(err error, want string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if got := show(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		h.reopen()
		if got := show(); got != want {
			t.Errorf("after a restart %q, want %q", got, want)
		}
	}
	eth0 := map[string]InterfaceMode{"eth0": ModeAuto}
	step(h.Configure(Configured{Interfaces: eth0}), "eth0 auto config")
	step(h.RememberAttached("eth1", ModeGeneric), "eth0 auto config; eth1 generic api")
	step(h.RememberDetached("eth0"), "eth0 detached; eth1 generic api")
	step(h.Configure(Configured{Interfaces: eth0}), "eth0 detached; eth1 generic api")
	step(h.RememberAttached("eth0", ModeNative), "eth0 native api; eth1 generic api")
	step(h.RememberDetached("eth0"), "eth0 detached; eth1 generic api")
	step(h.RememberDetached("eth1"), "eth0 detached")
	step(h.Configure(Configured{}), "")
	for _, name := range []string{"", "..", "an-interface-name-too-long", "a/b", "a b", "ä"} {
		if CheckInterface(name, ModeAuto) == nil {
			t.Errorf("%q passed for an interface", name)
		}
	}
}

func FuzzValues(f *testing.F) {
	for _, s := range []string{"20k/s", "200Mbit/s", "4h", "1d12h", "256KiB", "tcp/443", "10.0.0.0/8", "::ffff:1.2.3.4/120", "1.5k/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := ParseRate(s); err == nil {
			if again, err := ParseRate(v.String()); err != nil || again != v {
				t.Errorf("rate %q: %v became %v, %v", s, v, again, err)
			}
		}
		if v, err := ParseBurst(s); err == nil {
			if again, err := ParseBurst(v.String()); err != nil || again != v {
				t.Errorf("burst %q: %v became %v, %v", s, v, again, err)
			}
		}
		if v, err := ParseDuration(s); err == nil {
			if again, err := ParseDuration(v.String()); err != nil || again != v {
				t.Errorf("duration %q: %v became %v, %v", s, v, again, err)
			}
		}
		if v, err := ParseService(s); err == nil {
			if again, err := ParseService(v.String()); err != nil || again != v {
				t.Errorf("service %q: %v became %v, %v", s, v, again, err)
			}
		}
		if v, err := ParsePrefix(s); err == nil {
			if again, err := ParsePrefix(v.String()); err != nil || again != v || v != v.Masked() || v.Addr().Is4In6() {
				t.Errorf("prefix %q: %v became %v, %v", s, v, again, err)
			}
			if v.Bits() <= 128 && keyOf(v).prefix() != v {
				t.Errorf("prefix %v is not kept", v)
			}
		}
		if _, err := ParseOrigin(s); err == nil && len(s) > 64 {
			t.Errorf("origin %q", s)
		}
	})
}
