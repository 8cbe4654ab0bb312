package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

// What the process exits with.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2 // an argument or a value is wrong; nothing was changed
	exitUnreachable = 3
	exitRefused     = 4 // for safety
	exitPartly      = 5
	exitNotFound    = 6
)

// usageError is about what was typed.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// codeError is an error that says itself what to exit with. Without an error it has been told
// already, or is an answer.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *codeError) Unwrap() error { return e.err }

// exitCode says what an error means for whoever called the process.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	if e, ok := errors.AsType[*codeError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*config.Error](err); ok {
		return exitUsage
	}
	if errors.Is(err, client.ErrUnreachable) {
		return exitUnreachable
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return ofAnswer(e)
	}
	if e, ok := errors.AsType[*state.Error](err); ok {
		return ofCode(e.Code)
	}
	if errors.Is(err, context.Canceled) {
		return exitFailed
	}
	return exitFailed
}

// ofAnswer goes by the daemon's code, and by HTTP's status where there is none.
func ofAnswer(e *client.Error) int {
	if e.Code != "" {
		return ofCode(e.Code)
	}
	switch e.Status {
	case 400, 413, 422:
		return exitUsage
	case 403:
		return exitRefused
	case 404:
		return exitNotFound
	}
	return exitFailed
}

func ofCode(c state.Code) int {
	switch c {
	case state.CodeInvalid:
		return exitUsage
	case state.CodeRefused, state.CodeProtected, state.CodeForbidden:
		return exitRefused
	case state.CodeNotFound:
		return exitNotFound
	case state.CodeConflict, state.CodeFull, state.CodeUnauthorized, state.CodeLimited, state.CodeBusy, state.CodeStorage, state.CodeKernel:
		return exitFailed
	}
	return exitFailed
}

// ofBatch says what came of several things that were asked for together. All that failed have been
// told already.
func ofBatch(done int, failed []*state.Error) error {
	if len(failed) == 0 {
		return nil
	}
	if done > 0 {
		return &codeError{code: exitPartly}
	}
	code := ofCode(failed[0].Code)
	for _, e := range failed {
		if ofCode(e.Code) != code {
			return &codeError{code: exitFailed}
		}
	}
	return &codeError{code: code}
}
