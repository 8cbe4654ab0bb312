package agent

import (
	"context"
	"net/netip"

	"github.com/levee-xdp/levee/agent/state"
)

// CheckPrefix tells everything that concerns a prefix. It reads all claims, so one is made at a time.
func (e *engine) CheckPrefix(ctx context.Context, p netip.Prefix) (state.PrefixCheck, error) {
	interfaces, err := e.shielded()
	if err != nil {
		return state.PrefixCheck{}, err
	}
	select {
	case e.checking <- struct{}{}:
	case <-ctx.Done():
		return state.PrefixCheck{}, ctx.Err()
	}
	around := e.state.Around(p, state.MostContained)
	<-e.checking
	c := state.PrefixCheck{Prefix: p, Claims: notNil(around.Claims), Containing: notNil(around.Containing),
		Contained: notNil(around.Contained), Total: around.Total, Allows: notNil(around.Allows), Interfaces: interfaces}
	c.Verdict, c.Words = e.prefixVerdict(&around, interfaces)
	return c, nil
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// prefixVerdict says what bans do to the packets of a prefix. Limits are of addresses: nothing is said
// of them.
func (e *engine) prefixVerdict(a *state.Around, interfaces int) (state.Verdict, string) {
	monitor := e.config.Load().Mode == state.Monitor
	switch {
	case e.Panic():
		return state.VerdictPasses, "passes: the panic switch is on, everything passes"
	case interfaces == 0:
		return state.VerdictPasses, "passes: no interface is shielded; levee attach shields one"
	case a.Overruled:
		return state.VerdictAllowed, "passes: bans touch it, and allow entries overrule them"
	case a.Banned == state.None:
		return state.VerdictPasses, "passes: no ban touches it"
	case monitor:
		return state.VerdictMonitored, "passes, and is counted: the daemon only monitors"
	case a.Enforced == state.None:
		return state.VerdictMonitored, "passes, and is counted: what bans touch it only monitor"
	case a.Enforced == state.Part:
		return state.VerdictPartly, "is dropped in part: bans or allow entries touch only some of it"
	}
	return state.VerdictBanned, "is dropped: all of it is banned"
}
