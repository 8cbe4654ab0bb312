package agent

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

// Effective returns every setting as it is in force: the configuration, and over it what was set at run
// time.
func (e *engine) Effective(by state.Actor) state.Effective {
	now := *e.config.Load()
	e.limitsOver(&now)
	e.allowsOver(&now)
	e.interfacesOver(&now)
	if !by.May(state.ScopeAdmin) {
		now.Notify.URL = withoutSecrets(now.Notify.URL)
	}
	panicking := state.Setting{Path: "panic", Value: "off", Origin: state.SettingDefault, From: string(state.SettingDefault)}
	if e.Panic() {
		panicking.Value, panicking.Origin, panicking.From = "on", state.SettingState, "levee panic on"
	}
	return state.Effective{Settings: append([]state.Setting{panicking}, now.Settings()...), Notice: e.unconfirmed()}
}

// limitsOver puts the limits of the run time over those of the file, and adds Levee's own.
func (e *engine) limitsOver(c *config.Config) {
	configured := c.Limits
	c.Limits = maps.Clone(configured)
	if c.Limits == nil {
		c.Limits = map[string]state.LimitSpec{}
	}
	for _, l := range e.state.Limits() {
		_, known := configured[l.Name]
		switch {
		case l.Source == state.FromAPI:
			c.Mark("limits."+l.Name, state.SettingState, setBy("levee limit set", l.Actor, time.Time{}))
		case l.Source == state.FromConfig && !known:
			c.Mark("limits."+l.Name, state.SettingDefault, "made for api.tcp.listen")
		default:
			continue
		}
		c.Limits[l.Name] = l.LimitSpec
	}
}

// allowsOver puts the allow entries of the run time over those of the file. Those that Levee makes for
// itself are no settings.
func (e *engine) allowsOver(c *config.Config) {
	c.Allow = slices.Clone(c.Allow)
	at := make(map[state.Prefix]int, len(c.Allow))
	for i := range c.Allow {
		at[c.Allow[i].Prefix] = i
	}
	marks := map[string]string{}
	now := e.clock.Monotonic()
	for _, a := range e.state.Allows() {
		if a.Source != state.FromAPI || a.Until() <= now {
			continue
		}
		spec := state.AllowSpec{Prefix: state.Prefix{Prefix: a.Prefix}, NoLimits: a.NoLimits, Comment: a.Comment}
		i, known := at[spec.Prefix]
		if known {
			c.Allow[i] = spec
		} else {
			i = len(c.Allow)
			c.Allow = append(c.Allow, spec)
		}
		marks[fmt.Sprintf("allow[%d]", i)] = setBy("levee allow add", a.Actor, a.Expires)
	}
	c.MarkAll(marks, state.SettingState)
}

// detached is shown as the mode of an interface that the configuration names, and that is not shielded
// since somebody said so at run time.
const detached state.InterfaceMode = "detached"

// interfacesOver puts what was attached and detached at run time over the interfaces of the configuration.
func (e *engine) interfacesOver(c *config.Config) {
	c.Interfaces = slices.Clone(c.Interfaces)
	for _, known := range e.state.Interfaces() {
		i := slices.IndexFunc(c.Interfaces, func(f config.Interface) bool { return f.Name == known.Name })
		switch {
		case known.API != "" && i >= 0:
			c.Interfaces[i].Mode = known.API
			c.Mark(fmt.Sprintf("interfaces[%d].mode", i), state.SettingState, "levee attach")
		case known.API != "":
			c.Interfaces = append(c.Interfaces, config.Interface{Name: known.Name, Mode: known.API})
			c.Mark(fmt.Sprintf("interfaces[%d]", len(c.Interfaces)-1), state.SettingState, "levee attach")
		case known.Detached && i >= 0:
			c.Interfaces[i].Mode = detached
			c.Mark(fmt.Sprintf("interfaces[%d].mode", i), state.SettingState, "levee detach")
		}
	}
}

// setBy says by which command something was set, who did it, and until when it is in force.
func setBy(command, actor string, until time.Time) string {
	var b strings.Builder
	b.WriteString(command)
	if actor != "" {
		b.WriteString(", by " + actor)
	}
	if !until.IsZero() {
		b.WriteString(", until " + until.UTC().Format(time.RFC3339))
	}
	return b.String()
}

// withoutSecrets is where a URL leads, without what may be a secret of it: services that take
// notifications often have one in the path.
func withoutSecrets(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host + "/…"
}
