package agent

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/metrics"
)

// scraped serves metrics and health. Where somebody else has the port it goes on asking for it:
// any process of the host can take it while the daemon restarts, and must not keep the daemon down with it.
type scraped struct {
	*engine
	address string
	listen  func(context.Context) (*metrics.Server, error)
	server  *metrics.Server // nil until the port is had
}

// portAgain is how long after a port was found taken it is asked for again.
const portAgain = time.Second

// newScraped returns nil if no server is wanted.
func (e *engine) newScraped(ctx context.Context, c *config.Config) (*scraped, error) {
	if c.Metrics.Listen == "" {
		return nil, nil
	}
	registry, err := metrics.NewRegistry(metrics.NewCollector(e.version, e.tables.Counters, e, e.log), e.record)
	if err != nil {
		return nil, err
	}
	handler := metrics.Handler(registry, e.Health)
	s := &scraped{engine: e, address: c.Metrics.Listen, listen: func(ctx context.Context) (*metrics.Server, error) {
		return metrics.Listen(ctx, c.Metrics.Listen, handler, e.log)
	}}
	if err := s.take(ctx); err != nil && !errors.Is(err, unix.EADDRINUSE) {
		return nil, err
	}
	if s.server == nil {
		e.log.Error("somebody else has the port for metrics and health, which are not served until it is free; see who by `ss -ltnp`", "address", s.address)
	}
	return s, nil
}

// take takes the port, and says in the daemon's health whether somebody else has it.
func (s *scraped) take(ctx context.Context) (err error) {
	s.server, err = s.listen(ctx)
	problem := ""
	if err != nil {
		problem = "metrics and health are not served at " + s.address + ": " + err.Error()
	}
	s.unscraped.Store(&problem)
	return err
}

// listens says where, or "".
func (s *scraped) listens() string {
	if s == nil || s.server == nil {
		return ""
	}
	return s.server.Addr().String()
}

// Run serves until the context ends.
func (s *scraped) Run(ctx context.Context) error {
	for s.server == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(portAgain):
		}
		if err := s.take(ctx); err == nil {
			s.log.Info("the port for metrics and health is free, they are served", "address", s.address)
		}
	}
	return s.server.Run(ctx)
}
