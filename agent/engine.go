package agent

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-xdp/levee/agent/audit"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/events"
	"github.com/levee-xdp/levee/agent/metrics"
	"github.com/levee-xdp/levee/agent/protect"
	"github.com/levee-xdp/levee/agent/reconcile"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
	"github.com/levee-xdp/levee/maps"
)

// engine does what the API is asked for: it takes a wish to the state, and when that is on disk to
// the kernel, and answers when both have it.
type engine struct {
	version string
	started time.Time
	file    string
	overlay func(*config.Config) error
	log     *slog.Logger
	level   *slog.LevelVar
	clock   state.Clock

	config     atomic.Pointer[config.Config]
	state      *state.Store
	shield     Shield
	tables     Tables
	reconciler *reconcile.Reconciler
	system     protect.System
	finder     *protect.Finder
	record     *metrics.Record
	audit      *audit.Log
	recent     recent
	events     *events.Hub
	ready      atomic.Bool

	trials   trials
	checking sync.Mutex // held by a check of a prefix
	bulk     sync.Mutex // held by a bulk that is done whole
	settings sync.Mutex // held while limits, allows, interfaces or the configuration change

	mu       sync.Mutex        // guards what follows
	lasting  []string          // problems for as long as the daemon runs
	troubles map[string]string // of interfaces, by name
}

// Ban makes claims.
func (e *engine) Ban(by state.Actor, r state.BanRequest) (state.BanResponse, error) {
	results := make([]state.BanResult, len(r.Bans))
	var proposals []state.Proposal
	var places []int
	for i, item := range r.Bans {
		p, err := e.proposal(by, item, r.Force)
		if err == nil {
			err = e.viaProxy(p.Prefix, item.Via)
		}
		if err != nil {
			results[i] = state.BanResult{Prefix: item.Prefix, Status: state.StatusRefused, Error: err}
			continue
		}
		proposals, places = append(proposals, p), append(places, i)
	}
	t := state.Trial{About: state.AboutBan, Actor: by.String()}
	if r.Confirm != 0 && len(proposals) > 0 {
		t.What = many("ban", len(proposals), state.PrefixString(proposals[0].Prefix))
	}
	return e.propose(t, r.Confirm, proposals, places, results)
}

func (e *engine) proposal(by state.Actor, item state.BanItem, force bool) (state.Proposal, *state.Error) {
	prefix, err := state.ParsePrefix(item.Prefix)
	if err != nil {
		return state.Proposal{}, state.AsError(err, state.CodeInvalid)
	}
	p := state.Proposal{Prefix: prefix, Origin: item.Origin, Actor: by.String(), Reason: item.Reason,
		Monitor: item.Monitor, Force: force, Bounds: by.Bounds}
	if p.Origin == "" {
		p.Origin = by.Origin()
	}
	switch {
	case item.For != "" && !item.Expires.IsZero():
		return p, &state.Error{Code: state.CodeInvalid, Field: "expires", Detail: "stands beside for; give one of them"}
	case item.For != "":
		d, err := state.ParseDuration(item.For)
		if err != nil {
			return p, state.AsError(err, state.CodeInvalid).In("for")
		}
		if p.For = time.Duration(d); p.For == 0 {
			return p, &state.Error{Code: state.CodeInvalid, Field: "for", Value: item.For, Detail: "is no time at all; leave it out for a ban without an end"}
		}
	case !item.Expires.IsZero():
		if p.For = item.Expires.Sub(e.clock.Now()); p.For <= 0 {
			return p, &state.Error{Code: state.CodeInvalid, Field: "expires", Value: item.Expires.Format(time.RFC3339), Detail: "has passed"}
		}
	}
	if p.Origin == state.OriginKernel {
		_, err := state.ParseOrigin(string(p.Origin))
		return p, state.AsError(err, state.CodeInvalid)
	}
	return p, nil
}

// Unban takes claims back.
func (e *engine) Unban(by state.Actor, r state.UnbanRequest) (state.BanResponse, error) {
	origin := r.Origin
	if origin == "" && !r.All {
		origin = by.Origin()
	}
	if len(r.Prefixes) == 0 {
		return e.unbanOrigin(by, origin, r.All)
	}
	results := make([]state.BanResult, len(r.Prefixes))
	var proposals []state.Proposal
	var places []int
	for i, text := range r.Prefixes {
		prefix, err := state.ParsePrefix(text)
		if err != nil {
			results[i] = state.BanResult{Prefix: text, Status: state.StatusRefused, Error: state.AsError(err, state.CodeInvalid)}
			continue
		}
		proposals = append(proposals, state.Proposal{Prefix: prefix, Origin: origin, Actor: by.String(), Remove: true, All: r.All, Bounds: by.Bounds})
		places = append(places, i)
	}
	return e.propose(state.Trial{}, 0, proposals, places, results)
}

