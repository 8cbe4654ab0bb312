package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
	"github.com/levee-xdp/levee/maps"
)

// Check tells everything that concerns an address.
func (e *engine) Check(addr netip.Addr) (state.Check, error) {
	p := netip.PrefixFrom(addr, addr.BitLen())
	c := state.Check{Address: addr, Claims: e.state.Covering(p), Allows: e.state.AllowsFor(p), Limits: e.limitsFor(addr),
		Sources: []state.SourceView{}, Events: []state.EventView{}}
	if c.Claims == nil {
		c.Claims = []state.Claim{}
	}
	if c.Allows == nil {
		c.Allows = []state.Allow{}
	}
	var err error
	if c.Interfaces, err = e.shielded(); err != nil {
		return c, err
	}
	if ban, ok := e.tables.Bans.Lookup(addr); ok {
		c.Kernel = &state.KernelBan{Prefix: ban.Prefix, Origin: e.state.OriginOf(ban.List), Monitor: ban.Monitor, Expires: e.wall(ban.Expires)}
	}
	tracked, err := e.tables.Sources.Lookup(addr)
	if err != nil {
		return c, fmt.Errorf("look up the source: %w", err)
	}
	names := e.limitNames()
	for _, s := range tracked {
		c.Sources = append(c.Sources, e.source(s, names, nil, 0))
	}
	for _, ev := range e.recent.of(addr, 10) {
		c.Events = append(c.Events, e.event(ev, names))
	}
	c.Verdict, c.Words = e.verdict(&c)
	return c, nil
}

// shielded counts the interfaces that are shielded.
func (e *engine) shielded() (n int, err error) {
	attachments, err := e.shield.Attachments()
	if err != nil {
		return 0, fmt.Errorf("list the interfaces: %w", err)
	}
	for _, a := range attachments {
		if a.Mode != loader.ModeNone {
			n++
		}
	}
	return n, nil
}

// verdict says what happens to the address's packets, in the order in which the program asks.
func (e *engine) verdict(c *state.Check) (state.Verdict, string) {
	monitor := e.config.Load().Mode == state.Monitor
	var penalty *state.SourceView
	for i := range c.Sources {
		if !c.Sources[i].PenaltyUntil.IsZero() {
			penalty = &c.Sources[i]
		}
	}
	switch {
	case e.Panic():
		return state.VerdictPasses, "passes: the panic switch is on, everything passes"
	case c.Interfaces == 0:
		return state.VerdictPasses, "passes: no interface is shielded; levee attach shields one"
	case c.Kernel != nil && len(c.Allows) > 0 && c.Allows[0].Source == state.FromProtected:
		return state.VerdictAllowed, fmt.Sprintf("passes: the ban of %s does not touch it, it is protected: %s",
			state.PrefixString(c.Kernel.Prefix), c.Allows[0].Comment)
	case c.Kernel != nil && len(c.Allows) > 0:
		return state.VerdictAllowed, fmt.Sprintf("passes: the ban of %s is overruled by the allow entry %s",
			state.PrefixString(c.Kernel.Prefix), state.PrefixString(c.Allows[0].Prefix))
	case c.Kernel != nil && monitor:
		return state.VerdictMonitored, fmt.Sprintf("passes, and is counted: the daemon only monitors; else the ban of %s would hold", state.PrefixString(c.Kernel.Prefix))
	case c.Kernel != nil && c.Kernel.Monitor:
		return state.VerdictMonitored, fmt.Sprintf("passes, and is counted: the ban of %s only monitors", state.PrefixString(c.Kernel.Prefix))
	case c.Kernel != nil:
		return state.VerdictBanned, fmt.Sprintf("is dropped: %s is banned by %s%s", state.PrefixString(c.Kernel.Prefix), c.Kernel.Origin, e.until(c.Kernel.Expires))
	case penalty != nil && len(c.Allows) > 0 && c.Allows[0].NoLimits:
		return state.VerdictAllowed, fmt.Sprintf("passes: the allow entry %s exempts it from limits", state.PrefixString(c.Allows[0].Prefix))
	case penalty != nil && (monitor || e.monitors(penalty.Limit)):
		return state.VerdictMonitored, fmt.Sprintf("passes, and is counted: it broke the limit %s, which only monitors", penalty.Limit)
	case penalty != nil:
		return state.VerdictPenalty, fmt.Sprintf("is dropped: it broke the limit %s and serves its penalty%s", penalty.Limit, e.until(penalty.PenaltyUntil))
	}
	return state.VerdictPasses, e.passing(c, monitor)
}

// passing says what holds an address that nothing drops.
func (e *engine) passing(c *state.Check, monitor bool) string {
	switch {
	case len(c.Allows) > 0 && c.Allows[0].NoLimits:
		return fmt.Sprintf("passes: the allow entry %s exempts it from limits", state.PrefixString(c.Allows[0].Prefix))
	case len(c.Limits) == 0:
		return "passes: no ban touches it, and no limit is set for it"
	case monitor || !slices.ContainsFunc(c.Limits, func(name string) bool { return !e.monitors(name) }):
		return "passes, and is counted where it breaks a limit: that only monitors"
	}
	return "passes, as long as it keeps to its limit"
}

func (e *engine) monitors(limit string) bool {
	l, ok := e.state.Limit(limit)
	return ok && l.Mode == state.Monitor
}

func (e *engine) until(t time.Time) string {
	if t.IsZero() {
		return ", until it is taken back"
	}
	left := t.Sub(e.clock.Now()).Round(time.Second)
	return ", for another " + state.Duration(max(left, time.Second)).String()
}

// limitsFor names the limits that an address's packets may fall under: that of its longest prefix
// alone, or else those of services, and the default for what is left.
func (e *engine) limitsFor(addr netip.Addr) []string {
	longest, best := -1, ""
	services := []string{}
	for _, l := range e.state.Limits() {
		for _, p := range l.Sources {
			if p.Contains(addr) && p.Bits() > longest {
				longest, best = p.Bits(), l.Name
			}
		}
		if len(l.Services) > 0 {
			services = append(services, l.Name)
		}
	}
	if best != "" {
		return []string{best}
	}
	slices.Sort(services)
	if l, ok := e.state.Limit(state.DefaultLimit); ok && l.Source != state.FromDefault {
		services = append(services, state.DefaultLimit)
	}
	return services
}

// event makes a sampled packet's view.
func (e *engine) event(ev maps.Event, names map[uint8]string) state.EventView {
	v := state.EventView{Time: e.wall(ev.Time), Reason: ev.Reason.String(), Monitored: ev.Monitored, Source: ev.Source, Destination: ev.Destination,
		SourcePort: ev.SourcePort, Port: ev.Port, Length: ev.Length}
	for _, i := range e.tables.Interfaces.List() {
		if i.Index == ev.Interface {
			v.Interface = i.Name
		}
	}
	if ev.Protocol != 255 {
		v.Protocol = state.Service{Protocol: ev.Protocol}.String()
	} else {
		v.Protocol = "unknown"
	}
	switch {
	case ev.Reason == bpf.ReasonBanned:
		v.Origin = e.state.OriginOf(ev.List)
	case ev.Reason >= bpf.ReasonPenalty:
		v.Limit = nameOf(names, ev.Limit)
	}
	if v.Interface == "" {
		v.Interface = "#" + strconv.Itoa(ev.Interface)
	}
	return v
}
