package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent"
	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// panicTime is how long the daemon may take before the switch is thrown without it.
const panicTime = 2 * time.Second

func (a *app) panicCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "panic",
		Short: "Let everything pass at once, or end that; also without a daemon",
		Long: `While the panic switch is on, every packet passes: banned, malformed, over its limit. Nothing else
is changed, so that off puts all back in force. Where no daemon answers, the switch that is pinned in
the kernel is thrown directly; that needs root.`,
		Args: cobra.NoArgs,
		RunE: needsCommand,
	}
	for _, on := range []bool{true, false} {
		var root pinnedRoot
		c := &cobra.Command{
			Use:   "off",
			Short: "Put bans and limits back in force",
			Args:  cobra.NoArgs,
			RunE:  func(cmd *cobra.Command, _ []string) error { return a.setPanic(cmd.Context(), on, &root) },
		}
		if on {
			c.Use, c.Short = "on", "Let every packet pass at once"
		}
		root.flags(c)
		cmd.AddCommand(c)
	}
	return cmd
}

func (a *app) setPanic(ctx context.Context, on bool, root *pinnedRoot) error {
	a.listensAt(root.config)
	c := client.New(client.Config{Socket: a.socketPath(), Agent: "levee/" + release(), Timeout: panicTime})
	defer c.Close()
	_, err := c.SetPanic(ctx, on)
	if err != nil {
		if err := a.panicPinned(on, root, err); err != nil {
			return err
		}
	}
	if a.machine() {
		return a.printJSON(state.PanicSwitch{On: on})
	}
	if on {
		a.say("panic is on: everything passes. End it with: levee panic off")
	} else {
		a.say("panic is off: bans and limits are in force")
	}
	return nil
}

// panicPinned throws the switch that is pinned in the kernel: whatever is wrong with the daemon,
// it must not be in the way.
func (a *app) panicPinned(on bool, root *pinnedRoot, daemon error) error {
	path, err := root.path()
	if err != nil {
		return err
	}
	a.note("%v", daemon)
	a.note("Throwing the switch that is pinned under %s instead.", path)
	err = a.offline.setPanic(path, on)
	if errors.Is(err, agent.ErrNothingPinned) {
		return &codeError{exitNotFound, errors.New("nothing is pinned under " + path + ": there is no shield, everything passes anyway")}
	}
	return asRoot(err)
}