// unbanOrigin takes every claim of an origin back.
func (e *engine) unbanOrigin(by state.Actor, origin state.Origin, all bool) (state.BanResponse, error) {
	if all {
		return state.BanResponse{}, &state.Error{Code: state.CodeInvalid, Field: "prefixes", Detail: "are missing: name the prefixes, or one origin whose claims are to go"}
	}
	// Before they are looked up: who may not take them back is not to learn which there are.
	if err := by.Bounds.MayTakeBack(origin); err != nil {
		return state.BanResponse{}, err
	}
	prefixes := e.state.ByOrigin(origin)
	proposals := make([]state.Proposal, len(prefixes))
	places := make([]int, len(prefixes))
	for i, p := range prefixes {
		proposals[i], places[i] = state.Proposal{Prefix: p, Origin: origin, Actor: by.String(), Remove: true, Bounds: by.Bounds}, i
	}
	return e.propose(state.Trial{}, 0, proposals, places, make([]state.BanResult, len(prefixes)))
}

// propose takes proposals to the state and to the kernel, and puts their answers at their places.
// What the kernel does not take is taken back from the state.
func (e *engine) propose(t state.Trial, confirm state.Duration, proposals []state.Proposal, places []int, results []state.BanResult) (state.BanResponse, error) {
	var outcomes []state.Outcome
	var things []state.Thing
	if confirm != 0 {
		things = banThings(proposals)
	}
	began, err := e.onTrial(t, confirm, nil, things, func() ([]state.Thing, error) {
		err := e.reconciler.Change(func() (err error) {
			outcomes, err = e.decide(proposals)
			return err
		})
		if err != nil || confirm == 0 && !e.state.OnTrial() {
			return nil, err
		}
		return bannedThings(proposals, outcomes), nil
	})
	if err != nil {
		return state.BanResponse{}, err
	}
	r := state.BanResponse{Bans: results, Trial: began}
	for i := range outcomes {
		results[places[i]] = resultOf(&outcomes[i])
	}
	e.decided(proposals, outcomes)
	for i := range results {
		if results[i].Status == state.StatusRefused {
			r.Refused++
			if err := results[i].Error; err != nil && err.Code == state.CodeProtected {
				r.Protected++
			}
		} else {
			r.Done++
		}
	}
	return r, nil
}

// decide takes proposals to the state, and what it grants to the kernel.
func (e *engine) decide(proposals []state.Proposal) ([]state.Outcome, error) {
	outcomes, err := e.state.Propose(proposals)
	if err != nil {
		return nil, err
	}
	return outcomes, e.enforce(outcomes)
}

// enforce takes to the kernel what the state has granted.
func (e *engine) enforce(outcomes []state.Outcome) error {
	var prefixes []netip.Prefix
	var of []int
	for i := range outcomes {
		// What the state holds unchanged the kernel may lack, if it once had no room.
		if outcomes[i].Status != state.StatusRefused {
			prefixes, of = append(prefixes, outcomes[i].Prefix), append(of, i)
		}
	}
	if failed := e.reconciler.Apply(prefixes); failed != nil {
		return e.takeBack(outcomes, of, failed)
	}
	return nil
}

// takeBack undoes in the state what the kernel has refused.
func (e *engine) takeBack(outcomes []state.Outcome, of []int, failed []*state.Error) error {
	var undo []state.Made
	var prefixes []netip.Prefix
	for i, err := range failed {
		if o := &outcomes[of[i]]; err != nil && o.Status != state.StatusRemoved {
			if made, ok := o.Made(); ok {
				undo, prefixes = append(undo, made), append(prefixes, o.Prefix)
			}
			*o = state.Outcome{Prefix: o.Prefix, Status: state.StatusRefused, Error: err}
		}
	}
	err := e.state.Revert(undo)
	e.reconciler.Apply(prefixes)
	return err
}

func resultOf(o *state.Outcome) state.BanResult {
	r := state.BanResult{Prefix: o.Prefix.String(), Status: o.Status, Removed: o.Removed, Others: o.Others, Notes: o.Notes, Error: o.Error}
	if c := o.Claim; c != nil {
		r.Origin, r.Actor, r.Reason, r.Created, r.Expires, r.Monitor = c.Origin, c.Actor, c.Reason, c.Created, c.Expires, c.Monitor
	}
	return r
}

