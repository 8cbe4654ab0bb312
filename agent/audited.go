package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/levee-xdp/levee/agent/api"
	"github.com/levee-xdp/levee/agent/audit"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

// audited is the engine as the API has it: every change is recorded, whatever became of it.
type audited struct{ *engine }

func (e *engine) openAudit(c *config.Config) error {
	log, problem, err := audit.Open(audit.Config{Path: c.AuditPath(), Size: int64(c.Audit.Size), Files: int(c.Audit.Files),
		Copy: audit.NewSink(c.Audit.Copy), Now: e.clock.Now, Log: e.log})
	if err != nil {
		return err
	}
	e.audit = log
	if problem != "" {
		e.log.Error("the audit log is not what was written", "path", c.AuditPath(), "problem", problem)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.lasting = append(e.lasting, "the audit log is not what was written: "+problem+"; levee audit verify says more")
	}
	return nil
}

// recordable refuses a change that can't be recorded, where the configuration wants it so.
func (a audited) recordable() error {
	if a.config.Load().Audit.OnFull != config.AuditRefuse {
		return nil
	}
	if err := a.audit.Probe(); err != nil {
		return &state.Error{Code: state.CodeStorage, Field: "audit", Detail: fmt.Sprintf("the change can't be recorded (%v), and audit.on_full says that it is refused then", err)}
	}
	return nil
}

// record writes what became of a change that a value says all about.
func (a audited) record(by state.Actor, action, target string, value any, err error) {
	e := &state.AuditEvent{Action: action, By: by, Target: target, Value: value}
	fail(e, err)
	a.audit.Write(e)
}

func fail(e *state.AuditEvent, err error) {
	if err == nil {
		return
	}
	e.Failed = true
	failed, ok := errors.AsType[*state.Error](err)
	if e.Reason = err.Error(); ok {
		e.Code = failed.Code
	}
}

// Ban makes claims.
func (a audited) Ban(by state.Actor, r state.BanRequest) (out state.BanResponse, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.Ban(by, r)
	}
	a.bans(by, "ban", out.Bans, err, func(add func(string, state.AuditBans)) {
		for _, item := range r.Bans {
			add(item.Prefix, state.AuditBans{Origin: item.Origin, Reason: item.Reason})
		}
	})
	return out, err
}

// BanBulk makes the claims of a bulk. Its parts are recorded as they are decided on, and the whole when
// it is over.
func (a audited) BanBulk(by state.Actor, r state.BulkRequest, lines state.BulkLines) (out state.BulkResponse, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.BanBulk(by, r, lines)
	}
	a.record(by, "ban-bulk", "", struct {
		Lines     int  `json:"lines"`
		Added     int  `json:"added"`
		Changed   int  `json:"changed"`
		Unchanged int  `json:"unchanged"`
		Refused   int  `json:"refused"`
		Nothing   bool `json:"nothing,omitempty"`
	}{out.Lines, out.Added, out.Changed, out.Unchanged, out.Refused, out.Nothing}, err)
	return out, err
}

// audited records what became of a part of a bulk.
func (b *bulk) audited(part *part) {
	var g groups
	for i := range part.proposals {
		p, o := &part.proposals[i], &part.outcomes[i]
		said := state.AuditBans{Status: o.Status, Origin: p.Origin, Reason: p.Reason}
		switch {
		case p.Until > 0:
			said.Expires = b.wall(p.Until).Format(time.RFC3339)
		case p.For > 0:
			said.Expires = b.clock.Now().Add(p.For).UTC().Format(time.RFC3339)
		}
		if o.Error != nil {
			said.Code, said.Error = o.Error.Code, o.Error.Detail
		}
		g.add(state.PrefixString(p.Prefix), said)
	}
	b.audit.Write(&state.AuditEvent{Action: "ban", By: b.by, Target: "bulk", Bans: g.list})
}

// Unban takes claims back.
func (a audited) Unban(by state.Actor, r state.UnbanRequest) (out state.BanResponse, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.Unban(by, r)
	}
	if len(r.Prefixes) == 0 {
		// Its parts were recorded as they were decided on.
		a.record(by, "unban-origin", string(cmp.Or(r.Origin, by.Origin())), struct {
			Done int `json:"done"`
		}{out.Done}, err)
		return out, err
	}
	a.bans(by, "unban", out.Bans, err, func(add func(string, state.AuditBans)) {
		for _, p := range r.Prefixes {
			add(p, state.AuditBans{Origin: r.Origin})
		}
	})
	return out, err
}

