package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

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

// task is a goroutine of the daemon's.
type task interface {
	fmt.Stringer
	Run(ctx context.Context) error
	Ready() <-chan struct{}
}

// stopTimeout is how long tasks have to end.
const stopTimeout = 8 * time.Second

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
	tasks := []task{
		e.apiServer(),
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

func (e *engine) apiServer() *api.Server {
	c := e.config.Load().API
	served := api.Config{Socket: c.Socket, Group: c.Group, Version: e.version, Backend: telling{audited{e}}, Audit: e.audit, Observe: e.record.Request, Known: e.finder.Client, Log: e.log}
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
		file: o.File, overlay: o.Overlay, record: metrics.NewRecord(), events: events.New(), trials: trials{wake: make(chan struct{}, 1)}, troubles: map[string]string{}}
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
	server, err := e.metricsServer(c)
	if err != nil {
		return nil, nil, errors.Join(err, e.close())
	}
	return e, server, nil
}

// load reads the file again, and puts the flags over it.
func (e *engine) load() (*config.Config, error) {
	next, err := config.Load(e.file)
	if err != nil {
		return nil, err
	}
	return e.overlaid(next)
}

// loadText does likewise with what was the file.
func (e *engine) loadText(text *state.FileText) (*config.Config, error) {
	next := config.Default()
	if !text.None {
		path := e.file
		if path == "" {
			path = config.Path
		}
		var err error
		if next, err = config.Parse(path, text.Text); err != nil {
			return nil, err
		}
	}
	return e.overlaid(next)
}

// overlaid puts the flags over a configuration. Where nobody says what those were, what takes a restart
// to change is as it was at the start, since they may have had the last word.
func (e *engine) overlaid(next *config.Config) (*config.Config, error) {
	if e.overlay != nil {
		return next, e.overlay(next)
	}
	now := e.config.Load()
	next.API, next.Metrics, next.State, next.BPFFS, next.Lock, next.Compile = now.API, now.Metrics, now.State, now.BPFFS, now.Lock, now.Compile
	return next, nil
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
	if err := os.MkdirAll(filepath.Dir(c.Lock), 0o755); err != nil { //nolint:gosec // others may look, not write
		return fmt.Errorf("the lock's directory: %w", err)
	}
	// Both take a while where there are many bans, and neither needs the other.
	var (
		lost     *state.Lost
		errState error
		reading  sync.WaitGroup
	)
	reading.Go(func() {
		e.state, lost, errState = state.OpenOrSetAside(state.Config{Path: c.State.Path, Clock: e.clock, Log: e.log})
	})
	e.shield, err = kernel.Open(ctx, c, e.log)
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
	e.reconciler = reconcile.New(reconcile.Config{State: e.state, Bans: e.tables.Bans, Allows: e.tables.Allows, Limits: e.tables.Limits, Control: e.tables.Control,
		Clock: e.clock, Log: e.log, Expired: e.expired})
	before := e.state.Interfaces()
	undone, err := e.overdueAtStart()
	if err != nil {
		return err
	}
	if c, err = e.settled(c); err != nil {
		return err
	}
	e.config.Store(c)
	if err := e.state.Configure(c.Configured()); err != nil {
		return fmt.Errorf("the configuration: %w", err)
	}
	e.protectFirst(c)
	if err := e.rescue(lost); err != nil {
		return err
	}
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
	if err := e.restoreInterfaces(undone); err != nil {
		e.log.Error("an interface could not be brought to what it was before a trial", "error", err)
	}
	return nil
}

// rescue keeps what the kernel holds where the state has lost it.
func (e *engine) rescue(lost *state.Lost) error {
	var problem, reason string
	switch doubt := e.state.Doubt(); {
	case lost != nil:
		reason = "the state was lost"
		problem = fmt.Sprintf("the state was damaged at start (%v); the file was set aside as %s", lost.Err, lost.Aside)
	case doubt != nil:
		reason = "the state was damaged"
		problem = fmt.Sprintf("the state was damaged at start: %v", doubt)
	case e.state.Fresh():
		reason = "there was no state"
	default:
		return nil
	}
	kept, err := e.keep(reason)
	if err != nil {
		return fmt.Errorf("keep what the kernel holds: %w", err)
	}
	if e.state.Fresh() {
		if err := e.state.Filled(); err != nil {
			return err
		}
	}
	if problem == "" && kept == 0 {
		return nil // just new
	}
	if problem == "" {
		problem = "there was no state, though the kernel holds bans; was the state's path changed?"
	}
	problem += fmt.Sprintf("; %d bans that the kernel held were kept, their origin is %s now", kept, state.OriginKernel)
	e.log.Error("the state was lost in part or whole", "problem", problem)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lasting = append(e.lasting, problem)
	return nil
}

