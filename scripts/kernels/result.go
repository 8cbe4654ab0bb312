package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/levee-xdp/levee/scripts/kernels/plan"
)

// result is what came of one kernel. What is exported is kept.
type result struct {
	plan.Probe
	Host  bool `json:",omitempty"` // it is the kernel of the host that ran this
	Tests []*tests
	took  time.Duration
}

// tests are those of one package.
type tests struct {
	Package string
	Passed  int
	Skipped []skip
	failed  []failure
	exit    int
	said    string // the end of what was printed after the last test's end
}

// skip is a test that was skipped, and why.
type skip struct{ Name, Why string }

// failure is a test that failed, and what it said.
type failure struct{ name, said string }

// Failed is how many tests failed; one if it was none, but the whole.
func (t *tests) Failed() int {
	if t.exit != 0 && len(t.failed) == 0 {
		return 1
	}
	return len(t.failed)
}

var numbers = regexp.MustCompile(`^\d+\.\d+`)

// series is the kernel's version without what changes from one update to the next.
func (r *result) series() string { return numbers.FindString(r.Release) }

// verdict is a line by which a test binary run with -test.v=test2json ends a test.
var verdict = regexp.MustCompile(`^\x16?--- (PASS|SKIP|FAIL): (\S+) \(`)

// read makes a result of a machine's log.
func read(log io.Reader) (*result, error) {
	r := &result{}
	var step string
	var body strings.Builder
	done := false
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		word := strings.Fields(line)
		switch {
		case len(word) == 2 && word[0] == plan.Begin:
			step = word[1]
			body.Reset()
		case len(word) == 3 && word[0] == plan.End && word[1] == step:
			var code int
			if _, err := fmt.Sscan(word[2], &code); err != nil {
				return nil, fmt.Errorf("the log: %q: %w", line, err)
			}
			if err := r.take(step, body.String(), code); err != nil {
				return nil, err
			}
			step = ""
		case len(word) == 1 && word[0] == plan.Done:
			done = true
		default:
			body.WriteString(line)
		}
		if err != nil {
			break
		}
	}
	if !done {
		return nil, fmt.Errorf("the machine did not come to its end; it was at step %q, after:\n%s", step, last(body.String(), 40))
	}
	return r, nil
}

func (r *result) take(step, body string, code int) error {
	if step == probeStep {
		if code != 0 {
			return fmt.Errorf("the probe failed: %s", body)
		}
		if err := json.Unmarshal([]byte(body), &r.Probe); err != nil {
			return fmt.Errorf("the probe's answer %q: %w", body, err)
		}
		return nil
	}
	r.Tests = append(r.Tests, readTests(step, body, code))
	return nil
}

// readTests counts the tests of a package, not those within tests.
func readTests(name, body string, code int) *tests {
	t := &tests{Package: name, exit: code}
	var said strings.Builder
	for line := range strings.Lines(body) {
		m := verdict.FindStringSubmatch(line)
		switch {
		case m == nil, strings.Contains(m[2], "/"):
			said.WriteString(line)
			continue
		case m[1] == "PASS":
			t.Passed++
		case m[1] == "SKIP":
			t.Skipped = append(t.Skipped, skip{m[2], reason(said.String())})
		case m[1] == "FAIL":
			t.failed = append(t.failed, failure{m[2], said.String()})
		}
		said.Reset()
	}
	t.said = last(said.String(), 60)
	return t
}

func last(s string, n int) string {
	lines := strings.SplitAfter(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// summary says in a few lines how it went, and shows what failed.
func (r *result) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s: %s, took %s\n", r.series(), r.Release, r.took.Round(time.Second))
	for _, t := range r.Tests {
		fmt.Fprintf(&b, "  %-8s %3d passed, %d skipped, %d failed\n", t.Package, t.Passed, len(t.Skipped), t.Failed())
		for _, o := range t.Skipped {
			fmt.Fprintf(&b, "    skipped %s: %s\n", o.Name, o.Why)
		}
		for _, o := range t.failed {
			fmt.Fprintf(&b, "    FAILED %s\n%s", o.name, indent(last(o.said, 60)))
		}
		if t.exit != 0 && len(t.failed) == 0 {
			fmt.Fprintf(&b, "    FAILED with exit code %d, outside of a test\n%s", t.exit, indent(t.said))
		}
	}
	return b.String()
}

// reason is the last thing that a test said: why it was skipped.
func reason(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	text := strings.TrimSpace(lines[len(lines)-1])
	if m := regexp.MustCompile(`^\S+\.go:\d+: (.*)$`).FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return text
}

func indent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString("      " + line)
	}
	return b.String()
}

// failures says which kernels are not as they should be.
func failures(results []*result) error {
	var errs []error
	for _, r := range results {
		for _, f := range r.Features {
			if f.Needed && !f.Present {
				errs = append(errs, fmt.Errorf("%s lacks %s, which Levee needs: %s", r.Release, f.Name, f.Why))
			}
		}
		for _, t := range r.Tests {
			if t.Failed() > 0 {
				errs = append(errs, fmt.Errorf("%s: tests of %s failed", r.Release, t.Package))
			}
			if t.Failed() == 0 && t.Passed == 0 {
				errs = append(errs, fmt.Errorf("%s: no test of %s was run", r.Release, t.Package))
			}
		}
		if len(r.Tests) == 0 {
			errs = append(errs, fmt.Errorf("%s: no tests were run", r.Release))
		}
	}
	return errors.Join(errs...)
}
