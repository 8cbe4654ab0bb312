package agent

import (
	"net/netip"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/protect"
	"github.com/levee-xdp/levee/agent/state"
)

func kinds(c *config.Config) protect.Kinds {
	p := c.Protect
	return protect.Kinds{Own: p.Own, Gateways: p.Gateways, Resolvers: p.Resolvers, SSH: p.SSH, API: p.API}
}

// protectFirst finds the protected addresses before anything is enforced.
func (e *engine) protectFirst(c *config.Config) {
	e.finder = protect.New(protect.Config{System: e.system, Kinds: kinds(c), Protect: e.protect, Clock: e.clock, Log: e.log})
	if err := e.finder.Refresh(); err != nil {
		e.log.Error("not all protected addresses could be found", "error", err)
	}
}

// protect puts the entries that Levee makes for itself into force.
func (e *engine) protect(entries []state.Allow) error {
	return e.reconciler.ChangeSettings(func() error {
		changed, err := e.state.Protect(entries)
		if err != nil || !changed {
			return err
		}
		return e.reconciler.SyncAllows()
	})
}

// known protects where somebody is who may change something here: whoever bans must not lock out those
// who could take it back.
func (e *engine) known(by state.Actor) {
	e.finder.Client(by.Address.Addr(), credentials(by.Kind, by.ID))
	if by.Kind == state.ActorToken && !e.state.HasToken(by.ID) {
		e.finder.Forget(credentials(by.Kind, by.ID)) // it was revoked meanwhile
	}
}

// credentials names a token or a certificate among all.
func credentials(kind state.ActorKind, id string) string { return string(kind) + ":" + id }

// viaProxy refuses a ban of a client that only a proxy sees: packets carry the proxy's address, so it
// would do nothing here, and if nobody trusts the proxy, its word for the client may be forged.
func (e *engine) viaProxy(client netip.Prefix, via string) *state.Error {
	if via == "" {
		return nil
	}
	addr, err := state.ParseAddr(via)
	if err != nil {
		return state.AsError(err, state.CodeInvalid).In("via")
	}
	if client.Contains(addr) {
		return nil
	}
	refused := &state.Error{Code: state.CodeConflict, Field: "via", Value: via}
	if proxy, ok := e.state.ProxyOf(addr); ok {
		refused.Detail = "is a trusted proxy (" + state.PrefixString(proxy) + "): packets carry its address and not that of " +
			state.PrefixString(client) + ", so a ban here would do nothing; block the client at the proxy"
	} else {
		refused.Detail = "is not among trusted_proxies, so what it says of " + state.PrefixString(client) +
			" may be forged; ban the address that packets come from, or name the proxy in trusted_proxies"
	}
	return refused
}

// countAllows counts the allow entries in force: those that were set, and those that Levee made.
func (e *engine) countAllows() (allowed, protected int) {
	for _, a := range e.state.EffectiveAllows() {
		if a.Source == state.FromProtected {
			protected++
		} else {
			allowed++
		}
	}
	return allowed, protected
}
