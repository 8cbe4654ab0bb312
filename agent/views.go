package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/levee-xdp/levee/agent/metrics"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// wall says when on the wall clock a monotonic time of this boot is.
func (e *engine) wall(mono uint64) time.Time {
	if mono == bpf.Forever || mono == 0 {
		return time.Time{}
	}
	return e.clock.Now().Add(time.Duration(int64(mono) - int64(e.clock.Monotonic()))).UTC()
}

// readings is the counters at one moment.
type readings struct {
	at     time.Time
	counts []maps.Count
	lists  []maps.ListCount
	limits []maps.LimitCount
	stats  [bpf.StatMax]uint64
	top    []maps.Source // by what was dropped
}

func (e *engine) read(top int) (r readings, err error) {
	r.at = time.Now()
	if r.counts, err = e.tables.Counters.Read(); err != nil {
		return r, fmt.Errorf("read the counters: %w", err)
	}
	if r.lists, err = e.tables.Counters.Lists(); err != nil {
		return r, fmt.Errorf("read the lists' counters: %w", err)
	}
	if r.limits, err = e.tables.Counters.Limits(); err != nil {
		return r, fmt.Errorf("read the limits' counters: %w", err)
	}
	if r.stats, err = e.tables.Counters.Stats(); err != nil {
		return r, fmt.Errorf("read the program's counters: %w", err)
	}
	if top > 0 {
		if r.top, err = e.tables.Sources.Top(top, maps.ByDropped); err != nil {
			return r, fmt.Errorf("read the sources: %w", err)
		}
	}
	return r, nil
}

// sample reads twice, with a time in between. Without one, both readings are the same.
func (e *engine) sample(ctx context.Context, d time.Duration, top int) (first, last readings, err error) {
	if first, err = e.read(top); err != nil || d == 0 {
		return first, first, err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return first, first, ctx.Err()
	case <-timer.C:
	}
	last, err = e.read(top)
	return first, last, err
}

// rate is how much something grew in a second; 0 where nothing was measured.
func rate(from, to uint64, d time.Duration) float64 {
	if d <= 0 || to < from {
		return 0
	}
	return float64(to-from) / d.Seconds()
}

func action(r bpf.Reason, monitored bool) string {
	switch {
	case monitored:
		return state.ActionMonitor
	case r.Drops():
		return state.ActionDrop
	}
	return state.ActionPass
}

