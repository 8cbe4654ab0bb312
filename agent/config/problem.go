package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/token"

	"github.com/levee-xdp/levee/agent/state"
)

// Problem is one thing that is wrong with a file, and where.
type Problem struct {
	File         string
	Line, Column int // from 1; 0 if it is about the file as a whole
	Path         string
	Message      string
	source       string // the line
}

// String shows the place, the problem and the line with a mark under it.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	b.WriteString(p.Message)
	if p.source == "" {
		return b.String()
	}
	number := strconv.Itoa(p.Line)
	// The mark is under the column whatever tabs and wide signs stand before it.
	lead := []rune(p.source)
	lead = lead[:min(max(p.Column-1, 0), len(lead))]
	for i, r := range lead {
		if r != '\t' {
			lead[i] = ' '
		}
	}
	fmt.Fprintf(&b, "\n  %s | %s\n  %s | %s^", number, p.source, strings.Repeat(" ", len(number)), string(lead))
	return b.String()
}

// Error is everything that is wrong with a file. Nothing of it is in force.
type Error struct {
	Problems []Problem
}

// Error shows each problem.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// maxProblems bounds what is shown of a file that is no configuration at all.
const maxProblems = 20

func (d *decoder) err() error {
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return a.Line - b.Line })
	if len(d.problems) > maxProblems {
		more := len(d.problems) - maxProblems
		d.problems = append(d.problems[:maxProblems], Problem{File: d.file, Message: fmt.Sprintf("and %d more", more)})
	}
	return &Error{d.problems}
}

func (d *decoder) problem(t *token.Token, path, format string, args ...any) {
	p := Problem{File: d.file, Path: path, Message: fmt.Sprintf(format, args...)}
	if t != nil && t.Position != nil {
		p.Line, p.Column = t.Position.Line, max(t.Position.Column, 1)
		if p.Line >= 1 && p.Line <= len(d.source) {
			p.source = strings.TrimRight(d.source[p.Line-1], "\r")
			p.Column = valueColumn(t, p.source, p.Column)
		}
	}
	d.problems = append(d.problems, p)
}

// valueColumn returns where a token's value begins: the scanner counts tabs before it to it.
func valueColumn(t *token.Token, line string, column int) int {
	if t.Type == token.InvalidType {
		return column
	}
	runes := []rune(line)
	for i := column - 1; i < len(runes); i++ {
		if runes[i] != ' ' && runes[i] != '\t' {
			return i + 1
		}
	}
	return column
}

// problemAt reports an error at the place of its field, or of the nearest that the file has around it.
func (d *decoder) problemAt(err *state.Error) {
	path := err.Field
	for {
		if t, ok := d.tokens[path]; ok {
			d.problem(t, err.Field, "%s", err.Error())
			return
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			d.problem(nil, err.Field, "%s", err.Error())
			return
		}
		path = path[:i]
	}
}

// clip bounds what is shown of a value.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// suggest names the setting that was perhaps meant.
func suggest(key string, fields map[string][]int) string {
	best, least := "", min(len(key)/2, 2)+1
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if n := distance(key, name); n < least {
			best, least = name, n
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; there are " + strings.Join(names, ", ")
}

// distance is how many letters must change to make one word of another.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
