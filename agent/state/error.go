package state

import (
	"errors"
	"fmt"
	"strconv"
)

// Code says of what kind a refusal is; commands turn it into an exit code, the API into a status.
type Code string

// The codes.
const (
	CodeInvalid      Code = "invalid"      // the value is no such thing, or out of its range
	CodeRefused      Code = "refused"      // understood, and refused for safety
	CodeProtected    Code = "protected"    // refused, since it would touch a protected address
	CodeForbidden    Code = "forbidden"    // understood, and not for this caller to ask
	CodeUnauthorized Code = "unauthorized" // nobody knows who asks
	CodeLimited      Code = "limited"      // too much, or too often; later it may work
	CodeBusy         Code = "busy"         // too much of its kind at once; in a moment it may work
	CodeConflict     Code = "conflict"     // it contradicts something that is there
	CodeNotFound     Code = "not_found"    // there is no such thing
	CodeFull         Code = "full"         // no room: a size that is a setting is used up
	CodeStorage      Code = "storage"      // the disk did not take it
	CodeKernel       Code = "kernel"       // the kernel did not take it
)

// Error says what was wrong with which value, and where it can, what to do.
type Error struct {
	Code   Code   `json:"code" enum:"invalid,refused,protected,forbidden,unauthorized,limited,busy,conflict,not_found,full,storage,kernel" doc:"Of what kind the refusal is"`
	Field  string `json:"field,omitempty" doc:"The field it is about"`
	Value  string `json:"value,omitempty" doc:"The value that was given"`
	Detail string `json:"detail" doc:"What is wrong with it, and what to do"`
}

// Error names the field and the value, then says what is wrong.
func (e *Error) Error() string {
	switch {
	case e.Field != "" && e.Value != "":
		return fmt.Sprintf("%s %s: %s", e.Field, strconv.Quote(e.Value), e.Detail)
	case e.Field != "":
		return e.Field + ": " + e.Detail
	}
	return e.Detail
}

// In returns the error with a field in front of its own: an error of "rate" in "limits.web" is one
// of "limits.web.rate".
func (e *Error) In(field string) *Error {
	c := *e
	switch {
	case field == "":
	case c.Field == "":
		c.Field = field
	case c.Field[0] == '[':
		c.Field = field + c.Field
	default:
		c.Field = field + "." + c.Field
	}
	return &c
}

func invalid(field, value, format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Field: field, Value: clip(value), Detail: fmt.Sprintf(format, args...)}
}

// AsError returns the Error within err, or wraps err as one that the code describes.
func AsError(err error, code Code) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: code, Detail: err.Error()}
}

// IsNotFound tells whether an error says that there is no such thing.
func IsNotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == CodeNotFound
}

// clip bounds a value that is echoed back: nobody's megabyte goes into a log line.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
