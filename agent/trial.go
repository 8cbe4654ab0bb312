package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// trials is changes that wait to be confirmed. Its task takes them back when their time has come.
type trials struct {
	// Where several of these are held, they are taken in this order, and engine.settings between them.
	whole sync.Mutex   // held while a whole bulk is decided on: no ban begins a trial meanwhile, and no trial ends by itself
	order sync.RWMutex // held while things are put on trial or taken back; read: while they are changed plainly

	wake chan struct{} // a trial has begun

	mu      sync.Mutex
	failing map[string]*failing // trials that could not be taken back, by id
	ended   []state.EndedTrial  // those that were, the newest last
}

// failing is a trial that could not be taken back.
type failing struct {
	why      string
	again    uint64 // when it is tried again, in ns of CLOCK_MONOTONIC
	wait     time.Duration
	recorded bool // in the audit log
}

func newTrials() trials {
	return trials{wake: make(chan struct{}, 1), failing: map[string]*failing{}}
}

// onTrial makes a change. With a time, what was there before is on disk first, and comes back unless the
// change is confirmed; without, what the change is about is no longer on any trial. Things to
// try may be prepared when nothing else changes any more; without any there is nothing to take back, and
// no trial. The change returns which things it has changed, and with an error, which of them it could not put back.
func (e *engine) onTrial(a *state.Attempt, prepare func(), change func() ([]state.Thing, error)) (*state.Trial, error) {
	if err := state.CheckTrial(a.For); err != nil {
		return nil, err
	}
	if a.For == 0 {
		e.trials.order.RLock()
		defer e.trials.order.RUnlock()
		changed, err := change()
		if err != nil {
			return nil, err
		}
		return nil, e.release(changed)
	}
	if err := e.state.MayTry(a.By, 1); err != nil { // before anybody has to wait for it
		return nil, err
	}
	if a.About == state.AboutBan {
		e.trials.whole.Lock()
		defer e.trials.whole.Unlock()
	}
	e.trials.order.Lock()
	defer e.trials.order.Unlock()
	if prepare != nil {
		prepare()
	}
	if len(a.Things) == 0 {
		_, err := change()
		return nil, err
	}
	began, err := e.state.BeginTrial(*a)
	if err != nil {
		return nil, err
	}
	changed, failed := change()
	if err := e.state.Trim(began.ID, changed); err != nil {
		// What was not changed goes back to what it is.
		e.log.Warn("a trial could not be reduced to what it changed", "trial", began.ID, "error", err)
	}
	if failed != nil && len(changed) > 0 {
		e.state.Hasten(began.ID)
		e.wakeTrials()
		failed = leftOnTrial(failed, began.ID)
	}
	if failed != nil || len(changed) == 0 {
		return nil, failed
	}
	e.wakeTrials()
	e.log.Info("a change is on trial", "trial", began.ID, "what", began.What, "actor", began.Actor, "until", began.Expires)
	return &began, nil
}

func (e *engine) wakeTrials() {
	select {
	case e.trials.wake <- struct{}{}:
	default:
	}
}

// leftOnTrial says in an error that the change is still in force in part.
func leftOnTrial(err error, id string) error {
	failed := *state.AsError(err, state.CodeKernel)
	failed.Detail += fmt.Sprintf("; it could not be put back as it was, either, so it is taken back as the trial %s: levee status says how far that is", id)
	return &failed
}

// release ends the trials of what was changed plainly. Trials that hold nothing else are over.
func (e *engine) release(changed []state.Thing) error {
	held := e.state.Held(changed)
	if len(held) == 0 {
		return nil
	}
	if err := e.state.Release(held); err != nil {
		failed := *state.AsError(err, state.CodeStorage)
		failed.Detail = "the change is in force, but what had been on trial before is so still, and would take it back (" + failed.Detail + ")"
		return &failed
	}
	return nil
}

