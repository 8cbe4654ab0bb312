package main

import (
	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) confirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm [ID…]",
		Short: "Keep changes that are on trial",
		Long: `Keep changes that were made with --confirm, and would be taken back otherwise: those that are named,
or all. levee status shows what is on trial. Exits with 6 if it is not on trial (any more).`,
		Example: `  levee ban 198.51.100.0/22 --confirm 60s
  levee confirm`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			c := a.client()
			defer c.Close()
			kept, err := c.Confirm(cmd.Context(), ids...)
			if err != nil {
				return err
			}
			if a.machine() {
				return printList(a, kept, kept.Confirmed)
			}
			for _, t := range kept.Confirmed {
				a.say("kept: %s (%s)", t.What, t.ID)
			}
			return nil
		},
	}
}

// confirmFlag is the flag of commands that can make a change on trial.
func confirmFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "confirm", "", "take it back after this time, as 60s, unless levee confirm follows")
	must(cmd.RegisterFlagCompletionFunc("confirm", fixed("60s", "5m", "1h")))
}

// parseConfirm reads the flag; 0 if it was not given.
func parseConfirm(text string) (state.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := state.ParseDuration(text)
	if err != nil {
		return 0, inFlag("confirm", err)
	}
	if d == 0 {
		return 0, usage("--confirm %q: is no time; leave it out for a change that stays", text)
	}
	if err := state.CheckTrial(d); err != nil {
		return 0, inFlag("confirm", err)
	}
	return d, nil
}

// onTrial tells what becomes of a change that has to be confirmed.
func (a *app) onTrial(t *state.Trial) {
	if t != nil && !a.machine() {
		a.say("on trial as %s: it is taken back in %s, unless you run: levee confirm %s", t.ID, a.left(t.Expires), t.ID)
	}
}
