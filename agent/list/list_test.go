package list

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/levee-xdp/levee/agent/state"
)

var now = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// show reads a list, and shows each entry in a line.
func show(t testing.TB, f Format, text string) (Format, string) {
	t.Helper()
	var out []string
	got, err := Read(strings.NewReader(text), f, func(e Entry) bool {
		if e.Err != nil {
			out = append(out, fmt.Sprintf("%d! %s", e.Line, e.Err.Detail))
			return true
		}
		line := fmt.Sprintf("%d %s", e.Line, e.Item.Prefix)
		for _, s := range []string{e.Item.For, e.Item.Reason, string(e.Item.Origin)} {
			if s != "" {
				line += " " + s
			}
		}
		if e.Item.Monitor {
			line += " monitor"
		}
		if !e.Item.Expires.IsZero() {
			line += " until " + e.Item.Expires.Format(time.RFC3339)
		}
		out = append(out, line)
		return true
	})
	if err != nil {
		out = append(out, "error: "+err.Error())
	}
	return got, strings.Join(out, "\n")
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name   string
		format Format
		text   string
		want   string
	}{
		{"plain", Plain, "\ufeff# list\r\n192.0.2.1\r\n192.0.2.0/24 ; SBL1\n2001:db8::/32 # x\n198.51.100.1-198.51.100.2\n198.51.100.4 - 198.51.100.5\n10.1.2.3\t7\n192.0.2.8 192.0.2.9 24 x y\n// c\nbad\n1.2.3.4 because\n010.1.1.1\n198.51.100.9-198.51.100.1",
			"2 192.0.2.1/32\n3 192.0.2.0/24\n4 2001:db8::/32\n5 198.51.100.1/32\n5 198.51.100.2/32\n6 198.51.100.4/31\n7 10.1.2.3/32\n8 192.0.2.8/31\n" +
				"10! is neither an address nor a prefix; write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32\n11! is followed by \"because\"; write one prefix or range a line, and a # before comments\n" +
				"12! has leading zeros, which some read as octal; write 10.1.1.1\n13! is no range of addresses; write 192.0.2.1-192.0.2.9"},
		{"csv", CSV, "prefix,origin,actor,reason,created,expires,monitor\n192.0.2.1/32,operator,root,\"a, b\",2026-01-01T00:00:00Z,2030-01-01T00:00:00Z,true\n192.0.2.2,feed:x,,,,,\n,,,,,,\n192.0.2.3,,,,,soon,\n",
			"2 192.0.2.1/32 a, b operator monitor until 2030-01-01T00:00:00Z\n3 192.0.2.2/32 feed:x\n4! names no prefix\n5! is no time, such as 2026-01-02T15:04:05Z"},
		{"cscli", CSV, "duration,scope,value,reason,type\n4h,ip,192.0.2.1,ssh-bf,ban\n24h,range,192.0.2.0/24,x,ban\n1h,ip,192.0.2.2,x,captcha\n1h,country,FR,x,ban\n",
			"2 192.0.2.1/32 4h ssh-bf\n3 192.0.2.0/24 1d x\n4! is no ban; only those can be taken over\n5! is neither an address nor a range"},
		{"json", JSON, `[{"value":"192.0.2.1","duration":"4h","reason":"x","origin":"cscli","scope":"ip","type":"ban"},"192.0.2.2",7,{"x":[1,{"y":2}],"prefix":"192.0.2.3"}]`,
			"1 192.0.2.1/32 4h x\n2 192.0.2.2/32\n3! is no ban\n4 192.0.2.3/32"},
		{"json lines", JSON, "{\"cidr\":\"192.0.2.0/24\",\"sblid\":\"SBL1\",\"rir\":\"x\"}\n{\"type\":\"metadata\",\"size\":1}\n", "1 192.0.2.0/24"},
		{"our own json", JSON, `{"bans":[{"prefix":"192.0.2.1/32","origin":"operator","created":"2026-01-01T00:00:00Z"}],"total":1}`, "1 192.0.2.1/32 operator"},
		{"broken json", JSON, `[{"value":"192.0.2.1"},{"val`, "1 192.0.2.1/32\nerror: behind item 1: not JSON: unexpected EOF"},
		{"ipset", IPSet, "create a hash:net family inet hashsize 1024 maxelem 65536 timeout 600 comment\nadd a 192.0.2.0/24 timeout 90 comment \"x y\"\nadd a 192.0.2.1\nadd a 192.0.2.2 timeout 0\nadd a 192.0.2.3 nomatch\ncreate b hash:ip,port family inet\nadd b 192.0.2.4,tcp:80\nflush a\n",
			"2 192.0.2.0/24 1m30s x y\n3 192.0.2.1/32 10m\n4 192.0.2.2/32\n5! is an exception (nomatch); set it with levee allow add\n6! the set b holds something else than addresses (hash:ip,port): its entries are left out\n8! is neither create nor add, as ipset save writes them"},
		{"nft", NFT, "table ip filter {\n\tset s {\n\t\ttype ipv4_addr\n\t\tflags interval,timeout\n\t\ttimeout 1h\n\t\telements = { 192.0.2.0/24, 198.51.100.1-198.51.100.2,\n\t\t\t     192.0.2.1 timeout 2h expires 59m3s400ms comment \"a, } b\", # c\n\t\t\t     nonsense }\n\t}\n\tset p {\n\t\ttype inet_service\n\t\telements = { 80, 443 }\n\t}\n}\nadd element inet t s { 2001:db8::1 timeout 30s }\n",
			"6 192.0.2.0/24 1h\n6 198.51.100.1/32 1h\n6 198.51.100.2/32 1h\n7 192.0.2.1/32 59m3s a, } b\n8! is neither an address nor a prefix; write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32\n15 2001:db8::1/128 30s"},
		{"nft without an end", NFT, "elements = { 192.0.2.1, ", "1 192.0.2.1/32\nerror: line 1: the elements have no end"},
		{"nft json", NFTJSON, `{"nftables":[{"metainfo":{"version":"1"}},{"set":{"family":"inet","name":"s","table":"t","type":"ipv4_addr","flags":["interval"],"timeout":60,"elem":["192.0.2.1",{"prefix":{"addr":"192.0.2.0","len":24}},{"range":["198.51.100.1","198.51.100.2"]},{"elem":{"val":"192.0.2.9","timeout":3600,"expires":90,"comment":"x"}},{"concat":["a"]}]}},{"set":{"type":"inet_service","elem":[80]}}]}`,
			"1 192.0.2.1/32 1m\n2 192.0.2.0/24 1m\n3 198.51.100.1/32 1m\n3 198.51.100.2/32 1m\n4 192.0.2.9/32 1m30s x\n5! is neither an address, nor a prefix, nor a range"},
		{"a web page", Auto, "<!DOCTYPE html><html>", "error: this is a web page, and no list"},
		{"zero bytes", Auto, "\x7fELF\x00\x00", "error: this is no list: it has zero bytes in it"},
		{"nothing", Plain, "", ""},
		{"a long line", Plain, strings.Repeat("1", maxLine+9) + "\n192.0.2.1\n", "1! the line is longer than 65536 bytes\n2 192.0.2.1/32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, f := range []Format{tt.format, Auto} {
				if f == Auto && strings.Contains(tt.name, "long") {
					continue
				}
				got, text := show(t, f, tt.text)
				if text != tt.want {
					t.Errorf("%s:\n%s\nwant\n%s", f, text, tt.want)
				}
				if tt.format != Auto && got != tt.format {
					t.Errorf("%s was taken for %s", tt.format, got)
				}
			}
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			_, _ = z.Write([]byte(tt.text))
			_ = z.Close()
			if _, text := show(t, tt.format, b.String()); text != tt.want {
				t.Errorf("with gzip: %s", text)
			}
		})
	}
	if _, err := Read(strings.NewReader("x"), "yaml", nil); err == nil {
		t.Error("a format that there is not")
	}
	n := 0
	if _, err := Read(strings.NewReader("192.0.2.1\n192.0.2.2\n"), Plain, func(Entry) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%v, %d", err, n)
	}
}