// attachAll brings every interface to this program, shields those that are wanted, and no longer
// those that were wanted before. What can't be shielded is said, and does not keep the others from it.
func (e *engine) attachAll(before []state.Interface) error {
	changed, err := e.shield.Upgrade()
	if err != nil {
		e.log.Error("the program could not be upgraded, the one before goes on", "error", err)
		e.mu.Lock()
		e.lasting = append(e.lasting, "the program could not be upgraded, the one before goes on: "+err.Error())
		e.mu.Unlock()
	}
	for _, a := range changed {
		e.log.Info("upgraded the program", "interface", a.Name, "tag", a.ProgramTag)
	}
	for _, i := range append(before, e.state.Interfaces()...) {
		now, _ := e.state.Interface(i.Name)
		if _, _, wanted := now.Wanted(); wanted {
			continue
		}
		switch err := e.shield.Detach(i.Name); {
		case err == nil:
			e.log.Info("detached; it is not wanted any more", "interface", i.Name)
		case !errors.Is(err, loader.ErrNotAttached):
			e.log.Error("an interface could not be detached", "interface", i.Name, "error", err)
		}
	}
	for _, i := range e.state.Interfaces() {
		if _, _, wanted := i.Wanted(); !wanted {
			continue
		}
		if err := e.attachConfigured(i); err != nil {
			e.log.Error("an interface could not be shielded", "interface", i.Name, "error", err)
			e.trouble(i.Name, state.AsError(err, state.CodeKernel).Detail)
		}
	}
	views, err := e.Interfaces()
	if err != nil {
		return err
	}
	shielded := 0
	for _, v := range views {
		switch {
		case v.Attached && v.Wanted == "":
			e.log.Warn("an interface is shielded that nobody asks for; it is left so", "interface", v.Name, "undo", "levee detach "+v.Name)
		case v.Attached:
			e.log.Info("shielded", "interface", v.Name, "mode", v.Mode, "why", v.Why)
		}
		if v.Attached {
			shielded++
		}
	}
	if shielded == 0 {
		e.log.Warn("no interface is shielded; name them in the configuration, or use levee attach")
	}
	return nil
}

func (e *engine) metricsServer(c *config.Config) (*metrics.Server, error) {
	if c.Metrics.Listen == "" {
		return nil, nil //nolint:nilnil // no server is wanted
	}
	registry, err := metrics.NewRegistry(metrics.NewCollector(e.version, e.tables.Counters, e, e.log), e.record)
	if err != nil {
		return nil, err
	}
	return metrics.Listen(c.Metrics.Listen, metrics.Handler(registry, e.Health), e.log)
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

// signals reads the configuration again on SIGHUP.
func (e *engine) signals(ctx context.Context, reload <-chan os.Signal) error {
	if reload == nil {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGHUP)
		defer signal.Stop(c)
		reload = c
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-reload:
			notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, e.clock.Monotonic()/1000))
			if _, err := (audited{e}).Reload(state.Operator("SIGHUP"), 0); err != nil {
				e.log.Error("the configuration was not taken; nothing has changed", "error", err)
			}
			notify(daemon.SdNotifyReady)
		}
	}
}

// watchdog tells systemd that the daemon lives, if systemd wants to know: that it comes by the locks of
// all that it does, and answers. Where that hangs nothing is told, and systemd starts another.
func (e *engine) watchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		<-ctx.Done()
		return nil // what systemd did not say well is not asked for
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			e.Health()
			notify(daemon.SdNotifyWatchdog)
		}
	}
}
