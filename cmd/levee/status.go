package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/levee-xdp/levee/agent/state"
)

// suspects is how many of the sources that limits drop are shown.
const suspects = 5

func (a *app) statusCommand() *cobra.Command {
	var sample string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is being dropped, why, and whether anybody innocent is among it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := parseFor("sample", sample, 10*time.Millisecond, maxSample)
			if err != nil {
				return err
			}
			return a.status(cmd.Context(), d)
		},
	}
	cmd.Flags().StringVar(&sample, "sample", "1s", "how long rates are measured, up to 10s; 0: not")
	return cmd
}

func (a *app) status(ctx context.Context, sample time.Duration) error {
	c := a.patientClient(sample)
	defer c.Close()
	var (
		overview state.Overview
		dropped  state.SourceList
	)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		overview, err = c.Status(ctx, sample)
		return err
	})
	if !a.machine() {
		group.Go(func() (err error) {
			dropped, err = c.Sources(ctx, state.ByDropped, suspects, sample)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if a.machine() {
		return a.printJSON(overview)
	}
	a.showStatus(&overview, dropped.Sources)
	return nil
}

func (a *app) showStatus(o *state.Overview, dropped []state.SourceView) {
	a.statusHead(o)
	a.statusInterfaces(o)
	a.statusTraffic(o)
	a.statusSuspects(dropped)
	a.statusBans(o)
	a.statusLimits(o)
	a.statusTables(o)
}

// statusHead says what somebody must know before anything else.
func (a *app) statusHead(o *state.Overview) {
	mode := a.paint(green, "ENFORCING")
	switch {
	case o.Panic:
		mode = a.paint(red, "PANIC: EVERYTHING PASSES")
	case o.Mode == state.Monitor:
		mode = a.paint(yellow, "MONITORING: NOTHING IS DROPPED")
	case !anyAttached(o.Interfaces):
		mode = a.paint(yellow, "NOT SHIELDING")
	}
	health := a.paint(green, clean(o.Health.State))
	if o.Health.State != "ok" {
		health = a.paint(red, clean(o.Health.State))
	}
	fmt.Fprintf(a.stdout, "%s  health %s  levee %s, up %s\n", mode, health, clean(o.Version), span(o.Time.Sub(o.Started)))
	for _, p := range o.Health.Problems {
		fmt.Fprintln(a.stdout, a.paint(red, "! "+clean(p)))
	}
	switch {
	case o.Panic:
		a.line("The panic switch is on. End it with: levee panic off")
	case o.Mode == state.Monitor:
		a.line("The setting mode is monitor: what would be dropped is counted, and passes.")
	}
	a.trials(o)
	if e := o.Reconcile.Error; e != "" {
		fmt.Fprintln(a.stdout, a.paint(red, "! the kernel's tables could not be brought to the state: "+clean(e)))
	}
	if d := o.Reconcile.Drift; d > 0 {
		fmt.Fprintln(a.stdout, a.paint(yellow, fmt.Sprintf("! the last comparison put %s right that somebody else had changed",
			plural(d, "entry of the kernel's tables", "entries of the kernel's tables"))))
	}
}

func anyAttached(interfaces []state.InterfaceView) bool {
	return slices.ContainsFunc(interfaces, func(v state.InterfaceView) bool { return v.Attached })
}

func (a *app) statusInterfaces(o *state.Overview) {
	a.heading("Interfaces")
	if len(o.Interfaces) == 0 {
		a.line("  None is shielded: nothing is counted or dropped. Shield one with: levee attach IFACE")
		return
	}
	g := a.grid("", "", "").flexible(2, true)
	g.indent = "  "
	for _, v := range o.Interfaces {
		why := v.Why
		switch {
		case !v.Attached:
			if why == "" {
				why = "waits for the interface"
			}
			g.painted(yellow, v.Name, "not attached", why)
		case why != "":
			g.row(v.Name, v.Mode, "not native: "+why)
		default:
			g.row(v.Name, v.Mode, "")
		}
	}
	g.hide().render()
}

// statusTraffic says what becomes of packets, by reason.
func (a *app) statusTraffic(o *state.Overview) {
	over := ""
	if o.Sampled > 0 {
		over = fmt.Sprintf(" (rates over %s, totals since the tables were made)", sampledFor(o.Sampled))
	}
	drop, would, pass := byAction(o.Traffic, state.ActionDrop), byAction(o.Traffic, state.ActionMonitor), byAction(o.Traffic, state.ActionPass)
	a.heading("Dropped" + over)
	if len(drop) == 0 {
		a.line("  Nothing has been dropped.")
	} else {
		a.trafficGrid(drop, red)
	}
	if len(would) > 0 {
		a.heading("Would be dropped, but passes: monitored")
		a.trafficGrid(would, yellow)
	}
	a.heading("Passed")
	if len(pass) == 0 {
		a.line("  Nothing has been received.")
	} else {
		a.trafficGrid(pass, "")
	}
	if o.Untracked > 0 {
		a.line("  The table of sources was full for %s packets: see tables.sources.", short(float64(o.Untracked)))
	}
}

// byAction returns what went one way, the strongest first, one line a reason.
func byAction(all []state.Counted, action string) []state.Counted {
	var out []state.Counted
	at := map[string]int{}
	for _, c := range all {
		if c.Action != action || c.Packets == 0 {
			continue
		}
		i, ok := at[c.Reason]
		if !ok {
			at[c.Reason] = len(out)
			out = append(out, c)
			continue
		}
		out[i].Packets += c.Packets
		out[i].Bytes += c.Bytes
		out[i].PerSecond += c.PerSecond
		out[i].Bits += c.Bits
	}
	slices.SortStableFunc(out, func(x, y state.Counted) int {
		return cmp.Or(cmp.Compare(y.PerSecond, x.PerSecond), cmp.Compare(y.Packets, x.Packets))
	})
	return out
}

func (a *app) trafficGrid(counted []state.Counted, style string) {
	g := a.grid("reason", "packets/s", "bits/s", "packets", "bytes", "").numbers(1, 2, 3, 4).flexible(5, true)
	g.indent = "  "
	add := func(c state.Counted) {
		cells := []string{c.Reason, dash(c.PerSecond), dash(c.Bits), short(float64(c.Packets)), bytesOf(c.Bytes), c.Words}
		if c.PerSecond > 0 && style != "" {
			g.painted(style, cells...)
		} else {
			g.row(cells...)
		}
	}
	total := state.Counted{Reason: "all"}
	for _, c := range counted {
		add(c)
		total.Packets += c.Packets
		total.Bytes += c.Bytes
		total.PerSecond += c.PerSecond
		total.Bits += c.Bits
	}
	if len(counted) > 1 {
		add(total)
	}
	g.render()
}

// statusSuspects shows whom limits drop, with what tells the innocent: they pass most of what they
// send, and have been known for long.
func (a *app) statusSuspects(dropped []state.SourceView) {
	dropped = slices.DeleteFunc(slices.Clone(dropped), func(s state.SourceView) bool { return s.Dropped == 0 })
	if len(dropped) == 0 {
		return
	}
	a.heading("Whom limits drop most, or would")
	a.sourceGrid(dropped, false, "  ")
	a.line("  Known for long, and a small share dropped: perhaps innocent. See levee check ADDRESS.")
}

func (a *app) statusBans(o *state.Overview) {
	a.heading("Bans")
	if o.Prefixes.IPv4+o.Prefixes.IPv6 == 0 {
		a.line("  Nothing is banned%s.", alsoAllowed(o, ", "))
		return
	}
	a.line("  %s, %s%s", plural(o.Prefixes.IPv4, "IPv4 prefix", "IPv4 prefixes"),
		plural(o.Prefixes.IPv6, "IPv6 prefix", "IPv6 prefixes"), alsoAllowed(o, "; "))
	g := a.grid("origin", "IPv4", "IPv6", "dropped/s", "dropped").numbers(1, 2, 3, 4)
	g.indent = "  "
	for _, s := range o.Origins {
		g.row(string(s.Origin), count(s.IPv4), count(s.IPv6), dash(s.PerSecond), orDash(s.Packets))
	}
	g.render()
}

func alsoAllowed(o *state.Overview, joint string) string {
	out := ""
	for _, s := range []struct {
		n     int
		words string
	}{{o.Allows, "allowed"}, {o.Protected, "protected (levee allow list)"}} {
		switch s.n {
		case 0:
		case 1:
			out, joint = out+joint+"1 prefix is "+s.words, ", "
		default:
			out, joint = out+joint+plural(s.n, "prefix", "prefixes")+" are "+s.words, ", "
		}
	}
	return out
}

func (a *app) statusLimits(o *state.Overview) {
	a.heading("Limits")
	g := a.grid("limit", "mode", "a source may send", "over/s", "over", "by").numbers(3, 4).flexible(2, true)
	g.indent = "  "
	for i := range o.Limits {
		l := &o.Limits[i]
		may := rates(&l.LimitSpec)
		if len(may) == 0 && len(l.Exceeded) == 0 {
			continue
		}
		var rate float64
		var packets uint64
		var by []string
		for _, e := range l.Exceeded {
			rate += e.PerSecond
			packets += e.Packets
			if e.Packets > 0 && !slices.Contains(by, e.Threshold) {
				by = append(by, e.Threshold)
			}
		}
		cells := []string{l.Name, string(modeOf(l.Mode)), orNothing(strings.Join(may, ", ")), dash(rate), orDash(packets), strings.Join(by, " ")}
		if rate > 0 {
			style := red
			if modeOf(l.Mode) == state.Monitor {
				style = yellow
			}
			g.painted(style, cells...)
		} else {
			g.row(cells...)
		}
	}
	if len(g.rows) == 0 {
		a.line("  None is set. Begin with: levee limit set default --packets 20k/s --mode monitor")
		return
	}
	g.render()
}

// The share of a table from which on it is nearly full.
const nearlyFull = 0.9

func (a *app) statusTables(o *state.Overview) {
	a.heading("Tables")
	g := a.grid("", "", "").numbers(1)
	g.indent = "  "
	for _, t := range o.Tables {
		fill := "0%"
		if t.Capacity > 0 && t.Entries > 0 {
			fill = share(uint64(t.Entries), uint64(t.Capacity))
		}
		cells := []string{t.Table, fill, count(t.Entries) + " of " + count(t.Capacity)}
		if float64(t.Entries) >= nearlyFull*float64(t.Capacity) && t.Capacity > 0 {
			g.painted(yellow, cells...)
		} else {
			g.row(cells...)
		}
	}
	g.render()
	compared := "not compared with the state yet"
	if !o.Reconcile.Time.IsZero() {
		compared = fmt.Sprintf("compared with the state %s, drift %d", a.ago(o.Reconcile.Time), o.Reconcile.Drift)
	}
	events := ""
	if o.Events.Written > 0 || o.Events.Lost > 0 {
		events = fmt.Sprintf("; %s dropped packets sampled, %s left out", count(o.Events.Written), count(o.Events.Lost))
	}
	a.line("  %s%s", compared, events)
}
