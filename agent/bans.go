package agent

import (
	"net/netip"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Ban makes claims.
func (e *engine) Ban(by state.Actor, r state.BanRequest) (state.BanResponse, error) {
	if r.Force {
		if err := by.MayForce(); err != nil {
			return state.BanResponse{}, err
		}
	}
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
	return e.propose(state.Attempt{By: by, About: state.AboutBan, For: r.Confirm}, proposals, places, results)
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
		// A bulk may be read for long before this is committed, and many lines share it.
		now, wall := e.clock.Monotonic(), e.clock.Now()
		if p.For = item.Expires.Sub(wall); p.For > 0 {
			p.Until = now + uint64(p.For)
		} else {
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
	return e.propose(state.Attempt{By: by}, proposals, places, results)
}

// propose takes proposals to the state and to the kernel, and puts their answers at their places.
// What the kernel does not take is taken back from the state.
func (e *engine) propose(a state.Attempt, proposals []state.Proposal, places []int, results []state.BanResult) (state.BanResponse, error) {
	var outcomes []state.Outcome
	prepare := func() {
		proposals, places = e.sift(proposals, places, results, &a)
	}
	began, err := e.onTrial(&a, prepare, func() (changed []state.Thing, err error) {
		err = e.reconciler.Change(func() (err error) {
			outcomes, err = e.decide(proposals)
			return err
		})
		switch {
		case a.For == 0 && err == nil:
			changed = e.settledBans(proposals, outcomes)
		case err == nil:
			changed = triedBans(proposals, outcomes)
		case outcomes != nil:
			changed = a.Things // not all that the kernel refused could be put back
		}
		return changed, err
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

// sift answers those proposals that are refused in any case, and returns the others, with their places.
// What they would change is what is attempted.
func (e *engine) sift(proposals []state.Proposal, places []int, results []state.BanResult, a *state.Attempt) ([]state.Proposal, []int) {
	judged := make([]state.Outcome, len(proposals))
	e.state.Judge(proposals, judged)
	a.Things = triedBans(proposals, judged)
	if n := len(a.Things); n > 0 {
		a.What = many("ban", n, prefixName(a.Things[0].Name))
	}
	var some, refused []state.Proposal
	var left []int
	var refusals []state.Outcome
	for i := range judged {
		if judged[i].Status == state.StatusRefused {
			results[places[i]] = resultOf(&judged[i])
			refused, refusals = append(refused, proposals[i]), append(refusals, judged[i])
		} else {
			some, left = append(some, proposals[i]), append(left, places[i])
		}
	}
	e.decided(refused, refusals)
	return some, left
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
	prefixes, of := make([]netip.Prefix, 0, len(outcomes)), make([]int, 0, len(outcomes))
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
