package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// trials is changes that wait to be confirmed. Its task takes them back when their time has come.
type trials struct {
	order sync.RWMutex  // held while things are put on trial or taken back; read: while they are changed plainly
	wake  chan struct{} // a trial has begun

	mu      sync.Mutex
	problem string // why the last one could not be taken back
}

// onTrial makes a change. With a time, what was there before is on disk first, and comes back unless the
// change is confirmed; without, what the change is about is no longer on any trial. The change returns
// which of the things it has changed.
func (e *engine) onTrial(t state.Trial, d state.Duration, text *state.FileText, things []state.Thing, change func() ([]state.Thing, error)) (*state.Trial, error) {
	if err := state.CheckTrial(d); err != nil {
		return nil, err
	}
	if d == 0 {
		e.trials.order.RLock()
		defer e.trials.order.RUnlock()
		changed, err := change()
		if err == nil && len(changed) > 0 && e.state.OnTrial() {
			err = e.state.Release(changed)
		}
		return nil, err
	}
	e.trials.order.Lock()
	defer e.trials.order.Unlock()
	began, err := e.state.BeginTrial(t, d, things, e.attachedModes(), text)
	if err != nil {
		return nil, err
	}
	changed, err := change()
	if err != nil {
		changed = nil // nothing was, or it was put back
	}
	if len(changed) < len(things) {
		err = errors.Join(err, e.state.Trim(began.ID, changed))
	}
	if err != nil || len(changed) == 0 {
		return nil, err
	}
	select {
	case e.trials.wake <- struct{}{}:
	default:
	}
	e.log.Info("a change is on trial", "trial", began.ID, "what", began.What, "until", began.Expires)
	return &began, nil
}

// attachedModes is in which mode each interface is attached, if it is.
func (e *engine) attachedModes() map[string]string {
	modes := map[string]string{}
	list, err := e.shield.Attachments()
	if err != nil {
		return modes
	}
	for _, a := range list {
		if a.Mode != loader.ModeNone {
			modes[a.Name] = a.Mode.String()
		}
	}
	return modes
}

// Confirm keeps changes that are on trial; all of them if none is named.
func (e *engine) Confirm(by state.Actor, r state.ConfirmRequest) (state.ConfirmResponse, error) {
	e.trials.order.Lock()
	defer e.trials.order.Unlock()
	kept, err := e.state.EndTrials(r.IDs...)
	if err != nil {
		return state.ConfirmResponse{}, err
	}
	if len(kept) == 0 {
		return state.ConfirmResponse{}, &state.Error{Code: state.CodeNotFound, Detail: "nothing is on trial: it was confirmed or taken back already"}
	}
	for _, t := range kept {
		e.log.Info("a change on trial was confirmed", "trial", t.ID, "what", t.What, "actor", by.String())
	}
	e.trialProblem("")
	return state.ConfirmResponse{Confirmed: kept}, nil
}

// Trials returns what waits to be confirmed.
func (e *engine) Trials() state.TrialList { return state.TrialList{Trials: e.state.Trials()} }

func (e *engine) trialProblem(text string) {
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	e.trials.problem = text
}

// runTrials takes changes back whose time has come without a confirmation.
func (e *engine) runTrials(ctx context.Context) error {
	const retry = 5 * time.Second // where one can't be taken back
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-e.trials.wake:
		}
		wait := time.Hour
		if e.endOverdue() {
			wait = retry
		} else if _, at := e.state.NextTrial(); at != state.Forever {
			wait = time.Duration(max(int64(at)-int64(e.clock.Monotonic()), 0))
		}
		timer.Reset(min(wait, time.Hour))
	}
}

// endOverdue takes back what is due, and tells whether something could not be.
func (e *engine) endOverdue() (failed bool) {
	e.settings.Lock()
	defer e.settings.Unlock()
	e.trials.order.Lock()
	defer e.trials.order.Unlock()
	for {
		id, at := e.state.NextTrial()
		if at > e.clock.Monotonic() {
			return false
		}
		if err := e.takeTrialBack(id); err != nil {
			e.log.Error("a change on trial could not be taken back", "trial", id, "error", err)
			e.trialProblem(fmt.Sprintf("the trial %s could not be taken back: %v; levee confirm %s keeps the change", id, err, id))
			return true
		}
		e.trialProblem("")
	}
}

func (e *engine) takeTrialBack(id string) error {
	var undone state.Undone
	err := e.reconciler.Change(func() error {
		return e.reconciler.ChangeSettings(func() (err error) {
			if undone, err = e.state.Undo(id); err != nil {
				return err
			}
			e.reconciler.Apply(undone.Prefixes) // it only takes away, or puts what was there
			if undone.Allows {
				err = errors.Join(err, e.reconciler.SyncAllows())
			}
			if undone.Limits {
				err = errors.Join(err, e.reconciler.SyncLimits())
			}
			return err
		})
	})
	if err == nil {
		err = e.restoreInterfaces(undone.Interfaces)
	}
	if err == nil && undone.Config != nil {
		err = e.restoreConfig(undone.Config)
	}
	if err != nil {
		return err
	}
	if _, err := e.state.EndTrials(id); err != nil {
		return err
	}
	e.audit.Write(&state.AuditEvent{Action: "take-back", By: state.Operator("levee"), Target: id, Value: undone.Trial,
		Reason: "the change was on trial, and was not confirmed in time"})
	e.log.Warn("a change on trial was not confirmed, and was taken back", "trial", id, "what", undone.Trial.What, "actor", undone.Trial.Actor)
	return nil
}

