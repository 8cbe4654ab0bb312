package api

import (
	"context"
	"iter"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/levee-xdp/levee/agent/state"
)

// Backend does what the API is asked for. Errors that are a *state.Error are answered as they are;
// others are the daemon's own affair.
type Backend interface {
	Ban(by state.Actor, r state.BanRequest) (state.BanResponse, error)
	Unban(by state.Actor, r state.UnbanRequest) (state.BanResponse, error)
	BanBulk(by state.Actor, r state.BulkRequest, lines state.BulkLines) (state.BulkResponse, error)
	Bans(f state.Filter) (state.BanPage, error)
	AllBans(origin state.Origin) iter.Seq[state.Claim]
	Check(addr netip.Addr) (state.Check, error)
	CheckPrefix(ctx context.Context, p netip.Prefix) (state.PrefixCheck, error)

	Allow(by state.Actor, r state.AllowRequest) (state.AllowResponse, error)
	Unallow(by state.Actor, r state.UnallowRequest) (state.AllowResponse, error)
	Allows() []state.Allow

	Limits() ([]state.LimitView, error)
	Limit(name string) (state.LimitView, error)
	SetLimit(by state.Actor, name string, spec state.LimitSpec, confirm state.Duration) (state.LimitView, error)
	RemoveLimit(by state.Actor, name string) error

	Interfaces() ([]state.InterfaceView, error)
	Attach(by state.Actor, r state.AttachRequest) (state.InterfaceView, error)
	Detach(by state.Actor, name string) error

	Sources(ctx context.Context, by state.Order, n int, sample time.Duration) (state.SourceList, error)
	Status(ctx context.Context, sample time.Duration) (state.Overview, error)
	Stats() (state.Stats, error)

	Panic() bool
	SetPanic(by state.Actor, on bool) error
	Reload(by state.Actor, confirm state.Duration) (state.ReloadResponse, error)
	Effective(by state.Actor) state.Effective
	Trials() state.TrialList
	Confirm(by state.Actor, r state.ConfirmRequest) (state.ConfirmResponse, error)

	Events(by state.Actor, f state.EventFilter) (EventReader, error)

	Health() state.Health

	Authenticate(token string, from netip.Addr) (state.Actor, error)
	Tokens() []state.Token
	AddToken(by state.Actor, r state.TokenRequest) (state.TokenSecret, error)
	RotateToken(by state.Actor, name string, r state.TokenRotation) (state.TokenSecret, error)
	RemoveToken(by state.Actor, name string) error
}

type answer[T any] struct{ Body T }

// answers is the answer to a request of several items, each with its own.
type answers[T any] struct {
	Status int
	Body   T
}

type none struct{}

// Handler returns the API without its listener.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("Levee", c.Version)
	config.Info.Description = "The control API of a Levee daemon: bans, allow entries, limits, interfaces, and what they do."
	config.DocsPath, config.SchemasPath = "", ""
	config.CreateHooks = nil // no $schema links
	config.Transformers = []huma.Transformer{asProblems}
	config.RejectUnknownQueryParameters = true
	format := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: strictJSON}
	config.Formats = map[string]huma.Format{"application/json": format, "json": format}
	config.Components.Schemas.RegisterTypeAlias(reflect.TypeFor[state.Threshold](), reflect.TypeFor[thresholdSchema]())
	config.Components.SecuritySchemes = securitySchemes()
	api := humago.New(mux, config)
	api.UseMiddleware(known(c.Known).scoped, weighed)
	b := backend{c.Backend}

	b.bans(api)
	b.bulk(api)
	b.allows(api)
	b.limits(api)
	b.interfaces(api)
	b.views(api)
	b.events(api)
	b.switches(api)
	b.tokens(api)
	describe(api)
	mux.HandleFunc("GET /healthz", b.healthz)
	mux.HandleFunc("GET /readyz", b.readyz)
	mux.Handle("/", nothing(mux))
	return newReplays().serve(mux)
}

// thresholdSchema stands for a threshold: a rate, or an object of rate and burst. It is not spelled
// out as a choice of two, since a value that is neither would then be told no more than that.
type thresholdSchema struct{}

