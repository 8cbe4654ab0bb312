package dashboard

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

const (
	root      = "../.."
	grafana   = root + "/scripts/packaging/grafana/levee.json"
	rulesFile = root + "/scripts/packaging/prometheus/levee.rules.yml"
	tests     = root + "/scripts/packaging/prometheus/levee*.test.yml"
	runbooks  = root + "/docs/runbook"
)

// rule is an alert.
type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func readRules(t *testing.T) (list []rule) {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		list = append(list, g.Rules...)
	}
	if len(list) < 10 {
		t.Fatalf("%d rules", len(list))
	}
	return list
}

func readPanels(t *testing.T) []Panel {
	t.Helper()
	panels, err := ReadPanels(grafana)
	if err != nil {
		t.Fatal(err)
	}
	if len(panels) < 20 {
		t.Fatalf("%d panels", len(panels))
	}
	return panels
}

// Each alert says what to do, on a page of its own, and each page has its alert.
func TestRunbooks(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(runbooks, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for _, p := range pages {
		left[strings.TrimSuffix(filepath.Base(p), ".md")] = true
	}
	for _, r := range readRules(t) {
		if want := "https://github.com/levee-xdp/levee/blob/main/docs/runbook/" + r.Alert + ".md"; r.Annotations["runbook_url"] != want {
			t.Errorf("%s links to %q, not to %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if !left[r.Alert] {
			t.Errorf("%s has no page", r.Alert)
			continue
		}
		delete(left, r.Alert)
		page, err := os.ReadFile(filepath.Join(runbooks, r.Alert+".md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"# " + r.Alert + "\n", "\n## What it means\n", "\n## Look at\n", "\n## Do\n"} {
			if !strings.Contains(string(page), part) {
				t.Errorf("the page of %s lacks %q", r.Alert, strings.TrimSpace(part))
			}
		}
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: severity, summary or description is missing", r.Alert)
		}
	}
	if len(left) > 0 {
		t.Errorf("pages without an alert: %v", slices.Sorted(maps.Keys(left)))
	}
}

// Queries name metrics that there are.
func TestMetricNames(t *testing.T) {
	page, err := os.ReadFile(root + "/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(levee_\\w+)`").FindAllStringSubmatch(string(page), -1) {
		known[m[1]] = true
	}
	ask := func(where, expr string) {
		for _, name := range regexp.MustCompile(`\blevee_\w+`).FindAllString(expr, -1) {
			if !known[name] {
				t.Errorf("%s asks for %s, which docs/metrics.md does not have", where, name)
			}
		}
	}
	for _, r := range readRules(t) {
		ask(r.Alert, r.Expr)
	}
	for _, p := range readPanels(t) {
		for _, target := range p.Targets {
			ask(p.Title, target.Expr)
		}
	}
}

// Panels have numbers of their own, say what they show, stand within the width, and not upon each other.
func TestLayout(t *testing.T) {
	panels := readPanels(t)
	ids := map[int]bool{}
	for i, p := range panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: its number or title", p.ID, p.Title)
		}
		ids[p.ID] = true
		if (p.Type == "row") != (p.Description == "") {
			t.Errorf("%s does not say what it shows, or is a row that does: %q", p.Title, p.Description)
		}
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("%s: %d queries", p.Title, len(p.Targets))
		}
		if g := p.Grid; g.X < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("%s stands at %+v", p.Title, g)
		}
		for _, q := range panels[:i] {
			a, b := p.Grid, q.Grid
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s and %s stand upon each other", p.Title, q.Title)
			}
		}
	}
	var d map[string]any
	text, err := os.ReadFile(grafana)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil || d["uid"] != "levee" || d["schemaVersion"] == nil {
		t.Errorf("%v %v", err, d["uid"])
	}
}

// thirdParty skips without other people's software, unless it has to be there.
func thirdParty(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("LEVEE_THIRDPARTY") != "" || os.Getenv("LEVEE_SETUP") != "" {
				t.Fatalf("%v; run `scripts/setup dashboard` as root", err)
			}
			t.Skipf("%s is not installed; `make test-dashboard` needs it", name)
		}
	}
}

// The rules' own unit tests: each alert has one in which it fires and one in which it does not.
func TestRules(t *testing.T) {
	files, err := filepath.Glob(tests)
	if err != nil || len(files) == 0 {
		t.Fatalf("tests %v: %v", files, err)
	}
	var text []byte
	for i, name := range files {
		one, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text, files[i] = append(text, one...), filepath.Base(name)
	}
	for _, r := range readRules(t) {
		fires, rests := false, false
		for _, part := range strings.Split(string(text), "- name: ") {
			if strings.HasPrefix(part, `"`+r.Alert+": ") {
				if strings.Contains(part, "exp_alerts: []") {
					rests = true
				} else {
					fires = true
				}
			}
		}
		if !fires || !rests {
			t.Errorf("%s: tested firing: %v, not firing: %v", r.Alert, fires, rests)
		}
	}
	thirdParty(t, "promtool")
	for _, args := range [][]string{{"check", "rules", filepath.Base(rulesFile)}, append([]string{"test", "rules"}, files...)} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = filepath.Dir(rulesFile)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
