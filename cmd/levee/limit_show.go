package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) limitListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the limits, and what they have dropped",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			found, err := c.Limits(cmd.Context())
			if err != nil {
				return err
			}
			if a.machine() {
				return printList(a, found, found.Limits)
			}
			set := false
			g := a.grid("limit", "mode", "for", "a source may send", "dropped", "would drop", "set by").numbers(4, 5).flexible(3, true)
			for i := range found.Limits {
				l := &found.Limits[i]
				set = set || len(rates(&l.LimitSpec)) > 0
				dropped, would := exceeded(l.Exceeded)
				g.row(l.Name, string(modeOf(l.Mode)), boundTo(&l.Limit), orNothing(strings.Join(rates(&l.LimitSpec), ", ")),
					orDash(dropped), orDash(would), setBy(l.Source, l.Actor))
			}
			g.render()
			if !set {
				a.line("")
				a.line("No limit limits anything yet. Begin with: levee limit set default --packets 20k/s --mode monitor")
			}
			return nil
		},
	}
}

func orNothing(s string) string {
	if s == "" {
		return "anything"
	}
	return s
}

func orDash(n uint64) string {
	if n == 0 {
		return "–"
	}
	return short(float64(n))
}

func modeOf(m state.Mode) state.Mode {
	if m == "" {
		return state.Enforce
	}
	return m
}

// exceeded adds up what a limit dropped, and what it would have dropped.
func exceeded(all []state.Exceeded) (dropped, would uint64) {
	for _, e := range all {
		if e.Monitored {
			would += e.Packets
		} else {
			dropped += e.Packets
		}
	}
	return dropped, would
}

// rates writes the thresholds of a limit.
func rates(l *state.LimitSpec) []string {
	var out []string
	for _, t := range l.Thresholds() {
		if t.Threshold == nil {
			continue
		}
		switch t.Name {
		case "bits":
			out = append(out, t.Rate.String())
		default:
			out = append(out, t.Rate.String()+" "+t.Name)
		}
	}
	return out
}

// boundTo says whose packets a limit is for.
func boundTo(l *state.Limit) string {
	const most = 3
	var out []string
	for _, p := range l.Sources {
		out = append(out, "from "+state.PrefixString(p.Prefix))
	}
	for _, s := range l.Services {
		out = append(out, "to "+s.String())
	}
	switch {
	case len(out) == 0 && l.Name == state.DefaultLimit:
		return "all others"
	case len(out) == 0:
		return "nothing"
	case len(out) > most:
		return strings.Join(out[:most], ", ") + fmt.Sprintf(" and %d more", len(out)-most)
	}
	return strings.Join(out, ", ")
}

func (a *app) limitShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a limit, how often it was exceeded, and whom it drops most",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := state.CheckLimitName(args[0]); err != nil {
				return &usageError{err}
			}
			c := a.client()
			defer c.Close()
			l, err := c.Limit(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.machine() {
				return a.printJSON(l)
			}
			fmt.Fprintln(a.stdout, a.paint(bold, clean(l.Name)))
			a.limitBlock(&l)
			a.heading("Exceeded, since the tables were made")
			if len(l.Exceeded) == 0 {
				a.line("  never")
			} else {
				g := a.grid("threshold", "packets", "bytes", "").numbers(1, 2)
				g.indent = "  "
				for _, e := range l.Exceeded {
					what := "dropped"
					if e.Monitored {
						what = "would have been dropped"
					}
					g.row(e.Threshold, count(e.Packets), bytesOf(e.Bytes), what)
				}
				g.render()
			}
			if len(l.Sources) > 0 {
				a.heading("Whom it drops most, or would")
				a.sourceGrid(l.Sources, false, "  ")
			}
			return nil
		},
		ValidArgsFunction: a.completeLimits,
	}
}

func modeWords(m state.Mode) string {
	if modeOf(m) == state.Monitor {
		return "monitor: it counts what it would drop, and passes it"
	}
	return "enforce"
}

// limitBlock writes what a limit says, a line each.
func (a *app) limitBlock(l *state.LimitView) {
	g := a.grid("", "").flexible(1, true)
	g.indent = "  "
	g.row("for", boundTo(&l.Limit))
	some := false
	for _, t := range l.Thresholds() {
		if t.Threshold != nil {
			some = true
			g.row(t.Name, threshold(*t.Threshold))
		}
	}
	if !some {
		g.row("packets", "not limited")
	}
	if l.Aggregate != nil {
		v4, v6 := l.AggregateLengths()
		when := "charged where a source finds no room in the table"
		if l.Aggregate.Always {
			when = "charged for every packet"
		}
		g.row("aggregate", fmt.Sprintf("%s, by /%d and /%d, %s", threshold(l.Aggregate.Threshold()), v4, v6, when))
	}
	v4, v6 := l.GroupLengths()
	g.row("one source", fmt.Sprintf("an IPv4 /%d, an IPv6 /%d", v4, v6))
	if l.Penalty > 0 {
		g.row("penalty", l.Penalty.String()+": so long a source that broke it is dropped whole")
	} else {
		g.row("penalty", "none: only the excess is dropped")
	}
	g.row("mode", modeWords(l.Mode))
	g.row("set by", setBy(l.Source, l.Actor))
	g.render()
}

func threshold(t state.Threshold) string {
	burst := state.Burst{Units: uint64(t.BurstUnits()), Bits: t.Rate.Bits}
	return t.Rate.String() + ", " + burst.String() + " at once"
}
