package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/levee-xdp/levee/agent/state"
)

// A bulk is many bans in one request, a line each. It is read as it comes and decided on part by part,
// so its size costs no memory; what a line may cost is bounded.
const (
	maxBulk     = 1 << 30
	maxBulkLine = 4 << 10
	bulkLines   = 4096
	// This is how long the next 4096 lines may take to come, or to be taken. Those that ask for nothing do
	// not count: who sends but empty lines is not waited for.
	bulkPatience = 30 * time.Second
	// And this is how long a bulk may take in all.
	bulkTime = 10 * time.Minute
)

const (
	bulkPath   = "/v1/bans/bulk"
	plainLines = "text/plain"
	jsonLines  = "application/x-ndjson"
)

// bulkInput is a bulk's request. The fields are exported for huma.
type bulkInput struct {
	ContentType string       `header:"Content-Type"`
	Origin      state.Origin `query:"origin" maxLength:"80" doc:"Who speaks; by default api"`
	Reason      string       `query:"reason" maxLength:"256"`
	For         string       `query:"for" maxLength:"40" doc:"How long; absent, and without expires: until it is taken back" example:"4h"`
	Expires     time.Time    `query:"expires" doc:"Until when, instead of for"`
	Monitor     bool         `query:"monitor" doc:"Count what would be dropped, and pass it"`
	Force       bool         `query:"force" doc:"Also prefixes wider than /8 (IPv4) or /19 (IPv6)"`
	Whole       bool         `query:"whole" doc:"All lines or none: if one is refused, nothing is changed"`

	ctx huma.Context
}

// Resolve is for huma: the body is read as it comes, and not before the call.
func (i *bulkInput) Resolve(ctx huma.Context) []error {
	i.ctx = ctx
	return nil
}

func (b backend) bulk(api huma.API) {
	op := operation(state.ScopeBan, http.MethodPost, bulkPath, "ban-bulk", "Ban many prefixes, one a line; 207 if any was refused")
	op.Description = "As text/plain, a line is a prefix; what follows a # or a ; is a comment, and empty lines are skipped. " +
		"As application/x-ndjson, a line is an item as POST /v1/bans takes it; what it does not say, the query says. " +
		"Lines are decided on part by part, in their order: if the request breaks off, what came before it stands, unless whole is set."
	text := &huma.Schema{Type: huma.TypeString}
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		plainLines: {Schema: text, Example: "203.0.113.7\n198.51.100.0/24 # a comment\n"},
		jsonLines:  {Schema: text, Example: `{"prefix":"203.0.113.7","for":"4h"}` + "\n"},
	}}
	op.MaxBodyBytes, op.BodyReadTimeout = maxBulk, -1
	huma.Register(api, op, func(ctx context.Context, in *bulkInput) (*answers[state.BulkResponse], error) {
		read, err := in.lines()
		if err != nil {
			return nil, err
		}
		if in.Whole {
			free, ok := takePlace(ctx, whole)
			if !ok {
				return nil, busy("there are too many bulks under way that are taken whole or not at all")
			}
			defer free()
		}
		r, failed := b.BanBulk(actorOf(ctx), state.BulkRequest{Origin: in.Origin, Reason: in.Reason, For: in.For,
			Expires: in.Expires, Monitor: in.Monitor, Force: in.Force, Whole: in.Whole}, read)
		return replyEach(r, r.Refused, failed)
	})

	op = heavy(operation(state.ScopeRead, http.MethodGet, bulkPath, "bans-bulk", "Every claim, one a line, in no order"), dump)
	op.Description = "A line of application/x-ndjson is a claim as GET /v1/bans lists it. Claims that are made or end meanwhile may be among them or not."
	op.Responses = map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{jsonLines: {Schema: text}}}}
	huma.Register(api, op, func(_ context.Context, in *struct {
		Origin state.Origin `query:"origin" maxLength:"80"`
	}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			ctx.SetHeader("Content-Type", jsonLines)
			b.writeBulk(ctx, in.Origin)
		}}, nil
	})
}

// lines returns what reads the body's lines.
func (i *bulkInput) lines() (state.BulkLines, error) {
	kind, _, err := mime.ParseMediaType(i.ContentType)
	parse := plainLine
	switch {
	case err == nil && kind == plainLines:
	case err == nil && kind == jsonLines:
		parse = jsonLine
	default:
		p := newProblem(http.StatusUnsupportedMediaType, state.CodeInvalid, fmt.Sprintf("is neither %s nor %s", plainLines, jsonLines))
		p.Field, p.Value = "Content-Type", i.ContentType
		return nil, p
	}
	_, w := humago.Unwrap(i.ctx)
	extend := deadlines(w)
	body := http.MaxBytesReader(w, io.NopCloser(i.ctx.BodyReader()), maxBulk)
	return func(yield func(state.BulkLine) bool) error {
		return eachLine(body, extend, parse, yield)
	}, nil
}