// Real lists of others, in LEVEE_FEEDS or else shared/feeds beside the module's root: each line that is no
// comment is an entry, and none is bad.
func TestSamples(t *testing.T) {
	dir := os.Getenv("LEVEE_FEEDS")
	named := dir != ""
	if !named {
		dir = filepath.Join("..", "..", "..", "shared", "feeds")
	}
	if _, err := os.Stat(dir); err != nil {
		if named {
			t.Fatal(err)
		}
		t.Skipf("no lists (LEVEE_FEEDS names their folder): %v", err)
	}
	for name, least := range map[string]int{"drop-v4.txt": 500, "drop-v6.txt": 20, "ipsum.txt": 90_000, "ipsum-level3.txt": 10_000} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != ';' {
				want++
			}
		}
		n := 0
		if _, err := Read(bytes.NewReader(text), Auto, func(e Entry) bool {
			if e.Err != nil {
				t.Errorf("%s:%d: %v", name, e.Line, e.Err)
			}
			n++
			return n < 1<<20
		}); err != nil || n != want || n < least {
			t.Errorf("%s: %d entries of %d, %v", name, n, want, err)
		}
	}
}

func all(claims []state.Claim) iter.Seq2[state.Claim, error] {
	return func(yield func(state.Claim, error) bool) {
		for _, c := range claims {
			if !yield(c, nil) {
				return
			}
		}
	}
}

