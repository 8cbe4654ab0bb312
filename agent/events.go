package agent

import (
	"github.com/levee-xdp/levee/agent/api"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/maps"
)

// listed is how many changes of one call are told one by one; more are told as one, by what was done.
const listed = 1000

// Events follows what happens.
func (e *engine) Events(by state.Actor, f state.EventFilter) (api.EventReader, error) {
	return e.events.Open(by, f)
}

// sampled keeps a packet that the program has sampled, and tells of it.
func (e *engine) sampled(ev maps.Event) {
	e.recent.add(ev)
	v := e.event(ev, e.limitNames())
	e.events.Publish(state.Event{Time: v.Time, Kind: state.EventDrop, Drop: &v})
}

// decided counts what came of proposals, and tells of it.
func (e *engine) decided(proposals []state.Proposal, outcomes []state.Outcome) {
	e.record.Bans(proposals, outcomes)
	if len(outcomes) > listed {
		e.decidedMany(proposals, outcomes)
		return
	}
	for i := range outcomes {
		o, p := &outcomes[i], &proposals[i]
		d := state.Decision{About: state.AboutBan, Op: string(o.Status), Subject: state.PrefixString(o.Prefix), Origin: p.Origin, Actor: p.Actor, Claim: o.Claim}
		switch {
		case o.Status == state.StatusRefused || o.Status == state.StatusUnchanged:
		case o.Status == state.StatusRemoved && len(o.Removed) > 0:
			for j := range o.Removed {
				d := d
				d.Origin, d.Claim = o.Removed[j].Origin, &o.Removed[j]
				e.tell(d)
			}
		default:
			e.tell(d)
		}
	}
}

func (e *engine) decidedMany(proposals []state.Proposal, outcomes []state.Outcome) {
	type sort struct {
		op     state.Status
		origin state.Origin
		actor  string
	}
	sums := map[sort]int{}
	for i := range outcomes {
		if s := outcomes[i].Status; s != state.StatusRefused && s != state.StatusUnchanged {
			sums[sort{s, proposals[i].Origin, proposals[i].Actor}]++
		}
	}
	for k, n := range sums {
		e.tell(state.Decision{About: state.AboutBan, Op: string(k.op), Origin: k.origin, Actor: k.actor, Many: n})
	}
}

// expired counts claims that have ended, and tells of them.
func (e *engine) expired(ended []state.Expired) {
	e.record.Expired(ended)
	if len(ended) > listed {
		sums := map[state.Origin]int{}
		for _, x := range ended {
			sums[x.Origin]++
		}
		for origin, n := range sums {
			e.tell(state.Decision{About: state.AboutBan, Op: state.OpExpired, Origin: origin, Many: n})
		}
		return
	}
	for _, x := range ended {
		e.tell(state.Decision{About: state.AboutBan, Op: state.OpExpired, Subject: state.PrefixString(x.Prefix), Origin: x.Origin})
	}
}

// tell tells of a decision that is in force.
func (e *engine) tell(d state.Decision) {
	e.events.Publish(state.Event{Time: e.clock.Now().UTC(), Kind: state.EventDecision, Decision: &d})
}

// telling is the engine as the API has it: what it does beside bans, it tells of, too.
type telling struct{ audited }

// Allow makes allow entries.
func (t telling) Allow(by state.Actor, r state.AllowRequest) (state.AllowResponse, error) {
	out, err := t.audited.Allow(by, r)
	t.allowed(by, out.Allow)
	return out, err
}

// Unallow takes allow entries back.
func (t telling) Unallow(by state.Actor, r state.UnallowRequest) (state.AllowResponse, error) {
	out, err := t.audited.Unallow(by, r)
	t.allowed(by, out.Allow)
	return out, err
}

func (t telling) allowed(by state.Actor, results []state.AllowResult) {
	for _, r := range results {
		if r.Status != state.StatusRefused && r.Status != state.StatusUnchanged {
			t.tell(state.Decision{About: state.AboutAllow, Op: string(r.Status), Subject: r.Prefix, Actor: by.String()})
		}
	}
}

// SetLimit makes or replaces a limit.
func (t telling) SetLimit(by state.Actor, name string, spec state.LimitSpec, confirm state.Duration) (state.LimitView, error) {
	out, err := t.audited.SetLimit(by, name, spec, confirm)
	t.changed(err, state.AboutLimit, state.StatusChanged, name, by)
	return out, err
}

// RemoveLimit takes a limit of the run time back.
func (t telling) RemoveLimit(by state.Actor, name string) error {
	err := t.audited.RemoveLimit(by, name)
	t.changed(err, state.AboutLimit, state.StatusRemoved, name, by)
	return err
}

// Attach shields an interface.
func (t telling) Attach(by state.Actor, r state.AttachRequest) (state.InterfaceView, error) {
	out, err := t.audited.Attach(by, r)
	t.changed(err, state.AboutInterface, state.StatusAdded, r.Name, by)
	return out, err
}

// Detach takes the shield off an interface.
func (t telling) Detach(by state.Actor, name string) error {
	err := t.audited.Detach(by, name)
	t.changed(err, state.AboutInterface, state.StatusRemoved, name, by)
	return err
}

// SetPanic has everything pass, or ends that.
func (t telling) SetPanic(by state.Actor, on bool) error {
	err := t.audited.SetPanic(by, on)
	op := state.Status(state.OpOff)
	if on {
		op = state.OpOn
	}
	t.changed(err, state.AboutPanic, op, "", by)
	return err
}

// Reload reads the configuration again.
func (t telling) Reload(by state.Actor, confirm state.Duration) (state.ReloadResponse, error) {
	out, err := t.audited.Reload(by, confirm)
	t.changed(err, state.AboutConfig, state.OpReloaded, "", by)
	return out, err
}

func (t telling) changed(err error, about state.Subject, op state.Status, subject string, by state.Actor) {
	if err == nil {
		t.tell(state.Decision{About: about, Op: string(op), Subject: subject, Actor: by.String()})
	}
}
