package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/levee-xdp/levee/bpf"
)

// String is one line of a measurement, as the lab shows it while it works.
func (m measurement) String() string {
	s := fmt.Sprintf("answered %5s, median %7s", percent(m.Client.success()), latency(m.Client.Median, m.Client.Timeout))
	if m.Flood.Sent > 0 {
		s += fmt.Sprintf(", flood %5s/s", short(m.Flood.rate()))
	}
	if why := m.why(); why != "" {
		s += ", dropped " + why
	}
	return s
}

func (r floodReport) rate() float64 {
	if r.Seconds == 0 {
		return 0
	}
	return float64(r.Sent) / r.Seconds
}

// why is what share of the packets was dropped, and for which reasons.
func (m measurement) why() string {
	var dropped uint64
	for _, n := range m.Dropped {
		dropped += n
	}
	if dropped == 0 {
		return ""
	}
	reasons := slices.SortedFunc(maps.Keys(m.Dropped), func(a, b string) int {
		return cmp.Compare(m.Dropped[b], m.Dropped[a])
	})
	// A penalty has few packets of another reason before it, and that is what it is for.
	reasons = slices.DeleteFunc(reasons, func(r string) bool {
		return m.Dropped[r]*100 < dropped && (m.Dropped["penalty"] == 0 || !strings.HasPrefix(r, "limit_"))
	})
	return percent(float64(dropped)/float64(dropped+m.Passed)) + " " + strings.Join(reasons[:min(2, len(reasons))], ", ")
}

// finished leaves out what was not measured in both ways, for when the time was over too early.
func (r result) finished() result {
	open := func(w row) bool { return w.With.Client.Requests == 0 }
	r.Calm, r.Rows = slices.DeleteFunc(r.Calm, open), slices.DeleteFunc(r.Rows, open)
	return r
}

// String is the result as a table and the words that it needs.
func (r result) String() string {
	var b strings.Builder
	b.WriteString("What the client got, without the shield and with it:\n\n")
	b.WriteString(r.table())
	b.WriteString("\n\n")
	b.WriteString(r.verdict())
	b.WriteString(r.legend())
	b.WriteString(r.promptness())
	b.WriteString(r.strangers())
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "Note: %s.\n", note)
	}
	if r.Took > 0 {
		fmt.Fprintf(&b, "Took %.0f s; nothing is left of it.\n", r.Took.Seconds())
	}
	return b.String()
}

func newTable() table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.SuppressTrailingSpaces()
	return t
}

func (r result) table() string {
	t := newTable()
	t.AppendHeader(table.Row{"attack", "IP", "flood,\npackets/s", "without:\nanswered", "\nmedian",
		"with:\nanswered", "\nmedian", "dropped by the shield,\nand why"})
	for _, rows := range [][]row{r.Calm, r.Rows} {
		for i, w := range rows {
			name := w.Scenario
			if i > 0 && rows[i-1].Scenario == name {
				name = ""
			}
			t.AppendRow(table.Row{
				name, strings.TrimPrefix(w.Family, "IP"), w.rates(),
				percent(w.Without.Client.success()), latency(w.Without.Client.Median, w.Without.Client.Timeout),
				percent(w.With.Client.success()), latency(w.With.Client.Median, w.With.Client.Timeout),
				w.With.why(),
			})
		}
		t.AppendSeparator()
	}
	right := func(n int) table.ColumnConfig {
		return table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight}
	}
	t.SetColumnConfigs([]table.ColumnConfig{right(3), right(4), right(5), right(6), right(7)})
	return t.Render()
}

// rates is how many packets came per second; both figures where they differ, that without the shield first.
func (w row) rates() string {
	without, with := w.Without.Flood.rate(), w.With.Flood.rate()
	switch {
	case without == 0 && with == 0:
		return ""
	case without < 0.85*with || with < 0.85*without:
		return short(without) + "/" + short(with)
	}
	return short((without + with) / 2)
}

// The figures that the shield is held to.
const (
	wantSuccess = 0.99
	wantMedian  = 2                // times that without a flood, or
	forgiven    = time.Millisecond // so much longer
)

// calm is a family's row without a flood.
func (r result) calm(family string) row {
	for _, w := range r.Calm {
		if w.Family == family {
			return w
		}
	}
	return row{}
}

// fine says whether a client was served as the shield promises.
func fine(with, calm clientReport) bool {
	return with.success() >= wantSuccess && with.Median <= max(wantMedian*calm.Median, calm.Median+forgiven)
}

