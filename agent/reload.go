package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
	"github.com/levee-xdp/levee/maps"
)

// Reload reads the configuration again. All of it is in force then, or nothing has changed.
func (e *engine) Reload(by state.Actor, confirm state.Duration) (state.ReloadResponse, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	next, err := e.load()
	if err != nil {
		return state.ReloadResponse{}, &state.Error{Code: state.CodeInvalid, Field: "configuration", Detail: err.Error() + "\nnothing was changed"}
	}
	before := e.config.Load()
	if names := before.NeedsRestart(next); len(names) > 0 {
		return state.ReloadResponse{}, &state.Error{Code: state.CodeConflict, Field: "configuration", Value: fmt.Sprint(names),
			Detail: "differs and takes a restart of the daemon to change; nothing was changed. The shield stands during a restart"}
	}
	// A signal says nothing about a text that is on trial, or was rejected: who sent it may know of neither.
	if tried, _ := e.state.Tried(next.Sum()); tried && by.Kind == state.ActorDaemon {
		why := "the configuration file is on trial, and a signal does not confirm it: levee confirm does"
		if rejected := e.unconfirmed(); rejected != "" {
			why = rejected
		}
		return state.ReloadResponse{}, &state.Error{Code: state.CodeRefused, Field: "configuration", Detail: why + "; nothing was changed"}
	}
	attached, err := e.attachedModes()
	if err != nil {
		return state.ReloadResponse{}, err
	}
	things := []state.Thing{{About: state.AboutConfig}}
	a := state.Attempt{By: by, About: state.AboutConfig, What: "reload the configuration", For: confirm, Config: textOf(before, next, attached)}
	if next.Sum() != before.Sum() {
		a.Things = things
	}
	began, err := e.onTrial(&a, nil, func() ([]state.Thing, error) {
		left, err := e.reload(before, next)
		if err != nil && !left {
			return nil, err
		}
		return things, err
	})
	if err != nil {
		return state.ReloadResponse{}, err
	}
	e.log.Info("the configuration was read again and is in force")
	return state.ReloadResponse{Trial: began}, nil
}

// reload puts a configuration into force instead of another. It tells with an error whether the other
// could not be put back.
func (e *engine) reload(before, next *config.Config) (left bool, err error) {
	if err = e.configure(before, next); err == nil {
		if err = e.state.Reject(nil); err == nil {
			e.config.Store(next)
			return false, nil
		}
	}
	undo := e.configure(next, before)
	return undo != nil, errors.Join(err, undo)
}

// configure brings everything from one configuration to another.
func (e *engine) configure(from, to *config.Config) error {
	err := e.reconciler.ChangeSettings(func() error {
		if err := e.state.Configure(to.Configured()); err != nil {
			return err
		}
		return errors.Join(e.reconciler.SyncLimits(), e.reconciler.SyncAllows(), e.control(to))
	})
	if err != nil {
		return err
	}
	e.finder.Set(kinds(to))
	if err := e.finder.Refresh(); err != nil {
		e.log.Error("protected addresses could not all be found; those known before stay protected", "error", err)
	}
	for _, i := range to.Interfaces {
		known, _ := e.state.Interface(i.Name)
		if _, _, wanted := known.Wanted(); wanted {
			if err := e.attachConfigured(known); err != nil {
				return err
			}
		}
	}
	for _, i := range from.Interfaces {
		known, _ := e.state.Interface(i.Name)
		if _, _, wanted := known.Wanted(); !wanted {
			if err := e.shield.Detach(i.Name); err != nil && !errors.Is(err, loader.ErrNotAttached) {
				return attachError(i.Name, err)
			}
			e.trouble(i.Name, "")
		}
	}
	return nil
}

// control sets the run-time switches as a configuration has them; panic is nobody's but the operator's.
func (e *engine) control(c *config.Config) error {
	e.level.Set(levelOf(c.Log.Level))
	return e.reconciler.SetControl(maps.Switches{Monitor: c.Mode == state.Monitor, EventBudget: uint32(min(c.Events.Budget, 1<<31)),
		ControlCap: c.ControlCap.Rate.PerSecond(), ControlCapBurst: c.ControlCap.BurstUnits(), SourceIdle: time.Duration(c.SourceIdle)})
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
