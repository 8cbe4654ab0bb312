package main

import (
	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/config"
)

func (a *app) configCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check, show and reload the configuration",
		Args:  cobra.NoArgs,
		RunE:  needsCommand,
	}
	cmd.PersistentFlags().StringVarP(&path, "config", "c", "", "the file (default "+config.Path+", where there is one)")
	load := func(args []string) (*config.Config, string, error) {
		if len(args) > 0 {
			if path != "" {
				return nil, "", usage("name the file once")
			}
			path = args[0]
		}
		c, err := config.Load(path)
		name := path
		if name == "" {
			name = config.Path
		}
		return c, name, err
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check [FILE]",
		Short: "Tell what is wrong with a configuration file",
		Long:  "Read a configuration file as the daemon would, and tell everything that is wrong with it. Exits with 2 if something is.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, name, err := load(args)
			if err != nil {
				return err
			}
			if a.machine() {
				return a.printJSON(struct {
					File string `json:"file"`
					OK   bool   `json:"ok"`
				}{name, true})
			}
			a.say("%s is fine: %s, %s, %s", name, plural(len(c.Interfaces), "interface", "interfaces"),
				plural(len(c.Limits), "limit", "limits"), plural(len(c.Allow), "allow entry", "allow entries"))
			return nil
		},
	}, &cobra.Command{
		Use:   "show [FILE]",
		Short: "Show every setting of the file, and where its value comes from",
		Long: `Show every setting with its value, and where the value comes from: the line of the file, or the
default. What was set at run time lives in the daemon's state: see levee limit list, levee allow list.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, _, err := load(args)
			if err != nil {
				return err
			}
			settings := c.Settings()
			if a.machine() {
				return printList(a, settings, settings)
			}
			g := a.grid("setting", "value", "from").flexible(1, true)
			for _, s := range settings {
				g.row(s.Path, s.Value, s.From)
			}
			g.render()
			return nil
		},
	}, a.configReloadCommand())
	return cmd
}

func (a *app) configReloadCommand() *cobra.Command {
	var confirm string
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its file again",
		Long: `Have the daemon read its configuration file again: all of it is in force then, or nothing has changed.
With --confirm the configuration of before comes back unless levee confirm follows, and stays in force,
also after a restart, until the file is another one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			onTrial, err := parseConfirm(confirm)
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			answer, err := c.ReloadOnTrial(cmd.Context(), onTrial)
			if err != nil {
				return err
			}
			if a.machine() {
				return a.printJSON(answer)
			}
			a.say("the configuration was read again")
			a.onTrial(answer.Trial)
			return nil
		},
	}
	confirmFlag(cmd, &confirm)
	return cmd
}
