package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/levee-xdp/levee/agent/state"
)

// OnTrial is how long a change waits to be confirmed. It is exported for huma, as LimitName is.
type OnTrial struct {
	Confirm string `query:"confirm" maxLength:"20" doc:"Take it back after this time, unless it is confirmed; absent: not" example:"60s"`
}

func (o OnTrial) duration() (state.Duration, error) {
	if o.Confirm == "" {
		return 0, nil
	}
	d, err := state.ParseDuration(o.Confirm)
	if err != nil {
		return 0, unasked(state.AsError(err, state.CodeInvalid).In("confirm"))
	}
	return d, nil
}

func (b backend) trials(api huma.API) {
	huma.Register(api, operation(state.ScopeRead, http.MethodGet, "/v1/trials", "trials", "List the changes that are taken back unless they are confirmed"),
		func(context.Context, *none) (*answer[state.TrialList], error) {
			return &answer[state.TrialList]{b.Trials()}, nil
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPost, "/v1/confirm", "confirm", "Keep changes that are on trial"),
		func(ctx context.Context, in *struct{ Body state.ConfirmRequest }) (*answer[state.ConfirmResponse], error) {
			return reply1(b.Confirm(actorOf(ctx), in.Body))
		})
}