// deadlines returns what gives a connection more time, for as long as it is used.
func deadlines(w http.ResponseWriter) func() {
	c := http.NewResponseController(w)
	last := time.Now().Add(bulkTime)
	return func() {
		if time.Now().After(last) {
			return
		}
		// A writer that has no deadlines, as in tests, needs none.
		_ = c.SetReadDeadline(time.Now().Add(bulkPatience))
		_ = c.SetWriteDeadline(time.Now().Add(2 * bulkPatience))
	}
}

// eachLine hands over the lines that ask for something.
func eachLine(body io.Reader, extend func(), parse func([]byte) (state.BanItem, *state.Error), yield func(state.BulkLine) bool) error {
	in := bufio.NewReaderSize(body, 64<<10)
	extend()
	asked := 0
	for number := 1; ; number++ {
		line, tooLong, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return brokenOff(number, err)
		}
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		l := state.BulkLine{Number: number}
		if tooLong {
			l.Err = &state.Error{Code: state.CodeInvalid, Detail: fmt.Sprintf("the line is longer than %d bytes", maxBulkLine)}
		} else if line = bytes.TrimSpace(line); len(line) > 0 {
			l.Item, l.Err = parse(line)
		}
		asks := l.Err != nil || l.Item != (state.BanItem{})
		if asks {
			if asked++; asked%bulkLines == 0 {
				extend()
			}
		}
		if last := err != nil; asks && !yield(l) || last {
			return nil //nolint:nilerr // it is the end of the body
		}
	}
}

// readLine reads a line without its end. Of one that is too long nothing is kept.
func readLine(in *bufio.Reader) (line []byte, tooLong bool, err error) {
	line, err = in.ReadSlice('\n')
	for errors.Is(err, bufio.ErrBufferFull) {
		tooLong = true
		_, err = in.ReadSlice('\n')
	}
	return line, tooLong || len(line) > maxBulkLine, err
}

func brokenOff(line int, err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &state.Error{Code: state.CodeInvalid, Field: "body", Detail: fmt.Sprintf("is longer than %d bytes", maxBulk)}
	}
	return &state.Error{Code: state.CodeInvalid, Field: "body", Detail: fmt.Sprintf("broke off in line %d: %v", line, err)}
}

// plainLine reads a prefix; of a comment nothing comes.
func plainLine(line []byte) (item state.BanItem, err *state.Error) {
	for _, begins := range []byte("#;") {
		if i := bytes.IndexByte(line, begins); i >= 0 {
			line = bytes.TrimSpace(line[:i])
		}
	}
	item.Prefix = string(line)
	if before, after, two := strings.Cut(item.Prefix, " "); two {
		return item, &state.Error{Code: state.CodeInvalid, Field: "prefix", Value: before,
			Detail: fmt.Sprintf("is followed by %q; write one prefix a line, and a # before comments", strings.TrimSpace(after))}
	}
	return item, nil
}

func jsonLine(line []byte) (item state.BanItem, err *state.Error) {
	if item, ok := simpleItem(line); ok {
		return item, nil
	}
	if failed := checkJSON(line); failed != nil { // as of every other body: a name twice says two things
		return item, &state.Error{Code: state.CodeInvalid, Detail: "the line is not an item: " + strings.ReplaceAll(failed.Error(), "the body", "it")}
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if failed := d.Decode(&item); failed != nil {
		return item, &state.Error{Code: state.CodeInvalid, Detail: "the line is not an item: " + failed.Error()}
	}
	if item == (state.BanItem{}) {
		return item, &state.Error{Code: state.CodeInvalid, Field: "prefix", Detail: "is missing"}
	}
	if d.More() {
		return item, &state.Error{Code: state.CodeInvalid, Detail: "more than one item stands on the line"}
	}
	return item, nil
}

// writeBulk writes every claim. A peer that has gone ends it.
func (b backend) writeBulk(ctx huma.Context, origin state.Origin) {
	_, w := humago.Unwrap(ctx)
	extend := deadlines(w)
	out := bufio.NewWriterSize(ctx.BodyWriter(), 64<<10)
	lines := json.NewEncoder(out)
	n := 0
	for claim := range b.AllBans(origin) {
		if n++; n%bulkLines == 1 {
			extend()
		}
		if err := lines.Encode(&claim); err != nil {
			return
		}
	}
	_ = out.Flush() // see above
}
