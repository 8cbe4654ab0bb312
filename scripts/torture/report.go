package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what a phase found.
type report interface {
	text() string // in Markdown
	complaints() []string
}

func (r killsResult) complaints() []string { return r.Wrong }

func (r killsResult) text() string {
	return table([][2]string{
		{"kills", fmt.Sprintf("%d, of these %d during a start, of these %d with another program and %d with other tables", r.Kills, r.AtStart, r.InUpgrade, r.InNewSet)},
		{"changes acknowledged", fmt.Sprint(r.Acknowledged)},
		{"changes refused", fmt.Sprint(r.Refused)},
		{"changes not answered because of a kill", fmt.Sprint(r.Unanswered)},
		{"looks at a prefix, in the kernel and in the state", fmt.Sprint(r.Checks)},
		{"frames of banned sources", r.Flood.Banned.words()},
		{"frames of other sources", r.Flood.Clean.words()},
		{"took", r.Took.Round(time.Second).String()},
		{"acknowledged changes lost or undone, packets passed or lost, things left behind", fmt.Sprint(len(r.Wrong))},
	}) + refusals(r.Refusals) + list(r.Wrong)
}

// refusals are the words of what was refused.
func refusals(words map[string]int) string {
	var lines []string
	for text, n := range words {
		lines = append(lines, fmt.Sprintf("refused %d times: %s", n, text))
	}
	slices.Sort(lines)
	return list(lines[:min(len(lines), 10)])
}

func (t tally) words() string {
	return fmt.Sprintf("%d sent, %d of these did not fit the wire's queue, %d passed the shield", t.Sent, t.Dropped, t.Passed)
}

func table(rows [][2]string) string {
	var b strings.Builder
	b.WriteString("| | |\n|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s |\n", r[0], r[1])
	}
	return b.String()
}

func list(lines []string) string {
	var b strings.Builder
	for i, l := range lines {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "- %s\n", l)
	}
	return b.String()
}

// writeDocs puts a phase's report into a document, in place of the one that is there.
func writeDocs(path, phase string, seed uint64, r report) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := fmt.Sprintf("<!-- report: make torture, %s -->\n", phase), fmt.Sprintf("<!-- end of %s -->\n", phase)
	head, rest, found := bytes.Cut(old, []byte(begin))
	_, tail, ended := bytes.Cut(rest, []byte(end))
	if !found || !ended {
		return fmt.Errorf("%s does not say where the report goes: %q and %q", path, begin, end)
	}
	var out bytes.Buffer
	out.Write(head)
	fmt.Fprintf(&out, "%s\n%s, seed %d.\n\n%s\n%s", begin, machine(), seed, r.text(), end)
	out.Write(tail)
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// machine says what this ran on.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // it can't fail with a valid address
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	text := fmt.Sprintf("%s, Linux %s", time.Now().UTC().Format("2006-01-02"), release)
	if info, ok := debug.ReadBuildInfo(); ok {
		text += ", " + info.GoVersion
	}
	return text
}
