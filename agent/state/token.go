package state

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Bounds of tokens themselves.
const (
	MaxTokens      = 1000
	LongestToken   = 10 * 365 * 24 * time.Hour
	DefaultToken   = 90 * 24 * time.Hour // how long one lasts if nobody says
	LongestOverlap = 30 * 24 * time.Hour
	DefaultOverlap = 24 * time.Hour
)

// Token is a bearer token, without what proves it.
type Token struct {
	ID       string     `json:"id" doc:"What stands in the token's text before its secret"`
	Name     string     `json:"name" example:"gateway"`
	Owner    string     `json:"owner,omitempty" doc:"Who answers for it"`
	Scopes   []Scope    `json:"scopes"`
	Bounds   *Bounds    `json:"bounds,omitempty" doc:"How far its bans may go; absent: as far as anybody's"`
	Actor    string     `json:"actor,omitempty" doc:"Who made it"`
	Created  time.Time  `json:"created"`
	Expires  time.Time  `json:"expires"`
	Rotated  time.Time  `json:"rotated,omitzero" doc:"When its secret was last changed"`
	Overlap  time.Time  `json:"overlap,omitzero" doc:"Until when the secret before the last works, too"`
	LastUsed time.Time  `json:"last_used,omitzero"`
	LastFrom netip.Addr `json:"last_from,omitzero" doc:"From where it was used last"`
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Name   string       `json:"name" minLength:"1" maxLength:"32" example:"gateway" doc:"Its bans' actor, and with api: before it the origin that it speaks for if nobody says otherwise"`
	Owner  string       `json:"owner,omitempty" maxLength:"256" doc:"Who answers for it; absent: who asks"`
	Scopes []Scope      `json:"scopes" minItems:"1" maxItems:"4" enum:"read,ban,limit,admin"`
	For    string       `json:"for,omitempty" maxLength:"40" doc:"How long it works; absent: 90d" example:"90d"`
	Bounds *AskedBounds `json:"bounds,omitempty" doc:"How far its bans may go. What is absent is as everybody has it: single addresses and /64s, for a day, 100000 at once, of one origin of its own. Where it has the scope admin and nothing is named, there are none"`
}

// TokenSecret is a token and its text, which is told this once.
type TokenSecret struct {
	Token
	Secret string `json:"token" doc:"What to send as: Authorization: Bearer …"`
}

// TokenRotation asks for a new secret.
type TokenRotation struct {
	Overlap string `json:"overlap,omitempty" maxLength:"40" doc:"How long the old secret works, too; absent: 24h; 0s: not at all" example:"24h"`
	For     string `json:"for,omitempty" maxLength:"40" doc:"How long the token works from now on; absent: until when it did" example:"90d"`
}

// TokenList is every token.
type TokenList struct {
	Tokens []Token `json:"tokens"`
}

// token makes what a request asks for, with its defaults.
func (r *TokenRequest) token(by string, now time.Time) (*Token, *Error) {
	if !nameOK(r.Name) {
		return nil, invalid("name", r.Name, "may have up to 32 of a-z, 0-9, '.', '_' and '-', and begins with a letter or a digit")
	}
	if err := checkText("owner", r.Owner); err != nil {
		return nil, err
	}
	if len(r.Scopes) == 0 {
		return nil, invalid("scopes", "", "are missing: name some of read, ban, limit and admin")
	}
	for i, s := range r.Scopes {
		if !slices.Contains(Scopes, s) {
			return nil, invalid("scopes", string(s), "is none of read, ban, limit and admin")
		}
		if slices.Contains(r.Scopes[:i], s) {
			return nil, invalid("scopes", string(s), "stands there twice")
		}
	}
	life, err := durationWithin("for", r.For, DefaultToken, time.Second, LongestToken)
	if err != nil {
		return nil, err
	}
	t := &Token{Name: r.Name, Owner: r.Owner, Scopes: slices.Clone(r.Scopes), Actor: by, Created: now, Expires: now.Add(life)}
	if t.Owner == "" {
		t.Owner = by
	}
	if r.Bounds != nil || !slices.Contains(t.Scopes, ScopeAdmin) {
		t.Bounds = r.Bounds.Over(DefaultBounds(r.Name))
		if err := t.Bounds.Validate(); err != nil {
			return nil, err.In("bounds")
		}
	}
	return t, nil
}

