package main

import (
	"cmp"
	"context"
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) limitCommand() *cobra.Command {
	limit := &cobra.Command{
		Use:   "limit",
		Short: "What one source may send",
		Args:  cobra.NoArgs,
		RunE:  needsCommand,
	}
	limit.AddCommand(a.limitSetCommand(), a.limitRemoveCommand(), a.limitListCommand(), a.limitShowCommand())
	return limit
}

// none, as a flag's value, takes a threshold away.
const none = "none"

// thresholds names what a limit measures, and how to reach it.
var thresholds = []struct {
	name, what string
	of         func(*state.LimitSpec) **state.Threshold
}{
	{"packets", "packets, as 20k/s", func(l *state.LimitSpec) **state.Threshold { return &l.Packets }},
	{"bits", "bits, as 200Mbit/s", func(l *state.LimitSpec) **state.Threshold { return &l.Bits }},
	{"syn", "TCP connections opened, as 200/s", func(l *state.LimitSpec) **state.Threshold { return &l.SYN }},
	{"udp", "UDP packets", func(l *state.LimitSpec) **state.Threshold { return &l.UDP }},
	{"icmp", "ICMP packets", func(l *state.LimitSpec) **state.Threshold { return &l.ICMP }},
	{"fragments", "fragments", func(l *state.LimitSpec) **state.Threshold { return &l.Fragments }},
}

type limitFlags struct {
	rates, bursts             map[string]*string
	sources, services         []string
	penalty, mode, confirm    string
	aggregate, aggregateBurst string
	group4, group6            int
	aggregate4, aggregate6    int
	always, replace           bool
}

func (a *app) limitSetCommand() *cobra.Command {
	f := limitFlags{rates: map[string]*string{}, bursts: map[string]*string{}}
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Make a limit, or change one",
		Long: `Make a limit, or change what the flags name of one; with --replace nothing else of it stays.

One limit applies to a packet: that of its source's longest --source prefix, else that of its
destination's --service, else the one named default. A source is an IPv4 address or an IPv6 /64.
Begin with --mode monitor: it counts what it would drop, and drops nothing.`,
		Example: `  levee limit set default --packets 20k/s --syn 200/s --mode monitor
  levee limit set default --mode enforce
  levee limit set dns --service udp/53 --packets 1k/s --packets-burst 5k --penalty 10s
  levee limit set default --udp none`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := false
			cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) { given = given || flag.Changed && flag.Name != "confirm" })
			return a.limitSet(cmd.Context(), cmd.Flags(), &f, args[0], given)
		},
		ValidArgsFunction: a.completeLimits,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	for _, t := range thresholds {
		f.rates[t.name] = flags.String(t.name, "", t.what+"; none: not limited")
		f.bursts[t.name] = flags.String(t.name+"-burst", "", "what of it may come at once (default one second's worth)")
	}
	flags.StringSliceVar(&f.sources, "source", nil, "bind it to packets from these prefixes")
	flags.StringSliceVar(&f.services, "service", nil, "bind it to packets to these: tcp/443, udp/53, icmp, 47")
	flags.StringVar(&f.mode, "mode", "", "enforce, or monitor: count what would be dropped, and pass it")
	flags.StringVar(&f.penalty, "penalty", "", "how long a source that broke it is dropped whole; 0: only the excess is")
	flags.IntVar(&f.group4, "group4", 0, "the IPv4 prefix length that is one source (default 32)")
	flags.IntVar(&f.group6, "group6", 0, "the IPv6 prefix length that is one source (default 64)")
	flags.StringVar(&f.aggregate, "aggregate", "", "packets of all sources of a prefix together; none: not limited")
	flags.StringVar(&f.aggregateBurst, "aggregate-burst", "", "what of them may come at once")
	flags.IntVar(&f.aggregate4, "aggregate4", 0, "the aggregate's IPv4 prefix length (default 24)")
	flags.IntVar(&f.aggregate6, "aggregate6", 0, "the aggregate's IPv6 prefix length (default 48)")
	flags.BoolVar(&f.always, "aggregate-always", false, "charge it every packet, not only those of sources that found no room")
	flags.BoolVar(&f.replace, "replace", false, "forget what the flags do not name")
	confirmFlag(cmd, &f.confirm)
	must(cmd.RegisterFlagCompletionFunc("mode", fixed("enforce", "monitor")))
	return cmd
}