// Schema is for huma.
func (thresholdSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Description: "A rate, such as 20k/s or 200Mbit/s, or an object of rate and burst, which is what may come at once; by default one second's worth",
		Examples:    []any{"20k/s", map[string]any{"rate": "200Mbit/s", "burst": "2MiB"}},
	}
}

// operation describes an endpoint, and says which scope it takes.
func operation(scope state.Scope, method, path, id, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, MaxBodyBytes: maxBody,
		BodyReadTimeout: readTimeout, Tags: []string{strings.Split(path, "/")[2]},
		Metadata: map[string]any{metaScope: scope},
		Security: []map[string][]string{{"bearer": {string(scope)}}, {"certificate": {}}, {}}}
}

type backend struct{ Backend }

func (b backend) bans(api huma.API) {
	type response = answers[state.BanResponse]
	reply := func(r state.BanResponse, err error) (*response, error) {
		return replyEach(r, r.Refused, err)
	}
	huma.Register(api, operation(state.ScopeBan, http.MethodPost, "/v1/bans", "ban", "Ban prefixes; each gets its own answer, 207 if any was refused"),
		func(ctx context.Context, in *struct{ Body state.BanRequest }) (*response, error) {
			return reply(b.Ban(actorOf(ctx), in.Body))
		})
	huma.Register(api, operation(state.ScopeBan, http.MethodPost, "/v1/unban", "unban", "Take claims back"),
		func(ctx context.Context, in *struct{ Body state.UnbanRequest }) (*response, error) {
			return reply(b.Unban(actorOf(ctx), in.Body))
		})
	huma.Register(api, operation(state.ScopeBan, http.MethodDelete, "/v1/bans", "unban-one", "Take the claims on one prefix back"),
		func(ctx context.Context, in *struct {
			Prefix string       `query:"prefix" required:"true" maxLength:"80"`
			Origin state.Origin `query:"origin" maxLength:"80" doc:"Whose claim; by default api"`
			All    bool         `query:"all" doc:"The claims of all origins"`
		}) (*response, error) {
			return reply(b.Unban(actorOf(ctx), state.UnbanRequest{Prefixes: []string{in.Prefix}, Origin: in.Origin, All: in.All}))
		})
	huma.Register(api, heavy(operation(state.ScopeRead, http.MethodGet, "/v1/bans", "bans", "List claims, the newest first"), scan),
		func(_ context.Context, in *struct {
			Origin state.Origin `query:"origin" maxLength:"80"`
			Within string       `query:"within" maxLength:"80" doc:"Only on prefixes within this one"`
			Since  time.Time    `query:"since" doc:"Only those made since"`
			Limit  int          `query:"limit" minimum:"1" maximum:"10000" default:"1000"`
			After  string       `query:"after" maxLength:"80" doc:"The cursor that the page before gave as next"`
		}) (*answer[state.BanPage], error) {
			f := state.Filter{Origin: in.Origin, Since: in.Since, Limit: in.Limit, After: in.After}
			if in.Within != "" {
				p, err := state.ParsePrefix(in.Within)
				if err != nil {
					return nil, problemOf(state.AsError(err, state.CodeInvalid).In("within"))
				}
				f.Within = p
			}
			return reply1(b.Bans(f))
		})
	huma.Register(api, operation(state.ScopeRead, http.MethodGet, "/v1/check/{address}", "check", "Everything that concerns an address"),
		func(_ context.Context, in *struct {
			Address string `path:"address" maxLength:"80"`
		}) (*answer[state.Check], error) {
			addr, err := state.ParseAddr(in.Address)
			if err != nil {
				return nil, problemOf(err)
			}
			return reply1(b.Check(addr))
		})
	huma.Register(api, heavy(operation(state.ScopeRead, http.MethodGet, "/v1/check", "check-prefix", "Everything that concerns a prefix, and whether all of it is banned"), scan),
		func(ctx context.Context, in *struct {
			Prefix string `query:"prefix" required:"true" maxLength:"80"`
		}) (*answer[state.PrefixCheck], error) {
			p, err := state.ParsePrefix(in.Prefix)
			if err != nil {
				return nil, problemOf(err)
			}
			return reply1(b.CheckPrefix(ctx, p))
		})
}

