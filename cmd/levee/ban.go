package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// maxLines is how many results are told one by one; of more, only those that were refused.
const maxLines = 25

type banFlags struct {
	lasts, reason, origin, confirm string
	monitor, force                 bool
}

func (a *app) banCommand() *cobra.Command {
	var f banFlags
	cmd := &cobra.Command{
		Use:   "ban PREFIX… | -",
		Short: "Ban prefixes: their packets are dropped",
		Long: `Ban addresses and prefixes: their packets are dropped, until the ban ends or is taken back.
With - the list is read from stdin, one prefix a line, and what follows a # or a ; is a comment.
When the command is done, the bans are on disk and in the kernel.

Allow entries win over bans. Prefixes wider than /8 (IPv4) or /19 (IPv6) need --force.`,
		Example: `  levee ban 203.0.113.7 --for 4h --reason "credential stuffing"
  levee ban 198.51.100.0/24 2001:db8:bad::/48
  levee ban - --origin feed:mine --for 1d < list.txt`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.ban(cmd.Context(), f, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.lasts, "for", "", "how long, as 90s, 4h or 1d (default: until it is taken back)")
	flags.StringVar(&f.reason, "reason", "", "why, for whoever asks later")
	flags.StringVar(&f.origin, "origin", string(state.OriginOperator), "who speaks")
	flags.BoolVar(&f.monitor, "monitor", false, "count what would be dropped, and pass it")
	flags.BoolVar(&f.force, "force", false, "also prefixes wider than /8 or /19, or with protected addresses within them")
	confirmFlag(cmd, &f.confirm)
	must(cmd.RegisterFlagCompletionFunc("origin", a.completeOrigins))
	must(cmd.RegisterFlagCompletionFunc("for", fixed("10m", "1h", "4h", "1d", "1w")))
	return cmd
}

func (a *app) ban(ctx context.Context, f banFlags, args []string) error {
	like := state.Proposal{Reason: f.reason, Monitor: f.monitor, Force: true, Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 128)}
	if f.lasts != "" {
		d, err := state.ParseDuration(f.lasts)
		if err != nil {
			return inFlag("for", err)
		}
		if d == 0 {
			return usage("--for %q: is no time; leave it out for a ban without end", f.lasts)
		}
		like.For = time.Duration(d)
	}
	var err error
	if like.Origin, err = state.ParseOrigin(f.origin); err != nil {
		return inFlag("origin", err)
	}
	if err := like.Validate(); err != nil {
		return inFlag(err.Field, err)
	}
	confirm, err := parseConfirm(f.confirm)
	if err != nil {
		return err
	}
	prefixes, err := a.prefixes(args)
	if err != nil || len(prefixes) == 0 {
		return err
	}
	done, tried := 0, false
	err = a.inParts(partsOf(like.Origin, prefixes), nil, func(c *client.Client, part part) (state.BanResponse, error) {
		r := state.BanRequest{Force: f.force, Confirm: confirm}
		for _, p := range part.prefixes {
			item := state.BanItem{Prefix: p.String(), Origin: like.Origin, Reason: f.reason, Monitor: f.monitor}
			if like.For > 0 {
				item.For = state.Duration(like.For).String()
			}
			r.Bans = append(r.Bans, item)
		}
		answer, err := c.Ban(ctx, r)
		done, tried = done+answer.Done, tried || answer.Trial != nil
		return answer, err
	})
	if !tried {
		a.onTrial(triedIf(confirm, done), nil)
	}
	return err
}

// part is what goes to the daemon in one request: prefixes, and who speaks.
type part struct {
	origin   state.Origin
	prefixes []netip.Prefix
}

// partsOf deals prefixes out to requests of a bounded size.
func partsOf(origin state.Origin, prefixes []netip.Prefix) (parts []part) {
	for some := range slices.Chunk(prefixes, batch) {
		parts = append(parts, part{origin, some})
	}
	return parts
}

