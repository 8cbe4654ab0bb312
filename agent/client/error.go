package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// ErrUnreachable says that nobody answered. Errors that are of this kind are an
// *UnreachableError, too.
var ErrUnreachable = errors.New("the daemon can't be reached")

// UnreachableError says where nobody answered, and why.
type UnreachableError struct {
	At  string // the socket's path, or the URL
	Err error

	unsent bool // the daemon has seen nothing of the call
	final  bool // it will not be otherwise in a moment
}

// Error says where, and what to do.
func (e *UnreachableError) Error() string {
	switch {
	case strings.HasPrefix(e.At, "https://"):
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("the daemon can't be reached at %s: this user may not; be root, or in the group that the setting api.group names", e.At)
	case errors.Is(e.Err, fs.ErrNotExist):
		return fmt.Sprintf("the daemon can't be reached at %s: there is no such socket; is levee running? (systemctl status levee)", e.At)
	}
	return fmt.Sprintf("the daemon can't be reached at %s: %v", e.At, e.Err)
}

// untrusted tells whether the peers did not come to trust each other.
func untrusted(err error) bool {
	_, verify := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	return verify || alert || record
}

// Is tells that it is an ErrUnreachable.
func (e *UnreachableError) Is(target error) bool { return target == ErrUnreachable }

// Unwrap returns what went wrong.
func (e *UnreachableError) Unwrap() error { return e.Err }

// Error is a refusal by the daemon: an RFC 9457 problem document.
type Error struct {
	Status int        `json:"status"` // HTTP's
	Title  string     `json:"title"`
	Detail string     `json:"detail"`
	Code   state.Code `json:"code,omitempty"`
	Field  string     `json:"field,omitempty"` // that it is about
	Value  string     `json:"value,omitempty"` // that was given
	Errors []Problem  `json:"errors,omitempty"`

	RetryAfter time.Duration `json:"-"` // what the daemon asks for before the next call; 0: nothing
}

// Problem is one of several things that are wrong with a request.
type Problem struct {
	Message  string `json:"message"`
	Location string `json:"location"`
	Value    any    `json:"value,omitempty"`
}

// Error names the field and the value where there is one, then says what is wrong.
func (e *Error) Error() string {
	text := e.Detail
	if text == "" {
		text = e.Title
	}
	if text == "" {
		text = "the daemon answered with status " + strconv.Itoa(e.Status)
	}
	var b strings.Builder
	if e.Field != "" && !strings.HasPrefix(text, e.Field) {
		b.WriteString(e.Field)
		if e.Value != "" {
			b.WriteByte(' ')
			b.WriteString(strconv.Quote(e.Value))
		}
		b.WriteString(": ")
	}
	b.WriteString(text)
	for _, p := range e.Errors {
		if p.Message == "" || p.Message == e.Detail {
			continue
		}
		b.WriteString("; ")
		if p.Location != "" {
			b.WriteString(strings.TrimPrefix(p.Location, "body."))
			b.WriteString(": ")
		}
		b.WriteString(p.Message)
	}
	return b.String()
}
