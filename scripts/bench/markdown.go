package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// Between these lines of a document stands the report.
const (
	reportBegin = "<!-- report: make bench BENCHFLAGS=\"-docs docs/benchmarks.md -svg docs/benchmarks.svg\" -->\n"
	reportEnd   = "<!-- end of report -->\n"
)

// writeDocs puts the report into a document, in place of the one that is there.
func (r *report) writeDocs(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, found := bytes.Cut(old, []byte(reportBegin))
	_, tail, ended := bytes.Cut(rest, []byte(reportEnd))
	if !found || !ended {
		return fmt.Errorf("%s does not say where the report goes: %q and %q", path, reportBegin, reportEnd)
	}
	var out bytes.Buffer
	out.Write(head)
	out.WriteString(reportBegin)
	fmt.Fprintf(&out, "\n%s.\n\n%s.\n", r.Machine, r.Setup)
	last := ""
	for _, row := range r.Rows {
		if row.Part != last {
			last = row.Part
			fmt.Fprintf(&out, "\n### %s\n\n| case | family | what | median | quartiles | ratio | bound | | note |\n|---|---|---|--:|--:|--:|--:|---|---|\n", last)
		}
		fmt.Fprintf(&out, "| %s |\n", strings.Join([]string{row.Case, row.Family, row.Subject, row.value(), row.spread(),
			row.ratioText(), row.Bound.text(), row.Bound.verdict(), row.Note}, " | "))
	}
	for i, note := range r.Notes {
		if i == 0 {
			out.WriteByte('\n')
		}
		fmt.Fprintf(&out, "- %s\n", note)
	}
	out.WriteByte('\n')
	out.WriteString(reportEnd)
	out.Write(tail)
	return os.WriteFile(path, out.Bytes(), 0o644)
}