// traffic adds up the counts of all interfaces by action and reason.
func traffic(first, last readings) []state.Counted {
	type key struct {
		reason    bpf.Reason
		monitored bool
	}
	type sum struct{ packets, bytes uint64 }
	add := func(counts []maps.Count) map[key]sum {
		out := map[key]sum{}
		for _, c := range counts {
			k := key{c.Reason, c.Monitored}
			s := out[k]
			out[k] = sum{s.packets + c.Packets, s.bytes + c.Bytes}
		}
		return out
	}
	before, now := add(first.counts), add(last.counts)
	d := last.at.Sub(first.at)
	out := make([]state.Counted, 0, len(now))
	for k, s := range now {
		out = append(out, state.Counted{Action: action(k.reason, k.monitored), Reason: k.reason.String(), Words: k.reason.Words(),
			Packets: s.packets, Bytes: s.bytes,
			PerSecond: rate(before[k].packets, s.packets, d), Bits: 8 * rate(before[k].bytes, s.bytes, d)})
	}
	order := map[string]int{state.ActionDrop: 0, state.ActionMonitor: 1, state.ActionPass: 2}
	slices.SortFunc(out, func(a, b state.Counted) int {
		return cmp.Or(cmp.Compare(order[a.Action], order[b.Action]), cmp.Compare(b.PerSecond, a.PerSecond),
			cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

// tablesView is how full the kernel's tables are.
func (e *engine) tablesView(tracked int) []state.Table {
	t := e.tables
	used4, used6 := t.Bans.Slots()
	have4, have6 := t.Bans.Capacity()
	return []state.Table{
		{Table: metrics.TableIPv4Bans, Entries: used4, Capacity: have4},
		{Table: metrics.TableIPv6Bans, Entries: used6, Capacity: have6},
		{Table: metrics.TableSources, Entries: tracked, Capacity: t.Sources.Capacity()},
		{Table: metrics.TableAllows, Entries: t.Allows.Len(), Capacity: t.Allows.Capacity()},
	}
}

// Status answers what is dropped, why, and whether anybody innocent is among it.
func (e *engine) Status(ctx context.Context, d time.Duration) (state.Overview, error) {
	since := e.clock.Monotonic()
	first, last, err := e.sample(ctx, d, topSources)
	if err != nil {
		return state.Overview{}, err
	}
	interfaces, err := e.Interfaces()
	if err != nil {
		return state.Overview{}, err
	}
	tracked, err := e.tables.Sources.Len()
	if err != nil {
		return state.Overview{}, fmt.Errorf("count the sources: %w", err)
	}
	o := state.Overview{
		Version: e.version, Started: e.started, Time: e.clock.Now().UTC(), Health: e.Health(),
		Mode: e.config.Load().Mode, Panic: e.Panic(), Interfaces: interfaces,
		Traffic: traffic(first, last), Origins: e.origins(first, last),
		Limits: e.limitViews(first, last, since, 5),
		Tables: e.tablesView(tracked), Untracked: last.stats[bpf.StatUntracked], Reconcile: e.reconciler.Last(),
	}
	o.Allows, o.Protected = e.countAllows()
	trials := e.Trials()
	o.Trials, o.TakenBack = trials.Trials, trials.TakenBack
	if d > 0 {
		o.Sampled = state.Duration(last.at.Sub(first.at).Round(time.Millisecond))
	}
	o.Prefixes.IPv4, o.Prefixes.IPv6 = e.state.Prefixes()
	o.Events.Written = int(last.stats[bpf.StatEvents])
	o.Events.Lost = int(last.stats[bpf.StatEventsLost] + last.stats[bpf.StatEventsOverBudget])
	return o, nil
}

// origins is what each origin has banned, and what that dropped; also of those that have no claims
// any more but did drop something.
func (e *engine) origins(first, last readings) []state.OriginStatus {
	packets := func(r readings) map[uint16]uint64 {
		out := map[uint16]uint64{}
		for _, c := range r.lists {
			if !c.Monitored {
				out[c.List] += c.Packets
			}
		}
		return out
	}
	before, now := packets(first), packets(last)
	out := []state.OriginStatus{}
	for _, o := range e.state.Origins() {
		out = append(out, state.OriginStatus{OriginCount: o, Packets: now[o.List], PerSecond: rate(before[o.List], now[o.List], last.at.Sub(first.at))})
		delete(now, o.List)
	}
	for list, n := range now {
		if name := e.state.OriginOf(list); name != "" {
			out = append(out, state.OriginStatus{OriginCount: state.OriginCount{Origin: name, List: list}, Packets: n, PerSecond: rate(before[list], n, last.at.Sub(first.at))})
		}
	}
	slices.SortStableFunc(out, func(a, b state.OriginStatus) int {
		return cmp.Or(cmp.Compare(a.Origin.Rank(), b.Origin.Rank()), cmp.Compare(a.Origin, b.Origin))
	})
	return out
}

// programStats names what the program counts beside the reasons.
var programStats = map[string]bpf.Stat{
	"untracked": bpf.StatUntracked, "contended": bpf.StatContended, "tracked": bpf.StatTracked, "evicted": bpf.StatEvicted,
	"events": bpf.StatEvents, "events_over_budget": bpf.StatEventsOverBudget, "events_lost": bpf.StatEventsLost,
	"aggregate_full": bpf.StatAggregateFull,
}

// Stats is every counter.
func (e *engine) Stats() (state.Stats, error) {
	r, err := e.read(0)
	if err != nil {
		return state.Stats{}, err
	}
	slots := map[uint32]string{}
	for _, i := range e.tables.Interfaces.List() {
		slots[i.Slot] = i.Name
	}
	names := e.limitNames()
	s := state.Stats{Counters: []state.Counted{}, Lists: []state.ListCounted{}, Limits: []state.LimitCounted{}, Program: map[string]uint64{}}
	for _, c := range r.counts {
		s.Counters = append(s.Counters, state.Counted{Interface: slots[c.Slot], Family: c.Family.String(),
			Action: action(c.Reason, c.Monitored), Reason: c.Reason.String(), Packets: c.Packets, Bytes: c.Bytes})
	}
	for _, c := range r.lists {
		s.Lists = append(s.Lists, state.ListCounted{Origin: e.state.OriginOf(c.List), Monitored: c.Monitored, Packets: c.Packets, Bytes: c.Bytes})
	}
	for _, c := range r.limits {
		s.Limits = append(s.Limits, state.LimitCounted{Limit: nameOf(names, c.Limit),
			Exceeded: state.Exceeded{Threshold: c.Threshold.String(), Monitored: c.Monitored, Packets: c.Packets, Bytes: c.Bytes}})
	}
	for name, stat := range programStats {
		s.Program[name] = r.stats[stat]
	}
	return s, nil
}

// Snapshot is what the metrics show of the daemon.
func (e *engine) Snapshot() (metrics.Snapshot, error) {
	tracked, err := e.tables.Sources.Len()
	if err != nil {
		return metrics.Snapshot{}, err
	}
	interfaces, err := e.Interfaces()
	if err != nil {
		return metrics.Snapshot{}, err
	}
	s := metrics.Snapshot{Slots: e.tables.Interfaces.List(), Interfaces: interfaces, Limits: e.state.Limits(), Origins: e.state.Origins(),
		Tables: e.tablesView(tracked), Tracked: tracked, Panic: e.Panic(), Monitor: e.config.Load().Mode == state.Monitor, Reconciled: e.reconciler.Last()}
	s.IPv4, s.IPv6 = e.state.Prefixes()
	return s, nil
}

// OriginOf names the origin of a list.
func (e *engine) OriginOf(list uint16) state.Origin { return e.state.OriginOf(list) }
