package state

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Scope is what an actor may do.
type Scope string

// The scopes. Admin includes the others.
const (
	ScopeRead  Scope = "read"  // see everything, change nothing
	ScopeBan   Scope = "ban"   // make and take back claims
	ScopeLimit Scope = "limit" // set and remove limits
	ScopeAdmin Scope = "admin" // everything, also allow entries, interfaces, the panic switch, the configuration and tokens
)

// Scopes are all there are.
var Scopes = []Scope{ScopeRead, ScopeBan, ScopeLimit, ScopeAdmin}

// UnmarshalText reads a scope.
func (s *Scope) UnmarshalText(b []byte) error {
	if !slices.Contains(Scopes, Scope(b)) {
		return invalid("scope", string(b), "is none of read, ban, limit and admin")
	}
	*s = Scope(b)
	return nil
}

// ActorKind is how the daemon knows who asks.
type ActorKind string

// The kinds of actors.
const (
	ActorDaemon      ActorKind = "daemon"      // Levee itself, or a signal to it
	ActorPeer        ActorKind = "peer"        // a user of this host, on the other end of the Unix socket
	ActorToken       ActorKind = "token"       // whoever shows a bearer token
	ActorCertificate ActorKind = "certificate" // whoever shows a client certificate
)

// Actor is who asks for something, from where, and what they may.
type Actor struct {
	Kind ActorKind
	Name string // a user's name, a token's name, a certificate's owner
	ID   string // a user's number, a token's id, a certificate's subject

	UID, GID uint32 // of a peer
	PID      int32
	Address  netip.AddrPort // where the call comes from; zero for a peer
	Agent    string         // what the caller says it is: the User-Agent

	Scopes []Scope
	Bounds *Bounds // of its bans; nil: none
}

// Operator is the actor of what Levee does by itself, and of what its own user asks for.
func Operator(name string) Actor {
	return Actor{Kind: ActorDaemon, Name: name, Scopes: []Scope{ScopeAdmin}}
}

// String names the actor as claims and logs do: a user of this host by the name alone.
func (a Actor) String() string {
	switch a.Kind {
	case ActorToken, ActorCertificate:
		return string(a.Kind) + ":" + a.Name
	case ActorPeer, ActorDaemon:
	}
	if a.Name == "" && a.Kind == ActorPeer {
		return "uid:" + a.ID
	}
	return a.Name
}

// May tells whether the actor has a scope.
func (a Actor) May(s Scope) bool {
	return s != "" && (slices.Contains(a.Scopes, s) || slices.Contains(a.Scopes, ScopeAdmin))
}

// MayForce returns why the actor may not ban with force, or nil. Who has the scope admin may, as may
// whose bounds say so: force is what stands between one token and all clients of a host.
func (a Actor) MayForce() *Error {
	if a.May(ScopeAdmin) || a.Bounds != nil && a.Bounds.Force {
		return nil
	}
	return &Error{Code: CodeForbidden, Field: "force", Value: "true", Detail: "is not for you: it takes the scope admin, or a token that may force (levee token add --force); ban without force what is no wider than /8 (IPv4) or /19 (IPv6) and holds no protected address"}
}

// Origin is for whom the actor speaks where it does not say: the first origin that it may name, or
// else api.
func (a Actor) Origin() Origin {
	if a.Bounds != nil && len(a.Bounds.Origins) > 0 {
		return a.Bounds.Origins[0]
	}
	return OriginAPI
}

// Bounds are how far the bans of a token or a certificate may go.
type Bounds struct {
	IPv4    int      `json:"ipv4,omitempty" minimum:"0" maximum:"32" doc:"The widest IPv4 prefix that may be banned, by its length; 0: any"`
	IPv6    int      `json:"ipv6,omitempty" minimum:"0" maximum:"128" doc:"The widest IPv6 prefix that may be banned, by its length; 0: any"`
	Longest Duration `json:"longest,omitempty" doc:"How long a ban may last; absent: also without an end"`
	Claims  int      `json:"claims,omitempty" minimum:"0" doc:"How many claims of its origins may live at once; 0: any number"`
	Origins []Origin `json:"origins,omitempty" maxItems:"32" doc:"For whom it may speak, and whose claims it may take back; the first where a request does not say; absent: for all"`
	Force   bool     `json:"force,omitempty" doc:"Whether it may ban with force: prefixes wider than /8 (IPv4) or /19 (IPv6), or with protected addresses within them"`
}

// Validate checks bounds.
func (b *Bounds) Validate() *Error {
	switch {
	case b.IPv4 < 0 || b.IPv4 > 32:
		return invalid("ipv4", fmt.Sprint(b.IPv4), "is not a prefix's length, 0 to 32")
	case b.IPv6 < 0 || b.IPv6 > 128:
		return invalid("ipv6", fmt.Sprint(b.IPv6), "is not a prefix's length, 0 to 128")
	case b.Longest < 0:
		return invalid("longest", b.Longest.String(), "is less than nothing")
	case b.Claims < 0:
		return invalid("claims", fmt.Sprint(b.Claims), "is less than none")
	case b.Claims > 0 && len(b.Origins) == 0:
		return invalid("claims", fmt.Sprint(b.Claims), "bounds the claims of certain origins: name them in origins")
	case len(b.Origins) > 32:
		return invalid("origins", fmt.Sprint(len(b.Origins)), "are more than 32")
	}
	for i, o := range b.Origins {
		if _, err := ParseOrigin(string(o)); err != nil {
			return AsError(err, CodeInvalid).In("origins")
		}
		if slices.Contains(b.Origins[:i], o) {
			return invalid("origins", string(o), "stands there twice")
		}
	}
	return nil
}

// MayTakeBack returns why the claims of an origin are not this actor's to take back, or nil.
func (b *Bounds) MayTakeBack(o Origin) *Error {
	if b == nil {
		return nil
	}
	return b.check(&Proposal{Remove: true, Origin: o})
}

// check tells what a proposal in canonical form has beyond the bounds, but for how many claims live.
func (b *Bounds) check(p *Proposal) *Error {
	beyond := func(field, value, format string, args ...any) *Error {
		return &Error{Code: CodeForbidden, Field: field, Value: clip(value), Detail: fmt.Sprintf(format, args...)}
	}
	if len(b.Origins) > 0 {
		switch {
		case p.Remove && p.All:
			return beyond("all", "true", "is not for you: you may take back the claims of %s", b.origins())
		case !slices.Contains(b.Origins, p.Origin):
			return beyond("origin", string(p.Origin), "is not yours: you may speak for %s", b.origins())
		}
	}
	if p.Remove {
		return nil
	}
	widest := b.IPv6
	if p.Prefix.Addr().Is4() {
		widest = b.IPv4
	}
	switch {
	case p.Prefix.Bits() < widest:
		return beyond("prefix", PrefixString(p.Prefix), "is wider than the /%d that you may ban", widest)
	case b.Longest > 0 && p.For == 0:
		return beyond("for", "", "is missing: you may ban for %s at most", b.Longest)
	case b.Longest > 0 && Duration(p.For) > b.Longest:
		return beyond("for", Duration(p.For).String(), "is longer than the %s that you may ban for", b.Longest)
	}
	return nil
}

func (b *Bounds) origins() string {
	names := make([]string, len(b.Origins))
	for i, o := range b.Origins {
		names[i] = string(o)
	}
	return strings.Join(names, ", ")
}
