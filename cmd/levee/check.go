package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check ADDRESS | PREFIX",
		Short: "Tell whether an address or a prefix is banned, and everything that concerns it",
		Long: `Tell what happens to an address's packets and why: every ban, allow entry, limit and counter that
concerns it. Of a prefix tell the bans on it, around it and within it, the allow entries that touch it,
and whether all of it is banned, a part, or nothing.

Exits with 0 if it is banned, a prefix as a whole, and with 6 if it is not, or only a part of it.`,
		Example: `  levee check 203.0.113.7
  levee check 203.0.113.0/24
  levee check 2001:db8::1 --quiet && echo banned`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.check(cmd.Context(), args[0]) },
	}
}

func (a *app) check(ctx context.Context, arg string) error {
	addr, err := state.ParseAddr(arg)
	if err != nil {
		p, bad := state.ParsePrefix(arg)
		switch {
		case bad != nil && strings.Contains(arg, "/"):
			return &usageError{bad}
		case bad != nil:
			return &usageError{err}
		case !p.IsSingleIP():
			return a.checkPrefix(ctx, p)
		}
		addr = p.Addr()
	}
	c := a.client()
	defer c.Close()
	found, err := c.Check(ctx, addr)
	if err != nil {
		return err
	}
	return a.checked(found, found.Verdict, func() { a.showCheck(found) })
}

// checked gives an answer out, and the exit code that it means.
func (a *app) checked(found any, verdict state.Verdict, show func()) error {
	switch {
	case a.machine():
		if err := a.printJSON(found); err != nil {
			return err
		}
	case !a.quiet:
		show()
	}
	if verdict != state.VerdictBanned {
		return &codeError{code: exitNotFound}
	}
	return nil
}

var verdictStyles = map[state.Verdict]string{
	state.VerdictBanned: red, state.VerdictPenalty: red, state.VerdictPartly: yellow, state.VerdictMonitored: yellow,
	state.VerdictAllowed: green, state.VerdictPasses: green,
}

// verdict tells what becomes of packets of an address or a prefix, at so many shielded interfaces.
func (a *app) verdict(of fmt.Stringer, v state.Verdict, words string, interfaces int) {
	fmt.Fprintf(a.stdout, "%s  %s\n", a.paint(bold, of.String()), a.paint(verdictStyles[v], clean(strings.ToUpper(string(v)))))
	if words != "" {
		a.line("%s", words)
	}
	if interfaces == 0 {
		fmt.Fprintln(a.stdout, a.paint(yellow, "No interface is shielded, so nothing is enforced: levee attach IFACE"))
	}
}

func (a *app) showCheck(c state.Check) {
	a.verdict(c.Address, c.Verdict, c.Words, c.Interfaces)
	if len(c.Claims) > 0 {
		a.heading("Bans")
		a.claimGrid(c.Claims, true, "  ")
	}
	if k := c.Kernel; k != nil {
		word := "bans"
		if k.Monitor {
			word = "monitors"
		}
		by := ""
		if k.Origin != "" {
			by = " by " + string(k.Origin) + "'s word,"
		}
		a.line("  The kernel %s %s%s %s.", word, state.PrefixString(k.Prefix), by, a.until(k.Expires))
	} else if enforced(c.Claims) {
		fmt.Fprintln(a.stdout, a.paint(yellow, "  The kernel has no ban for it: see health in levee status."))
	}
	if len(c.Allows) > 0 {
		a.heading("Allowed")
		a.allowGrid(c.Allows, "  ")
	}
	a.heading("Limits")
	if len(c.Limits) == 0 {
		a.line("  none")
	} else {
		a.line("  held to %s", list(c.Limits))
	}
	a.heading("Counted")
	if len(c.Sources) == 0 {
		a.line("  Nothing is tracked for it: it sent nothing of late, or is dropped before it is counted.")
	} else {
		a.sourceGrid(c.Sources, false, "  ")
	}
	if len(c.Events) > 0 {
		a.heading("Sampled packets")
		a.eventGrid(c.Events)
	}
}

func enforced(claims []state.Claim) bool {
	for _, c := range claims {
		if !c.Monitor {
			return true
		}
	}
	return false
}

// maxEvents is how many kinds of sampled packets are shown.
const maxEvents = 10

// eventGrid lists sampled packets, those alike on one line.
func (a *app) eventGrid(events []state.EventView) {
	g := a.grid("last", "on", "what", "to", "times", "why").numbers(4).flexible(5, true)
	g.indent = "  "
	type kind struct{ on, what, to, why string }
	var (
		kinds []kind
		last  = map[kind]state.EventView{}
		times = map[kind]int{}
	)
	for _, e := range events {
		k := kind{on: e.Interface, what: e.Protocol, why: e.Reason}
		if e.Destination.IsValid() {
			k.to = e.Destination.String()
			if e.Port != 0 {
				k.to = netip.AddrPortFrom(e.Destination, e.Port).String()
			}
		}
		if e.Origin != "" {
			k.why += " (" + string(e.Origin) + ")"
		}
		if e.Limit != "" {
			k.why += " (limit " + e.Limit + ")"
		}
		if e.Monitored {
			k.why += ", passed: monitored"
		}
		if times[k]++; times[k] == 1 {
			kinds = append(kinds, k)
			last[k] = e
		}
	}
	for _, k := range kinds[:min(len(kinds), maxEvents)] {
		g.row(a.ago(last[k].Time), k.on, k.what, k.to, count(times[k]), k.why)
	}
	g.hide().render()
}
