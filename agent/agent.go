package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/api"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/events"
	"github.com/levee-xdp/levee/agent/metrics"
	"github.com/levee-xdp/levee/agent/protect"
	"github.com/levee-xdp/levee/agent/reconcile"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// Options says what a daemon is to be.
type Options struct {
	// Config is the configuration to start with.
	Config *config.Config
	// Overlay puts flags over a configuration that was read again. If nil, what Config says of things
	// that take a restart stays.
	Overlay func(*config.Config) error
	// File is the configuration's file; empty: config.Path.
	File    string
	Version string
	Log     *slog.Logger     // nil: to Stderr, as the configuration says
	Stderr  io.Writer        // nil: os.Stderr
	Kernel  Kernel           // nil: System
	System  protect.System   // where protected addresses are found; nil: protect.Host
	Clock   state.Clock      // nil: the system's
	Ready   chan<- string    // told the metrics' address when all tasks are ready; may be nil
	Reload  <-chan os.Signal // nil: SIGHUP
}

// Run is the daemon: it returns nil when the context has ended and everything is closed. The shield
// stays up.
func Run(ctx context.Context, o Options) (err error) {
	e, server, err := start(ctx, &o)
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, errStuck) {
			return // a task may still write to the tables: they go with the process
		}
		err = errors.Join(err, e.close())
	}()
	served := e.apiServer()
	e.listeners = append(e.listeners, served)
	tasks := []task{
		served,
		&simple{name: "reconcile", run: e.reconciler.Run},
		&simple{name: "protect", run: e.finder.Run},
		&simple{name: "trials", run: e.runTrials},
		&simple{name: "interfaces", run: e.shield.Watch},
		&simple{name: "events", run: func(ctx context.Context) error { return e.tables.Events.Run(ctx, e.sampled) }},
		&simple{name: "signals", run: func(ctx context.Context) error { return e.signals(ctx, o.Reload) }},
		&simple{name: "watchdog", run: e.watchdog},
		&simple{name: "tokens", run: e.noteUse},
		e.audit,
	}
	if server != nil {
		tasks = append(tasks, server)
		e.listeners = append(e.listeners, server)
	}
	n, err := e.notifier(e.config.Load())
	if err != nil {
		return err
	}
	if n != nil {
		tasks = append(tasks, &simple{name: "notify", run: n.Run})
	}
	return e.run(ctx, tasks, func() {
		if o.Ready == nil {
			return
		}
		address := ""
		if server != nil {
			address = server.Addr().String()
		}
		o.Ready <- address
	})
}

func (e *engine) apiServer() *api.Server {
	c := e.config.Load().API
	served := api.Config{Socket: c.Socket, Group: c.Group, Version: e.version, Backend: telling{audited{e}}, Audit: e.audit, Observe: e.record.Request, Known: e.known, Log: e.log}
	if t := c.TCP; t.Listen != "" {
		served.TCP = &api.TCP{Listen: t.Listen, Certificate: t.Certificate, Key: t.Key, ClientCA: t.ClientCA, Clients: clients(t.Clients),
			Hosts: t.Hosts, Connections: int(t.Connections), PerAddress: int(t.EachAddress),
			Requests: rateOf(t.Requests), PerAddressRequests: rateOf(t.FromAddress)}
	}
	return api.New(served)
}

// start opens the kernel's side and the state, in this order, and makes them agree. What it returns
// shields already.
func start(ctx context.Context, o *Options) (_ *engine, _ *metrics.Server, err error) {
	c := o.Config
	if c == nil {
		if c, err = config.Load(o.File); err != nil {
			return nil, nil, err
		}
	}
	e := &engine{version: o.Version, started: time.Now().UTC(), level: &slog.LevelVar{}, log: o.Log, clock: o.Clock,
		checking: make(chan struct{}, 1), file: o.File, overlay: o.Overlay, record: metrics.NewRecord(), events: events.New(), trials: newTrials(), troubles: map[string]string{}}
	if e.clock == nil {
		e.clock = state.SystemClock{}
	}
	if e.log == nil {
		e.log = newLog(o.Stderr, c.Log.Format, e.level)
	}
	e.level.Set(levelOf(c.Log.Level))
	e.config.Store(c)
	kernel := o.Kernel
	if kernel == nil {
		kernel = System{}
	}
	if e.system = o.System; e.system == nil {
		e.system = protect.Host{}
	}
	if err := e.open(ctx, kernel, c); err != nil {
		return nil, nil, errors.Join(err, e.close())
	}
	server, err := e.metricsServer(ctx, c)
	if err != nil {
		return nil, nil, errors.Join(err, e.close())
	}
	return e, server, nil
}

