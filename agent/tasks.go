package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
)

// task is a goroutine of the daemon's.
type task interface {
	fmt.Stringer
	Run(ctx context.Context) error
	Ready() <-chan struct{}
}

// stopTimeout is how long tasks have to end.
const stopTimeout = 8 * time.Second

// run runs tasks until the context ends or one of them fails, and then waits for all, but not
// forever.
func (e *engine) run(ctx context.Context, tasks []task, ready func()) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		group.Go(func() error {
			err := t.Run(ctx)
			switch {
			case err != nil && ctx.Err() == nil:
				e.log.Error("a task failed, the daemon ends; the shield stays up", "task", t.String(), "error", err)
				return fmt.Errorf("%s: %w", t, err)
			case err == nil && ctx.Err() == nil:
				return fmt.Errorf("%s ended", t)
			}
			return err
		})
	}
	group.Go(func() error {
		for _, t := range tasks {
			select {
			case <-t.Ready():
			case <-ctx.Done():
				return nil
			}
		}
		e.ready.Store(true)
		e.log.Info("ready", "health", e.Health().State)
		ready()
		notify(daemon.SdNotifyReady)
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	notify(daemon.SdNotifyStopping)
	e.log.Info("stopping; the shield stays up")
	select {
	case err := <-done:
		return err
	case <-time.After(stopTimeout):
		return errStuck
	}
}

// errStuck says that a task goes on after its context has ended.
var errStuck = errors.New("tasks did not end in time")

func notify(what string) {
	_, _ = daemon.SdNotify(false, what) // nobody may be listening
}

// simple is a task that is ready as soon as it runs.
type simple struct {
	name string
	run  func(context.Context) error
}

func (s *simple) String() string { return s.name }

func (s *simple) Run(ctx context.Context) error { return s.run(ctx) }

func (s *simple) Ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
