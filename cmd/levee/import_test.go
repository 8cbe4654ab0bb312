package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
)

// bulkAnswer answers a bulk as a daemon would to which documentation's second range is protected.
func bulkAnswer(body []byte) any {
	var out state.BulkResponse
	for line := range strings.Lines(string(body)) {
		var item state.BanItem
		if err := json.Unmarshal([]byte(line), &item); err != nil {
			panic(err)
		}
		if out.Lines++; strings.HasPrefix(item.Prefix, "192.0.2.") {
			out.Refuse(out.Lines, item.Prefix, &state.Error{Code: state.CodeProtected, Field: "prefix", Value: item.Prefix, Detail: "is protected: it is this host's gateway"})
		} else {
			out.Count(state.StatusAdded)
		}
	}
	return out
}

func TestImport(t *testing.T) {
	const saved = "create a hash:net family inet timeout 0 comment\nadd a 203.0.113.0/24 timeout 90 comment \"x y\"\nadd a 192.0.2.1 timeout 0\nadd a nonsense timeout 0\n"
	file := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(file, []byte(saved), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		call
		code           int
		stdout, stderr string
		sent           string
	}{
		"ipset": {call{args: []string{"bans", "import", file}}, exitPartly,
			file + " (ipset): 1 added, 1 left out, as they touch protected addresses, 1 bad\n",
			"levee: " + file + ", line 3: 192.0.2.1/32 is protected: it is this host's gateway\nlevee: " + file + ", line 4: is neither an address nor a prefix; write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32\n",
			`/v1/bans/bulk?origin=operator {"prefix":"203.0.113.0/24","reason":"x y","for":"1m30s"}`},
		"whole": {call{args: []string{"bans", "import", "-", "--whole"}, stdin: "203.0.113.1\nnonsense\n203.0.113.2\n"}, exitUsage,
			"stdin (plain): 1 bad; nothing was changed\n", "levee: stdin, line 2: is neither an address", ""},
		"protected alone": {call{args: []string{"bans", "import", "-"}, stdin: "192.0.2.1\n"}, exitRefused, "stdin (plain): 1 left out", "line 1: 192.0.2.1/32 is protected", ""},
		"flags": {call{args: []string{"bans", "import", "-", "--origin", "feed:mine", "--for", "1d", "--reason", "why", "--force", "--monitor"},
			stdin: "prefix,origin,expires\n203.0.113.1,detector,\n203.0.113.2,,2020-01-01T00:00:00Z\n"}, 0,
			"stdin (csv): 1 added, 1 ended already\n", "", `/v1/bans/bulk?for=1d&force=true&monitor=true&origin=feed%3Amine&reason=why {"prefix":"203.0.113.1/32","origin":"feed:mine"}`},
		"its own origins": {call{args: []string{"bans", "import", "-"}, stdin: "prefix,origin\n203.0.113.1,detector\n"}, 0, "1 added", "", `"origin":"detector"`},
		"nothing":         {call{args: []string{"bans", "import", "-"}, stdin: "# x\n"}, 0, "stdin (plain): nothing in it\n", "", ""},
		"a web page":      {call{args: []string{"bans", "import", "-"}, stdin: "<html>"}, exitUsage, "", "levee: stdin: this is a web page, and no list", ""},
		"no file":         {call{args: []string{"bans", "import", file + "2"}}, exitUsage, "", "no such file", ""},
		"a directory":     {call{args: []string{"bans", "import", filepath.Dir(file)}}, exitUsage, "", "is a directory", ""},
		"no such format":  {call{args: []string{"bans", "import", "-", "--format", "yaml"}}, exitUsage, "", "is none of auto, plain, csv, json, ipset, nft, nft-json", ""},
		"a bad origin":    {call{args: []string{"bans", "import", "-", "--origin", "me"}}, exitUsage, "", "--origin", ""},
		"a bad time":      {call{args: []string{"bans", "import", "-", "--for", "0s"}}, exitUsage, "", "is no time", ""},
		"machine":         {call{args: []string{"bans", "import", "-", "-o", "jsonl"}, stdin: "203.0.113.1\n"}, 0, `"added":1,`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t).on("POST /v1/bans/bulk", bulkAnswer)
			r := tt.run(t, f.socket)
			if r.code != tt.code || !strings.Contains(r.stdout, tt.stdout) || !strings.Contains(r.stderr, tt.stderr) || tt.code == 0 && r.stderr != "" {
				t.Errorf("exit %d\n%s---\n%s", r.code, r.stdout, r.stderr)
			}
			if sent := strings.Join(f.asked, "\n"); !strings.Contains(sent, tt.sent) {
				t.Errorf("sent %s, want %s", sent, tt.sent)
			}
		})
	}
	if r := (call{args: []string{"bans", "import", file}}).run(t, "/nonexistent"); r.code != exitUnreachable {
		t.Errorf("without a daemon: exit %d: %s", r.code, r.stderr)
	}
}

func TestExport(t *testing.T) {
	f := newFake(t).on("GET /v1/bans/bulk", claims()[0])
	for format, want := range map[string]string{
		"plain": "203.0.113.7\n", "csv": "203.0.113.7/32,operator,root,credential stuffing,", "json": `{"prefix":"203.0.113.7/32","origin":"operator"`,
		"ipset": "add levee4 203.0.113.7 timeout 14400 comment \"credential stuffing\"\n", "nft": "elements = { 203.0.113.7 timeout 14400s comment \"credential stuffing\" }",
		"nft-json": `{"elem":{"comment":"credential stuffing","timeout":14400,"val":"203.0.113.7"}}`,
	} {
		if r := (call{args: []string{"bans", "export", "--format", format, "--origin", "operator"}}).run(t, f.socket); r.code != 0 || !strings.Contains(r.stdout, want) || r.stderr != "" {
			t.Errorf("%s: exit %d\n%s%s", format, r.code, r.stdout, r.stderr)
		}
	}
	monitored := newFake(t).on("GET /v1/bans/bulk", claims()[2])
	if r := (call{args: []string{"bans", "export"}}).run(t, monitored.socket); r.code != 0 || r.stdout != "" || !strings.Contains(r.stderr, "left out, as plain can't say it: 1 ban that only monitors") {
		t.Errorf("%+v", r)
	}
	if r := (call{args: []string{"bans", "export", "--format", "auto"}}).run(t, f.socket); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
}