// limitSet makes a limit, or changes what flags were given for.
func (a *app) limitSet(ctx context.Context, flags *pflag.FlagSet, f *limitFlags, name string, given bool) error {
	onTrial, err := parseConfirm(f.confirm)
	if err != nil {
		return err
	}
	if err := state.CheckLimitName(name); err != nil {
		return &usageError{err}
	}
	// Once on nothing, so that a bad value is told also where there is no daemon.
	var fresh state.LimitSpec
	if err := f.apply(flags, &fresh, true); err != nil {
		return err
	}
	c := a.client()
	defer c.Close()
	spec := fresh
	before, err := c.Limit(ctx, name)
	missing := isNotFound(err)
	if err != nil && !missing {
		return err
	}
	if !given && !missing {
		return usage("say what of limit %s is to change, as --packets 20k/s; levee limit show %s tells how it is", name, name)
	}
	if !f.replace && !missing {
		spec = before.LimitSpec
		if err := f.apply(flags, &spec, false); err != nil {
			return err
		}
	} else if err := f.apply(flags, &spec, false); err != nil {
		return err
	}
	if err := spec.Validate(name); err != nil {
		return hintOf(name, err)
	}
	set, err := c.SetLimitOnTrial(ctx, name, spec, onTrial)
	if err != nil {
		return err
	}
	if a.machine() {
		return a.printJSON(set)
	}
	if !a.quiet {
		verb := "set"
		if !missing && set.Equal(&before.LimitSpec) {
			verb = "unchanged"
		}
		a.line("limit %s is %s", name, verb)
		a.limitBlock(&set)
		a.onTrial(onTrial, set.Trial)
	}
	return nil
}

// hintOf names the flag that a problem of a limit is about.
func hintOf(name string, err *state.Error) error {
	if err.Field == "sources" && err.Value == "" && name != state.DefaultLimit {
		return usage("limit %q is bound to nothing yet: give it --source PREFIX or --service tcp/443", name)
	}
	return &usageError{err}
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && (e.Status == 404 || e.Code == state.CodeNotFound)
}

// apply puts what the flags say over a limit. On nothing, what only makes sense over something that
// may be there, as a burst without its rate, is let through.
func (f *limitFlags) apply(flags *pflag.FlagSet, l *state.LimitSpec, onNothing bool) error {
	for _, t := range thresholds {
		if err := f.threshold(flags, t.name, t.of(l), onNothing); err != nil {
			return err
		}
	}
	if flags.Changed("source") {
		l.Sources = nil
		for _, s := range f.sources {
			p, err := state.ParsePrefix(s)
			if err != nil {
				return inFlag("source", err)
			}
			l.Sources = append(l.Sources, state.Prefix{Prefix: p})
		}
	}
	if flags.Changed("service") {
		l.Services = nil
		for _, s := range f.services {
			v, err := state.ParseService(s)
			if err != nil {
				return inFlag("service", err)
			}
			l.Services = append(l.Services, v)
		}
	}
	if flags.Changed("mode") {
		if err := l.Mode.UnmarshalText([]byte(f.mode)); err != nil {
			return inFlag("mode", err)
		}
	}
	if flags.Changed("penalty") {
		d, err := state.ParseDuration(f.penalty)
		if err != nil {
			return inFlag("penalty", err)
		}
		l.Penalty = d
	}
	if err := f.lengths(flags, l); err != nil {
		return err
	}
	return f.applyAggregate(flags, l, onNothing)
}

func (f *limitFlags) threshold(flags *pflag.FlagSet, name string, at **state.Threshold, onNothing bool) error {
	burst := name + "-burst"
	if flags.Changed(name) {
		if *f.rates[name] == none {
			if flags.Changed(burst) {
				return usage("--%s: there is no burst without --%s", burst, name)
			}
			*at = nil
			return nil
		}
		r, err := state.ParseRate(*f.rates[name])
		if err != nil {
			return inFlag(name, err)
		}
		if r.Bits != (name == "bits") {
			return usage("--%s %q: counts %s; write it as %s", name, *f.rates[name], unit(r.Bits), map[bool]string{true: "200Mbit/s", false: "20k/s"}[name == "bits"])
		}
		changed := state.Threshold{Rate: r}
		if *at != nil {
			changed.Burst = (*at).Burst
		}
		*at = &changed
	}
	if !flags.Changed(burst) {
		return nil
	}
	b, err := state.ParseBurst(*f.bursts[name])
	if err != nil {
		return inFlag(burst, err)
	}
	if b.Bits != (name == "bits") {
		return usage("--%s %q: is an amount of %s; write it as %s", burst, *f.bursts[name], unit(b.Bits), map[bool]string{true: "16Mbit or 2MiB", false: "40k"}[name == "bits"])
	}
	if *at == nil {
		if onNothing {
			return nil
		}
		return usage("--%s: the limit has no --%s that it could belong to", burst, name)
	}
	changed := **at // what the daemon answered stays as it was
	changed.Burst = b
	*at = &changed
	return nil
}

