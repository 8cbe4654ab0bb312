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