// AskedBounds is bounds as somebody asks for them: naming one leaves the others as everybody has them.
type AskedBounds struct {
	IPv4    *int      `json:"ipv4,omitempty" minimum:"0" maximum:"32" doc:"The widest IPv4 prefix that may be banned, by its length; absent: 32; 0: any"`
	IPv6    *int      `json:"ipv6,omitempty" minimum:"0" maximum:"128" doc:"The widest IPv6 prefix that may be banned, by its length; absent: 64; 0: any"`
	Longest *Duration `json:"longest,omitempty" doc:"How long a ban may last; absent: 24h; 0s: also without an end"`
	Claims  *int      `json:"claims,omitempty" minimum:"0" doc:"How many claims of its origins may live at once; absent: 100000; 0: any number"`
	Force   *bool     `json:"force,omitempty" doc:"Whether it may ban with force: prefixes wider than /8 (IPv4) or /19 (IPv6), or with protected addresses within them; absent: no"`
	Origins []Origin  `json:"origins,omitzero" maxItems:"32" doc:"For whom it may speak, and whose claims it may take back; the first where a request does not say; absent: api: and its name; an empty list: for all"`
}

// Over returns the bounds that are asked for, and those of otherwise where nothing is said. Who may
// speak for all has no bound of claims, unless one is asked for.
func (a *AskedBounds) Over(otherwise *Bounds) *Bounds {
	b := *otherwise
	if a == nil {
		return &b
	}
	if a.Origins != nil {
		b.Origins = slices.Clone(a.Origins)
		if len(a.Origins) == 0 {
			b.Origins, b.Claims = nil, 0
		}
	}
	if a.IPv4 != nil {
		b.IPv4 = *a.IPv4
	}
	if a.IPv6 != nil {
		b.IPv6 = *a.IPv6
	}
	if a.Longest != nil {
		b.Longest = *a.Longest
	}
	if a.Claims != nil {
		b.Claims = *a.Claims
	}
	if a.Force != nil {
		b.Force = *a.Force
	}
	return &b
}

// Asked is bounds that say of everything what it is to be.
func (b *Bounds) Asked() *AskedBounds {
	a := &AskedBounds{IPv4: new(b.IPv4), IPv6: new(b.IPv6), Longest: new(b.Longest), Claims: new(b.Claims), Force: new(b.Force), Origins: []Origin{}}
	a.Origins = append(a.Origins, b.Origins...)
	return a
}

// DefaultBounds are those of a token for which nobody names any.
func DefaultBounds(name string) *Bounds {
	return &Bounds{IPv4: 32, IPv6: 64, Longest: Duration(24 * time.Hour), Claims: 100_000, Origins: []Origin{OriginAPI + ":" + Origin(name)}}
}

func durationWithin(field, text string, otherwise, least, most time.Duration) (time.Duration, *Error) {
	if text == "" {
		return otherwise, nil
	}
	d, err := ParseDuration(text)
	if err != nil {
		return 0, AsError(err, CodeInvalid).In(field)
	}
	if time.Duration(d) < least || time.Duration(d) > most {
		return 0, invalid(field, text, "is not within %s and %s", Duration(least), Duration(most))
	}
	return time.Duration(d), nil
}

// Actor is who shows the token.
func (t *Token) actor() Actor {
	return Actor{Kind: ActorToken, Name: t.Name, ID: t.ID, Scopes: t.Scopes, Bounds: t.Bounds}
}

// TokenError says why a token's text is not good. It is for the audit log alone: who shows a bad
// token is not told what is bad about it.
type TokenError struct {
	ID     string // as the text has it, if it has one
	Name   string // where there is such a token
	Reason string
}

func (e *TokenError) Error() string { return fmt.Sprintf("token %s: %s", e.ID, e.Reason) }