func unit(bits bool) string {
	if bits {
		return "bits"
	}
	return "packets"
}

func (f *limitFlags) lengths(flags *pflag.FlagSet, l *state.LimitSpec) error {
	for _, g := range []struct {
		flag             string
		value, low, high int
		to               *int
	}{
		{"group4", f.group4, 8, 32, &l.Group.IPv4},
		{"group6", f.group6, 16, 128, &l.Group.IPv6},
		{"aggregate4", f.aggregate4, 8, 32, nil},
		{"aggregate6", f.aggregate6, 16, 48, nil},
	} {
		if !flags.Changed(g.flag) {
			continue
		}
		if g.value < g.low || g.value > g.high {
			return usage("--%s %d: is not a prefix length within %d and %d", g.flag, g.value, g.low, g.high)
		}
		if g.to != nil {
			*g.to = g.value
		}
	}
	return nil
}

func (f *limitFlags) applyAggregate(flags *pflag.FlagSet, l *state.LimitSpec, onNothing bool) error {
	if flags.Changed("aggregate") {
		if f.aggregate == none {
			l.Aggregate = nil
			return nil
		}
		r, err := state.ParseRate(f.aggregate)
		if err != nil {
			return inFlag("aggregate", err)
		}
		if r.Bits {
			return usage("--aggregate %q: counts bits; aggregates are in packets: write 100k/s", f.aggregate)
		}
		changed := state.Aggregate{}
		if l.Aggregate != nil {
			changed = *l.Aggregate
		}
		changed.Rate = r
		l.Aggregate = &changed
	}
	for _, name := range []string{"aggregate-burst", "aggregate4", "aggregate6", "aggregate-always"} {
		if flags.Changed(name) && l.Aggregate == nil && !onNothing {
			return usage("--%s: the limit has no --aggregate that it could belong to", name)
		}
	}
	at := &state.Aggregate{} // checks what is said of none
	if l.Aggregate != nil {
		*at = *l.Aggregate
		l.Aggregate = at
	}
	if flags.Changed("aggregate-burst") {
		b, err := state.ParseBurst(f.aggregateBurst)
		if err != nil {
			return inFlag("aggregate-burst", err)
		}
		if b.Bits {
			return usage("--aggregate-burst %q: is an amount of bits; aggregates are in packets: write 100k", f.aggregateBurst)
		}
		at.Burst = &b
	}
	if flags.Changed("aggregate4") {
		at.IPv4 = f.aggregate4
	}
	if flags.Changed("aggregate6") {
		at.IPv6 = f.aggregate6
	}
	if flags.Changed("aggregate-always") {
		at.Always = f.always
	}
	return nil
}

func (a *app) limitRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME…",
		Aliases: []string{"remove"},
		Short:   "Take back limits that were set at run time",
		Long:    "Take back limits that were set at run time. What the configuration file says under the name is in force again.",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := state.CheckLimitName(name); err != nil {
					return &usageError{err}
				}
			}
			c := a.client()
			defer c.Close()
			done, failed, err := eachOf(a, args, func(name string) (string, error) { return name, c.RemoveLimit(cmd.Context(), name) })
			if err != nil {
				return err
			}
			for _, name := range done {
				if file, err := c.Limit(cmd.Context(), name); err == nil {
					a.say("limit %s is removed; the configuration file's of that name is in force again, mode %s", name, cmp.Or(file.Mode, state.Enforce))
					continue
				}
				a.say("limit %s is removed", name)
			}
			if a.machine() {
				type item struct {
					Name    string `json:"name"`
					Removed bool   `json:"removed"`
				}
				items := []item{}
				for _, name := range done {
					items = append(items, item{name, true})
				}
				if err := printList(a, struct {
					Limits []item `json:"limits"`
				}{items}, items); err != nil {
					return err
				}
			}
			return ofEach(len(done), failed)
		},
		ValidArgsFunction: a.completeLimits,
	}
}
