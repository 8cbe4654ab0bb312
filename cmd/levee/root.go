package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/client"
)

// app is one call of the command line: its environment and what its global flags say.
type app struct {
	*environment
	output  string
	socket  string
	remote  remote
	quiet   bool
	noColor bool
}

// execute runs one command line and returns what to exit with.
func execute(ctx context.Context, env *environment, args []string) int {
	a := &app{environment: env}
	root := a.root() //nolint:contextcheck // cobra hands the context on
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(env.stderr, "levee: %s\n", cleanLines(text))
		if e, ok := errors.AsType[*hintError](err); ok {
			fmt.Fprintln(env.stderr, e.hint)
		}
	}
	return exitCode(err)
}

// hintError carries a line to be shown under the error.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "levee",
		Short: "A DoS shield: drops floods in the network driver, takes bans and limits from above",
		Long: `Levee is a DoS shield for this host. The daemon (levee run) attaches an XDP program to network
interfaces; every other command asks the daemon over its socket.

Exit codes: 0 done, 1 failed, 2 usage (nothing was changed), 3 daemon unreachable, 4 refused for
safety, 5 partly done, 6 not found (levee check: not banned).`,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: 2,
		SilenceUsage:               true,
		Args:                       cobra.NoArgs,
		RunE:                       a.help,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.checkGlobals()
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "table", "table, json or jsonl")
	flags.StringVar(&a.socket, "socket", "", "where the daemon listens (default "+client.Socket+", or $LEVEE_SOCKET)")
	a.remoteFlags(flags)
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing of what went well")
	flags.BoolVar(&a.noColor, "no-color", false, "no colours, as with $NO_COLOR")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &hintError{&usageError{err}, seeHelp(cmd)}
	})
	root.AddGroup(
		&cobra.Group{ID: "show", Title: "See what happens:"},
		&cobra.Group{ID: "act", Title: "Decide who passes:"},
		&cobra.Group{ID: "shield", Title: "The shield:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("show", a.statusCommand(), a.topCommand(), a.watchCommand(), a.checkCommand(), a.bansCommand(), a.auditCommand())
	add("act", a.banCommand(), a.unbanCommand(), a.allowCommand(), a.limitCommand(), a.confirmCommand())
	add("shield", a.runCommand(), a.attachCommand(), a.detachCommand(), a.panicCommand(), a.doctorCommand(), a.configCommand(), a.tokenCommand())
	root.AddCommand(a.versionCommand())
	root.AddCommand(a.builders()...)
	wrapArgs(root)
	must(root.RegisterFlagCompletionFunc("output", fixed("table", "json", "jsonl")))
	return root
}

// wrapArgs makes errors about arguments usage errors, with a pointer to the help.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil {
				return nil
			}
			if !cmd.HasParent() || cmd.HasSubCommands() && len(args) > 0 {
				err = unknownCommand(cmd, args[0])
			}
			return &hintError{&usageError{err}, seeHelp(cmd)}
		}
	}
	for _, c := range cmd.Commands() {
		wrapArgs(c)
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	text := fmt.Sprintf("%q is no command of %s", name, cmd.CommandPath())
	if like := cmd.SuggestionsFor(name); len(like) > 0 {
		text += "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return errors.New(text)
}

func seeHelp(cmd *cobra.Command) string {
	return fmt.Sprintf("See '%s --help'.", cmd.CommandPath())
}

// help is what a command does that only has commands of its own.
func (a *app) help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// needsCommand is what a command does that acts only through commands of its own.
func needsCommand(cmd *cobra.Command, _ []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return &hintError{usage("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", ")), seeHelp(cmd)}
}

func (a *app) checkGlobals() error {
	switch a.output {
	case "table", "json", "jsonl":
	default:
		return usage("output %q is none of table, json and jsonl", a.output)
	}
	return a.checkRemote()
}

// client returns one that asks the daemon at the socket that the flags name.
func (a *app) client() *client.Client {
	return client.New(a.clientConfig())
}

// patientClient is one for calls that the daemon works on for a while.
func (a *app) patientClient(more time.Duration) *client.Client {
	c := a.clientConfig()
	c.Timeout = 30*time.Second + more
	return client.New(c)
}

func (a *app) socketPath() string {
	if a.socket != "" {
		return a.socket
	}
	if path := a.getenv("LEVEE_SOCKET"); path != "" {
		return path
	}
	return client.Socket
}

// must is for what can only go wrong in the program's text.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
