package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/levee-xdp/levee/agent/state"
)

// SetLimitOnTrial makes or replaces a limit, which is taken back after a time unless Confirm is called.
func (c *Client) SetLimitOnTrial(ctx context.Context, name string, spec state.LimitSpec, confirm state.Duration) (out state.LimitView, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/limits/"+url.PathEscape(name), onTrial(confirm), spec, &out)
}

// ReloadOnTrial is Reload, but the configuration of before is in force again after a time unless Confirm
// is called.
func (c *Client) ReloadOnTrial(ctx context.Context, confirm state.Duration) (out state.ReloadResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/config/reload", onTrial(confirm), nil, &out)
}

func onTrial(confirm state.Duration) url.Values {
	if confirm == 0 {
		return nil
	}
	return url.Values{"confirm": {confirm.String()}}
}

// Trials returns the changes that are taken back unless they are confirmed.
func (c *Client) Trials(ctx context.Context) (out state.TrialList, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/trials", nil, nil, &out)
}

// Confirm keeps changes that are on trial; all of them if none is named.
func (c *Client) Confirm(ctx context.Context, ids ...string) (out state.ConfirmResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/confirm", nil, state.ConfirmRequest{IDs: ids}, &out)
}