func reply1[T any](v T, err error) (*answer[T], error) {
	if err != nil {
		return nil, problemOf(err)
	}
	return &answer[T]{v}, nil
}

// replyEach answers 207 where some items, or all, were refused: each says so itself.
func replyEach[T any](v T, refused int, err error) (*answers[T], error) {
	if err != nil {
		return nil, problemOf(err)
	}
	status := http.StatusOK
	if refused > 0 {
		status = http.StatusMultiStatus
	}
	return &answers[T]{status, v}, nil
}

func (b backend) allows(api huma.API) {
	type response = answers[state.AllowResponse]
	reply := func(r state.AllowResponse, err error) (*response, error) {
		return replyEach(r, r.Refused, err)
	}
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPost, "/v1/allow", "allow", "Allow prefixes: no ban may touch them"),
		func(ctx context.Context, in *struct{ Body state.AllowRequest }) (*response, error) {
			return reply(b.Allow(actorOf(ctx), in.Body))
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPost, "/v1/unallow", "unallow", "Take allow entries back"),
		func(ctx context.Context, in *struct{ Body state.UnallowRequest }) (*response, error) {
			return reply(b.Unallow(actorOf(ctx), in.Body))
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodDelete, "/v1/allow", "unallow-one", "Take one allow entry back"),
		func(ctx context.Context, in *struct {
			Prefix string `query:"prefix" required:"true" maxLength:"80"`
		}) (*response, error) {
			return reply(b.Unallow(actorOf(ctx), state.UnallowRequest{Prefixes: []string{in.Prefix}}))
		})
	huma.Register(api, heavy(operation(state.ScopeRead, http.MethodGet, "/v1/allow", "allows", "List the allow entries"), scan),
		func(context.Context, *none) (*answer[state.AllowList], error) {
			return &answer[state.AllowList]{state.AllowList{Allow: orEmpty(b.Allows())}}, nil
		})
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// LimitName is a limit in a path. It is exported for huma, which fills no other fields.
type LimitName struct {
	Name string `path:"name" maxLength:"80"`
}

func (b backend) limits(api huma.API) {
	huma.Register(api, heavy(operation(state.ScopeRead, http.MethodGet, "/v1/limits", "limits", "List the limits, and what they have done"), scan),
		func(context.Context, *none) (*answer[state.LimitList], error) {
			l, err := b.Limits()
			return reply1(state.LimitList{Limits: orEmpty(l)}, err)
		})
	huma.Register(api, heavy(operation(state.ScopeRead, http.MethodGet, "/v1/limits/{name}", "limit", "One limit, and whom it drops most"), scan),
		func(_ context.Context, in *LimitName) (*answer[state.LimitView], error) {
			return reply1(b.Limit(in.Name))
		})
	huma.Register(api, operation(state.ScopeLimit, http.MethodPut, "/v1/limits/{name}", "set-limit", "Make or replace a limit"),
		func(ctx context.Context, in *struct {
			LimitName
			OnTrial
			Body state.LimitSpec
		}) (*answer[state.LimitView], error) {
			d, err := in.duration()
			if err != nil {
				return nil, err
			}
			return inPlace(ctx, settle, func() (*answer[state.LimitView], error) {
				return reply1(b.SetLimit(actorOf(ctx), in.Name, in.Body, d))
			})
		})
	huma.Register(api, heavy(operation(state.ScopeLimit, http.MethodDelete, "/v1/limits/{name}", "remove-limit", "Take a limit of the run time back"), settle),
		func(ctx context.Context, in *LimitName) (*none, error) {
			return nil, problemOf(b.RemoveLimit(actorOf(ctx), in.Name))
		})
}

func (b backend) interfaces(api huma.API) {
	huma.Register(api, operation(state.ScopeRead, http.MethodGet, "/v1/interfaces", "interfaces", "List the interfaces that are shielded, or are to be"),
		func(context.Context, *none) (*answer[state.InterfaceList], error) {
			l, err := b.Interfaces()
			return reply1(state.InterfaceList{Interfaces: orEmpty(l)}, err)
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPost, "/v1/interfaces", "attach", "Shield an interface"),
		func(ctx context.Context, in *struct{ Body state.AttachRequest }) (*answer[state.InterfaceView], error) {
			return reply1(b.Attach(actorOf(ctx), in.Body))
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodDelete, "/v1/interfaces/{name}", "detach", "Take the shield off an interface"),
		func(ctx context.Context, in *struct {
			Name string `path:"name" maxLength:"80"`
		}) (*none, error) {
			return nil, problemOf(b.Detach(actorOf(ctx), in.Name))
		})
}

