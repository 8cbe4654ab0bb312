package api

import (
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/levee-xdp/levee/agent/state"
)

// metaScope is where an operation's metadata says which scope it takes.
const metaScope = "scope"

// scoped is the one place that decides who may do what: an operation says which scope it takes, and
// one that says none is nobody's.
func (k known) scoped(ctx huma.Context, next func(huma.Context)) {
	scope, _ := ctx.Operation().Metadata[metaScope].(state.Scope)
	_, w := humago.Unwrap(ctx)
	note(w, state.Actor{}, ctx.Operation().OperationID)
	by := actorOf(ctx.Context())
	if by.May(scope) {
		if k != nil && by.Address.IsValid() && (by.May(state.ScopeBan) || by.May(state.ScopeLimit)) {
			k(by)
		}
		next(ctx)
		return
	}
	p := newProblem(http.StatusForbidden, state.CodeForbidden, fmt.Sprintf("this takes the scope %s, which you do not have", scope))
	p.Field, p.Value = "scope", string(scope)
	writeProblem(w, p)
}

// known is told of those on other hosts who may change something and ask for what they may: who only
// reads, or asks in vain, has no claim to anything.
type known func(state.Actor)

// securitySchemes are for the document that describes the API.
func securitySchemes() map[string]*huma.SecurityScheme {
	return map[string]*huma.SecurityScheme{
		"bearer":      {Type: "http", Scheme: "bearer", Description: "A token that `levee token add` made"},
		"certificate": {Type: "mutualTLS", Description: "A client certificate that the configuration names"},
	}
}
