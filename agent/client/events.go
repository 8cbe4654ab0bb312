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

const (
	// silence is how long a stream may say nothing before it counts as dead. The daemon sends a
	// comment at least each 15 s.
	silence = 45 * time.Second
	// patience is how long a stream that broke is tried to be had again.
	patience   = 5 * time.Minute
	streamWait = 5 * time.Second // the longest pause between two tries
)

// Events follows what happens: decisions, and packets that were sampled. Where the connection
// breaks it connects again and goes on behind the last event; an event of the kind lost tells if
// some were missed. It ends when the context does, or with an error: a refusal, or a daemon that
// can't be reached, or not again for five minutes.
func (c *Client) Events(ctx context.Context, f state.EventFilter) iter.Seq2[state.Event, error] {
	return func(yield func(state.Event, error) bool) {
		s := stream{Client: c, filter: f, last: f.After.String()}
		for try := 0; ; try++ {
			before := s.heard
			more, err := s.follow(ctx, yield)
			if !more || ctx.Err() != nil {
				return
			}
			if s.heard != before {
				try = 0
			}
			if !s.worthwhile(err, try) {
				yield(state.Event{}, err)
				return
			}
			if sleep(ctx, max(s.retry, backoff(try, firstWait, streamWait))) != nil {
				return
			}
		}
	}
}

// stream is what is known of a stream over its connections.
type stream struct {
	*Client
	filter state.EventFilter
	last   string        // event's id
	retry  time.Duration // that the daemon asks for before the next connection
	heard  time.Time     // when something was last received; zero: never
}

// worthwhile tells whether to connect once more after an error.
func (s *stream) worthwhile(err error, try int) bool {
	if s.heard.IsZero() {
		safe, _ := s.again(&request{method: http.MethodGet}, err)
		return safe && try < s.config.Retries
	}
	if time.Since(s.heard) > patience {
		return false
	}
	if e, ok := errors.AsType[*UnreachableError](err); ok {
		return !e.final // also where the socket is not there: the daemon may be starting again
	}
	safe, _ := s.again(&request{method: http.MethodGet}, err)
	return safe
}

// follow makes one connection, and hands its events on. It tells whether more are wanted.
func (s *stream) follow(outer context.Context, yield func(state.Event, error) bool) (more bool, err error) {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	r := request{method: http.MethodGet, path: "/v1/events", query: s.query(), header: http.Header{"Accept": {"text/event-stream"}}}
	if s.last != "" {
		r.header.Set("Last-Event-ID", s.last)
	}
	alive := time.AfterFunc(silence, cancel)
	defer alive.Stop()
	response, err := s.send(ctx, &r)
	if err != nil && ctx.Err() != nil && outer.Err() == nil {
		return true, &UnreachableError{At: s.at, Err: fmt.Errorf("no answer within %s", silence)}
	}
	if err != nil {
		return true, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxMessage)) // the status says enough
		err := problem(response, text)
		if e, ok := errors.AsType[*Error](err); ok {
			s.retry = e.RetryAfter
		}
		return true, err
	}
	d := newDecoder(response.Body, func() {
		alive.Reset(silence)
		s.heard = time.Now()
	})
	defer func() { s.last, s.retry = d.id, d.retry }()
	d.id = s.last
	for {
		m, err := d.next()
		if err != nil {
			return true, &UnreachableError{At: s.at, Err: fmt.Errorf("the stream broke off: %w", err)}
		}
		var e state.Event
		if err := json.Unmarshal(m.data, &e); err != nil {
			yield(state.Event{}, fmt.Errorf("an event can't be read: %s", err.Error()))
			return false, nil
		}
		if !yield(e, nil) {
			return false, nil
		}
	}
}

func (s *stream) query() url.Values {
	q := url.Values{}
	for _, kind := range s.filter.Kinds {
		q.Add("kind", string(kind))
	}
	if s.filter.Within.IsValid() {
		q.Set("within", s.filter.Within.String())
	}
	return q
}