// bans records what became of prefixes, or where the whole failed, which were asked for.
func (a audited) bans(by state.Actor, action string, results []state.BanResult, err error, asked func(add func(string, state.AuditBans))) {
	e := &state.AuditEvent{Action: action, By: by}
	fail(e, err)
	var g groups
	if err != nil {
		asked(func(prefix string, b state.AuditBans) {
			b.Status = state.StatusRefused
			g.add(prefix, b)
		})
	}
	for i := range results {
		g.add(results[i].Prefix, auditOf(&results[i]))
	}
	e.Bans = g.list
	a.audit.Write(e)
}

func auditOf(r *state.BanResult) state.AuditBans {
	b := state.AuditBans{Status: r.Status, Origin: r.Origin, Reason: r.Reason}
	if !r.Expires.IsZero() {
		b.Expires = r.Expires.UTC().Format(time.RFC3339)
	}
	if r.Error != nil {
		b.Code, b.Error = r.Error.Code, r.Error.Detail
	}
	return b
}

// namedRefusals is how many refused prefixes a record names; others are counted. Who may not ban what he
// asks for could fill the log with them.
const namedRefusals = 20

// groups gathers the prefixes of which the same is to be said.
type groups struct {
	list    []state.AuditBans
	at      map[groupKey]int
	refused int
}

type groupKey struct {
	status                         state.Status
	origin                         state.Origin
	reason, expires, code, problem string
}

func (g *groups) add(prefix string, b state.AuditBans) {
	if b.Status != state.StatusRefused {
		to := g.of(&b)
		to.Prefixes = append(to.Prefixes, prefix)
		return
	}
	b.Reason, b.Expires = "", "" // each might have its own
	if g.refused++; g.refused <= namedRefusals {
		to := g.of(&b)
		to.Prefixes = append(to.Prefixes, prefix)
		return
	}
	if _, told := g.at[keyOf(&b)]; !told {
		b.Origin, b.Error = "", "" // likewise
	}
	g.of(&b).Others++
}

// of finds the group in which the same is said, or makes it.
func (g *groups) of(b *state.AuditBans) *state.AuditBans {
	if n := len(g.list); n > 0 && g.list[n-1].Same(b) { // as most are
		return &g.list[n-1]
	}
	k := keyOf(b)
	i, ok := g.at[k]
	if !ok {
		if g.at == nil {
			g.at = map[groupKey]int{}
		}
		i = len(g.list)
		g.list, g.at[k] = append(g.list, *b), i
	}
	return &g.list[i]
}

func keyOf(b *state.AuditBans) groupKey {
	return groupKey{b.Status, b.Origin, b.Reason, b.Expires, string(b.Code), b.Error}
}

// Allow makes allow entries.
func (a audited) Allow(by state.Actor, r state.AllowRequest) (out state.AllowResponse, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.Allow(by, r)
	}
	a.allows(by, "allow", out.Allow, r, err)
	return out, err
}

// Unallow takes allow entries back.
func (a audited) Unallow(by state.Actor, r state.UnallowRequest) (out state.AllowResponse, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.Unallow(by, r)
	}
	a.allows(by, "unallow", out.Allow, r, err)
	return out, err
}

func (a audited) allows(by state.Actor, action string, results []state.AllowResult, asked any, err error) {
	e := &state.AuditEvent{Action: action, By: by}
	if fail(e, err); err != nil {
		e.Value = asked
	}
	var g groups
	for i := range results {
		r := &results[i]
		b := state.AuditBans{Status: r.Status}
		if r.Allow != nil {
			if b.Reason = r.Allow.Comment; r.Allow.NoLimits {
				b.Reason = "exempt from limits; " + b.Reason
			}
		}
		if r.Error != nil {
			b.Code, b.Error = r.Error.Code, r.Error.Detail
		}
		g.add(r.Prefix, b)
	}
	e.Bans = g.list
	a.audit.Write(e)
}

