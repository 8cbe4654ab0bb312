package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/levee-xdp/levee/agent/state"
)

// Problem is an error as RFC 9457 has it, with the field and the value that it is about.
type Problem struct {
	Type   string              `json:"type" example:"about:blank"`
	Title  string              `json:"title" doc:"The status in words"`
	Status int                 `json:"status"`
	Detail string              `json:"detail" doc:"What is wrong, and what to do"`
	Code   state.Code          `json:"code" doc:"Of what kind it is"`
	Field  string              `json:"field,omitempty" doc:"Which field it is about"`
	Value  string              `json:"value,omitempty" doc:"The value that was given"`
	Errors []*huma.ErrorDetail `json:"errors,omitempty" doc:"Each thing that is wrong, where there are several"`

	decided bool   // by the backend
	inside  string // what the audit log is told instead of the detail
}

// Error is the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus is for huma.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is for huma.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

func newProblem(status int, code state.Code, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

// problemOf turns an error of the daemon's into an answer. What is not meant for others stays within.
func problemOf(err error) error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*state.Error](err)
	if !ok {
		p := newProblem(http.StatusInternalServerError, "", "this did not work out; the daemon's log says why")
		if errors.Is(err, context.Canceled) { // which whoever went away is not told
			p.Detail = "this was broken off: the daemon is stopping; ask again when it runs"
		}
		p.decided = true
		return p
	}
	p := newProblem(statusOf(e.Code), e.Code, e.Detail)
	p.Field, p.Value, p.decided = e.Field, e.Value, true
	return p
}

// unasked is the answer to what the backend was not asked for, so that nobody else records the refusal.
func unasked(err *state.Error) error {
	p := newProblem(statusOf(err.Code), err.Code, err.Detail)
	p.Field, p.Value = err.Field, err.Value
	return p
}

func statusOf(c state.Code) int {
	switch c {
	case state.CodeInvalid:
		return http.StatusUnprocessableEntity
	case state.CodeRefused, state.CodeProtected, state.CodeForbidden:
		return http.StatusForbidden
	case state.CodeUnauthorized:
		return http.StatusUnauthorized
	case state.CodeLimited:
		return http.StatusTooManyRequests
	case state.CodeBusy:
		return http.StatusServiceUnavailable
	case state.CodeConflict:
		return http.StatusConflict
	case state.CodeNotFound:
		return http.StatusNotFound
	case state.CodeFull, state.CodeStorage:
		return http.StatusInsufficientStorage
	case state.CodeKernel:
		return http.StatusInternalServerError
	default:
		return http.StatusInternalServerError
	}
}

// asProblems turns the errors that huma makes into ours, on their way out.
func asProblems(ctx huma.Context, _ string, v any) (any, error) {
	_, w := humago.Unwrap(ctx)
	if p, ok := v.(*Problem); ok {
		noteProblem(w, p)
		return v, nil
	}
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	code := state.CodeInvalid
	if m.Status >= 500 {
		code = ""
	}
	p := newProblem(m.Status, code, m.Detail)
	noteProblem(w, p)
	p.Errors = m.Errors
	if len(m.Errors) > 0 && m.Errors[0] != nil {
		first := m.Errors[0]
		p.Detail, p.Field = first.Message, first.Location
		switch v := first.Value.(type) {
		case string:
			p.Value = v
		case float64, bool, int:
			p.Value = fmt.Sprint(v)
		}
		if len(p.Value) > 80 {
			p.Value = p.Value[:80] + "…"
		}
		for _, e := range m.Errors {
			if text, ok := e.Value.(string); !ok || len(text) > 80 {
				e.Value = nil // nobody's megabyte is echoed
			}
		}
	}
	if len(p.Errors) == 1 {
		p.Errors = nil
	}
	return p, nil
}

// maxDepth is how deep what is asked for may be nested: nothing that is meant goes beyond.
const maxDepth = 8

// maxTokens bounds the names, values and brackets of a body: ten thousand items that say all there is
// to say. A value costs many times the two bytes that it may have.
const maxTokens = 160_000

// strictJSON reads JSON that says one thing: valid UTF-8, no name twice, no depths, nothing behind.
func strictJSON(data []byte, v any) error {
	if _, ok := v.(*any); ok { // huma reads every body into this first
		if err := checkJSON(data); err != nil {
			return err
		}
	}
	return json.Unmarshal(data, v)
}

func checkJSON(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("the body is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	type level struct {
		names map[string]bool // of an object; nil in an array
		name  bool            // a name comes next
	}
	var stack []level
	for n := 0; ; n++ {
		if n > maxTokens {
			return fmt.Errorf("the body has more than %d names, values and brackets", maxTokens)
		}
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the body is not JSON: %w", err)
		}
		if n := len(stack); n > 0 && stack[n-1].name {
			if name, ok := t.(string); ok {
				// The decoder takes names in any case, so that is how they must differ.
				name = strings.ToLower(strings.ToUpper(name))
				if stack[n-1].names[name] {
					return fmt.Errorf("the name %s stands twice in one object", strconv.Quote(name))
				}
				stack[n-1].names[name], stack[n-1].name = true, false
				continue
			}
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if len(stack) >= maxDepth {
				return fmt.Errorf("the body is nested deeper than %d levels", maxDepth)
			}
			l := level{}
			if t == json.Delim('{') {
				l = level{names: map[string]bool{}, name: true}
			}
			stack = append(stack, l)
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		}
		if n := len(stack); n > 0 && stack[n-1].names != nil {
			stack[n-1].name = true
		}
	}
}