// Sampling is how long rates are measured; they are not if it is absent. It is exported for huma, as
// LimitName is.
type Sampling struct {
	Sample string `query:"sample" maxLength:"20" doc:"How long rates are measured, up to 10s; absent: not" example:"1s"`
}

func (s Sampling) duration() (time.Duration, error) {
	if s.Sample == "" {
		return 0, nil
	}
	d, err := state.ParseDuration(s.Sample)
	if err != nil {
		return 0, state.AsError(err, state.CodeInvalid).In("sample")
	}
	if time.Duration(d) > maxSample {
		return 0, &state.Error{Code: state.CodeInvalid, Field: "sample", Value: s.Sample, Detail: "is longer than 10s"}
	}
	return time.Duration(d), nil
}

func (b backend) views(api huma.API) {
	huma.Register(api, operation(state.ScopeRead, http.MethodGet, "/v1/sources", "sources", "The sources that send most, or are dropped most"),
		func(ctx context.Context, in *struct {
			Sampling
			By state.Order `query:"by" enum:"packets,bytes,dropped" default:"packets"`
			N  int         `query:"n" minimum:"1" maximum:"10000" default:"20"`
		}) (*answer[state.SourceList], error) {
			d, err := in.duration()
			if err != nil {
				return nil, problemOf(err)
			}
			return inPlace(ctx, measured(d), func() (*answer[state.SourceList], error) {
				return reply1(b.Sources(ctx, in.By, in.N, d))
			})
		})
	huma.Register(api, operation(state.ScopeRead, http.MethodGet, "/v1/status", "status", "What is dropped, why, and whether anybody innocent is among it"),
		func(ctx context.Context, in *struct{ Sampling }) (*answer[state.Overview], error) {
			d, err := in.duration()
			if err != nil {
				return nil, problemOf(err)
			}
			return inPlace(ctx, measured(d), func() (*answer[state.Overview], error) {
				return reply1(b.Status(ctx, d))
			})
		})
	huma.Register(api, operation(state.ScopeRead, http.MethodGet, "/v1/stats", "stats", "Every counter"),
		func(context.Context, *none) (*answer[state.Stats], error) { return reply1(b.Stats()) })
}

func (b backend) switches(api huma.API) {
	huma.Register(api, operation(state.ScopeRead, http.MethodGet, "/v1/panic", "panic", "Whether everything passes"),
		func(context.Context, *none) (*answer[state.PanicSwitch], error) {
			return &answer[state.PanicSwitch]{state.PanicSwitch{On: b.Panic()}}, nil
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPut, "/v1/panic", "set-panic", "Have everything pass at once, or end that"),
		func(ctx context.Context, in *struct{ Body state.PanicSwitch }) (*answer[state.PanicSwitch], error) {
			err := b.SetPanic(actorOf(ctx), in.Body.On)
			return reply1(state.PanicSwitch{On: in.Body.On}, err)
		})
	b.trials(api)
	huma.Register(api, heavy(operation(state.ScopeRead, http.MethodGet, "/v1/config", "config", "Every setting as it is in force, and where its value comes from"), scan), // with every allow entry
		func(ctx context.Context, _ *none) (*answer[state.Effective], error) {
			return &answer[state.Effective]{b.Effective(actorOf(ctx))}, nil
		})
	huma.Register(api, operation(state.ScopeAdmin, http.MethodPost, "/v1/config/reload", "reload", "Read the configuration file again: all of it is in force then, or nothing has changed"),
		func(ctx context.Context, in *OnTrial) (*answer[state.ReloadResponse], error) {
			d, err := in.duration()
			if err != nil {
				return nil, err
			}
			return reply1(b.Reload(actorOf(ctx), d))
		})
}
