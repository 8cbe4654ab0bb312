package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

type runFlags struct {
	config, state, bpffs, lock, metrics, level, format, mode, clang string
	interfaces                                                      []string
	compile                                                         bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground, as a service manager wants it. It adopts the shield that stands, or
puts it up, and serves the API. SIGHUP has it read its file again. SIGTERM and Ctrl-C end it, and leave
the shield up: levee detach takes it down.

Without a file the defaults are in force: nothing is attached or limited until you say so.`,
		Example: `  levee run --config /etc/levee/levee.yaml
  levee run --interface eth0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.run(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.config, "config", "c", "", "the file (default "+config.Path+", where there is one)")
	flags.StringSliceVarP(&f.interfaces, "interface", "i", nil, "shield this interface, too; IFACE or IFACE:native, IFACE:generic")
	flags.StringVar(&f.mode, "mode", "", "enforce, or monitor: drop nothing, count what would be dropped")
	flags.BoolVar(&f.compile, "compile", false, "compile the program on this host, for its kernel and CPU")
	flags.StringVar(&f.clang, "clang", "", "the clang to compile with")
	flags.StringVar(&f.metrics, "metrics", "", "where Prometheus reads, as 127.0.0.1:9464; off: nowhere")
	flags.StringVar(&f.state, "state", "", "the file where decisions are kept")
	flags.StringVar(&f.bpffs, "bpffs", "", "where the program and its tables are pinned")
	flags.StringVar(&f.lock, "lock", "", "the file that keeps a second daemon out")
	flags.StringVar(&f.level, "log-level", "", "debug, info, warn or error")
	flags.StringVar(&f.format, "log-format", "", "text or json")
	must(cmd.RegisterFlagCompletionFunc("interface", a.completeInterfaces))
	must(cmd.RegisterFlagCompletionFunc("mode", fixed("enforce", "monitor")))
	must(cmd.RegisterFlagCompletionFunc("log-level", fixed("debug", "info", "warn", "error")))
	must(cmd.RegisterFlagCompletionFunc("log-format", fixed("text", "json")))
	return cmd
}

func (a *app) run(cmd *cobra.Command, f *runFlags) error {
	overlay := func(c *config.Config) error { return a.overlay(cmd, f, c) }
	c, err := config.Load(f.config)
	if err != nil {
		return err
	}
	if err := overlay(c); err != nil {
		return err
	}
	ctx, stop := a.interruptible(cmd.Context())
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return a.daemon(ctx, agent.Options{Config: c, Overlay: overlay, File: f.config, Version: release(), Stderr: a.stderr})
}

// overlay puts what the flags say over a configuration, and checks the whole.
func (a *app) overlay(cmd *cobra.Command, f *runFlags, c *config.Config) error {
	flags := cmd.Flags()
	for _, s := range []struct {
		flag, value, path string
		to                *string
	}{
		{"state", f.state, "state.path", &c.State.Path},
		{"bpffs", f.bpffs, "bpffs", &c.BPFFS},
		{"lock", f.lock, "lock", &c.Lock},
		{"clang", f.clang, "compile.clang", &c.Compile.Clang},
		{"log-level", f.level, "log.level", &c.Log.Level},
		{"log-format", f.format, "log.format", &c.Log.Format},
	} {
		if flags.Changed(s.flag) {
			*s.to = s.value
			markFlag(c, s.path, s.flag)
		}
	}
	if a.socket != "" {
		c.API.Socket = a.socket
		if markFlag(c, "api.socket", "socket"); !flags.Changed("socket") {
			c.Mark("api.socket", state.SettingFlag, "$LEVEE_SOCKET")
		}
	}
	if flags.Changed("metrics") {
		markFlag(c, "metrics.listen", "metrics")
		c.Metrics.Listen = f.metrics
		if f.metrics == "off" {
			c.Metrics.Listen = ""
		}
	}
	if flags.Changed("mode") {
		if err := c.Mode.UnmarshalText([]byte(f.mode)); err != nil {
			return inFlag("mode", err)
		}
		markFlag(c, "mode", "mode")
	}
	if flags.Changed("compile") {
		c.Compile.Enabled = f.compile
		markFlag(c, "compile.enabled", "compile")
	}
	for _, text := range f.interfaces {
		i, err := parseInterface(text)
		if err != nil {
			return err
		}
		markFlag(c, fmt.Sprintf("interfaces[%d]", put(c, i)), "interface")
	}
	if err := c.Check(); err != nil {
		return &usageError{err}
	}
	return nil
}

func parseInterface(text string) (config.Interface, error) {
	name, mode := text, state.ModeAuto
	// An interface's alias has a colon, too: only a mode behind it counts.
	for _, m := range []state.InterfaceMode{state.ModeAuto, state.ModeNative, state.ModeGeneric} {
		if end := len(text) - len(m) - 1; end > 0 && text[end:] == ":"+string(m) {
			name, mode = text[:end], m
		}
	}
	if err := state.CheckInterface(name, mode); err != nil {
		return config.Interface{}, inFlag("interface", err)
	}
	return config.Interface{Name: name, Mode: mode}, nil
}

// put adds an interface, or changes its mode. It returns which one it is.
func put(c *config.Config, i config.Interface) int {
	at := slices.IndexFunc(c.Interfaces, func(known config.Interface) bool { return known.Name == i.Name })
	if at < 0 {
		c.Interfaces = append(c.Interfaces, i)
		return len(c.Interfaces) - 1
	}
	c.Interfaces[at] = i
	return at
}

// markFlag notes that a flag has set what is at a path.
func markFlag(c *config.Config, path, flag string) { c.Mark(path, state.SettingFlag, "--"+flag) }
