package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/levee-xdp/levee/agent/state"
)

// machine tells whether the output is for programs.
func (a *app) machine() bool { return a.output != "table" }

// say reports what went well.
func (a *app) say(format string, args ...any) {
	if !a.quiet && !a.machine() {
		fmt.Fprintln(a.stdout, clean(fmt.Sprintf(format, args...)))
	}
}

// note tells a person something beside the answer.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, clean(fmt.Sprintf(format, args...)))
	}
}

// complain reports what went wrong with a part.
func (a *app) complain(format string, args ...any) {
	fmt.Fprintln(a.stderr, "levee: "+clean(fmt.Sprintf(format, args...)))
}

// printJSON writes a value: indented for json, on one line for jsonl.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if a.output == "json" {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	if _, err := a.stdout.Write(cleanJSON(b.Bytes())); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// printList writes a document for json, and its items a line each for jsonl.
func printList[T any](a *app, whole any, items []T) error {
	if a.output == "json" {
		return a.printJSON(whole)
	}
	for _, item := range items {
		if err := a.printJSON(item); err != nil {
			return err
		}
	}
	return nil
}

// clean makes a line of text that came from elsewhere harmless to a terminal: what does not print
// is written as its code.
func clean(s string) string { return state.Printable(s, 0) }

// cleanLines is clean for text of several lines, as errors about files have.
func cleanLines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, line := range lines {
		lines[i] = clean(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// cleanJSON escapes what the encoder leaves as it is and a terminal would obey. Outside of strings
// JSON is ASCII, so that this is the same document.
func cleanJSON(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == '\n' || unicode.IsPrint(r) {
			out = append(out, b[i:i+size]...)
		} else {
			if r < 0x10000 {
				out = fmt.Appendf(out, `\u%04x`, r)
			} else {
				high, low := utf16.EncodeRune(r)
				out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
			}
		}
		i += size
	}
	return out
}

// colour is whether to colour.
func (a *app) colour() bool {
	return a.stdoutTTY && !a.noColor && !a.machine() && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
}

// The few colours there are.
const (
	bold   = "1"
	faint  = "2"
	red    = "1;31"
	yellow = "33"
	green  = "32"
)

func (a *app) paint(style, s string) string {
	if s == "" || !a.colour() {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

// grid is a table without lines. One column may be flexible: it gives way where the terminal is
// narrow.
type grid struct {
	app    *app
	indent string
	head   []string
	right  map[int]bool
	flex   int // the flexible column; -1: none
	least  int // its least width
	wrap   bool
	rows   [][]string
}

func (a *app) grid(head ...string) *grid {
	return &grid{app: a, head: head, right: map[int]bool{}, flex: -1, least: 12}
}

// numbers aligns columns to the right.
func (g *grid) numbers(columns ...int) *grid {
	for _, c := range columns {
		g.right[c] = true
	}
	return g
}

// flexible names the column that gives way, by being wrapped or else cut off.
func (g *grid) flexible(column int, wrap bool) *grid {
	g.flex, g.wrap = column, wrap
	return g
}

// row adds a row. Cells are cleaned here: colours are for painted.
func (g *grid) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	g.rows = append(g.rows, cells)
}

// painted adds a row of a colour.
func (g *grid) painted(style string, cells ...string) {
	for i := range cells {
		cells[i] = g.app.paint(style, clean(cells[i]))
	}
	g.rows = append(g.rows, cells)
}

// hide leaves columns out that are empty in every row.
func (g *grid) hide() *grid {
	for c := len(g.head) - 1; c >= 0; c-- {
		empty := true
		for _, r := range g.rows {
			empty = empty && r[c] == ""
		}
		if empty {
			g.drop(c)
		}
	}
	return g
}

// drop leaves a column out.
func (g *grid) drop(c int) {
	g.head = append(g.head[:c:c], g.head[c+1:]...)
	for i, r := range g.rows {
		g.rows[i] = append(r[:c:c], r[c+1:]...)
	}
	right := map[int]bool{}
	for k := range g.right {
		switch {
		case k < c:
			right[k] = true
		case k > c:
			right[k-1] = true
		}
	}
	g.right = right
	switch {
	case g.flex == c:
		g.flex = -1
	case g.flex > c:
		g.flex--
	}
}

func (g *grid) widths() []int {
	w := make([]int, len(g.head))
	for i, h := range g.head {
		w[i] = text.StringWidthWithoutEscSequences(h)
		for _, r := range g.rows {
			w[i] = max(w[i], text.StringWidthWithoutEscSequences(r[i]))
		}
	}
	return w
}

// render writes the table.
func (g *grid) render() {
	if len(g.rows) == 0 {
		return
	}
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.Options{}
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	configs := make([]table.ColumnConfig, len(g.head))
	head := table.Row{}
	for i, h := range g.head {
		head = append(head, g.app.paint(faint, strings.ToUpper(h)))
		configs[i] = table.ColumnConfig{Number: i + 1, Align: text.AlignLeft, AlignHeader: text.AlignLeft}
		if g.right[i] {
			configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
		}
	}
	if columns := g.app.width(); columns > 0 && g.flex >= 0 {
		widths := g.widths()
		total := len(g.indent) - 2
		for _, w := range widths {
			total += w + 2
		}
		if total > columns {
			configs[g.flex].WidthMax = max(g.least, widths[g.flex]-(total-columns))
			configs[g.flex].WidthMaxEnforcer = text.WrapSoft
			if !g.wrap {
				configs[g.flex].WidthMaxEnforcer = func(s string, most int) string { return text.Snip(s, most, "…") }
			}
		}
	}
	t.SetColumnConfigs(configs)
	for _, h := range g.head {
		if h != "" {
			t.AppendHeader(head)
			break
		}
	}
	for _, r := range g.rows {
		row := make(table.Row, len(r))
		for i, c := range r {
			row[i] = c
		}
		t.AppendRow(row)
	}
	for line := range strings.SplitSeq(t.Render(), "\n") {
		fmt.Fprintln(g.app.stdout, strings.TrimRight(g.indent+line, " "))
	}
}

// narrow tells whether a terminal has no room for what is not needed.
func (a *app) narrow() bool {
	columns := a.width()
	return columns > 0 && columns < 100
}

// line writes a sentence of the answer, cleaned, and wrapped where the terminal is narrow.
func (a *app) line(format string, args ...any) {
	whole := clean(fmt.Sprintf(format, args...))
	sentence := strings.TrimLeft(whole, " ")
	indent := whole[:len(whole)-len(sentence)]
	if columns := a.width() - len(indent); columns > 0 && text.StringWidth(sentence) > columns {
		sentence = text.WrapSoft(sentence, columns)
	}
	for part := range strings.SplitSeq(sentence, "\n") {
		fmt.Fprintln(a.stdout, strings.TrimRight(indent+part, " "))
	}
}

// heading writes a heading.
func (a *app) heading(s string) { fmt.Fprintf(a.stdout, "\n%s\n", a.paint(bold, s)) }