// restoreInterfaces brings interfaces to what the state says of them again, and those of which it says
// nothing to how they were attached.
func (e *engine) restoreInterfaces(attached map[string]string) error {
	for name, before := range attached {
		known, _ := e.state.Interface(name)
		_, _, wanted := known.Wanted()
		var err error
		switch {
		case wanted:
			err = e.attachConfigured(known)
		case before != "":
			_, err = e.shield.Attach(name, kernelMode(state.InterfaceMode(before)))
		default:
			if err = e.shield.Detach(name); errors.Is(err, loader.ErrNotAttached) {
				err = nil
			}
			e.trouble(name, "")
		}
		if err != nil {
			return attachError(name, err)
		}
	}
	return nil
}

// textOf is what to note of a configuration in force before another one is tried.
func textOf(now, next *config.Config) *state.FileText {
	text, none := now.Text()
	return &state.FileText{Text: text, None: none, Tried: next.Sum()}
}

// restoreConfig puts a configuration into force that was in force before.
func (e *engine) restoreConfig(text *state.FileText) error {
	before, err := e.loadText(text)
	if err != nil {
		return fmt.Errorf("read the configuration of before: %w", err)
	}
	now := e.config.Load()
	if err := e.configure(now, before); err != nil {
		return errors.Join(err, e.configure(before, now))
	}
	e.config.Store(before)
	return nil
}

// settled is the configuration to start with: the file's, unless it was tried and not confirmed.
func (e *engine) settled(c *config.Config) (*config.Config, error) {
	// A file that is neither the one on trial nor the one that was rejected is a newer word than both.
	for _, t := range e.state.Trials() {
		if t.About != state.AboutConfig {
			continue
		}
		if text := e.state.Tried(t.ID); text == nil || text.Tried != c.Sum() {
			if err := e.state.Release([]state.Thing{{About: state.AboutConfig}}); err != nil {
				return nil, err
			}
		}
	}
	rejected := e.state.Rejected()
	if rejected == nil {
		return c, nil
	}
	if rejected.Tried != c.Sum() {
		return c, e.state.Reject(nil)
	}
	before, err := e.loadText(rejected)
	if err != nil {
		e.log.Error("the configuration of before can't be read, the file is in force", "error", err)
		return c, nil
	}
	return before, nil
}

// trialProblems says what is wrong with trials.
func (e *engine) trialProblems() (problems []string) {
	e.trials.mu.Lock()
	if p := e.trials.problem; p != "" {
		problems = append(problems, p)
	}
	e.trials.mu.Unlock()
	if p := e.unconfirmed(); p != "" {
		problems = append(problems, p)
	}
	return problems
}

// unconfirmed says that another configuration than the file's is in force.
func (e *engine) unconfirmed() string {
	if e.state.Rejected() == nil {
		return ""
	}
	return "the configuration file was tried and not confirmed, so the one before it is in force; mend the file, or try it again: levee config reload --confirm 60s"
}

// overdueAtStart takes back, before anything is enforced, what was not confirmed in time.
func (e *engine) overdueAtStart() (interfaces map[string]string, err error) {
	interfaces = map[string]string{}
	for {
		id, at := e.state.NextTrial()
		if at > e.clock.Monotonic() {
			return interfaces, nil
		}
		undone, err := e.state.Undo(id)
		if err != nil {
			return interfaces, fmt.Errorf("take back the trial %s: %w", id, err)
		}
		for name, mode := range undone.Interfaces {
			interfaces[name] = mode
		}
		if _, err := e.state.EndTrials(id); err != nil {
			return interfaces, fmt.Errorf("take back the trial %s: %w", id, err)
		}
		e.log.Warn("a change on trial was not confirmed, and was taken back", "trial", id, "what", undone.Trial.What, "actor", undone.Trial.Actor)
	}
}

// banThings is what proposals are about; a removal of all origins' claims is told by its outcomes.
func banThings(proposals []state.Proposal) []state.Thing {
	out := make([]state.Thing, 0, len(proposals))
	for i := range proposals {
		if p := &proposals[i]; !p.Remove {
			out = append(out, banThing(p.Prefix, p.Origin))
		}
	}
	return out
}

func banThing(p netip.Prefix, o state.Origin) state.Thing {
	return state.Thing{About: state.AboutBan, Name: p.String(), Origin: o}
}

// bannedThings is what outcomes have changed, or found to be so already.
func bannedThings(proposals []state.Proposal, outcomes []state.Outcome) []state.Thing {
	var out []state.Thing
	for i := range outcomes {
		switch o := &outcomes[i]; o.Status {
		case state.StatusRefused:
		case state.StatusRemoved:
			for _, c := range o.Removed {
				out = append(out, banThing(o.Prefix, c.Origin))
			}
		case state.StatusAdded, state.StatusChanged, state.StatusUnchanged:
			out = append(out, banThing(o.Prefix, proposals[i].Origin))
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
