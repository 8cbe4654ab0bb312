package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/levee-xdp/levee/agent/state"
)

const (
	heartbeat   = 15 * time.Second // the longest that a stream says nothing
	streamWrite = 10 * time.Second // that a reader may take to accept what is written
	streamRetry = 1000             // ms, before a reader connects again
)

// EventReader follows what happens.
type EventReader interface {
	// Next waits for events, until it is told to wait no longer or the context ends.
	Next(ctx context.Context, wait <-chan time.Time) ([]state.Event, error)
	// At is the place that it has come to.
	At() state.EventID
	Close()
}

// eventsInput is what a reader of events says.
type eventsInput struct {
	Kind   []state.EventKind `query:"kind,explode" enum:"decision,drop" maxItems:"8" doc:"Only events of this kind; may be given twice"`
	Within string            `query:"within" maxLength:"80" doc:"Only what is about this prefix, or a part of it"`
	Last   string            `header:"Last-Event-ID" maxLength:"80" doc:"The last event that you had: those behind it follow, as far as they are kept"`
}

func (in *eventsInput) filter() (f state.EventFilter, err error) {
	f.Kinds = in.Kind
	if in.Within != "" {
		var p netip.Prefix
		if p, err = state.ParsePrefix(in.Within); err != nil {
			return f, state.AsError(err, state.CodeInvalid).In("within")
		}
		f.Within = p
	}
	if in.Last != "" {
		if f.After, err = state.ParseEventID(in.Last); err != nil {
			return f, &state.Error{Code: state.CodeInvalid, Field: "Last-Event-ID", Value: in.Last, Detail: "is no event's id; leave it out to begin now"}
		}
	}
	return f, nil
}

func (b backend) events(api huma.API) {
	op := operation(state.ScopeRead, http.MethodGet, "/v1/events", "events", "Follow what happens: decisions, and packets that were sampled")
	op.Description = "Server-sent events, as the HTML standard has them. Each carries its id, its kind as the event's name, and a JSON document. " +
		"A reader that comes back with Last-Event-ID goes on behind it; an event `lost` tells if some were missed. A reader that does not take what is written within 10 s is cut off."
	schema := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[state.Event](), true, "Event")
	op.Responses = map[string]*huma.Response{"200": {Description: "A stream that does not end; each message's data is an Event",
		Content: map[string]*huma.MediaType{"text/event-stream": {Schema: schema}}}}
	huma.Register(api, op, func(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
		f, err := in.filter()
		if err != nil {
			return nil, problemOf(err)
		}
		reader, err := b.Events(actorOf(ctx), f)
		if err != nil {
			return nil, problemOf(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) { //nolint:contextcheck // it is the context of the same request
			defer reader.Close()
			_, w := humago.Unwrap(c)
			// A reader that has gone, or is too slow, needs no answer.
			_ = stream(c.Context(), w, reader)
		}}, nil
	})
}

// stream writes events until the reader or the daemon ends.
func stream(ctx context.Context, w http.ResponseWriter, reader EventReader) error {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	var b bytes.Buffer
	// So that a connection that breaks before anything happened is continued from here.
	fmt.Fprintf(&b, "retry: %d\nid: %s\n\n", streamRetry, reader.At())
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		if err := write(control, w, b.Bytes()); err != nil {
			return err
		}
		b.Reset()
		events, err := reader.Next(ctx, beat.C)
		if err != nil {
			return err
		}
		for i := range events {
			if err := message(&b, &events[i]); err != nil {
				return err
			}
		}
		if len(events) == 0 {
			fmt.Fprintf(&b, ": still here\nid: %s\n\n", reader.At())
		}
	}
}

func write(control *http.ResponseController, w io.Writer, text []byte) error {
	if err := control.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	return control.Flush()
}

// message writes an event. JSON has no line ends in it, so its data is one line.
func message(b *bytes.Buffer, e *state.Event) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "id: %s\nevent: %s\ndata: %s\n\n", e.ID, e.Kind, text)
	return nil
}
