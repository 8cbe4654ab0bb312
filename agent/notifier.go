package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/levee-xdp/levee/agent/config"
	webhook "github.com/levee-xdp/levee/agent/notify"
	"github.com/levee-xdp/levee/agent/state"
)

// notifier returns the task that tells a webhook of attacks; nil if nobody is to be told.
func (e *engine) notifier(c *config.Config) (*webhook.Notifier, error) {
	n := c.Notify
	if n.URL == "" {
		return nil, nil // nobody is to be told
	}
	secret, err := n.Secret()
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("this host's name: %w", err)
	}
	return webhook.New(webhook.Config{
		Thresholds: webhook.Thresholds{Start: n.Start.PerSecond(), After: time.Duration(n.After),
			End: n.End.PerSecond(), Quiet: time.Duration(n.Quiet), Summary: time.Duration(n.Summary)},
		Target: webhook.Target{URL: n.URL, Secret: secret, Timeout: time.Duration(n.Timeout), Attempts: int(n.Attempts),
			AllowPrivate: n.AllowPrivate, Agent: "levee/" + e.version},
		Host: host, Version: e.version, Clock: e.clock, Log: e.log,
		Mode: func() state.Mode { return e.config.Load().Mode },
		Counted: func() ([]state.Counted, error) {
			s, err := e.Stats()
			return s.Counters, err
		},
		Sources: func(ctx context.Context, most int) ([]state.SourceView, error) {
			list, err := e.Sources(ctx, state.ByDropped, most, 0)
			return list.Sources, err
		},
		Sent: func(event webhook.Event, how webhook.Result) { e.record.Notified(string(event), string(how)) },
	}), nil
}