// Bans lists claims.
func (e *engine) Bans(f state.Filter) (state.BanPage, error) {
	page, total, next, err := e.state.List(f)
	if err != nil {
		return state.BanPage{}, err
	}
	if page == nil {
		page = []state.Claim{}
	}
	return state.BanPage{Bans: page, Total: total, Next: next}, nil
}

// Allow makes allow entries.
func (e *engine) Allow(by state.Actor, r state.AllowRequest) (state.AllowResponse, error) {
	var proposals []state.AllowProposal
	prefixes := make([]string, len(r.Allow))
	for i, item := range r.Allow {
		prefixes[i] = item.Prefix
		p := state.AllowProposal{Actor: by.String(), AllowSpec: state.AllowSpec{NoLimits: item.NoLimits, Comment: item.Comment}}
		p.Prefix.Prefix, _ = state.ParsePrefix(item.Prefix) // what is none is refused below
		if item.For != "" {
			d, err := state.ParseDuration(item.For)
			if err == nil && d == 0 {
				err = &state.Error{Code: state.CodeInvalid, Value: item.For, Detail: "is no time at all; leave it out for an entry without an end"}
			}
			if err != nil {
				return state.AllowResponse{}, state.AsError(err, state.CodeInvalid).In("for").In(fmt.Sprintf("allow[%d]", i))
			}
			p.For = time.Duration(d)
		}
		proposals = append(proposals, p)
	}
	t := state.Trial{About: state.AboutAllow, Actor: by.String()}
	if len(prefixes) > 0 {
		t.What = many("allow", len(prefixes), prefixes[0])
	}
	return e.proposeAllows(t, r.Confirm, prefixes, proposals)
}

// Unallow takes allow entries back.
func (e *engine) Unallow(_ state.Actor, r state.UnallowRequest) (state.AllowResponse, error) {
	var proposals []state.AllowProposal
	for _, text := range r.Prefixes {
		p := state.AllowProposal{Remove: true}
		p.Prefix.Prefix, _ = state.ParsePrefix(text) // what is none is refused below
		proposals = append(proposals, p)
	}
	return e.proposeAllows(state.Trial{}, 0, r.Prefixes, proposals)
}

