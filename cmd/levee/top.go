package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/state"
)

// Bounds of how often top asks.
const (
	minInterval = 500 * time.Millisecond
	maxInterval = time.Hour
	maxSample   = 10 * time.Second // that the daemon grants
	maxTop      = 10_000
)

type topFlags struct {
	by, interval, sample string
	n, times             int
}

func (a *app) topCommand() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show the sources that send most, or that limits drop most",
		Long: `Show the sources that send most, or that limits drop most. With --interval it goes on, and redraws a
terminal, until Ctrl-C or for --times rounds.`,
		Example: `  levee top
  levee top --by dropped -n 5
  levee top --interval 2s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.top(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.by, "by", string(state.ByPackets), "packets, bytes or dropped")
	flags.IntVarP(&f.n, "number", "n", 20, "how many")
	flags.StringVar(&f.interval, "interval", "", "show again every so often, as 2s")
	flags.IntVar(&f.times, "times", 0, "with --interval: how often; 0: until Ctrl-C")
	flags.StringVar(&f.sample, "sample", "1s", "how long rates are measured, up to 10s; 0: not")
	must(cmd.RegisterFlagCompletionFunc("by", fixed("packets", "bytes", "dropped")))
	return cmd
}

func (a *app) top(ctx context.Context, f topFlags) error {
	by := state.Order(f.by)
	switch by {
	case state.ByPackets, state.ByBytes, state.ByDropped:
	default:
		return usage("--by %q: is none of packets, bytes and dropped", f.by)
	}
	if f.n < 1 || f.n > maxTop {
		return usage("--number %d: is not within 1 and %d", f.n, maxTop)
	}
	if f.times < 0 {
		return usage("--times %d: is less than 0", f.times)
	}
	sample, err := parseFor("sample", f.sample, 10*time.Millisecond, maxSample)
	if err != nil {
		return err
	}
	var interval time.Duration
	if f.interval != "" {
		if interval, err = parseFor("interval", f.interval, minInterval, maxInterval); err != nil {
			return err
		}
		if interval == 0 {
			return usage("--interval %q: is no time", f.interval)
		}
		sample = min(sample, interval)
	} else if f.times > 0 {
		return usage("--times goes with --interval")
	}
	ctx, stop := a.interruptible(ctx)
	defer stop()
	c := a.patientClient(sample)
	defer c.Close()
	for round := 1; ; round++ {
		found, err := c.Sources(ctx, by, f.n, sample)
		if err != nil {
			if errors.Is(err, context.Canceled) && interval > 0 {
				return nil
			}
			return err
		}
		if err := a.frame(interval > 0, round, func(a *app) error { return a.showTop(found) }); err != nil {
			return err
		}
		if interval == 0 || round == f.times {
			return nil
		}
		if a.wait(ctx, max(0, interval-sample)) != nil {
			return nil
		}
	}
}

// frame shows one round: on a terminal in the place of the one before, else below it.
func (a *app) frame(again bool, round int, show func(*app) error) error {
	if !again || a.machine() {
		return show(a)
	}
	var b bytes.Buffer
	env := *a.environment
	env.stdout = &b
	draw := *a
	draw.environment = &env
	switch {
	case a.stdoutTTY:
		b.WriteString("\x1b[H\x1b[2J")
	case round > 1:
		b.WriteString("\n")
	}
	if err := show(&draw); err != nil {
		return err
	}
	_, err := a.stdout.Write(b.Bytes())
	return err
}

func (a *app) showTop(found state.SourceList) error {
	if a.machine() {
		return printList(a, found, found.Sources)
	}
	measured := ""
	if found.Sampled > 0 {
		measured = ", rates over " + sampledFor(found.Sampled)
	}
	fmt.Fprintln(a.stdout, a.paint(bold, fmt.Sprintf("Sources by %s", clean(string(found.By))))+
		fmt.Sprintf("  %s of %s tracked%s", count(found.Tracked), count(found.Capacity), measured))
	if len(found.Sources) == 0 {
		a.line("No source is tracked: nothing was received on a shielded interface of late.")
		return nil
	}
	a.sourceGrid(found.Sources, found.Sampled > 0, "")
	return nil
}
