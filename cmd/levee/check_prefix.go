package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) checkPrefix(ctx context.Context, p netip.Prefix) error {
	c := a.client()
	defer c.Close()
	found, err := c.CheckPrefix(ctx, p)
	if err != nil {
		return err
	}
	return a.checked(found, found.Verdict, func() { a.showPrefixCheck(found) })
}

func (a *app) showPrefixCheck(c state.PrefixCheck) {
	fmt.Fprintf(a.stdout, "%s  %s\n", a.paint(bold, c.Prefix.String()), a.paint(verdictStyles[c.Verdict], clean(strings.ToUpper(string(c.Verdict)))))
	if c.Words != "" {
		a.line("%s", c.Words)
	}
	if c.Interfaces == 0 {
		fmt.Fprintln(a.stdout, a.paint(yellow, "No interface is shielded, so nothing is enforced: levee attach IFACE"))
	}
	for _, part := range []struct {
		heading string
		claims  []state.Claim
	}{{"Bans on it", c.Claims}, {"Bans that contain it", c.Containing}, {"Bans within it", c.Contained}} {
		if len(part.claims) > 0 {
			a.heading(part.heading)
			a.claimGrid(part.claims, true, "  ")
		}
	}
	if c.Total > len(c.Contained) {
		a.line("  %s of %s; levee bans --within %s --limit 0 shows all.", count(len(c.Contained)), count(c.Total), c.Prefix)
	}
	if len(c.Allows) > 0 {
		a.heading("Allowed")
		a.allowGrid(c.Allows, "  ")
	}
}
