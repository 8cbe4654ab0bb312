package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/client"
	lists "github.com/levee-xdp/levee/agent/list"
	"github.com/levee-xdp/levee/agent/state"
)

type unbanFlags struct {
	origin, file, format string
	all, everything      bool
}

func (a *app) unbanCommand() *cobra.Command {
	var f unbanFlags
	var originGiven bool
	cmd := &cobra.Command{
		Use:   "unban PREFIX… | - | --file FILE | --everything",
		Short: "Take bans back",
		Long: `Take back an origin's word on prefixes. A prefix stays banned while another origin's word on it
lives; --all takes back everyone's.

With - the prefixes are read from stdin, one a line. --file takes a list of any kind that levee bans
import takes, and takes back what that has banned: entries that name an origin are taken for its word,
unless --origin says whose. Bad lines are told, and the exit code is 5.

The prefix is that of the ban: to let a single address of a banned network pass, use levee allow add.`,
		Example: `  levee unban 203.0.113.7
  levee unban 198.51.100.0/24 --all
  levee unban --file drop.txt --origin feed:spamhaus
  levee unban --everything --origin feed:mine`,
		Args: func(cmd *cobra.Command, args []string) error {
			ways := 0
			for _, given := range []bool{len(args) > 0, f.file != "", f.everything} {
				if given {
					ways++
				}
			}
			if ways != 1 {
				return usage("name the prefixes, or a --file, or --everything, and no two of these")
			}
			originGiven = cmd.Flags().Changed("origin")
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case originGiven && f.all:
				return usage("--origin and --all exclude each other")
			case f.everything && !f.all && !originGiven:
				return usage("--everything needs --origin NAME: whose word is to go")
			case f.everything && f.all:
				return usage("--everything takes back one origin's word: name it with --origin, one after the other (levee bans export says whose there are)")
			case f.file == "" && cmd.Flags().Changed("format"):
				return usage("--format is of a list: it goes with --file")
			case !slices.Contains(lists.Formats, lists.Format(f.format)):
				return usage("--format %q: is none of %s", f.format, formatNames(lists.Formats))
			}
			return a.unban(cmd.Context(), f, args, originGiven)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.origin, "origin", string(state.OriginOperator), "whose word to take back; without it, of a file's entries whom they name")
	flags.BoolVar(&f.all, "all", false, "every origin's")
	flags.BoolVar(&f.everything, "everything", false, "every prefix on which the origin has its word")
	flags.StringVar(&f.file, "file", "", "what a list names that levee bans import takes; - for stdin")
	flags.StringVar(&f.format, "format", string(lists.Auto), "what the list is: "+formatNames(lists.Formats))
	must(cmd.RegisterFlagCompletionFunc("origin", a.completeOrigins))
	must(cmd.RegisterFlagCompletionFunc("format", fixed(strings.Split(formatNames(lists.Formats), ", ")...)))
	return cmd
}

func (a *app) unban(ctx context.Context, f unbanFlags, args []string, originGiven bool) error {
	origin, err := state.ParseOrigin(f.origin)
	if state.Origin(f.origin) == state.OriginKernel { // of what was kept from the kernel; nobody may ban as it
		origin, err = state.OriginKernel, nil
	}
	if err != nil {
		return inFlag("origin", err)
	}
	var parts []part
	var bad []*state.Error
	switch {
	case f.everything:
		parts = []part{{origin: origin}}
	case f.file != "":
		parts, bad, err = a.listed(f, origin, originGiven)
	default:
		var prefixes []netip.Prefix
		prefixes, err = a.prefixes(args)
		parts = partsOf(origin, prefixes)
	}
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return ofBatch(0, bad)
	}
	return a.inParts(parts, bad, func(c *client.Client, part part) (state.BanResponse, error) {
		r := state.UnbanRequest{All: f.all}
		if !f.all {
			r.Origin = part.origin
		}
		for _, p := range part.prefixes {
			r.Prefixes = append(r.Prefixes, p.String())
		}
		return c.Unban(ctx, r)
	})
}

// listed reads what a list names, by whose word it is. Bad lines are told and returned.
func (a *app) listed(f unbanFlags, origin state.Origin, originGiven bool) (parts []part, bad []*state.Error, err error) {
	in, _, err := a.source(f.file)
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	name := f.file
	if name == "-" {
		name = "stdin"
	}
	type word struct {
		origin state.Origin
		prefix netip.Prefix
	}
	var origins []state.Origin // in the list's order
	by, seen := map[state.Origin][]netip.Prefix{}, map[word]struct{}{}
	var told []state.BulkError // the first of those that are bad
	bads := 0
	format, err := lists.Read(in, lists.Format(f.format), func(e lists.Entry) bool {
		w := word{origin: origin}
		if e.Err == nil {
			var err error
			w.prefix, err = state.ParsePrefix(e.Item.Prefix)
			if err == nil && e.Item.Origin != "" && !originGiven && !f.all {
				w.origin = e.Item.Origin
			}
			e.Err = state.AsError(err, state.CodeInvalid)
		}
		if e.Err != nil {
			if bads++; len(told) < maxLines {
				told = append(told, state.BulkError{Line: e.Line, Error: e.Err})
			}
			return true
		}
		if _, twice := seen[w]; twice {
			return true
		}
		seen[w] = struct{}{}
		if by[w.origin] == nil {
			origins = append(origins, w.origin)
		}
		by[w.origin] = append(by[w.origin], w.prefix)
		return true
	})
	if err != nil {
		return nil, nil, &usageError{fmt.Errorf("%s: %w", name, err)}
	}
	bad = a.tellLines(name, format, told, bads)
	if len(seen)+len(bad) == 0 {
		a.note("The list is empty; nothing to do.")
	}
	for _, who := range origins {
		parts = append(parts, partsOf(who, by[who])...)
	}
	return parts, bad, nil
}
