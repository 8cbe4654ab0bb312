package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

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
	return e.proposeAllows(state.Attempt{By: by, About: state.AboutAllow, For: r.Confirm}, prefixes, proposals)
}

// Unallow takes allow entries back.
func (e *engine) Unallow(by state.Actor, r state.UnallowRequest) (state.AllowResponse, error) {
	var proposals []state.AllowProposal
	for _, text := range r.Prefixes {
		p := state.AllowProposal{Remove: true}
		p.Prefix.Prefix, _ = state.ParsePrefix(text) // what is none is refused below
		proposals = append(proposals, p)
	}
	return e.proposeAllows(state.Attempt{By: by}, r.Prefixes, proposals)
}

func (e *engine) proposeAllows(a state.Attempt, prefixes []string, proposals []state.AllowProposal) (state.AllowResponse, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	var outcomes []state.AllowOutcome
	if a.For != 0 {
		if a.Things = allowThings(e.state.JudgeAllows(proposals), false); len(a.Things) > 0 {
			a.What = many("allow", len(a.Things), prefixName(a.Things[0].Name))
		}
	}
	began, err := e.onTrial(&a, nil, func() (changed []state.Thing, err error) {
		err = e.reconciler.ChangeSettings(func() (err error) {
			if outcomes, err = e.state.ProposeAllows(proposals); err != nil {
				return err
			}
			if err := e.reconciler.SyncAllows(); err != nil {
				undo := errors.Join(e.state.RevertAllows(outcomes), e.reconciler.SyncAllows())
				if undo != nil {
					changed = a.Things
				}
				return errors.Join(err, undo)
			}
			changed = allowThings(outcomes, a.For == 0)
			return nil
		})
		return changed, err
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

// allowThings is what outcomes have changed, or would change. A plain change settles more: what it says
// again, and what is not to be there, though it was not there now.
func allowThings(outcomes []state.AllowOutcome, plain bool) (out []state.Thing) {
	for i := range outcomes {
		o := &outcomes[i]
		changed := o.Status == state.StatusAdded || o.Status == state.StatusChanged || o.Status == state.StatusRemoved
		if changed || plain && (o.Status == state.StatusUnchanged || o.Error != nil && o.Error.Code == state.CodeNotFound) {
			out = append(out, state.Thing{About: state.AboutAllow, Name: o.Prefix.String()})
		}
	}
	return out
}

// Allows lists the allow entries.
func (e *engine) Allows() []state.Allow { return e.state.Allows() }
