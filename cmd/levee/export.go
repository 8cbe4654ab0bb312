package main

import (
	"context"

	"github.com/spf13/cobra"

	lists "github.com/levee-xdp/levee/agent/list"
	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) exportCommand() *cobra.Command {
	var format, origin string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write all bans as a list: plain, CSV, JSON, ipset save, nft",
		Long: `Write all bans to stdout as a list. csv and json have every claim with all that is known of it, and
levee bans import reads them back. plain, ipset, nft and nft-json have a line a prefix, with the time
that is left where the format can say it; bans that only monitor are left out of them.`,
		Example: `  levee bans export --format csv > bans.csv
  levee bans export --format ipset | ipset restore
  levee bans export --format nft > levee.nft && nft -f levee.nft`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.export(cmd.Context(), lists.Format(format), origin)
		},
	}
	cmd.Flags().StringVar(&format, "format", string(lists.Plain), formatNames(lists.Formats[1:]))
	cmd.Flags().StringVar(&origin, "origin", "", "only what this origin says")
	must(cmd.RegisterFlagCompletionFunc("origin", a.completeOrigins))
	return cmd
}

func (a *app) export(ctx context.Context, format lists.Format, origin string) error {
	known := false
	for _, f := range lists.Formats[1:] {
		known = known || f == format
	}
	if !known {
		return usage("--format %q: is none of %s", string(format), formatNames(lists.Formats[1:]))
	}
	c := a.client()
	defer c.Close()
	out, err := lists.Write(a.stdout, format, a.now(), c.AllBans(ctx, state.Origin(origin)))
	if err != nil {
		return err
	}
	if out.Monitors > 0 {
		a.note("left out, as %s can't say it: %s", format, plural(out.Monitors, "ban that only monitors", "bans that only monitor"))
	}
	if out.Shorter > 0 {
		a.note("%s end after 24 days there, which is the longest that %s takes", plural(out.Shorter, "ban", "bans"), format)
	}
	return nil
}
