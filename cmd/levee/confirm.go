package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) confirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm [ID…]",
		Short: "Keep changes that are on trial",
		Long: `Keep changes that were made with --confirm, and would be taken back otherwise: those that are named,
or all. levee status shows what is on trial, and what was taken back within the last hour. Exits with 6
if it is not on trial (any more), and with 1 if its time is over and it is being taken back.

Each trial takes back its own change alone: of two trials of one thing the newer one is in force, and
goes back to the older one. To keep a change one may as well make it again without --confirm.`,
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

// onTrial tells what becomes of a change that was to be confirmed, if it was.
func (a *app) onTrial(asked state.Duration, t *state.Trial) {
	switch {
	case a.machine() || asked == 0:
	case t == nil:
		a.say("this changed nothing, so it begins no trial; levee status shows what is on trial already")
	default:
		a.say("on trial as %s: it is taken back in %s, unless you run: levee confirm %s", t.ID, a.left(t.Expires), t.ID)
	}
}

// triedIf is for how long something was to be on trial, if anything was done at all.
func triedIf(asked state.Duration, done int) state.Duration {
	if done == 0 {
		return 0
	}
	return asked
}

// maxTrials is how many trials levee status shows of each kind.
const maxTrials = 10

// trials shows what is on trial, and what was taken back of late.
func (a *app) trials(o *state.Overview) {
	who := func(t *state.Trial) string {
		if t.Actor == "" {
			return t.What
		}
		return t.What + " by " + t.Actor
	}
	shown := 0
	for i := range o.Trials {
		t := &o.Trials[i]
		if t.Problem != "" {
			continue // the problems have it
		}
		if shown++; shown > maxTrials {
			continue
		}
		fmt.Fprintln(a.stdout, a.paint(yellow, clean(fmt.Sprintf("? on trial: %s, taken back in %s unless you run: levee confirm %s", who(t), a.left(t.Expires), t.ID))))
	}
	if more := shown - maxTrials; more > 0 {
		fmt.Fprintln(a.stdout, a.paint(yellow, fmt.Sprintf("? and %s more on trial: levee status -o json shows all, levee confirm keeps all", count(more))))
	}
	ended := o.TakenBack
	if more := len(ended) - maxTrials; more > 0 {
		ended = ended[more:]
	}
	for i := range ended {
		t := &ended[i]
		fmt.Fprintln(a.stdout, a.paint(yellow, clean(fmt.Sprintf("< taken back %s: %s (%s), as %s; make it again if it is to stay", a.ago(t.Ended), who(&t.Trial), t.ID, t.Why))))
	}
}
