package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
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
			// Without a file the defaults are in force; of one that bears another name that is not to be read as praise.
			_, missing := os.Stat(name)
			none := errors.Is(missing, fs.ErrNotExist)
			if a.machine() {
				return a.printJSON(struct {
					File  string `json:"file"`
					Found bool   `json:"found"`
					OK    bool   `json:"ok"`
				}{name, !none, true})
			}
			if none {
				a.say("there is no %s: the defaults are in force, nothing is attached or limited by itself", name)
				return nil
			}
			a.say("%s is fine: %s, %s, %s", name, plural(len(c.Interfaces), "interface", "interfaces"),
				plural(len(c.Limits), "limit", "limits"), plural(len(c.Allow), "allow entry", "allow entries"))
			return nil
		},
	}, &cobra.Command{
		Use:   "show [FILE]",
		Short: "Show every setting as it is in force, and where its value comes from",
		Long: `Show every setting with its value, and where that comes from: default, the file's line, a flag of the
daemon, or its state, where somebody has set it at run time (levee limit set, allow add, attach, panic).
The daemon is asked. Where none runs, or a file is named, what the file says is shown.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			effective, err := a.effective(cmd, len(args) > 0 || path != "", func() (*config.Config, string, error) { return load(args) })
			if err != nil {
				return err
			}
			if effective.Notice != "" && a.output != "json" {
				a.note("%s", effective.Notice)
			}
			if a.machine() {
				return printList(a, effective, effective.Settings)
			}
			g := a.grid("setting", "value", "origin", "from").flexible(1, true)
			for _, s := range effective.Settings {
				from := s.From
				if s.Origin == state.SettingDefault && from == string(s.Origin) {
					from = ""
				}
				g.row(s.Path, s.Value, string(s.Origin), from)
			}
			g.render()
			return nil
		},
	}, a.configReloadCommand(&path))
	return cmd
}

// effective asks the daemon for its settings. If none runs on this host, or a file was named, they are
// the file's.
func (a *app) effective(cmd *cobra.Command, named bool, load func() (*config.Config, string, error)) (state.Effective, error) {
	var unreachable error
	if !named {
		c := a.client()
		defer c.Close()
		out, err := c.Settings(cmd.Context())
		if !errors.Is(err, client.ErrUnreachable) || a.remote.address != "" {
			return out, err
		}
		unreachable = err
	}
	c, file, err := load()
	if err != nil {
		return state.Effective{}, err
	}
	if unreachable != nil {
		what := "this is what " + file + " says"
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			what = "there is no " + file + ", so these are the defaults"
		}
		a.note("%v; %s, without what flags and the run time would change", unreachable, what)
	}
	return state.Effective{Settings: c.Settings()}, nil
}

func (a *app) configReloadCommand(path *string) *cobra.Command {
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
			a.listensAt(*path)
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
			a.onTrial(onTrial, answer.Trial)
			return nil
		},
	}
	confirmFlag(cmd, &confirm)
	return cmd
}
