package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

// page is how many claims are asked for at once.
const page = 1000

type bansFlags struct {
	origin, since, within string
	limit                 int
}

func (a *app) bansCommand() *cobra.Command {
	var f bansFlags
	run := func(cmd *cobra.Command, _ []string) error { return a.bans(cmd.Context(), f) }
	flags := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().StringVar(&f.origin, "origin", "", "only what this origin says")
		cmd.Flags().StringVar(&f.since, "since", "", "only what was said since then: 1h (ago), or 2026-01-02T15:04:05Z")
		cmd.Flags().StringVar(&f.within, "within", "", "only what lies within this prefix")
		cmd.Flags().IntVar(&f.limit, "limit", 100, "how many at most, the newest first; 0: all")
		must(cmd.RegisterFlagCompletionFunc("origin", a.completeOrigins))
		return cmd
	}
	bans := flags(&cobra.Command{
		Use:   "bans",
		Short: "List bans: who said so, why, and until when",
		Example: `  levee bans
  levee bans --origin operator --since 1h
  levee bans --within 203.0.113.0/24 -o jsonl`,
		Args: cobra.NoArgs,
		RunE: run,
	})
	bans.AddCommand(flags(&cobra.Command{
		Use:   "list",
		Short: "List bans, the newest first",
		Args:  cobra.NoArgs,
		RunE:  run,
	}))
	bans.AddCommand(a.importCommand(), a.exportCommand())
	return bans
}

func (a *app) bans(ctx context.Context, f bansFlags) error {
	filter, err := a.filter(f)
	if err != nil {
		return err
	}
	c := a.client()
	defer c.Close()
	whole := state.BanPage{Bans: []state.Claim{}}
	for {
		filter.Limit = page
		if f.limit > 0 {
			filter.Limit = min(page, f.limit-len(whole.Bans))
		}
		part, err := c.Bans(ctx, filter)
		if err != nil {
			return err
		}
		whole.Bans = append(whole.Bans, part.Bans...)
		whole.Total, whole.Next = part.Total, part.Next
		if part.Next == "" || len(part.Bans) == 0 || f.limit > 0 && len(whole.Bans) >= f.limit {
			break
		}
		filter.After = part.Next
	}
	if a.machine() {
		return printList(a, whole, whole.Bans)
	}
	a.showBans(whole, f)
	return nil
}

func (a *app) filter(f bansFlags) (out state.Filter, err error) {
	if f.limit < 0 {
		return out, usage("--limit %d: is less than 0", f.limit)
	}
	if f.origin != "" {
		out.Origin = state.Origin(f.origin)
		if out.Origin != state.OriginKernel {
			if out.Origin, err = state.ParseOrigin(f.origin); err != nil {
				return out, inFlag("origin", err)
			}
		}
	}
	if f.within != "" {
		if out.Within, err = state.ParsePrefix(f.within); err != nil {
			return out, inFlag("within", err)
		}
	}
	if f.since != "" {
		if t, err := time.Parse(time.RFC3339, f.since); err == nil {
			out.Since = t
		} else if d, err := state.ParseDuration(f.since); err == nil {
			out.Since = a.now().Add(-time.Duration(d))
		} else {
			return out, usage("--since %q: is neither a time ago, as 1h, nor a time, as 2026-01-02T15:04:05Z", f.since)
		}
	}
	return out, nil
}

func (a *app) showBans(whole state.BanPage, f bansFlags) {
	if len(whole.Bans) == 0 {
		if f.origin+f.since+f.within != "" {
			a.line("No ban matches.")
		} else {
			a.line("Nothing is banned. Ban with: levee ban PREFIX --for 4h --reason TEXT")
		}
		return
	}
	a.claimGrid(whole.Bans, false, "")
	if whole.Total > len(whole.Bans) {
		a.line("")
		a.line("%s of %s; --limit 0 shows all.", count(len(whole.Bans)), plural(whole.Total, "ban", "bans"))
	}
}

// claimGrid lists claims; long reasons are wrapped, or else cut off.
func (a *app) claimGrid(claims []state.Claim, wrap bool, indent string) {
	g := a.grid("prefix", "mode", "ends in", "set", "origin", "actor", "reason").flexible(6, wrap)
	g.indent = indent
	for _, c := range claims {
		mode, ends := "", a.left(c.Expires)
		if c.Monitor {
			mode = "monitor"
		}
		if c.Expires.IsZero() {
			ends = "never"
		}
		g.row(state.PrefixString(c.Prefix), mode, ends, a.ago(c.Created), string(c.Origin), c.Actor, c.Reason)
	}
	if a.narrow() {
		g.drop(5)
	}
	g.hide().render()
}
