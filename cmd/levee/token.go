package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) tokenCommand() *cobra.Command {
	token := &cobra.Command{
		Use:   "token",
		Short: "Tokens by which other programs and hosts speak to the API",
		Args:  cobra.NoArgs,
		RunE:  needsCommand,
	}
	token.AddCommand(a.tokenAddCommand(), a.tokenRemoveCommand(), a.tokenRotateCommand(), a.tokenListCommand())
	return token
}

type tokenFlags struct {
	scopes, origins      []string
	owner, life, longest string
	ipv4, ipv6, claims   int
	unbounded, force     bool
}

func (a *app) tokenAddCommand() *cobra.Command {
	var f tokenFlags
	cmd := &cobra.Command{
		Use:   "add NAME --scope SCOPE",
		Short: "Make a token, and print it: it is shown this once",
		Long: `Make a token, and print its text: it is shown this once, and only a hash of it is kept. Whoever has it
may call the API in the token's name, within its scopes and bounds, until it expires.

Scopes: read (see everything), ban (make and take back bans), limit (set limits), admin (everything).
Unless flags say otherwise, a token may ban single addresses and IPv6 /64s, for a day, 100,000 at once,
and speaks for the origin api:NAME alone; one with the scope admin has no such bounds.`,
		Example: `  levee token add gateway --scope ban --for 90d
  levee token add dashboard --scope read --owner "team web"
  levee token add feedbot --scope ban,read --ipv4 24 --ipv6 48 --longest 7d --origin feed:partners`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.tokenAdd(cmd, args[0], f) },
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.scopes, "scope", nil, "what it may: read, ban, limit, admin")
	flags.StringVar(&f.owner, "owner", "", "who answers for it (default: you)")
	flags.StringVar(&f.life, "for", "", "how long it works (default 90d)")
	flags.IntVar(&f.ipv4, "ipv4", 32, "the widest IPv4 prefix that it may ban, by its length; 0: any")
	flags.IntVar(&f.ipv6, "ipv6", 64, "the widest IPv6 prefix that it may ban, by its length; 0: any")
	flags.StringVar(&f.longest, "longest", "24h", "how long its bans may last; 0s: also without an end")
	flags.IntVar(&f.claims, "claims", 100_000, "how many of its bans may live at once; 0: any number")
	flags.StringSliceVar(&f.origins, "origin", nil, "for whom it may speak (default api:NAME)")
	flags.BoolVar(&f.force, "force", false, "it may ban with force: also prefixes wider than /8 or /19, or with protected addresses within them")
	flags.BoolVar(&f.unbounded, "unbounded", false, "no bounds on its bans, but for force")
	must(cmd.RegisterFlagCompletionFunc("scope", fixed("read", "ban", "limit", "admin")))
	must(cmd.RegisterFlagCompletionFunc("origin", a.completeOrigins))
	return cmd
}

// bounds returns what the flags say; nil if they say nothing.
func (f *tokenFlags) bounds(cmd *cobra.Command, name string) (*state.AskedBounds, error) {
	said := false
	for _, flag := range []string{"ipv4", "ipv6", "longest", "claims", "origin"} {
		said = said || cmd.Flags().Changed(flag)
	}
	switch {
	case f.unbounded && said:
		return nil, usage("--unbounded stands beside bounds; give one of them")
	case f.unbounded:
		return (&state.Bounds{Force: f.force}).Asked(), nil
	case !said && !f.force:
		return nil, nil // the daemon's defaults are meant
	}
	longest, err := state.ParseDuration(f.longest)
	if err != nil {
		return nil, inFlag("longest", err)
	}
	b := state.DefaultBounds(name)
	b.IPv4, b.IPv6, b.Longest, b.Claims, b.Force = f.ipv4, f.ipv6, longest, f.claims, f.force
	if len(f.origins) > 0 {
		b.Origins = nil
		for _, o := range f.origins {
			b.Origins = append(b.Origins, state.Origin(o))
		}
	}
	if err := b.Validate(); err != nil {
		return nil, inFlag(strings.TrimSuffix(err.Field, "s"), err)
	}
	return b.Asked(), nil
}

