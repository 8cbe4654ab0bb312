package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// Colours of the bars; on white, and apart from each other without colour vision.
var barColours = map[string]string{bare: "#9aa5b1", fewestLines: "#57606a", field: "#d9822b", levee: "#1f6feb"}

// The plot's measures, in pixels.
const (
	plotLeft, plotWidth, barHeight, groupGap = 260, 560, 14, 14
	plotTop                                  = 64
)

// writeSVG draws the first part: a bar for each program and kind of sources, on a logarithmic scale,
// with the quartiles as a line.
func (r *report) writeSVG(path string) error {
	rows := r.plotted()
	if len(rows) == 0 {
		return fmt.Errorf("draw %s: the part \"program\" was not run", path)
	}
	low, high := 10.0, 10.0
	for _, row := range rows {
		high = max(high, row.Figure.High)
	}
	high = math.Pow(10, math.Ceil(math.Log10(high)))
	x := func(v float64) float64 {
		return plotLeft + plotWidth*math.Log10(max(v, low)/low)/math.Log10(high/low)
	}

	var body strings.Builder
	y, last := float64(plotTop), ""
	for _, row := range rows {
		if group := row.Case + ", " + row.Family; group != last {
			if last != "" {
				y += groupGap
			}
			last = group
			fmt.Fprintf(&body, `<text x="%d" y="%.0f" text-anchor="end">%s</text>`+"\n", plotLeft-10, y+24, html.EscapeString(group))
		}
		f := row.Figure
		fmt.Fprintf(&body, `<rect x="%d" y="%.0f" width="%.1f" height="%d" fill="%s"/>`+"\n",
			plotLeft, y, x(f.Median)-plotLeft, barHeight-2, barColours[row.Subject])
		middle := y + barHeight/2 - 1
		fmt.Fprintf(&body, `<path d="M%.1f %.1fH%.1f" stroke="#222"/>`+"\n", x(f.Low), middle, x(f.High))
		fmt.Fprintf(&body, `<text x="%.1f" y="%.1f" class="n">%s</text>`+"\n", x(f.High)+5, y+10, number(f.Median))
		y += barHeight
	}
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" font-family="sans-serif" font-size="12">`+"\n",
		plotLeft+plotWidth+60, y+40)
	out.WriteString("<style>.n{font-size:10px;fill:#444}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n")
	fmt.Fprintf(&out, `<text x="10" y="20" font-size="14" font-weight="bold">What a packet costs, in ns (less is better; logarithmic)</text>`+"\n")
	at := plotLeft
	for _, name := range []string{bare, fewestLines, field, levee} {
		fmt.Fprintf(&out, `<rect x="%d" y="32" width="12" height="12" fill="%s"/><text x="%d" y="42">%s</text>`+"\n", at, barColours[name], at+18, legend[name])
		at += 160
	}
	for v := low; v <= high; v *= 10 {
		fmt.Fprintf(&out, `<path d="M%.1f %dV%.0f" stroke="#ddd"/><text x="%.1f" y="%.0f" text-anchor="middle" class="n">%s</text>`+"\n",
			x(v), plotTop-6, y+6, x(v), y+20, number(v))
	}
	out.WriteString(body.String())
	fmt.Fprintf(&out, `<text x="10" y="%.0f" class="n">%s</text>`+"\n</svg>\n", y+34, html.EscapeString(r.Machine.String()))
	return os.WriteFile(path, []byte(out.String()), 0o644)
}

var legend = map[string]string{bare: "parse and drop", fewestLines: "… and load the lines", field: "LPM trie and LRU hash", levee: "Levee"}

// plotted are the rows of the first part that are drawn: each program once in a case.
func (r *report) plotted() (rows []row) {
	for _, row := range r.Rows {
		if row.Part == "program" && !row.again() && barColours[row.Subject] != "" {
			rows = append(rows, row)
		}
	}
	return rows
}
