package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// What the lines of a bulk are.
const (
	PlainLines = "text/plain"           // prefixes; what follows a # or a ; is a comment
	JSONLines  = "application/x-ndjson" // items, as state.BanItem has them
)

// BanBulk asks for many bans, one a line of what is read: PlainLines or JSONLines. Lines that were
// refused say so in the response; the error is about the call. It is made once, and takes as long as
// it takes: the context ends it.
func (c *Client) BanBulk(ctx context.Context, r state.BulkRequest, kind string, lines io.Reader) (out state.BulkResponse, err error) {
	q := url.Values{}
	for name, value := range map[string]string{"origin": string(r.Origin), "reason": r.Reason, "for": r.For} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if !r.Expires.IsZero() {
		q.Set("expires", r.Expires.UTC().Format(time.RFC3339Nano))
	}
	for name, on := range map[string]bool{"monitor": r.Monitor, "force": r.Force, "whole": r.Whole} {
		if on {
			q.Set(name, "true")
		}
	}
	return out, c.once(ctx, &request{method: http.MethodPost, path: "/v1/bans/bulk", query: q, stream: lines, kind: kind}, &out)
}

// AllBans returns every claim of an origin, or with an empty one of all, in no order. It is the way to
// read a million of them. An error ends it; what changes meanwhile may be missing.
func (c *Client) AllBans(ctx context.Context, origin state.Origin) iter.Seq2[state.Claim, error] {
	r := request{method: http.MethodGet, path: "/v1/bans/bulk", query: url.Values{}}
	if origin != "" {
		r.query.Set("origin", string(origin))
	}
	return func(yield func(state.Claim, error) bool) {
		response, err := c.send(ctx, &r)
		if err != nil {
			yield(state.Claim{}, err)
			return
		}
		defer response.Body.Close()
		if response.StatusCode >= 300 {
			text, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer)) // what came of it says enough
			yield(state.Claim{}, problem(response, text))
			return
		}
		lines := json.NewDecoder(response.Body)
		for {
			var claim state.Claim
			err := lines.Decode(&claim)
			switch {
			case errors.Is(err, io.EOF):
				return
			case err != nil:
				yield(claim, c.unreachable(ctx, fmt.Errorf("the answer broke off: %w", err)))
				return
			case !yield(claim, nil):
				return
			}
		}
	}
}
