package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
)

// unbanAnswer answers as a daemon would that bans documentation's third range.
func unbanAnswer(body []byte) any {
	var r state.UnbanRequest
	if err := json.Unmarshal(body, &r); err != nil {
		panic(err)
	}
	var out state.BanResponse
	for _, p := range r.Prefixes {
		result := state.BanResult{Prefix: p, Status: state.StatusRemoved, Origin: r.Origin}
		if out.Done++; !strings.HasPrefix(p, "203.0.113.") {
			out.Done, out.Refused = out.Done-1, out.Refused+1
			result.Status, result.Error = state.StatusRefused, &state.Error{Code: state.CodeNotFound, Field: "prefix", Value: p, Detail: "is not banned"}
		}
		out.Bans = append(out.Bans, result)
	}
	return out
}

// A list that was imported is taken back by the same list, whatever its form: of each origin that it names.
func TestUnbanFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "203.0.113.1 # a comment\n203.0.113.4-203.0.113.7\n203.0.113.1\nnonsense\n")
	csv := write("csv", "prefix,origin\n203.0.113.1,detector\n203.0.113.2,feed:x\n203.0.113.3,\n203.0.113.9,detector\nnonsense,detector\n")
	missing := write("missing", "192.0.2.1\n")
	save := write("save", "create a hash:net family inet timeout 0 comment\nadd a 203.0.113.0/24 timeout 0\n")
	many := ""
	for i := range batch + 1 {
		many += fmt.Sprintf("203.0.113.%d/32,feed:%d\n", i%256, i/256)
	}
	for name, tt := range map[string]struct {
		call
		code           int
		stdout, stderr string
		sent           []string
	}{
		"plain": {call{args: []string{"unban", "--file", plain}}, exitPartly, "unbanned 203.0.113.1\nunbanned 203.0.113.4/30\n",
			"levee: " + plain + ", line 4: is neither an address nor a prefix", []string{`{"prefixes":["203.0.113.1/32","203.0.113.4/30"],"origin":"operator"}`}},
		"its own origins": {call{args: []string{"unban", "--file", csv}}, exitPartly, "unbanned 203.0.113.2\n", ", line 6: is neither an address nor a prefix",
			[]string{`{"prefixes":["203.0.113.1/32","203.0.113.9/32"],"origin":"detector"}`, `{"prefixes":["203.0.113.2/32"],"origin":"feed:x"}`, `{"prefixes":["203.0.113.3/32"],"origin":"operator"}`}},
		"one origin": {call{args: []string{"unban", "--file", csv, "--origin", "kernel"}}, exitPartly, "unbanned", "",
			[]string{`{"prefixes":["203.0.113.1/32","203.0.113.2/32","203.0.113.3/32","203.0.113.9/32"],"origin":"kernel"}`}},
		"all": {call{args: []string{"unban", "--file", csv, "--all"}}, exitPartly, "unbanned", "",
			[]string{`{"prefixes":["203.0.113.1/32","203.0.113.2/32","203.0.113.3/32","203.0.113.9/32"],"all":true}`}},
		"ipset":      {call{args: []string{"unban", "--file", save}}, 0, "unbanned 203.0.113.0/24\n", "", []string{`["203.0.113.0/24"]`}},
		"stdin":      {call{args: []string{"unban", "--file", "-", "--format", "csv"}, stdin: "prefix\n203.0.113.1\n"}, 0, "unbanned 203.0.113.1\n", "", []string{`["203.0.113.1/32"]`}},
		"not there":  {call{args: []string{"unban", "--file", missing}}, exitNotFound, "", "192.0.2.1: is not banned", []string{`["192.0.2.1/32"]`}},
		"many":       {call{args: []string{"unban", "--file", "-"}, stdin: "prefix,origin\n" + many}, 0, "10,001 prefixes: 10,001 removed\n", "", []string{`"feed:0"`, `"feed:39"`}},
		"machine":    {call{args: []string{"unban", "--file", csv, "--all", "-o", "json"}}, exitPartly, `"done": 4`, "", nil},
		"nothing":    {call{args: []string{"unban", "--file", "-"}, stdin: "# x\n"}, 0, "", "", nil},
		"bad alone":  {call{args: []string{"unban", "--file", "-"}, stdin: "x y z\n"}, exitUsage, "", "stdin, line 1:", nil},
		"a web page": {call{args: []string{"unban", "--file", "-"}, stdin: "<html>"}, exitUsage, "", "levee: stdin: this is a web page", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t).on("POST /v1/unban", unbanAnswer)
			r := tt.run(t, f.socket)
			if r.code != tt.code || !strings.Contains(r.stdout, tt.stdout) || !strings.Contains(r.stderr, tt.stderr) {
				t.Errorf("exit %d\n%s---\n%s", r.code, r.stdout, r.stderr)
			}
			sent := strings.Join(f.asked, "\n")
			for _, want := range tt.sent {
				if !strings.Contains(sent, want) {
					t.Errorf("sent %.2000s, want %s", sent, want)
				}
			}
			if len(tt.sent) == 0 && name != "machine" && sent != "" {
				t.Errorf("sent %s", sent)
			}
		})
	}
}