func (a *app) tokenAdd(cmd *cobra.Command, name string, f tokenFlags) error {
	if len(f.scopes) == 0 {
		return usage("say with --scope what the token may: read, ban, limit or admin")
	}
	r := state.TokenRequest{Name: name, Owner: f.owner, For: f.life}
	for _, s := range f.scopes {
		r.Scopes = append(r.Scopes, state.Scope(s))
	}
	bounds, err := f.bounds(cmd, name)
	if err != nil {
		return err
	}
	r.Bounds = bounds
	c := a.client()
	defer c.Close()
	made, err := c.AddToken(cmd.Context(), r)
	if err != nil {
		return err
	}
	return a.tokenSecret(made, fmt.Sprintf("made the token %s, which may %s until %s", made.Name, scopesText(made.Scopes), a.clock(made.Expires)))
}

// tokenSecret prints a token: its text alone on stdout, so that it can be put into a file.
func (a *app) tokenSecret(t state.TokenSecret, what string) error {
	if a.machine() {
		return a.printJSON(t)
	}
	a.note("%s", what)
	if t.Bounds != nil {
		a.note("its bans: %s", boundsText(t.Bounds))
	}
	a.note("This is shown once; keep it in a file that nobody else can read:")
	_, err := fmt.Fprintln(a.stdout, clean(t.Secret))
	return err
}

func scopesText(scopes []state.Scope) string {
	words := make([]string, len(scopes))
	for i, s := range scopes {
		words[i] = string(s)
	}
	return strings.Join(words, ", ")
}

// boundsText says bounds in words.
func boundsText(b *state.Bounds) string {
	if b == nil {
		return "any"
	}
	var words []string
	if b.IPv4 > 0 || b.IPv6 > 0 {
		words = append(words, fmt.Sprintf("/%d and /%d", b.IPv4, b.IPv6))
	}
	if b.Longest > 0 {
		words = append(words, "up to "+b.Longest.String())
	}
	if b.Claims > 0 {
		words = append(words, count(b.Claims)+" at once")
	}
	if b.Force {
		words = append(words, "with force")
	}
	if len(b.Origins) > 0 {
		names := make([]string, len(b.Origins))
		for i, o := range b.Origins {
			names[i] = string(o)
		}
		words = append(words, "as "+strings.Join(names, ", "))
	}
	if len(words) == 0 {
		return "any"
	}
	return strings.Join(words, ", ")
}

func (a *app) tokenRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME",
		Aliases:           []string{"remove", "revoke"},
		Short:             "Revoke a token: it works no more at once; what it banned stands",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTokens,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			if err := c.RemoveToken(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.say("revoked %s; what it banned stands (levee unban --origin api:%s takes it back)", args[0], args[0])
			return nil
		},
	}
}

func (a *app) tokenRotateCommand() *cobra.Command {
	var r state.TokenRotation
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a token a new secret; the old one works for a while",
		Long: `Give a token a new secret, and print its text. The old one works, too, for the time of --overlap, so that
whoever uses it can change over; --overlap 0s ends it at once.`,
		Example: `  levee token rotate gateway --overlap 1h --for 90d`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeTokens,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			made, err := c.RotateToken(cmd.Context(), args[0], r)
			if err != nil {
				return err
			}
			what := fmt.Sprintf("rotated %s, which works until %s", made.Name, a.clock(made.Expires))
			if !made.Overlap.IsZero() {
				what += "; the secret before works until " + a.clock(made.Overlap)
			}
			return a.tokenSecret(made, what)
		},
	}
	cmd.Flags().StringVar(&r.Overlap, "overlap", "", "how long the old secret works (default 24h)")
	cmd.Flags().StringVar(&r.For, "for", "", "how long the token works from now on (default: until when it did)")
	return cmd
}

func (a *app) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tokens, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			found, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			if a.machine() {
				return printList(a, found, found.Tokens)
			}
			if len(found.Tokens) == 0 {
				a.line("There are no tokens. Make one with: levee token add NAME --scope ban")
				return nil
			}
			g := a.grid("name", "scopes", "bans", "owner", "expires in", "last used", "from").flexible(2, true)
			for _, t := range found.Tokens {
				from := ""
				if t.LastFrom.IsValid() {
					from = t.LastFrom.String()
				}
				g.row(t.Name, scopesText(t.Scopes), boundsText(t.Bounds), t.Owner, a.left(t.Expires), a.ago(t.LastUsed), from)
			}
			g.hide().render()
			return nil
		},
	}
}

func (a *app) completeTokens(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(func(ctx context.Context, c *client.Client) (found []string, err error) {
		tokens, err := c.Tokens(ctx)
		for _, t := range tokens.Tokens {
			found = append(found, t.Name)
		}
		return found, err
	})
}
