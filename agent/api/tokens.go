package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/levee-xdp/levee/agent/state"
)

// TokenName is a token in a path. It is exported for huma, as LimitName is.
type TokenName struct {
	Name string `path:"name" maxLength:"80"`
}

func (b backend) tokens(api huma.API) {
	huma.Register(api, operation(state.ScopeAdmin, http.MethodGet, "/v1/tokens", "tokens", "List the tokens, without their secrets"),
		func(context.Context, *none) (*answer[state.TokenList], error) {
			return &answer[state.TokenList]{state.TokenList{Tokens: orEmpty(b.Tokens())}}, nil
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPost, "/v1/tokens", "add-token", "Make a token; its text is told this once"),
		func(ctx context.Context, in *struct{ Body state.TokenRequest }) (*answer[state.TokenSecret], error) {
			return reply1(b.AddToken(actorOf(ctx), in.Body))
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPost, "/v1/tokens/{name}/rotate", "rotate-token", "Give a token a new secret; the old one works for a while"),
		func(ctx context.Context, in *struct {
			TokenName
			Body state.TokenRotation
		}) (*answer[state.TokenSecret], error) {
			return reply1(b.RotateToken(actorOf(ctx), in.Name, in.Body))
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodDelete, "/v1/tokens/{name}", "remove-token", "Revoke a token"),
		func(ctx context.Context, in *TokenName) (*none, error) {
			return nil, problemOf(b.RemoveToken(actorOf(ctx), in.Name))
		})
}

// nothing answers what no operation does: 405 where another method would, else 404.
func nothing(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
			probe := r.Clone(r.Context())
			probe.Method = method
			if _, pattern := mux.Handler(probe); pattern != "/" && pattern != "" {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			writeProblem(w, newProblem(http.StatusMethodNotAllowed, state.CodeInvalid, "this path takes "+strings.Join(allowed, ", ")))
			return
		}
		writeProblem(w, newProblem(http.StatusNotFound, state.CodeNotFound, "there is nothing at this path; /openapi.json says what there is"))
	})
}
