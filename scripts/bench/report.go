package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// row is one figure of the table.
type row struct {
	Part    string  `json:"part"`
	Case    string  `json:"case"`
	Family  string  `json:"family,omitempty"`
	Subject string  `json:"subject"`
	Unit    string  `json:"unit"`
	Figure  figure  `json:"figure"`
	Ratio   float64 `json:"ratio,omitempty"`   // the figure to that of Against, in the same case
	Ratios  figure  `json:"ratios"`            // of the rounds: Ratio is their median
	Against string  `json:"against,omitempty"` // whose figure
	Bound   *bound  `json:"bound,omitempty"`
	Note    string  `json:"note,omitempty"`
}

// bound is what must hold of a row's ratio, or of its figure where there is none.
type bound struct {
	AtMost   float64 `json:"at_most,omitempty"`
	AtLeast  float64 `json:"at_least,omitempty"`
	Absolute bool    `json:"absolute,omitempty"` // a time: shown, but no reason to fail
	Pass     bool    `json:"pass"`
}

// report is everything that a run found out.
type report struct {
	Machine machine  `json:"machine"`
	Setup   string   `json:"setup"`
	Rows    []row    `json:"rows"`
	Notes   []string `json:"notes,omitempty"` // what was left out, and why
}

// ratio fills a row's ratio: the median of those of the rounds, since what is sampled in one round
// met the machine in one state. Without as many rounds on both sides, the ratio of the medians.
func (r row) ratio(against string, mine, theirs []float64) row {
	r.Against = against
	if len(mine) == len(theirs) {
		ratios := make([]float64, len(mine))
		for i := range mine {
			ratios[i] = mine[i] / theirs[i]
		}
		r.Ratios = figureOf(ratios)
	} else if floor := figureOf(theirs).Median; floor > 0 {
		ratio := figureOf(mine).Median / floor
		r.Ratios = figure{ratio, ratio, ratio}
	}
	r.Ratio = r.Ratios.Median
	return r
}

// again says that a row's figure stands in another row, too, beside another one.
func (r row) again() bool { return r.Against == "ipv4" || r.Against == fewestLines }

func (r row) atMost(limit float64) row {
	r.Bound = &bound{AtMost: limit, Pass: r.judged() <= limit}
	return r
}

func (r row) atLeast(limit float64) row {
	r.Bound = &bound{AtLeast: limit, Pass: r.judged() >= limit}
	return r
}

func (r row) judged() float64 {
	if r.Against != "" {
		return r.Ratio
	}
	return r.Figure.Median
}

// missed is how many rows are out of their bounds.
func (r *report) missed() (rows []row) {
	for _, row := range r.Rows {
		if row.Bound != nil && !row.Bound.Pass && !row.Bound.Absolute {
			rows = append(rows, row)
		}
	}
	return rows
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s\n", r.Machine, r.Setup)
	style := table.StyleLight
	style.Options.DrawBorder, style.Options.SeparateColumns = false, false
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(style)
	t.SetColumnConfigs([]table.ColumnConfig{
		{Number: 3, Align: text.AlignRight}, {Number: 4, Align: text.AlignRight}, {Number: 5, Align: text.AlignRight},
		{Number: 7, WidthMax: 40, WidthMaxEnforcer: text.WrapSoft},
	})
	t.AppendHeader(table.Row{"what", "family", "median", "quartiles", "ratio", "bound", "note"})
	last := ""
	for _, r := range r.Rows {
		if group := r.Part + ": " + r.Case; group != last {
			t.AppendSeparator()
			t.AppendRow(table.Row{group})
			last = group
		}
		t.AppendRow(table.Row{"  " + r.Subject, r.Family, r.value(), r.spread(), r.ratioText(),
			strings.TrimSpace(r.Bound.text() + " " + r.Bound.verdict()), r.Note})
	}
	t.Render()
	for _, note := range r.Notes {
		fmt.Fprintln(w, "note:", note)
	}
	missed := r.missed()
	for _, row := range missed {
		fmt.Fprintf(w, "missed: %s\n", row.words())
	}
	for _, line := range r.beyond() {
		fmt.Fprintln(w, line)
	}
}

func (r row) words() string {
	words := strings.Join(strings.Fields(strings.Join([]string{r.Part, r.Case, r.Family, r.Subject}, " ")), " ")
	ratio := ""
	if r.Against != "" {
		ratio = " (" + r.ratioText() + ")"
	}
	return fmt.Sprintf("%s: %s%s, bound %s", words, r.value(), ratio, r.Bound.text())
}

func (r row) value() string { return number(r.Figure.Median) + " " + r.Unit }

func (r row) spread() string {
	if r.Figure.Low == r.Figure.High {
		return ""
	}
	return number(r.Figure.Low) + " .. " + number(r.Figure.High)
}

func (r row) ratioText() string {
	if r.Against == "" {
		return ""
	}
	return fmt.Sprintf("%.2f x %s", r.Ratio, r.Against)
}

func (b *bound) text() string {
	switch {
	case b == nil:
		return ""
	case b.AtLeast != 0:
		return "at least " + number(b.AtLeast)
	}
	return "at most " + number(b.AtMost)
}

func (b *bound) verdict() string {
	switch {
	case b == nil:
		return ""
	case b.Pass:
		return "ok"
	case b.Absolute:
		return "over"
	}
	return "MISSED"
}

// number writes three digits that matter.
func number(v float64) string {
	switch {
	case v >= 10_000_000:
		return fmt.Sprintf("%.1fM", v/1e6)
	case v >= 1_000_000:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 10_000:
		return fmt.Sprintf("%.0fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func (r *report) writeJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// add takes the rows of parts that it has none of from reports of other runs, and sorts all by part. Those runs
// must have been alike: of the same machine, lists and rounds.
func (r *report) add(paths []string) error {
	loads := []string{r.Machine.Load}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var other report
		if err := json.Unmarshal(b, &other); err != nil {
			return fmt.Errorf("read the report %s: %w", path, err)
		}
		theirs := other.Machine
		theirs.Load = r.Machine.Load
		if theirs != r.Machine || other.Setup != r.Setup {
			return fmt.Errorf("the report %s is of another kind of run: %s; %s", path, other.Machine, other.Setup)
		}
		loads = append(loads, other.Machine.Load)
		has := make(map[string]bool)
		for _, row := range r.Rows {
			has[row.Part] = true
		}
		for _, row := range other.Rows {
			if !has[row.Part] {
				r.Rows = append(r.Rows, row)
			}
		}
		for _, note := range other.Notes {
			if !slices.Contains(r.Notes, note) {
				r.Notes = append(r.Notes, note)
			}
		}
	}
	r.Machine.Load = strings.Join(loads, " and ")
	place := func(name string) int {
		return slices.IndexFunc(allParts, func(p part) bool { return p.name == name })
	}
	slices.SortStableFunc(r.Rows, func(a, b row) int { return place(a.Part) - place(b.Part) })
	return nil
}
