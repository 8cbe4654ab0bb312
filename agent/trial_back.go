package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// How long it takes until what could not be taken back is tried again: longer each time.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
	// And until one looks again whether a whole bulk is over.
	wholeRetry = 20 * time.Millisecond
)

const notConfirmed = "nobody confirmed it in time"

// runTrials takes changes back whose time has come without a confirmation.
func (e *engine) runTrials(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-e.trials.wake:
		}
		timer.Reset(min(e.endOverdue(), time.Hour))
	}
}

// endOverdue takes back what is due, and returns when to look again. One that can't be taken back does
// not keep the others from it.
func (e *engine) endOverdue() time.Duration {
	if !e.trials.whole.TryLock() {
		return wholeRetry
	}
	defer e.trials.whole.Unlock()
	again := time.Hour
	if e.state.Left() != nil && e.dropWhole(wasCutShort) != nil {
		again = lastRetry
	}
	for _, id := range e.state.DueTrials() {
		if e.retryAt(id) > e.clock.Monotonic() {
			continue
		}
		if err := e.endOne(id); err != nil {
			e.trialFailed(id, err)
		}
	}
	at := e.state.NextTrial(func(id string) bool { return e.retryAt(id) > 0 })
	due := e.state.DueTrials()
	e.trials.mu.Lock()
	for id, f := range e.trials.failing {
		if slices.Contains(due, id) {
			at = min(at, f.again)
		} else {
			delete(e.trials.failing, id) // somebody has changed all of it meanwhile
		}
	}
	e.trials.mu.Unlock()
	if at == state.Forever {
		return again
	}
	return min(again, time.Duration(max(int64(at)-int64(e.clock.Monotonic()), 0)))
}

func (e *engine) endOne(id string) error {
	e.settings.Lock()
	defer e.settings.Unlock()
	e.trials.order.Lock()
	defer e.trials.order.Unlock()
	return e.takeTrialBack(id)
}

// retryAt returns when a trial that could not be taken back is tried again; 0 if it did not fail.
func (e *engine) retryAt(id string) uint64 {
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	if f := e.trials.failing[id]; f != nil {
		return f.again
	}
	return 0
}

// trialFailed notes why a trial could not be taken back.
func (e *engine) trialFailed(id string, err error) {
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	f := e.trials.failing[id]
	if f == nil {
		f = &failing{wait: firstRetry / 2}
		e.trials.failing[id] = f
	}
	f.why, f.wait = err.Error(), min(2*f.wait, lastRetry)
	f.again = e.clock.Monotonic() + uint64(f.wait)
	e.log.Error("a change on trial could not be taken back", "trial", id, "error", err, "again_in", f.wait)
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
	if state.IsNotFound(err) {
		e.forgetFailing(id) // somebody has changed all of it meanwhile
		return nil
	}
	if err == nil {
		err = e.restoreInterfaces(undone.Interfaces)
	}
	if err == nil && undone.Config != nil {
		err = e.restoreConfig(undone.Config)
	}
	if err != nil {
		return err
	}
	return e.trialOver(undone)
}

// trialOver ends a trial all of which was taken back, and tells of it. It is recorded before it has
// ended: should this be the last that the daemon does, it is rather told twice than never.
func (e *engine) trialOver(undone state.Undone) error {
	t := undone.Trial
	if !e.recorded(t.ID) {
		e.audit.Write(takenBackEvent(undone))
	}
	if err := e.state.EndTrial(t.ID); err != nil {
		e.noteRecorded(t.ID)
		return err
	}
	e.forgetFailing(t.ID)
	e.trials.mu.Lock()
	e.trials.ended = append(e.trials.ended, state.EndedTrial{Trial: t, Ended: e.clock.Now().UTC(), Why: notConfirmed})
	if n := len(e.trials.ended); n > maxEnded {
		e.trials.ended = slices.Delete(e.trials.ended, 0, n-maxEnded)
	}
	e.trials.mu.Unlock()
	e.tellTakenBack(undone.Decisions)
	e.log.Warn("a change on trial was not confirmed, and was taken back", "trial", t.ID, "what", t.What, "actor", t.Actor)
	return nil
}

func (e *engine) recorded(id string) bool {
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	f := e.trials.failing[id]
	return f != nil && f.recorded
}

// noteRecorded notes that a trial which could not be ended is in the audit log.
func (e *engine) noteRecorded(id string) {
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	if f := e.trials.failing[id]; f != nil {
		f.recorded = true
	} else {
		e.trials.failing[id] = &failing{wait: firstRetry / 2, recorded: true}
	}
}

func (e *engine) forgetFailing(id string) {
	e.trials.mu.Lock()
	defer e.trials.mu.Unlock()
	delete(e.trials.failing, id)
}

func takenBackEvent(undone state.Undone) *state.AuditEvent {
	a := &state.AuditEvent{Action: "take-back", By: state.Operator("levee"), Target: undone.Trial.ID, Value: undone.Trial,
		Reason: "the change was on trial, and " + notConfirmed}
	var g groups
	for i := range undone.Decisions {
		d := &undone.Decisions[i]
		if d.About != state.AboutBan && d.About != state.AboutAllow {
			continue
		}
		b := state.AuditBans{Status: state.Status(d.Op), Origin: d.Origin}
		if c := d.Claim; c != nil {
			if b.Reason = c.Reason; !c.Expires.IsZero() {
				b.Expires = c.Expires.UTC().Format(time.RFC3339)
			}
		}
		g.add(d.Subject, b)
	}
	a.Bans = g.list
	return a
}