// inParts sends parts, and tells what came of each prefix, beside what has failed already. A part without
// prefixes is about all that there are.
func (a *app) inParts(parts []part, failed []*state.Error, send func(*client.Client, part) (state.BanResponse, error)) error {
	c := a.patientClient(time.Minute)
	defer c.Close()
	total := 0
	for _, part := range parts {
		total += len(part.prefixes)
	}
	var (
		whole   = state.BanResponse{Bans: []state.BanResult{}}
		counts  = map[state.Status]int{}
		onTrial []*state.Trial
		brief   = total > maxLines || total == 0
	)
	for _, part := range parts {
		answer, err := send(c, part)
		if err != nil {
			if whole.Done == 0 {
				return err
			}
			a.complain("%v", err)
			a.complain("%s of %s were done before that", count(whole.Done), count(total))
			return &codeError{code: exitPartly}
		}
		whole.Done += answer.Done
		whole.Refused += answer.Refused
		whole.Protected += answer.Protected
		if answer.Trial != nil {
			onTrial, whole.Trial = append(onTrial, answer.Trial), answer.Trial
		}
		if part.prefixes == nil {
			counts[state.StatusRemoved] = answer.Done // that is all that is told
		}
		for _, r := range answer.Bans {
			counts[r.Status]++
			if r.Error != nil {
				failed = append(failed, r.Error)
			}
			if !a.machine() {
				a.banLine(r, brief, len(failed))
			}
		}
		switch a.output {
		case "json":
			whole.Bans = append(whole.Bans, answer.Bans...)
		case "jsonl":
			for _, r := range answer.Bans {
				if err := a.printJSON(r); err != nil {
					return err
				}
			}
		}
	}
	if a.output == "json" {
		if err := a.printJSON(whole); err != nil {
			return err
		}
	} else if brief {
		a.summary(counts)
	}
	for _, t := range onTrial {
		a.onTrial(1, t)
	}
	return ofBatch(whole.Done, failed)
}

// banLine tells what came of one prefix.
func (a *app) banLine(r state.BanResult, brief bool, failures int) {
	r.Prefix = prefixText(r.Prefix)
	if r.Error != nil || r.Status == state.StatusRefused {
		switch {
		case failures > maxLines:
		case r.Error != nil:
			a.complain("%s: %s", r.Prefix, refusal(r.Error))
		default:
			a.complain("%s: refused", r.Prefix)
		}
		if failures == maxLines {
			a.complain("further refusals are not shown; -o json shows all")
		}
		return
	}
	if brief {
		return
	}
	verb := "banned"
	if r.Monitor {
		verb = "monitored"
	}
	switch r.Status {
	case state.StatusAdded:
		a.say("%s %s %s", verb, r.Prefix, a.until(r.Expires))
	case state.StatusChanged:
		a.say("changed %s: %s %s", r.Prefix, verb, a.until(r.Expires))
	case state.StatusUnchanged:
		a.say("unchanged %s: %s already, %s", r.Prefix, verb, a.until(r.Expires))
	case state.StatusRemoved:
		if len(r.Others) == 0 {
			a.say("unbanned %s", r.Prefix)
		} else {
			a.say("%s's word on %s was taken back", origins(r.Removed, string(r.Origin)), r.Prefix)
		}
	case state.StatusRefused:
	default:
		a.say("%s %s", r.Status, r.Prefix)
	}
	if len(r.Others) > 0 && r.Status == state.StatusRemoved {
		a.note("  it stays banned by %s; --all takes back everyone's word", origins(r.Others, ""))
	}
	for _, n := range r.Notes {
		a.note("  %s", n)
	}
}

// refusal is an error without the prefix that stands before it anyway.
func refusal(e *state.Error) string {
	if e.Field == "prefix" || e.Field == "" {
		return e.Detail
	}
	return e.Error()
}

func origins(claims []state.Claim, otherwise string) string {
	var names []string
	for _, c := range claims {
		if !slices.Contains(names, string(c.Origin)) {
			names = append(names, string(c.Origin))
		}
	}
	if len(names) == 0 {
		return otherwise
	}
	return list(names)
}

// list joins words: a, b and c.
func list(words []string) string {
	switch n := len(words); n {
	case 0:
		return ""
	case 1:
		return words[0]
	default:
		text := words[0]
		for _, w := range words[1 : n-1] {
			text += ", " + w
		}
		return text + " and " + words[n-1]
	}
}

// summary tells what came of many.
func (a *app) summary(counts map[state.Status]int) {
	var (
		parts []string
		total int
	)
	for _, s := range []state.Status{state.StatusAdded, state.StatusChanged, state.StatusUnchanged, state.StatusRemoved, state.StatusRefused} {
		total += counts[s]
		if counts[s] > 0 {
			parts = append(parts, count(counts[s])+" "+string(s))
		}
	}
	if total == 0 {
		a.say("there is nothing to take back")
		return
	}
	a.say("%s: %s", plural(total, "prefix", "prefixes"), list(parts))
}
