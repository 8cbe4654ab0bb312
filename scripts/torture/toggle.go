package main

import (
	"context"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// toggle is a setting that is made and taken back, over and over.
type toggle struct {
	name     string
	believed belief // banned: it is on
	on, off  func(context.Context) error
	is       func(context.Context) (bool, error)
}

func toggles(c *client.Client) []*toggle {
	const allowed, limit = "192.0.2.77", "torture"
	batch := func(refused int, err error) error {
		if err == nil && refused > 0 {
			err = &client.Error{Detail: "refused"}
		}
		return err
	}
	return []*toggle{
		{
			name: "the allow entry " + allowed,
			on: func(ctx context.Context) error {
				r, err := c.Allow(ctx, state.AllowRequest{Allow: []state.AllowItem{{Prefix: allowed}}})
				return batch(r.Refused, err)
			},
			off: func(ctx context.Context) error {
				r, err := c.Unallow(ctx, state.UnallowRequest{Prefixes: []string{allowed}})
				return batch(r.Refused, err)
			},
			is: func(ctx context.Context) (bool, error) {
				list, err := c.Allows(ctx)
				for _, a := range list.Allow {
					if a.Prefix.Addr().String() == allowed {
						return true, err
					}
				}
				return false, err
			},
		},
		{
			name: "the limit " + limit,
			on: func(ctx context.Context) error {
				_, err := c.SetLimit(ctx, limit, state.LimitSpec{
					Services: []state.Service{{Protocol: 17, Port: 5353}},
					Packets:  &state.Threshold{Rate: state.Rate{Count: 1000, Per: time.Second}},
				})
				return err
			},
			off: func(ctx context.Context) error { return c.RemoveLimit(ctx, limit) },
			is: func(ctx context.Context) (bool, error) {
				list, err := c.Limits(ctx)
				for _, l := range list.Limits {
					if l.Name == limit {
						return true, err
					}
				}
				return false, err
			},
		},
		{
			name: "the shield of " + spare,
			on: func(ctx context.Context) error {
				_, err := c.Attach(ctx, state.AttachRequest{Name: spare})
				return err
			},
			off: func(ctx context.Context) error { return c.Detach(ctx, spare) },
			is: func(ctx context.Context) (bool, error) {
				list, err := c.Interfaces(ctx)
				for _, i := range list.Interfaces {
					if i.Name == spare && i.Attached {
						return true, err
					}
				}
				return false, err
			},
		},
	}
}

// turn makes a setting that is not there, or takes back the one that is. It tells whether the daemon
// answered.
func (l *load) turn(ctx context.Context, t *toggle) bool {
	if t.believed.unknown {
		return false // until somebody looks
	}
	change := t.on
	if t.believed.banned {
		change = t.off
	}
	err := change(ctx)
	switch asked(err) {
	case refused:
		l.note(t.name + ": " + err.Error())
	case notAnswered:
		l.unanswered.Add(1)
		t.believed.unknown = true
		return false
	case answered:
		l.acknowledged.Add(1)
		t.believed.banned = !t.believed.banned
	}
	return true
}