func claim(prefix string, left time.Duration, reason string) state.Claim {
	c := state.Claim{Prefix: netip.MustParsePrefix(prefix), Origin: "operator", Reason: reason, Created: now}
	if left > 0 {
		c.Expires = now.Add(left)
	}
	return c
}

func sample() []state.Claim {
	return []state.Claim{
		claim("192.0.2.0/24", time.Hour, `a "quoted" one`), claim("192.0.2.7/32", 0, ""), claim("198.51.100.0/24", 0, "x"),
		claim("198.51.100.9/32", time.Hour, ""), claim("2001:db8::/32", 2*time.Hour, "v6"), claim("2001:db8::1/128", time.Minute, ""),
		{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Origin: "feed:x", Monitor: true, Created: now}, claim("203.0.113.2/32", 90*24*time.Hour, ""),
	}
}

// What is written is read again as it was, in every format.
func TestWrite(t *testing.T) {
	for f, want := range map[Format]string{
		Plain: "1 192.0.2.0/24\n2 192.0.2.7/32\n3 198.51.100.0/24\n4 198.51.100.9/32\n5 203.0.113.2/32\n6 2001:db8::/32\n7 2001:db8::1/128",
		CSV:   "2 192.0.2.0/24 a \"quoted\" one operator until 2026-03-04T13:00:00Z\n3 192.0.2.7/32 operator\n4 198.51.100.0/24 x operator\n5 198.51.100.9/32 operator until 2026-03-04T13:00:00Z\n6 2001:db8::/32 v6 operator until 2026-03-04T14:00:00Z\n7 2001:db8::1/128 operator until 2026-03-04T12:01:00Z\n8 203.0.113.1/32 feed:x monitor\n9 203.0.113.2/32 operator until 2026-06-02T12:00:00Z",
		IPSet: "2 192.0.2.0/24 1h a 'quoted' one\n3 192.0.2.7/32\n4 198.51.100.0/24 x\n5 198.51.100.9/32 1h\n6 203.0.113.2/32 24d20h31m23s\n8 2001:db8::/32 2h v6\n9 2001:db8::1/128 1m",
	} {
		var b bytes.Buffer
		out, err := Write(&b, f, now, all(sample()))
		if err != nil {
			t.Fatal(err)
		}
		if _, text := show(t, Auto, b.String()); text != want {
			t.Errorf("%s:\n%s\nwant\n%s\n%s", f, text, want, b.String())
		}
		if f != CSV && out.Monitors != 1 || f == IPSet && out.Shorter != 1 {
			t.Errorf("%s: %+v", f, out)
		}
	}
	if _, err := Write(&bytes.Buffer{}, Auto, now, all(nil)); err == nil {
		t.Error("auto is no format to write")
	}
	for _, f := range Formats[1:] {
		var b bytes.Buffer
		if _, err := Write(&b, f, now, all(nil)); err != nil {
			t.Errorf("%s: nothing: %v", f, err)
		}
		if _, text := show(t, f, b.String()); text != "" {
			t.Errorf("%s: nothing is %q", f, text)
		}
	}
}

// Sets of intervals ban each address for as long as the bans that overlap do.
func TestApart(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		var claims []state.Claim
		for range 1 + r.IntN(12) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(256))}), 24+r.IntN(9)).Masked()
			claims = append(claims, claim(p.String(), time.Duration(r.IntN(5))*time.Hour, ""))
		}
		var out Written
		bans, err := merge(&out, all(claims))
		if err != nil {
			t.Fatal(err)
		}
		got := apart(bans)
		for i := 1; i < len(got); i++ {
			if got[i].prefix.Overlaps(got[i-1].prefix) {
				t.Fatalf("round %d: %v overlaps %v", round, got[i], got[i-1])
			}
		}
		for host := range 256 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(host)})
			if want, is := longest(bans, a), longest(got, a); want != is {
				t.Fatalf("round %d: %s until %s, want %s (%v)", round, a, is, want, claims)
			}
		}
	}
}

func longest(bans []ban, a netip.Addr) string {
	var best *ban
	for i := range bans {
		if bans[i].prefix.Contains(a) && (best == nil || bans[i].outlasts(*best)) {
			best = &bans[i]
		}
	}
	if best == nil {
		return "none"
	}
	return best.expires.String()
}

