package client

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Client speaks to one daemon. It is safe for concurrent use.
type Client struct {
	config Config
	base   string // of every URL
	at     string // where the daemon is, for people
	http   *http.Client
	err    error // what is wrong with the Config
}

// New returns a client. It does not connect yet, and never fails: what is wrong with the Config is
// what every call returns.
func New(c Config) *Client {
	if c.Socket == "" && c.URL == "" {
		c.Socket = Socket
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Retries == 0 {
		c.Retries = 2
	}
	if c.Agent == "" {
		c.Agent = "levee-client"
	}
	out := &Client{config: c, base: "http://levee", at: c.Socket}
	transport := &http.Transport{
		DisableCompression:    true,
		MaxIdleConns:          idleConns,
		MaxIdleConnsPerHost:   idleConns,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: 0, // the call's context bounds it
	}
	if c.URL == "" {
		transport.DialContext = out.dialUnix
		out.err = c.onlyUnix()
	} else {
		out.base, out.at = strings.TrimSuffix(c.URL, "/"), c.URL
		transport.DialContext = out.dialTCP
		transport.TLSClientConfig, out.err = c.tls()
	}
	out.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a token goes nowhere else
	}}
	return out
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Ban asks for bans. Those that were refused say so in the response; the error is about the call.
func (c *Client) Ban(ctx context.Context, r state.BanRequest) (out state.BanResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/bans", nil, r, &out)
}

// Unban takes claims back.
func (c *Client) Unban(ctx context.Context, r state.UnbanRequest) (out state.BanResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/unban", nil, r, &out)
}

// Bans returns a page of claims, the newest first. BanPages and Claims return them all.
func (c *Client) Bans(ctx context.Context, f state.Filter) (out state.BanPage, err error) {
	q := url.Values{}
	if f.Origin != "" {
		q.Set("origin", string(f.Origin))
	}
	if f.Within.IsValid() {
		q.Set("within", f.Within.String())
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	if f.After != "" {
		q.Set("after", f.After)
	}
	return out, c.call(ctx, http.MethodGet, "/v1/bans", q, nil, &out)
}

// Check returns everything that concerns an address.
func (c *Client) Check(ctx context.Context, addr netip.Addr) (out state.Check, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/check/"+addr.String(), nil, nil, &out)
}

// CheckPrefix returns everything that concerns a prefix.
func (c *Client) CheckPrefix(ctx context.Context, p netip.Prefix) (out state.PrefixCheck, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/check", url.Values{"prefix": {p.String()}}, nil, &out)
}

// Allow makes allow entries.
func (c *Client) Allow(ctx context.Context, r state.AllowRequest) (out state.AllowResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/allow", nil, r, &out)
}

// Unallow takes allow entries back.
func (c *Client) Unallow(ctx context.Context, r state.UnallowRequest) (out state.AllowResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/unallow", nil, r, &out)
}

// Allows returns every allow entry.
func (c *Client) Allows(ctx context.Context) (out state.AllowList, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/allow", nil, nil, &out)
}

// Limits returns every limit that is in force.
func (c *Client) Limits(ctx context.Context) (out state.LimitList, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/limits", nil, nil, &out)
}

// Limit returns one limit, and whom it drops most.
func (c *Client) Limit(ctx context.Context, name string) (out state.LimitView, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/limits/"+url.PathEscape(name), nil, nil, &out)
}

// SetLimit makes or replaces a limit.
func (c *Client) SetLimit(ctx context.Context, name string, spec state.LimitSpec) (out state.LimitView, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/limits/"+url.PathEscape(name), nil, spec, &out)
}

// RemoveLimit takes a limit back that was set at run time.
func (c *Client) RemoveLimit(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/limits/"+url.PathEscape(name), nil, nil, nil)
}

// Interfaces returns every interface that is shielded, or that is to be.
func (c *Client) Interfaces(ctx context.Context) (out state.InterfaceList, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/interfaces", nil, nil, &out)
}

// Attach shields an interface.
func (c *Client) Attach(ctx context.Context, r state.AttachRequest) (out state.InterfaceView, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/interfaces", nil, r, &out)
}

// Detach takes the shield off an interface.
func (c *Client) Detach(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/interfaces/"+url.PathEscape(name), nil, nil, nil)
}

// Status returns what is being dropped and why, with rates if it may take a while to sample them.
func (c *Client) Status(ctx context.Context, sample time.Duration) (out state.Overview, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/status", sampled(nil, sample), nil, &out)
}

// Sources returns the first n sources in an order, with rates if it may take a while to sample them.
func (c *Client) Sources(ctx context.Context, by state.Order, n int, sample time.Duration) (out state.SourceList, err error) {
	q := url.Values{"by": {string(by)}, "n": {strconv.Itoa(n)}}
	return out, c.call(ctx, http.MethodGet, "/v1/sources", sampled(q, sample), nil, &out)
}

// Stats returns every counter.
func (c *Client) Stats(ctx context.Context) (out state.Stats, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/stats", nil, nil, &out)
}

// Panic tells whether the panic switch is on.
func (c *Client) Panic(ctx context.Context) (out state.PanicSwitch, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/panic", nil, nil, &out)
}

// SetPanic throws the panic switch: while it is on, every packet passes.
func (c *Client) SetPanic(ctx context.Context, on bool) (out state.PanicSwitch, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/panic", nil, state.PanicSwitch{On: on}, &out)
}

// Reload has the daemon read its configuration file again: all of it is in force then, or nothing
// has changed.
func (c *Client) Reload(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/config/reload", nil, nil, nil)
}

// Settings returns every setting as it is in force, and where its value comes from.
func (c *Client) Settings(ctx context.Context) (out state.Effective, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/config", nil, nil, &out)
}

// Health says whether the daemon is all right, and what to do if not.
func (c *Client) Health(ctx context.Context) (out state.Health, err error) {
	return out, c.call(ctx, http.MethodGet, "/healthz", nil, nil, &out)
}

func sampled(q url.Values, sample time.Duration) url.Values {
	if sample <= 0 {
		return q
	}
	if q == nil {
		q = url.Values{}
	}
	q.Set("sample", state.Duration(sample).String())
	return q
}

// Tokens returns every token, without its secret.
func (c *Client) Tokens(ctx context.Context) (out state.TokenList, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/tokens", nil, nil, &out)
}

// AddToken makes a token. Its text is told this once.
func (c *Client) AddToken(ctx context.Context, r state.TokenRequest) (out state.TokenSecret, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/tokens", nil, r, &out)
}

// RotateToken gives a token a new secret; the old one works for a while.
func (c *Client) RotateToken(ctx context.Context, name string, r state.TokenRotation) (out state.TokenSecret, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/tokens/"+url.PathEscape(name)+"/rotate", nil, r, &out)
}

// RemoveToken revokes a token. What it banned stands.
func (c *Client) RemoveToken(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(name), nil, nil, nil)
}
