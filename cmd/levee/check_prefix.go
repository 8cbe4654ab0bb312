package main

import (
	"context"
	"net/netip"

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
	a.verdict(c.Prefix, c.Verdict, c.Words, c.Interfaces)
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