// The tools themselves take what is written, and what they print is read again.
func TestTools(t *testing.T) {
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set: a network namespace takes root")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	own, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	defer func() {
		if err := netns.Set(before); err != nil {
			panic(err)
		}
	}()
	run := func(stdin []byte, name string, args ...string) string {
		t.Helper()
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("LEVEE_SETUP") != "" {
				t.Fatalf("scripts/setup has run, and %s is not installed: %v", name, err)
			}
			t.Skipf("%s is not installed: scripts/setup does that", name)
		}
		c := exec.Command(name, args...)
		c.Stdin = bytes.NewReader(stdin)
		var errs bytes.Buffer
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%s %v: %v: %s\n%s", name, args, err, &errs, stdin)
		}
		return string(out)
	}
	write := func(f Format) []byte {
		t.Helper()
		var b bytes.Buffer
		if _, err := Write(&b, f, now, all(sample())); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	prefixes := func(text string, f Format) string {
		t.Helper()
		var out []string
		got, err := Read(strings.NewReader(text), Auto, func(e Entry) bool {
			if e.Err != nil {
				t.Errorf("%s: line %d: %v", f, e.Line, e.Err)
			}
			line := e.Item.Prefix
			if e.Item.For != "" {
				line += " ends"
			}
			if e.Item.Reason != "" {
				line += " " + e.Item.Reason
			}
			out = append(out, line)
			return true
		})
		if err != nil || got != f {
			t.Errorf("%s was taken for %s: %v", f, got, err)
		}
		slices.Sort(out)
		return strings.Join(out, "\n")
	}
	want := "192.0.2.0/24 ends a 'quoted' one\n192.0.2.7/32\n198.51.100.0/24 x\n198.51.100.9/32 ends\n2001:db8::/32 ends v6\n2001:db8::1/128 ends\n203.0.113.2/32 ends"
	run(write(IPSet), "ipset", "restore")
	if got := prefixes(run(nil, "ipset", "save"), IPSet); got != want {
		t.Errorf("ipset:\n%s\nwant\n%s", got, want)
	}
	intervals := prefixes(string(write(NFT)), NFT)
	for _, f := range []Format{NFT, NFTJSON} {
		load, list := []string{"-f", "-"}, []string{"list", "ruleset"}
		if f == NFTJSON {
			load, list = append([]string{"-j"}, load...), append([]string{"-j"}, list...)
		}
		run(write(f), "nft", load...)
		// nft prints neighbouring prefixes of one kind as one.
		got := prefixes(run(nil, "nft", list...), f)
		if f == NFT && got != intervals {
			t.Errorf("%s:\n%s\nwant\n%s", f, got, intervals)
		}
		if !strings.Contains(got, "192.0.2.7/32\n") || !strings.Contains(got, "198.51.100.0/24 x") || !strings.Contains(got, "2001:db8::/32 ends v6") {
			t.Errorf("%s:\n%s", f, got)
		}
		run(nil, "nft", "flush", "ruleset")
	}
}

// No list, however odd, makes a reader panic, or come to an entry that is none.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"192.0.2.1 # x\n10.0.0.1-10.0.0.9\n", "value,duration\n192.0.2.1,4h\n", `[{"value":"192.0.2.1"}]`, "add a 192.0.2.1 timeout 5 comment \"x\"\n",
		"table ip x { set y { type ipv4_addr\n elements = { 192.0.2.1 expires 5m, 10.0.0.0/8 } } }", `{"nftables":[{"set":{"type":"ipv4_addr","elem":["192.0.2.1",{"elem":{"val":"192.0.2.2","expires":5}}]}}]}`,
	} {
		for i := range Formats {
			f.Add(uint8(i), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, format uint8, text []byte) {
		n := 0
		_, _ = Read(bytes.NewReader(text), Formats[int(format)%len(Formats)], func(e Entry) bool {
			if e.Err == nil {
				p, err := netip.ParsePrefix(e.Item.Prefix)
				if err != nil || p != p.Masked() {
					t.Errorf("%q: %v", e.Item.Prefix, err)
				}
				if e.Item.For != "" {
					if d, err := state.ParseDuration(e.Item.For); err != nil || d <= 0 {
						t.Errorf("%q: %v", e.Item.For, err)
					}
				}
				if len(e.Item.Reason) > state.MaxReason {
					t.Errorf("%d bytes of a reason", len(e.Item.Reason))
				}
			}
			n++
			return n < 100_000
		})
	})
}