// Confirm keeps changes that are on trial; all of them if none is named.
func (e *engine) Confirm(by state.Actor, r state.ConfirmRequest) (state.ConfirmResponse, error) {
	e.trials.order.Lock()
	defer e.trials.order.Unlock()
	kept, err := e.state.Confirm(r.IDs...)
	if err != nil {
		return state.ConfirmResponse{}, e.tooLate(err)
	}
	if len(kept) == 0 {
		return state.ConfirmResponse{}, e.tooLate(&state.Error{Code: state.CodeNotFound, Detail: "nothing is on trial that could be confirmed"})
	}
	for _, t := range kept {
		e.log.Info("a change on trial was confirmed", "trial", t.ID, "what", t.What, "actor", by.String())
	}
	return state.ConfirmResponse{Confirmed: kept}, nil
}

// tooLate says of what can't be confirmed when it was taken back, if it was.
func (e *engine) tooLate(err error) error {
	failed := *state.AsError(err, state.CodeStorage)
	if failed.Code != state.CodeNotFound {
		return err
	}
	ended := e.takenBack()
	if failed.Value != "" {
		ended = slices.DeleteFunc(ended, func(t state.EndedTrial) bool { return t.ID != failed.Value })
	}
	if len(ended) == 0 {
		return err
	}
	last := ended[len(ended)-1]
	failed.Detail = fmt.Sprintf("the trial %s (%s) was taken back %s ago: %s; make the change again if it is to stay",
		last.ID, last.What, state.Duration(e.clock.Now().Sub(last.Ended).Round(time.Second)), last.Why)
	if failed.Value == "" {
		failed.Detail = "nothing is on trial; " + failed.Detail
	}
	return &failed
}

// Trials returns what waits to be confirmed, and what was taken back of late.
func (e *engine) Trials() state.TrialList {
	out := state.TrialList{Trials: e.state.Trials(), TakenBack: e.takenBack()}
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	for i := range out.Trials {
		if f := e.trials.failing[out.Trials[i].ID]; f != nil {
			out.Trials[i].Problem = f.why
		}
	}
	return out
}

// keepsEnded is for how long trials that were taken back are told of, and maxEnded how many.
const (
	keepsEnded = time.Hour
	maxEnded   = 32
)

// takenBack returns the trials that were taken back of late, the newest last.
func (e *engine) takenBack() (out []state.EndedTrial) {
	since := e.clock.Now().Add(-keepsEnded)
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	for _, t := range e.trials.ended {
		if t.Ended.After(since) {
			out = append(out, t)
		}
	}
	return out
}

func banThing(p netip.Prefix, o state.Origin) state.Thing {
	return state.Thing{About: state.AboutBan, Name: p.String(), Origin: o}
}

// prefixName is a prefix of a thing as people write it.
func prefixName(name string) string {
	p, err := netip.ParsePrefix(name)
	if err != nil {
		return name
	}
	return state.PrefixString(p)
}

// triedBans is what outcomes have changed, or would change.
func triedBans(proposals []state.Proposal, outcomes []state.Outcome) []state.Thing {
	var out []state.Thing
	for i := range outcomes {
		if s := outcomes[i].Status; s == state.StatusAdded || s == state.StatusChanged {
			out = append(out, banThing(outcomes[i].Prefix, proposals[i].Origin))
		}
	}
	return out
}

// settledBans is the claims that are no longer on trial after outcomes of plain changes: those that were
// made, or said again, and where a prefix was to be free, all that a trial would bring back there.
func (e *engine) settledBans(proposals []state.Proposal, outcomes []state.Outcome) []state.Thing {
	if !e.state.OnTrial() {
		return nil
	}
	var out []state.Thing
	for i := range outcomes {
		o, p := &outcomes[i], &proposals[i]
		switch {
		case p.Remove && (o.Status == state.StatusRemoved || o.Error != nil && o.Error.Code == state.CodeNotFound):
			of := p.Origin
			if p.All {
				of = ""
			}
			held := e.state.HeldClaims(o.Prefix, of)
			if out = append(out, held...); len(held) > 0 && o.Error != nil {
				o.Error.Detail += "; the end of a trial would have banned it again, and no longer does"
			}
		case o.Status == state.StatusAdded, o.Status == state.StatusChanged, o.Status == state.StatusUnchanged:
			out = append(out, banThing(o.Prefix, p.Origin))
		}
	}
	return out
}

// many puts a list of names into a few words.
func many(verb string, n int, first string) string {
	if n == 1 {
		return verb + " " + first
	}
	return fmt.Sprintf("%s %s and %d more", verb, first, n-1)
}