// SetLimit makes or replaces a limit of the run time.
func (a audited) SetLimit(by state.Actor, name string, spec state.LimitSpec, confirm state.Duration) (out state.LimitView, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.SetLimit(by, name, spec, confirm)
	}
	a.record(by, "set-limit", name, spec, err)
	return out, err
}

// RemoveLimit takes a limit of the run time back.
func (a audited) RemoveLimit(by state.Actor, name string) (err error) {
	if err = a.recordable(); err == nil {
		err = a.engine.RemoveLimit(by, name)
	}
	a.record(by, "remove-limit", name, nil, err)
	return err
}

// Attach shields an interface.
func (a audited) Attach(by state.Actor, r state.AttachRequest) (out state.InterfaceView, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.Attach(by, r)
	}
	a.record(by, "attach", r.Name, r, err)
	return out, err
}

// Detach takes the shield off an interface.
func (a audited) Detach(by state.Actor, name string) (err error) {
	if err = a.recordable(); err == nil {
		err = a.engine.Detach(by, name)
	}
	a.record(by, "detach", name, nil, err)
	return err
}

// SetPanic has everything pass, or ends that. It is never refused for want of a record: who throws
// the panic switch needs it now.
func (a audited) SetPanic(by state.Actor, on bool) error {
	err := a.engine.SetPanic(by, on)
	a.record(by, "set-panic", map[bool]string{true: "on", false: "off"}[on], nil, err)
	return err
}

// Reload reads the configuration again.
func (a audited) Reload(by state.Actor, confirm state.Duration) (out state.ReloadResponse, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.Reload(by, confirm)
	}
	a.record(by, "reload", "", onTrialOf(out.Trial), err)
	return out, err
}

// Confirm keeps changes that are on trial.
func (a audited) Confirm(by state.Actor, r state.ConfirmRequest) (out state.ConfirmResponse, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.engine.Confirm(by, r)
	}
	a.record(by, "confirm", "", out.Confirmed, err)
	return out, err
}

func onTrialOf(t *state.Trial) any {
	if t == nil {
		return nil
	}
	return t
}

// Authenticate says who shows a token.
func (e *engine) Authenticate(token string, from netip.Addr) (state.Actor, error) {
	return e.state.Authenticate(token, from)
}

// Tokens lists the tokens.
func (e *engine) Tokens() []state.Token { return e.state.Tokens() }

// AddToken makes a token.
func (a audited) AddToken(by state.Actor, r state.TokenRequest) (out state.TokenSecret, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.state.AddToken(r, by.String())
	}
	var value any = r
	if err == nil {
		value = out.Token
	}
	a.record(by, "add-token", r.Name, value, err)
	return out, err
}

// RotateToken gives a token a new secret.
func (a audited) RotateToken(by state.Actor, name string, r state.TokenRotation) (out state.TokenSecret, err error) {
	if err = a.recordable(); err == nil {
		out, err = a.state.RotateToken(name, r)
	}
	a.record(by, "rotate-token", name, r, err)
	return out, err
}

// RemoveToken revokes a token.
func (a audited) RemoveToken(by state.Actor, name string) (err error) {
	if err = a.recordable(); err == nil {
		var id string
		if id, err = a.state.RemoveToken(name); err == nil {
			a.finder.Forget(credentials(state.ActorToken, id))
		}
	}
	a.record(by, "remove-token", name, nil, err)
	return err
}

// noteUse writes now and then when tokens were last used.
func (e *engine) noteUse(ctx context.Context) error {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return e.state.NoteUse()
		case <-ticker.C:
			if err := e.state.NoteUse(); err != nil {
				e.log.Warn("when tokens were used could not be written", "error", err)
			}
		}
	}
}

// clients are those whose certificates the API takes.
func clients(c []config.APIClient) (out []api.Client) {
	for _, client := range c {
		out = append(out, api.Client{Name: client.Name, Owner: client.Owner, Scopes: slices.Clone(client.Scopes), Bounds: client.Bounds()})
	}
	return out
}

func rateOf(t state.Threshold) api.Rate {
	return api.Rate{PerSecond: t.Rate.PerSecond(), Burst: int(t.BurstUnits())}
}
