package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent"
	"github.com/levee-xdp/levee/agent/state"
)

// environment is everything that the commands know of the world outside of the process.
type environment struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	stdinTTY  bool
	stdoutTTY bool
	stderrTTY bool
	width     func() int // of the terminal that is stdout, in columns; 0: there is none

	getenv func(string) string
	now    func() time.Time
	wait   func(context.Context, time.Duration) error

	// interruptible ends the context on SIGINT and SIGTERM, for commands that have something to end
	// in good order. The others are ended by the signals themselves.
	interruptible func(context.Context) (context.Context, context.CancelFunc)

	daemon  func(context.Context, agent.Options) error // what `levee run` runs
	offline offline                                    // what works without a daemon
}

// offline looks at the host, and changes what is pinned in the kernel, without asking a daemon.
type offline struct {
	setPanic func(root string, on bool) error
	detach   func(root, name string) error
	remove   func(root string) (done []string, err error)

	interfaces func() ([]string, error) // that are up
	examine    func(root string, interfaces []string) (kernel string, findings []state.Finding)
}

// system is the environment of a process.
func system() *environment {
	return &environment{
		stdin:     os.Stdin,
		stdout:    os.Stdout,
		stderr:    os.Stderr,
		stdinTTY:  isTTY(os.Stdin),
		stdoutTTY: isTTY(os.Stdout),
		stderrTTY: isTTY(os.Stderr),
		width:     func() int { return columns(os.Stdout) },
		getenv:    os.Getenv,
		now:       time.Now,
		wait:      wait,
		interruptible: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		},
		daemon:  agent.Run,
		offline: pinned(),
	}
}

func isTTY(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func columns(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// wait sleeps, unless the context ends first.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
