package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	maxAnswer = 256 << 20              // bounds what is read of an answer
	firstWait = 100 * time.Millisecond // before a call is made again; doubled each time
	maxWait   = 10 * time.Second       // that a daemon may ask for
)

// request is a call, as often as it is made.
type request struct {
	method, path string
	query        url.Values
	body         []byte
	stream       io.Reader // instead of body: sent as it is read, so the call can't be made again
	kind         string    // of the stream
	key          string    // of idempotency
	header       http.Header
}

// call sends a request and reads its answer. Returns an *UnreachableError if nobody answered, and
// an *Error if the answer is a refusal.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	r := request{method: method, path: path, query: query}
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		r.body = text
	}
	if method == http.MethodPost {
		r.key = rand.Text()
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	var unsure bool // whether a call that failed was done after all
	for try := 0; ; try++ {
		err := c.once(ctx, &r, out)
		if gone, ok := errors.AsType[*Error](err); ok && unsure && method == http.MethodDelete && gone.Status == http.StatusNotFound {
			return nil // the call before had done it
		}
		safe, pause := c.again(&r, err)
		if !safe || try >= c.config.Retries {
			return err
		}
		if e, ok := errors.AsType[*UnreachableError](err); ok && !e.unsent {
			unsure = true
		}
		if pause == 0 {
			pause = backoff(try, firstWait, maxWait)
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause || sleep(ctx, pause) != nil {
			return err
		}
	}
}

// again tells whether a call that failed may be made once more, and how long the daemon wants it to
// wait; 0 if it does not say.
func (c *Client) again(r *request, err error) (bool, time.Duration) {
	if e, ok := errors.AsType[*UnreachableError](err); ok {
		switch {
		case e.final, errors.Is(e.Err, fs.ErrNotExist), errors.Is(e.Err, fs.ErrPermission):
			return false, 0 // it will not be otherwise in a moment
		case e.unsent:
			return true, 0
		}
		return r.repeatable(), 0
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false, 0
	}
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable: // it was not taken up
		return e.RetryAfter <= maxWait && r.path != "/readyz", e.RetryAfter
	case http.StatusConflict: // the call before, whose answer was lost, is still under way
		return e.Field == "Idempotency-Key", e.RetryAfter
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return r.repeatable(), 0
	}
	return false, 0
}

// repeatable tells whether doing it twice does what doing it once does.
func (r *request) repeatable() bool {
	switch r.method {
	case http.MethodGet, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.key != ""
}

// backoff is how long to wait after a number of tries: doubled each time, and half of it by chance,
// so that those who lost one daemon do not all come back at once.
func backoff(try int, first, most time.Duration) time.Duration {
	d := most
	if try < bits.LeadingZeros64(uint64(first))-1 {
		d = min(first<<try, most)
	}
	return d/2 + mathrand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// once makes a call one time.
func (c *Client) once(ctx context.Context, r *request, out any) error {
	response, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return c.unreachable(ctx, fmt.Errorf("the answer broke off: %w", err))
	}
	if response.StatusCode >= 300 {
		return problem(response, text)
	}
	if out == nil || len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		// Not wrapped: that a value of the daemon's makes no sense is no error of who asked.
		return fmt.Errorf("%s %s: the answer can't be read: %s", r.method, r.path, err.Error())
	}
	return nil
}

// send sends a request; the answer's body is the caller's to close.
func (c *Client) send(ctx context.Context, r *request) (*http.Response, error) {
	if c.err != nil {
		return nil, c.err
	}
	token, err := c.config.token()
	if err != nil {
		return nil, err
	}
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	} else {
		body = r.stream
	}
	request, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.method, r.path, err)
	}
	request.Header.Set("Accept", "application/json")
	for name, values := range r.header {
		request.Header[name] = values
	}
	if r.body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if r.stream != nil {
		request.Header.Set("Content-Type", r.kind)
	}
	if r.key != "" {
		request.Header.Set("Idempotency-Key", r.key)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	request.Header.Set("User-Agent", c.config.Agent)
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	return response, nil
}

// unreachable says what kept a call from being answered.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*UnreachableError](err); ok {
		return e
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Canceled
	case ctx.Err() != nil:
		return &UnreachableError{At: c.at, Err: fmt.Errorf("no answer within %s", c.config.Timeout), final: true}
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return &UnreachableError{At: c.at, Err: err, final: untrusted(err)}
}

// problem reads a problem document; an answer that is none is told by its status.
func problem(response *http.Response, text []byte) error {
	e := &Error{}
	if json.Unmarshal(text, e) != nil || e.Title == "" && e.Detail == "" {
		*e = Error{Title: http.StatusText(response.StatusCode)}
	}
	e.Status, e.RetryAfter = response.StatusCode, retryAfter(response.Header.Get("Retry-After"))
	return e
}

// retryAfter reads the header's seconds or its date; 0 if there are none.
func retryAfter(s string) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}
