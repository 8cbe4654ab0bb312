package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each row of the page names tests, and they exist.
func TestLifecycleRows(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "lifecycle.md"))
	if err != nil {
		t.Fatal(err)
	}
	list := exec.Command("git", "grep", "--untracked", "-hoE", `^func Test[A-Za-z0-9]+`, "--", "*_test.go")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for name := range strings.Lines(string(out)) {
		known[strings.TrimPrefix(strings.TrimSpace(name), "func ")] = true
	}
	names, rows := regexp.MustCompile("`(Test[A-Za-z0-9]+)`"), 0
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what happens") {
			continue
		}
		rows++
		cells := strings.Split(line, " | ")
		if len(cells) != 5 {
			t.Errorf("a row of %d cells: %s", len(cells), line)
			continue
		}
		tests := names.FindAllStringSubmatch(cells[4], -1)
		if len(tests) == 0 {
			t.Errorf("no test: %s", line)
		}
		for _, m := range tests {
			if !known[m[1]] {
				t.Errorf("%s is not there: %s", m[1], line)
			}
		}
	}
	if rows < 20 {
		t.Errorf("%d rows", rows)
	}
}