func newLog(to io.Writer, format string, level slog.Leveler) *slog.Logger {
	if to == nil {
		to = os.Stderr
	}
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(to, options))
	}
	return slog.New(slog.NewTextHandler(to, options))
}

func levelOf(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo
	}
	return l
}

func (e *engine) open(ctx context.Context, kernel Kernel, c *config.Config) (err error) {
	report := kernel.Probe(c.BPFFS)
	if err := report.Err(); err != nil {
		return fmt.Errorf("this host can't run Levee: %w", err)
	}
	for _, f := range report.Findings {
		if f.Severity == loader.Warning {
			e.log.Warn("about this host", "finding", f.String())
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.Lock), 0o755); err != nil { // others may look, not write
		return fmt.Errorf("the lock's directory: %w", err)
	}
	// Both take a while where there are many bans, and neither needs the other. But the state is not
	// touched before the lock is held: of two daemons that start at once, the second would set aside or
	// replace a file that the first has just begun.
	undoing := e.undoing(wasCutShort) // of an import, in the state
	var (
		lost     *state.Lost
		cutShort []netip.Prefix // all that it was about
		errState error
		reading  sync.WaitGroup
	)
	e.shield, err = kernel.Open(ctx, c, e.log, func() {
		reading.Go(func() {
			e.state, lost, errState = state.OpenOrSetAside(state.Config{Path: c.State.Path, Clock: e.clock, Log: e.log,
				Dropped: func(d state.Dropped) { undoing.took(d); cutShort = append(cutShort, d.Prefixes...) }})
		})
	})
	reading.Wait()
	if err != nil {
		return fmt.Errorf("open the shield: %w", err)
	}
	if errState != nil {
		return fmt.Errorf("open the state: %w", errState)
	}
	e.tables = e.shield.Tables()
	adopted, why := e.shield.Adopted()
	if adopted {
		e.log.Info("adopted the shield that was there", "root", c.BPFFS)
	} else {
		e.log.Info("made a new shield", "root", c.BPFFS, "why", why)
	}
	if err := e.openAudit(c); err != nil {
		return err
	}
	if lost == nil {
		undoing.over(e.state.Left())
	}
	e.reconciler = reconcile.New(reconcile.Config{State: e.state, Bans: e.tables.Bans, Allows: e.tables.Allows, Limits: e.tables.Limits, Control: e.tables.Control,
		Clock: e.clock, Log: e.log, Expired: e.expired})
	before := e.state.Interfaces()
	undone, file := e.undoAtStart(), c
	c = e.settled(c)
	e.config.Store(c)
	if err := e.state.Configure(c.Configured()); err != nil {
		return fmt.Errorf("the configuration: %w", err)
	}
	if err := e.rescue(lost, c.State.Path, cutShort); err != nil { // before anything is written to the tables
		return err
	}
	e.protectFirst(c)
	done, err := e.reconciler.Fill()
	if err != nil {
		e.log.Error("not all that is decided is in the kernel", "error", err)
	} else {
		e.log.Info("state and kernel agree", "written", done.Drift, "took", time.Duration(done.Took).Round(time.Millisecond))
	}
	if err := e.control(c); err != nil {
		return err
	}
	if err := e.attachAll(before); err != nil {
		return err
	}
	e.endAtStart(undone, file)
	return nil
}

func (e *engine) metricsServer(ctx context.Context, c *config.Config) (*metrics.Server, error) {
	if c.Metrics.Listen == "" {
		return nil, nil // no server is wanted
	}
	registry, err := metrics.NewRegistry(metrics.NewCollector(e.version, e.tables.Counters, e, e.log), e.record)
	if err != nil {
		return nil, err
	}
	return metrics.Listen(ctx, c.Metrics.Listen, metrics.Handler(registry, e.Health), e.log)
}

// close lets go of everything; the shield stays up.
func (e *engine) close() error {
	var errs []error
	if e.state != nil {
		errs = append(errs, e.state.Close())
	}
	if e.audit != nil {
		errs = append(errs, e.audit.Close())
	}
	if e.shield != nil {
		errs = append(errs, e.shield.Close())
	}
	return errors.Join(errs...)
}
