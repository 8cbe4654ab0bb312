package client

import (
	"context"
	"iter"

	"github.com/levee-xdp/levee/agent/state"
)

// BanPages returns every page of the claims that a filter names, the newest first; the filter's
// Limit is the most claims a page has. An error ends it. What changes meanwhile may be missing, and
// nothing comes twice unless it is made anew.
func (c *Client) BanPages(ctx context.Context, f state.Filter) iter.Seq2[state.BanPage, error] {
	return func(yield func(state.BanPage, error) bool) {
		for {
			page, err := c.Bans(ctx, f)
			if !yield(page, err) || err != nil || page.Next == "" || page.Next == f.After {
				return
			}
			f.After = page.Next
		}
	}
}

// Claims returns every claim that a filter names, the newest first, and asks for them in pages of
// the filter's Limit. An error ends it.
func (c *Client) Claims(ctx context.Context, f state.Filter) iter.Seq2[state.Claim, error] {
	return func(yield func(state.Claim, error) bool) {
		for page, err := range c.BanPages(ctx, f) {
			if err != nil {
				yield(state.Claim{}, err)
				return
			}
			for _, claim := range page.Bans {
				if !yield(claim, nil) {
					return
				}
			}
		}
	}
}
