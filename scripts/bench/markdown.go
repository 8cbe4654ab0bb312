package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Between these lines of a document stands the report.
const (
	reportBegin = "<!-- report: written by make bench with -docs -->\n"
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
	for i, line := range r.summary() {
		if i == 0 {
			out.WriteByte('\n')
		}
		fmt.Fprintf(&out, "- %s\n", line)
	}
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

// summary says what holds, and what the figures come to beside the common way.
func (r *report) summary() (lines []string) {
	var bounds, times []row
	for _, row := range r.Rows {
		switch {
		case row.Bound == nil:
		case row.Bound.Absolute:
			times = append(times, row)
		default:
			bounds = append(bounds, row)
		}
	}
	held := func(rows []row) (n int) {
		for _, row := range rows {
			if row.Bound.Pass {
				n++
			}
		}
		return n
	}
	if len(bounds) > 0 {
		lines = append(lines, fmt.Sprintf("Of %d bounds %d hold.", len(bounds), held(bounds)))
	}
	if len(times) > 0 {
		lines = append(lines, fmt.Sprintf("Of %d times %d are kept, on this machine.", len(times), held(times)))
	}
	for _, v6 := range []bool{false, true} {
		var ratios []float64
		medians := make(map[string]float64)
		for _, row := range r.Rows {
			if row.Part != "program" || row.Family != familyName(v6) || row.again() {
				continue
			}
			if row.Subject == field {
				medians[row.Case] = row.Figure.Median
			}
			if theirs := medians[row.Case]; row.Subject == levee && theirs > 0 {
				ratios = append(ratios, row.Figure.Median/theirs)
			}
		}
		if len(ratios) > 0 {
			lines = append(lines, fmt.Sprintf("A packet of %s costs %.2f to %.2f times what it costs on an LPM trie and an LRU hash.",
				familyName(v6), slices.Min(ratios), slices.Max(ratios)))
		}
	}
	var twins []float64
	for _, row := range r.Rows {
		if row.Part == "program" && row.Against == "ipv4" {
			twins = append(twins, row.Ratio)
		}
	}
	if len(twins) > 0 {
		lines = append(lines, fmt.Sprintf("A packet of ipv6 costs %.2f to %.2f times what one of ipv4 does.", slices.Min(twins), slices.Max(twins)))
	}
	for _, row := range bounds {
		if !row.Bound.Pass {
			lines = append(lines, "Missed: "+row.words())
		}
	}
	for _, row := range times {
		if !row.Bound.Pass {
			lines = append(lines, "Over: "+row.words())
		}
	}
	return append(lines, r.beyond()...)
}

// beyond are the bounds among those missed that can't be kept on the machine, in three of four rounds at the
// least: by no program with these tables, if to load what an answer stands in is already more, with nothing
// compared, decided or written; by no filter at all, if to read the source is.
func (r *report) beyond() (lines []string) {
	for _, missed := range r.missed() {
		if missed.Against != bare {
			continue
		}
		for _, row := range r.Rows {
			loads := row.Subject == sourceRead || row.Subject == filterLine || row.Subject == fewestLines
			if !loads || row.Part != missed.Part || row.Case != missed.Case || row.Family != missed.Family {
				continue
			}
			if b := missed.Bound; b.AtMost > 0 && row.Ratios.Low > b.AtMost || row.Ratios.High < b.AtLeast {
				reach := "Beyond the reach of such tables"
				if row.Subject == sourceRead {
					reach = "Beyond any filter's reach"
				}
				lines = append(lines, fmt.Sprintf("%s: %s %s %s, bound %s: with the %s alone it is %s",
					reach, row.Part, row.Case, row.Family, b.text(), row.Subject, row.ratioText()))
				break
			}
		}
	}
	return lines
}