// broken are the floods in which the client was not.
func (r result) broken() []row {
	return slices.DeleteFunc(slices.Clone(r.Rows), func(w row) bool { return fine(w.With.Client, r.calm(w.Family).With.Client) })
}

func (r result) held() bool { return len(r.broken()) == 0 }

func (r result) verdict() string {
	success, factor, harmed := 1.0, 0.0, 0
	for _, w := range r.Rows {
		success = min(success, w.With.Client.success())
		factor = max(factor, float64(w.With.Client.Median)/float64(max(r.calm(w.Family).With.Client.Median, 1)))
		if w.harmed(r) {
			harmed++
		}
	}
	word := "The shield held"
	if !r.held() {
		word = "The shield did not hold (a busy machine can do that: try again)"
	}
	return fmt.Sprintf(`%s.
Without it, %d of %d floods hurt the client: less than 99 %% of its requests were answered within a
second, or its median latency was over twice that of calm. With it, in the worst case %s were
answered, and the median was %.1f times that of calm.

`, word, harmed, len(r.Rows), percent(success), factor)
}

// harmed says whether the client suffered without the shield.
func (w row) harmed(r result) bool { return !fine(w.Without.Client, r.calm(w.Family).Without.Client) }

// legend explains the attacks and the reasons that occur.
func (r result) legend() string {
	var b strings.Builder
	seen := map[string]bool{}
	for _, w := range r.Rows {
		if seen[w.Scenario] {
			continue
		}
		seen[w.Scenario] = true
		fmt.Fprintf(&b, "  %-16s %s\n", w.Scenario, w.scenario.What)
	}
	reasons := map[string]bool{}
	for _, w := range r.Rows {
		_, why, _ := strings.Cut(w.With.why(), " % ")
		for reason := range strings.SplitSeq(why, ", ") {
			reasons[reason] = true
		}
	}
	b.WriteString("\n")
	for reason := range bpf.ReasonMax {
		if reasons[reason.String()] {
			fmt.Fprintf(&b, "  %-16s %s\n", reason, reason.Words())
		}
	}
	b.WriteString("\n")
	return b.String()
}

func (r result) promptness() string {
	if len(r.Timings) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("How promptly a ban acts (a packet every 0.5 ms; negative is earlier):\n")
	t := newTable()
	t.AppendHeader(table.Row{"IP", "while it stands", "first drop after the answer", "first pass after its end"})
	for _, w := range r.Timings {
		while := "the daemon runs"
		if w.Killed {
			while = "kill -9 of the daemon"
		}
		t.AppendRow(table.Row{strings.TrimPrefix(w.Family, "IP"), while, millis(w.Begins), millis(w.Ends)})
	}
	b.WriteString(t.Render() + "\n")
	if r.Bans > 0 {
		fmt.Fprintf(&b, "A list of %d bans was on disk and in force %.1f s after the command began.\n", r.Bans, r.Push.Seconds())
	}
	b.WriteString("\n")
	return b.String()
}

// strangers says what the shield can't do.
func (r result) strangers() string {
	worst, found := 1.0, false
	for _, w := range r.Rows {
		if s := w.With.Stranger; s != nil {
			worst, found = min(worst, s.success()), true
		}
	}
	if !found {
		return ""
	}
	return fmt.Sprintf(`What it can't do: in the spoofed flood each packet has another source, and no limit per source sees
one twice. The lab does what an operator would: customers' networks keep a limit of their own, and
all others share a small rate per /8 (IPv6: /16). The client in the table is a customer; a stranger
got %s of its answers.

`, percent(worst))
}

// percent rounds down: 100 %% means all.
func percent(share float64) string {
	if share > 0 && share < 0.01 {
		return "<1 %"
	}
	return fmt.Sprintf("%d %%", int(share*100))
}

func latency(d, timeout time.Duration) string {
	if timeout > 0 && d >= timeout {
		return fmt.Sprintf("> %g s", timeout.Seconds())
	}
	return millis(d)
}

func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms >= 10 || ms <= -10 {
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// short writes a number as people say it: 1.2M, 500k.
func short(f float64) string {
	switch {
	case f >= 1e6:
		return fmt.Sprintf("%.1fM", f/1e6)
	case f >= 1e3:
		return fmt.Sprintf("%.0fk", f/1e3)
	}
	return fmt.Sprintf("%.0f", f)
}
