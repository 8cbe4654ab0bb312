package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) allowCommand() *cobra.Command {
	allow := &cobra.Command{
		Use:   "allow",
		Short: "Prefixes that no ban may touch",
		Args:  cobra.NoArgs,
		RunE:  needsCommand,
	}
	allow.AddCommand(a.allowAddCommand(), a.allowRemoveCommand(), a.allowListCommand())
	return allow
}

func (a *app) allowAddCommand() *cobra.Command {
	var (
		noLimits               bool
		reason, lasts, confirm string
	)
	cmd := &cobra.Command{
		Use:   "add PREFIX… | -",
		Short: "Allow prefixes: no ban may touch them",
		Long: `Allow prefixes: no ban may touch them, whoever asks. Limits hold for them all the same, unless
--no-limits says otherwise: a source address can be forged.

With - the list is read from stdin, one prefix a line.`,
		Example: `  levee allow add 192.0.2.10 --reason monitoring
  levee allow add 203.0.113.0/24 --for 2h --reason "load test"`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.allowAdd(cmd.Context(), args, noLimits, reason, lasts, confirm)
		},
	}
	cmd.Flags().BoolVar(&noLimits, "no-limits", false, "exempt from limits, too")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever asks later")
	cmd.Flags().StringVar(&lasts, "for", "", "how long, as 90s, 4h or 1d (default: until it is taken back)")
	confirmFlag(cmd, &confirm)
	must(cmd.RegisterFlagCompletionFunc("for", fixed("10m", "1h", "4h", "1d", "1w")))
	return cmd
}

func (a *app) allowAdd(ctx context.Context, args []string, noLimits bool, reason, lasts, confirm string) error {
	onTrial, err := parseConfirm(confirm)
	if err != nil {
		return err
	}
	if lasts != "" {
		d, err := state.ParseDuration(lasts)
		if err != nil {
			return inFlag("for", err)
		}
		if d == 0 {
			return usage("--for %q: is no time; leave it out for an entry without end", lasts)
		}
		lasts = d.String()
	}
	prefixes, err := a.prefixes(args)
	if err != nil || len(prefixes) == 0 {
		return err
	}
	if len(prefixes) > batch {
		return usage("%s prefixes are more than the %s that can be allowed at once", count(len(prefixes)), count(batch))
	}
	r := state.AllowRequest{Confirm: onTrial}
	for _, p := range prefixes {
		spec := state.AllowSpec{Prefix: state.Prefix{Prefix: p}, NoLimits: noLimits, Comment: reason}
		if err := spec.Validate(); err != nil {
			if err.Field == "comment" {
				return inFlag("reason", err)
			}
			return err
		}
		r.Allow = append(r.Allow, state.AllowItem{Prefix: p.String(), NoLimits: noLimits, Comment: reason, For: lasts})
	}
	c := a.client()
	defer c.Close()
	answer, err := c.Allow(ctx, r)
	if err != nil {
		return err
	}
	return a.allowAnswer(answer, onTrial)
}

func (a *app) allowRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm PREFIX… | -",
		Aliases: []string{"remove"},
		Short:   "Take allow entries back",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefixes, err := a.prefixes(args)
			if err != nil || len(prefixes) == 0 {
				return err
			}
			var r state.UnallowRequest
			for _, p := range prefixes {
				r.Prefixes = append(r.Prefixes, p.String())
			}
			c := a.client()
			defer c.Close()
			answer, err := c.Unallow(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.allowAnswer(answer, 0)
		},
	}
}

// allowAnswer tells what came of each entry.
func (a *app) allowAnswer(answer state.AllowResponse, confirm state.Duration) error {
	var failed []*state.Error
	for _, r := range answer.Allow {
		if r.Error != nil {
			failed = append(failed, r.Error)
		}
		if a.machine() {
			continue
		}
		r.Prefix = prefixText(r.Prefix)
		exempt := ""
		if r.Allow != nil && r.Allow.NoLimits {
			exempt = ", and exempt from limits"
		}
		if r.Allow != nil && !r.Allow.Expires.IsZero() {
			exempt += " " + a.until(r.Allow.Expires)
		}
		switch {
		case r.Error != nil:
			a.complain("%s: %s", r.Prefix, refusal(r.Error))
		case r.Status == state.StatusAdded:
			a.say("allowed %s%s", r.Prefix, exempt)
		case r.Status == state.StatusChanged:
			a.say("changed %s: allowed%s", r.Prefix, exempt)
		case r.Status == state.StatusUnchanged:
			a.say("unchanged %s: allowed already%s", r.Prefix, exempt)
		case r.Status == state.StatusRemoved:
			a.say("no longer allowed: %s", r.Prefix)
		}
		for _, n := range r.Notes {
			a.note("  %s", n)
		}
	}
	if a.machine() {
		if err := printList(a, answer, answer.Allow); err != nil {
			return err
		}
	}
	a.onTrial(triedIf(confirm, answer.Done), answer.Trial)
	return ofBatch(answer.Done, failed)
}

func (a *app) allowListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the allow entries",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			found, err := c.Allows(cmd.Context())
			if err != nil {
				return err
			}
			if a.machine() {
				return printList(a, found, found.Allow)
			}
			if len(found.Allow) == 0 {
				a.line("Nothing is allowed beyond bans. Allow with: levee allow add PREFIX --reason TEXT")
				return nil
			}
			a.allowGrid(found.Allow, "")
			return nil
		},
	}
}

func (a *app) allowGrid(entries []state.Allow, indent string) {
	g := a.grid("prefix", "limits", "ends in", "set by", "set", "reason").flexible(5, true)
	g.indent = indent
	for _, e := range entries {
		limits, set, ends := "apply", "", ""
		if e.NoLimits {
			limits = "exempt"
		}
		if !e.Created.IsZero() {
			set = a.ago(e.Created)
		}
		if !e.Expires.IsZero() {
			ends = a.left(e.Expires)
		}
		g.row(state.PrefixString(e.Prefix), limits, ends, setBy(e.Source, e.Actor), set, e.Comment)
	}
	g.hide().render()
}

// setBy says where an entry was set.
func setBy(source state.Source, actor string) string {
	switch {
	case source == state.FromConfig:
		return "the file"
	case source == state.FromProtected:
		return "levee"
	case source == state.FromDefault:
		return "default"
	case actor != "":
		return actor
	}
	return string(source)
}
