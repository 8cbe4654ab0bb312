package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Socket is where the daemon listens if nobody says otherwise.
const Socket = "/run/levee/levee.sock"

// maxAnswer bounds what is read of an answer.
const maxAnswer = 256 << 20

// Config says whom to speak to.
type Config struct {
	Socket  string        // Socket if empty
	Timeout time.Duration // of a call, beside what it samples; 30 s if 0
	Agent   string        // the User-Agent
}

// Client speaks to one daemon. It is safe for concurrent use.
type Client struct {
	config Config
	http   *http.Client
}

// New returns a client. It does not connect yet.
func New(c Config) *Client {
	if c.Socket == "" {
		c.Socket = Socket
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Agent == "" {
		c.Agent = "levee-client"
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, "unix", c.Socket)
			if err != nil {
				return nil, &UnreachableError{Socket: c.Socket, Err: cause(err)}
			}
			return conn, nil
		},
		DisableCompression: true,
		MaxIdleConns:       2,
		IdleConnTimeout:    30 * time.Second,
	}
	return &Client{config: c, http: &http.Client{Transport: transport}}
}

// cause leaves away the "dial unix /path" that the error's text says again.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
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

// Bans returns a page of claims, the newest first.
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

// call sends a request and reads its answer. Returns an *UnreachableError if nobody answered, and
// an *Error if the answer is a refusal.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	target := "http://levee" + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", c.config.Agent)
	response, err := c.http.Do(request)
	if err != nil {
		if e, ok := errors.AsType[*UnreachableError](err); ok {
			return e
		}
		if errors.Is(err, context.Canceled) {
			return context.Canceled
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return &UnreachableError{Socket: c.config.Socket, Err: fmt.Errorf("no answer within %s", c.config.Timeout)}
		}
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return &UnreachableError{Socket: c.config.Socket, Err: err}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: the answer broke off: %w", method, path, err)
	}
	if response.StatusCode >= 300 {
		return problem(response, text)
	}
	if out == nil || len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		// Not wrapped: that a value of the daemon's makes no sense is no error of who asked.
		return fmt.Errorf("%s %s: the answer can't be read: %s", method, path, err.Error())
	}
	return nil
}

// problem reads a problem document; an answer that is none is told by its status.
func problem(response *http.Response, text []byte) error {
	e := &Error{}
	if json.Unmarshal(text, e) != nil || e.Title == "" && e.Detail == "" {
		*e = Error{Title: http.StatusText(response.StatusCode)}
	}
	e.Status = response.StatusCode
	return e
}
