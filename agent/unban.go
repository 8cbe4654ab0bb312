package agent

import (
	"fmt"
	"net/netip"

	"github.com/levee-xdp/levee/agent/state"
)

// unbanOrigin takes every claim of an origin back, part by part as a bulk makes them, so that other
// changes come in between. The answer only counts them: an origin may have a million.
func (e *engine) unbanOrigin(by state.Actor, origin state.Origin, all bool) (out state.BanResponse, err error) {
	out.Bans = []state.BanResult{}
	if all {
		return out, &state.Error{Code: state.CodeInvalid, Field: "prefixes", Detail: "are missing: name the prefixes, or one origin whose claims are to go"}
	}
	// Before they are looked up: who may not take them back is not to learn which there are.
	if err := by.Bounds.MayTakeBack(origin); err != nil {
		return out, err
	}
	if !e.unbanning.TryLock() {
		return out, &state.Error{Code: state.CodeBusy, Field: "origin", Value: string(origin), Detail: "has to wait: another call is taking all claims of an origin back; come again in a moment"}
	}
	defer e.unbanning.Unlock()
	// What the end of a trial would bring back is not to come, either.
	if _, err := e.onTrial(&state.Attempt{By: by}, nil, func() ([]state.Thing, error) { return e.state.HeldOf(origin), nil }); err != nil {
		return out, err
	}
	proposals := make([]state.Proposal, 0, bulkPart)
	flush := func() error {
		done, err := e.takeBackPart(by, origin, proposals)
		out.Done += done
		proposals = proposals[:0]
		return err
	}
	var prefixes []netip.Prefix
	for place := uint32(1); place != 0; {
		prefixes, place = e.state.ByOriginFrom(origin, place, prefixes[:0])
		for _, p := range prefixes {
			proposals = append(proposals, state.Proposal{Prefix: p, Origin: origin, Actor: by.String(), Remove: true, Bounds: by.Bounds})
			if len(proposals) < bulkPart {
				continue
			}
			if err = flush(); err != nil {
				return out, unbanFailed(err, out.Done)
			}
		}
	}
	if len(proposals) > 0 {
		err = flush()
	}
	return out, unbanFailed(err, out.Done)
}

// takeBackPart takes some claims of an origin back, and returns how many there still were.
func (e *engine) takeBackPart(by state.Actor, origin state.Origin, proposals []state.Proposal) (done int, err error) {
	part, err := e.propose(state.Attempt{By: by}, proposals, places(len(proposals)), make([]state.BanResult, len(proposals)))
	if err != nil {
		return 0, err
	}
	var g groups
	for i := range part.Bans {
		// One that somebody else took back, or that has ended, meanwhile.
		if part.Bans[i].Status == state.StatusRemoved {
			g.add(part.Bans[i].Prefix, auditOf(&part.Bans[i]))
		}
	}
	e.audit.Write(&state.AuditEvent{Action: "unban", By: by, Target: string(origin), Bans: g.list})
	return part.Done, nil
}

func places(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// unbanFailed says in an error how many claims were taken back before it came.
func unbanFailed(err error, done int) error {
	if err == nil || done == 0 {
		return err
	}
	failed := *state.AsError(err, state.CodeKernel)
	failed.Detail += fmt.Sprintf("; %d claims were taken back before that", done)
	return &failed
}