func (e *engine) proposeAllows(t state.Trial, confirm state.Duration, prefixes []string, proposals []state.AllowProposal) (state.AllowResponse, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	var outcomes []state.AllowOutcome
	var things []state.Thing
	for i := range proposals {
		if p := proposals[i].Prefix.Prefix; p.IsValid() {
			things = append(things, state.Thing{About: state.AboutAllow, Name: p.Masked().String()})
		}
	}
	began, err := e.onTrial(t, confirm, nil, things, func() (changed []state.Thing, err error) {
		err = e.reconciler.ChangeSettings(func() (err error) {
			if outcomes, err = e.state.ProposeAllows(proposals); err != nil {
				return err
			}
			if err := e.reconciler.SyncAllows(); err != nil {
				return errors.Join(err, e.state.RevertAllows(outcomes), e.reconciler.SyncAllows())
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for i := range outcomes {
			if outcomes[i].Status != state.StatusRefused {
				changed = append(changed, state.Thing{About: state.AboutAllow, Name: outcomes[i].Prefix.String()})
			}
		}
		return changed, nil
	})
	if err != nil {
		return state.AllowResponse{}, err
	}
	r := state.AllowResponse{Allow: make([]state.AllowResult, len(outcomes)), Trial: began}
	for i, o := range outcomes {
		r.Allow[i] = state.AllowResult{Prefix: o.Prefix.String(), Status: o.Status, Allow: o.Allow, Notes: o.Notes, Error: o.Error}
		if _, err := state.ParsePrefix(prefixes[i]); err != nil {
			r.Allow[i].Prefix, r.Allow[i].Error = prefixes[i], state.AsError(err, state.CodeInvalid)
		}
		if o.Status == state.StatusRefused {
			r.Refused++
		} else {
			r.Done++
		}
	}
	return r, nil
}

// Allows lists the allow entries.
func (e *engine) Allows() []state.Allow { return e.state.Allows() }

// SetLimit makes or replaces a limit of the run time.
func (e *engine) SetLimit(by state.Actor, name string, spec state.LimitSpec, confirm state.Duration) (state.LimitView, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	things := []state.Thing{{About: state.AboutLimit, Name: name}}
	began, err := e.onTrial(state.Trial{About: state.AboutLimit, What: "set the limit " + name, Actor: by.String()}, confirm, nil, things,
		func() ([]state.Thing, error) { return things, e.setLimit(by, name, spec) })
	if err != nil {
		return state.LimitView{}, err
	}
	view, err := e.Limit(name)
	view.Trial = began
	return view, err
}

func (e *engine) setLimit(by state.Actor, name string, spec state.LimitSpec) error {
	return e.reconciler.ChangeSettings(func() error {
		_, before, err := e.state.SetLimit(name, spec, by.String())
		if err != nil {
			return err
		}
		if err = e.reconciler.SyncLimits(); err == nil {
			return nil
		}
		var undo error
		if before != nil {
			_, _, undo = e.state.SetLimit(name, *before, by.String())
		} else {
			undo = e.state.RemoveLimit(name)
		}
		return errors.Join(err, undo, e.reconciler.SyncLimits())
	})
}

// RemoveLimit takes a limit of the run time back.
func (e *engine) RemoveLimit(_ state.Actor, name string) error {
	e.settings.Lock()
	defer e.settings.Unlock()
	things := []state.Thing{{About: state.AboutLimit, Name: name}}
	_, err := e.onTrial(state.Trial{}, 0, nil, things, func() ([]state.Thing, error) {
		return things, e.reconciler.ChangeSettings(func() error {
			if err := e.state.RemoveLimit(name); err != nil {
				return err
			}
			return e.reconciler.SyncLimits()
		})
	})
	return err
}

// Attach shields an interface, now and after a restart.
func (e *engine) Attach(by state.Actor, r state.AttachRequest) (state.InterfaceView, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	if r.Mode == "" {
		r.Mode = state.ModeAuto
	}
	if err := state.CheckInterface(r.Name, r.Mode); err != nil {
		return state.InterfaceView{}, err
	}
	things := []state.Thing{{About: state.AboutInterface, Name: r.Name}}
	began, err := e.onTrial(state.Trial{About: state.AboutInterface, What: "attach " + r.Name, Actor: by.String()}, r.Confirm, nil, things,
		func() ([]state.Thing, error) { return things, e.attach(r) })
	if err != nil {
		return state.InterfaceView{}, err
	}
	views, err := e.Interfaces()
	if err != nil {
		return state.InterfaceView{}, err
	}
	for _, v := range views {
		if v.Name == r.Name {
			v.Trial = began
			return v, nil
		}
	}
	return state.InterfaceView{Name: r.Name, Trial: began}, nil
}

func (e *engine) attach(r state.AttachRequest) error {
	had := e.attached(r.Name)
	if _, err := e.shield.Attach(r.Name, kernelMode(r.Mode)); err != nil {
		return attachError(r.Name, err)
	}
	if err := e.state.RememberAttached(r.Name, r.Mode); err != nil {
		if !had {
			err = errors.Join(err, e.shield.Detach(r.Name))
		}
		return err
	}
	e.trouble(r.Name, "")
	return nil
}

func (e *engine) attached(name string) bool {
	list, err := e.shield.Attachments()
	return err == nil && slices.ContainsFunc(list, func(a loader.Attachment) bool { return a.Name == name && a.Mode != loader.ModeNone })
}

// trouble notes what keeps an interface from being shielded; empty if nothing does.
func (e *engine) trouble(name, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if why == "" {
		delete(e.troubles, name)
	} else {
		e.troubles[name] = why
	}
}

func kernelMode(m state.InterfaceMode) loader.Mode {
	mode, err := loader.ParseMode(string(m))
	if err != nil {
		return loader.ModeAuto
	}
	return mode
}

func attachError(name string, err error) error {
	failed := &state.Error{Code: state.CodeKernel, Field: "interface", Value: name, Detail: err.Error()}
	_, foreign := errors.AsType[*loader.ForeignError](err)
	_, mode := errors.AsType[*loader.ModeError](err)
	switch {
	case foreign:
		failed.Code = state.CodeRefused
	case mode:
		failed.Code = state.CodeConflict
	case errors.Is(err, loader.ErrNoInterface):
		failed.Code, failed.Detail = state.CodeNotFound, loader.ErrNoInterface.Error()
	case errors.Is(err, loader.ErrNotAttached):
		failed.Code, failed.Detail = state.CodeNotFound, loader.ErrNotAttached.Error()
	case errors.Is(err, loader.ErrTooManyInterfaces):
		failed.Code = state.CodeFull
	}
	return failed
}

// Detach takes the shield off an interface, now and after a restart.
func (e *engine) Detach(_ state.Actor, name string) error {
	e.settings.Lock()
	defer e.settings.Unlock()
	if err := state.CheckInterface(name, ""); err != nil {
		return err
	}
	things := []state.Thing{{About: state.AboutInterface, Name: name}}
	_, err := e.onTrial(state.Trial{}, 0, nil, things, func() ([]state.Thing, error) {
		i, known := e.state.Interface(name)
		_, _, wanted := i.Wanted()
		err := e.shield.Detach(name)
		if err != nil && (!errors.Is(err, loader.ErrNotAttached) || !known || !wanted) {
			return nil, attachError(name, err)
		}
		e.trouble(name, "")
		return things, e.state.RememberDetached(name)
	})
	return err
}

// Panic tells whether everything passes.
func (e *engine) Panic() bool { return e.tables.Control.Panic() }

// SetPanic has everything pass, or ends that.
func (e *engine) SetPanic(by state.Actor, on bool) error {
	e.tables.Control.SetPanic(on)
	if on {
		e.log.Warn("the panic switch is on: everything passes", "actor", by.String())
	} else {
		e.log.Warn("the panic switch is off", "actor", by.String())
	}
	return nil
}

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
	if r := e.state.Rejected(); r != nil && r.Tried == next.Sum() && by.Kind == state.ActorDaemon {
		return state.ReloadResponse{}, &state.Error{Code: state.CodeRefused, Field: "configuration", Detail: e.unconfirmed() + "; nothing was changed"}
	}
	things := []state.Thing{{About: state.AboutConfig}}
	began, err := e.onTrial(state.Trial{About: state.AboutConfig, What: "reload the configuration", Actor: by.String()}, confirm, textOf(before, next), things,
		func() ([]state.Thing, error) {
			if err := e.configure(before, next); err != nil {
				return nil, errors.Join(err, e.configure(next, before))
			}
			e.config.Store(next)
			return things, e.state.Reject(nil)
		})
	if err != nil {
		return state.ReloadResponse{}, err
	}
	e.log.Info("the configuration was read again and is in force")
	return state.ReloadResponse{Trial: began}, nil
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

// attachConfigured attaches an interface that is wanted. One that is not there is no error: it is
// attached when it comes.
func (e *engine) attachConfigured(i state.Interface) error {
	mode, _, _ := i.Wanted()
	_, err := e.shield.Attach(i.Name, kernelMode(mode))
	if errors.Is(err, loader.ErrNoInterface) {
		e.log.Warn("there is no such interface; it is shielded when it comes", "interface", i.Name)
		return e.shield.Want(i.Name, kernelMode(mode))
	}
	if err != nil {
		return attachError(i.Name, err)
	}
	e.trouble(i.Name, "")
	return nil
}

// control sets the run-time switches as a configuration has them; panic is nobody's but the operator's.
func (e *engine) control(c *config.Config) error {
	e.level.Set(levelOf(c.Log.Level))
	return e.reconciler.SetControl(maps.Switches{Monitor: c.Mode == state.Monitor, EventBudget: uint32(min(c.Events.Budget, 1<<31)),
		ControlCap: c.ControlCap.Rate.PerSecond(), ControlCapBurst: c.ControlCap.BurstUnits(), SourceIdle: time.Duration(c.SourceIdle)})
}

func both[T any](a, b iter.Seq[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, seq := range []iter.Seq[T]{a, b} {
			for v := range seq {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// keep makes claims of bans that stand in the kernel and not in the state, so that a state which
// was lost does not open the gates; also of those of a set that is about to be replaced.
func (e *engine) keep(reason string) (int, error) {
	const part = 10_000
	var proposals []state.Proposal
	kept := 0
	flush := func() error {
		outcomes, err := e.state.Propose(proposals)
		for i := range outcomes {
			if outcomes[i].Error == nil {
				kept++
			}
		}
		proposals = proposals[:0]
		return err
	}
	now := e.clock.Monotonic()
	replaced, err := e.shield.Replaced()
	if err != nil {
		return 0, fmt.Errorf("read the set that is replaced: %w", err)
	}
	for b := range both(e.tables.Bans.All(), slices.Values(replaced)) {
		if _, known := e.state.Effective(b.Prefix); known || b.Expires <= now {
			continue
		}
		p := state.Proposal{Prefix: b.Prefix, Origin: state.OriginKernel, Actor: "levee", Reason: reason, Monitor: b.Monitor, Force: true}
		if b.Expires != bpf.Forever {
			p.For = time.Duration(b.Expires - now)
		}
		if proposals = append(proposals, p); len(proposals) == part {
			if err := flush(); err != nil {
				return kept, err
			}
		}
	}
	return kept, flush()
}
