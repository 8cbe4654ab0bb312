package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
)

func TestDoctor(t *testing.T) {
	warning := state.Finding{Severity: state.FindingWarning, Subject: "eth0", Message: "LRO is on", Advice: "run: ethtool -K eth0 lro off"}
	fatal := state.Finding{Severity: state.FindingFatal, Subject: "bpffs", Message: "there is none", Advice: "run: mount -t bpf bpf /sys/fs/bpf"}
	file := filepath.Join(t.TempDir(), "levee.yaml")
	if err := os.WriteFile(file, []byte("bpffs: /sys/fs/bpf/other\ninterfaces: [eth7, eth8]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		args     []string
		findings []state.Finding
		asked    string // the root and the interfaces
		code     int
		says     []string
	}{
		{"fine", []string{"doctor", "-c", file}, nil, "/sys/fs/bpf/other eth7 eth8", 0, []string{"nothing stands in the way (kernel 6.1.0, 2 interfaces looked at)"}},
		{"named", []string{"doctor", "-c", file, "eth0"}, []state.Finding{warning}, "/sys/fs/bpf/other eth0", 0,
			[]string{"warning", "LRO is on", "ethtool -K eth0 lro off", "nothing fatal stands in the way (kernel 6.1.0, 1 interface looked at)"}},
		{"fatal", []string{"doctor", "-c", file}, []state.Finding{warning, fatal}, "/sys/fs/bpf/other eth7 eth8", 1, []string{"fatal", "mount -t bpf", "can't work here"}},
		{"no such file", []string{"doctor", "-c", file + "x"}, nil, "", 1, []string{"no such file"}},
	} {
		asked := ""
		r := call{args: c.args, change: func(e *environment) {
			e.offline.examine = func(root string, names []string) (string, []state.Finding) {
				asked = strings.Join(append([]string{root}, names...), " ")
				return "6.1.0", c.findings
			}
		}}.run(t, "")
		if r.code != c.code || asked != c.asked {
			t.Errorf("%s: exit code %d, asked for %q", c.name, r.code, asked)
		}
		for _, words := range c.says {
			if !strings.Contains(r.stdout+r.stderr, words) {
				t.Errorf("%s: %q is not in %s%s", c.name, words, r.stdout, r.stderr)
			}
		}
	}

	// Without a configuration and names, all that are up are looked at.
	r := call{args: []string{"doctor", "-o", "json"}, change: func(e *environment) {
		e.getenv = func(name string) string {
			if name == "LEVEE_CONFIG" {
				return file + ".empty"
			}
			return ""
		}
		if err := os.WriteFile(file+".empty", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		e.offline.interfaces = func() ([]string, error) { return []string{"eth3"}, nil }
		e.offline.examine = func(string, []string) (string, []state.Finding) { return "6.1.0", []state.Finding{fatal} }
	}}.run(t, "")
	var got examination
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || r.code != 1 || got.OK || len(got.Findings) != 1 || got.Interfaces[0] != "eth3" {
		t.Errorf("exit code %d, %s, %v", r.code, r.stdout, err)
	}
}