// tellTakenBack counts what is in force again, and tells of it.
func (e *engine) tellTakenBack(decisions []state.Decision) {
	sums := map[state.Decision]int{}
	proposals, outcomes := make([]state.Proposal, 0, len(decisions)), make([]state.Outcome, 0, len(decisions))
	for _, d := range decisions {
		if d.About == state.AboutBan {
			proposals, outcomes = append(proposals, state.Proposal{Origin: d.Origin}), append(outcomes, state.Outcome{Status: state.Status(d.Op)})
		}
		if len(decisions) <= listed {
			e.tell(d)
			continue
		}
		d.Subject, d.Claim = "", nil
		sums[d]++
	}
	for d, n := range sums {
		d.Many = n
		e.tell(d)
	}
	e.record.Bans(proposals, outcomes)
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
// Interfaces that are attached already are not those that the other one attaches.
func textOf(now, next *config.Config, attached map[string]string) *state.FileText {
	text, none := now.Text()
	out := &state.FileText{Text: text, None: none, Tried: next.Sum()}
	for _, i := range next.Interfaces {
		if attached[i.Name] == "" {
			out.Interfaces = append(out.Interfaces, i.Name)
		}
	}
	return out
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
	return e.detachUnwanted(text.Interfaces)
}

// detachUnwanted takes the shield off those of some interfaces on which nobody wants it any more.
func (e *engine) detachUnwanted(names []string) error {
	for _, name := range names {
		known, _ := e.state.Interface(name)
		if _, _, wanted := known.Wanted(); wanted {
			continue
		}
		if err := e.shield.Detach(name); err != nil && !errors.Is(err, loader.ErrNotAttached) {
			return attachError(name, err)
		}
		e.trouble(name, "")
	}
	return nil
}

// undoAtStart puts back in the state, before anything is enforced, what was not confirmed in time. The
// trials end when the rest has followed. What can't be written is tried again later.
func (e *engine) undoAtStart() (undone []state.Undone) {
	var done []string
	for _, id := range slices.Backward(e.state.DueTrials()) { // the newest first, so that what it lay on follows
		u, err := e.state.Undo(id, done...)
		if err != nil {
			e.trialFailed(id, err)
			continue
		}
		undone, done = append(undone, u), append(done, id)
	}
	return undone
}

// endAtStart ends the trials that were taken back, when tables and interfaces are as the state has it.
func (e *engine) endAtStart(undone []state.Undone, c *config.Config) {
	pending := e.state.Trials()
	for _, u := range undone {
		if !slices.ContainsFunc(pending, func(t state.Trial) bool { return t.ID == u.Trial.ID }) {
			continue // the file says something newer
		}
		err := e.restoreInterfaces(u.Interfaces)
		if err == nil && u.Config != nil && c.Sum() == e.config.Load().Sum() && u.Config.Has(c.Sum()) {
			err = errors.New("the configuration of before can't be read, the file is in force")
		}
		if err == nil && u.Config != nil {
			err = e.detachUnwanted(u.Config.Interfaces)
		}
		if err == nil {
			err = e.trialOver(u)
		}
		if err != nil {
			e.trialFailed(u.Trial.ID, err)
		}
	}
}

// settled is the configuration to start with: the file's, unless it was tried and not confirmed.
func (e *engine) settled(c *config.Config) *config.Config {
	// A file that is neither what is on trial nor what was rejected is a newer word than both.
	tried, onTrial := e.state.Tried(c.Sum())
	if !tried {
		var err error
		if onTrial {
			e.log.Info("the configuration file is another one than what is on trial, which is over with that")
			err = e.state.Release([]state.Thing{{About: state.AboutConfig}})
		}
		if err = errors.Join(err, e.state.Reject(nil)); err != nil {
			e.log.Error("what was on trial of the configuration could not be ended", "error", err) // it is a newer word next time, too
		}
		return c
	}
	rejected := e.state.Rejected()
	if rejected == nil {
		return c
	}
	before, err := e.loadText(rejected)
	if err != nil {
		problem := "the configuration file was tried and not confirmed, but the one before it can't be read (" + err.Error() + "), so the file is in force; mend it, and levee config reload"
		e.log.Error("the configuration of before can't be read, the file is in force", "error", err)
		e.mu.Lock()
		e.lasting = append(e.lasting, problem)
		e.mu.Unlock()
		return c
	}
	return before
}

// trialProblems says what is wrong with trials.
func (e *engine) trialProblems() (problems []string) {
	for _, t := range e.Trials().Trials {
		if t.Problem != "" {
			problems = append(problems, fmt.Sprintf("the trial %s (%s) was not confirmed and could not be taken back: %s; it is tried again. To keep the change, make it again without --confirm", t.ID, t.What, t.Problem))
		}
	}
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
