package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

type watchFlags struct {
	kinds         []string
	within, after string
	n             int
}

func (a *app) watchCommand() *cobra.Command {
	var f watchFlags
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Follow what happens: decisions, and packets that were dropped",
		Long: `Follow what happens, until Ctrl-C: decisions that are in force, and packets that were sampled as they
were dropped. It goes on when the daemon starts again, and says if it missed some.`,
		Example: `  levee watch --number 10
  levee watch --kind decision
  levee watch --kind drop --within 203.0.113.0/24 -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.watch(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.kinds, "kind", nil, "only these: decision, drop")
	flags.StringVar(&f.within, "within", "", "only what is about this prefix, or a part of it")
	flags.StringVar(&f.after, "after", "", "go on behind this event, by its id, as far as events are kept")
	flags.IntVarP(&f.n, "number", "n", 0, "end after so many; 0: at Ctrl-C")
	must(cmd.RegisterFlagCompletionFunc("kind", fixed("decision", "drop")))
	return cmd
}

func (f *watchFlags) filter() (out state.EventFilter, err error) {
	for _, k := range f.kinds {
		kind := state.EventKind(k)
		if kind != state.EventDecision && kind != state.EventDrop {
			return out, usage("--kind %q: is neither decision nor drop", k)
		}
		out.Kinds = append(out.Kinds, kind)
	}
	if f.within != "" {
		if out.Within, err = state.ParsePrefix(f.within); err != nil {
			return out, inFlag("within", err)
		}
	}
	if f.after != "" {
		if out.After, err = state.ParseEventID(f.after); err != nil {
			return out, inFlag("after", err)
		}
	}
	if f.n < 0 {
		return out, usage("--number %d: is less than 0", f.n)
	}
	return out, nil
}

func (a *app) watch(ctx context.Context, f watchFlags) error {
	filter, err := f.filter()
	if err != nil {
		return err
	}
	ctx, stop := a.interruptible(ctx)
	defer stop()
	c := a.client()
	defer c.Close()
	n := 0
	for e, err := range c.Events(ctx, filter) {
		if err != nil {
			return err
		}
		if a.machine() {
			err = a.printJSON(e)
		} else {
			err = a.showEvent(&e)
		}
		if err != nil {
			return err
		}
		if n++; n == f.n {
			return nil
		}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	return nil
}

// showEvent writes an event on a line: when, what, to whom, and why.
func (a *app) showEvent(e *state.Event) error {
	what, about, more, style := string(e.Kind), "", "", "" // as of a daemon that is newer
	switch {
	case e.Decision != nil:
		what, about, more = a.decision(e.Decision)
	case e.Drop != nil:
		what, about, more = "dropped", a.packet(e.Drop), e.Drop.Reason
		style = red
		if e.Drop.Monitored {
			what, style = "monitored", yellow
		}
		if e.Drop.Origin != "" {
			more += " by " + string(e.Drop.Origin)
		}
		if e.Drop.Limit != "" {
			more += " of " + e.Drop.Limit
		}
		more += ", " + plural(int(e.Drop.Length), "byte", "bytes") + " at " + e.Drop.Interface
	case e.Lost != nil:
		what, about, style = "missed", "some events: "+e.Lost.Why, yellow
		if e.Lost.Events > 0 {
			about = plural(int(e.Lost.Events), "event", "events") + ": " + e.Lost.Why
		}
	}
	line := fmt.Sprintf("%s  %s  %s", e.Time.Local().Format("15:04:05.000"), a.paint(style, fmt.Sprintf("%-9s", clean(what))), clean(about))
	if more != "" {
		line += "  " + clean(more)
	}
	_, err := fmt.Fprintln(a.stdout, strings.TrimRight(line, " "))
	return err
}

func (a *app) decision(d *state.Decision) (what, about, more string) {
	what, about = d.Op, d.Subject
	switch d.About {
	case state.AboutBan:
		switch d.Op {
		case string(state.StatusAdded):
			what = "banned"
		case string(state.StatusRemoved):
			what = "unbanned"
		}
		if d.Many > 0 {
			about = plural(d.Many, "prefix", "prefixes")
		}
		more = string(d.Origin)
	case state.AboutAllow, state.AboutLimit, state.AboutInterface, state.AboutPanic, state.AboutConfig:
		about = strings.TrimRight(string(d.About)+" "+d.Subject, " ")
	default:
		about = string(d.About) + " " + d.Subject
	}
	if d.Actor != "" {
		more = strings.TrimSpace(more + " (" + d.Actor + ")")
	}
	if c := d.Claim; c != nil && d.Op != string(state.StatusRemoved) {
		if c.Monitor {
			more += ", monitored"
		}
		if c.Expires.IsZero() {
			more += ", without an end"
		} else {
			more += ", " + a.left(c.Expires) + " left"
		}
		if c.Reason != "" {
			more += ": " + c.Reason
		}
	}
	return what, about, strings.TrimSpace(more)
}

func (a *app) packet(p *state.EventView) string {
	end := func(addr string, port uint16) string {
		if port == 0 {
			return addr
		}
		return net.JoinHostPort(addr, strconv.Itoa(int(port)))
	}
	if !p.Source.IsValid() {
		return "a packet without an address"
	}
	return strings.TrimSpace(fmt.Sprintf("%s -> %s %s", end(p.Source.String(), p.SourcePort), end(p.Destination.String(), p.Port), p.Protocol))
}
