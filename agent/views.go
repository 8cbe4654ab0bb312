package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/levee-xdp/levee/agent/metrics"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
	"github.com/levee-xdp/levee/maps"
)

// wall says when on the wall clock a monotonic time of this boot is.
func (e *engine) wall(mono uint64) time.Time {
	if mono == bpf.Forever || mono == 0 {
		return time.Time{}
	}
	return e.clock.Now().Add(time.Duration(int64(mono) - int64(e.clock.Monotonic()))).UTC()
}

// Interfaces lists what is shielded, and what is to be.
func (e *engine) Interfaces() ([]state.InterfaceView, error) {
	attachments, err := e.shield.Attachments()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	views := map[string]*state.InterfaceView{}
	view := func(name string) *state.InterfaceView {
		if views[name] == nil {
			views[name] = &state.InterfaceView{Name: name}
		}
		return views[name]
	}
	for _, a := range attachments {
		v := view(a.Name)
		v.Attached, v.Why, v.Ifindex = a.Mode != loader.ModeNone, a.Why, a.Ifindex
		v.ProgramID, v.ProgramTag = uint32(a.ProgramID), a.ProgramTag
		if v.Attached {
			v.Mode = a.Mode.String()
		}
	}
	for _, i := range e.state.Interfaces() {
		if mode, source, ok := i.Wanted(); ok {
			v := view(i.Name)
			v.Wanted, v.Source = mode, source
		}
	}
	e.mu.Lock()
	for name, why := range e.troubles {
		if v := view(name); !v.Attached {
			v.Why = why
		}
	}
	e.mu.Unlock()
	out := make([]state.InterfaceView, 0, len(views))
	for _, v := range views {
		if !v.Attached && v.Why == "" {
			v.Why = loader.ErrNoInterface.Error()
		}
		out = append(out, *v)
	}
	slices.SortFunc(out, func(a, b state.InterfaceView) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// limitNames names limits by their numbers.
func (e *engine) limitNames() map[uint8]string {
	names := map[uint8]string{}
	for _, l := range e.state.Limits() {
		names[l.Number] = l.Name
	}
	return names
}

func nameOf(names map[uint8]string, number uint8) string {
	if name, ok := names[number]; ok {
		return name
	}
	return "limit " + strconv.Itoa(int(number)) + ", gone"
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

func exceeded(number uint8, first, last readings) []state.Exceeded {
	type key struct {
		threshold bpf.Threshold
		monitored bool
	}
	before := map[key]uint64{}
	for _, c := range first.limits {
		if c.Limit == number {
			before[key{c.Threshold, c.Monitored}] = c.Packets
		}
	}
	out := []state.Exceeded{}
	for _, c := range last.limits {
		if c.Limit == number {
			out = append(out, state.Exceeded{Threshold: c.Threshold.String(), Monitored: c.Monitored, Packets: c.Packets, Bytes: c.Bytes,
				PerSecond: rate(before[key{c.Threshold, c.Monitored}], c.Packets, last.at.Sub(first.at))})
		}
	}
	slices.SortFunc(out, func(a, b state.Exceeded) int { return cmp.Compare(b.Packets, a.Packets) })
	return out
}

// source makes a source's view, with the rates since it was seen before if it was.
func (e *engine) source(s maps.Source, names map[uint8]string, before *maps.Source, d time.Duration) state.SourceView {
	v := state.SourceView{Prefix: s.Prefix, Limit: nameOf(names, s.Limit), Packets: s.Packets, Bytes: s.Bytes, Dropped: s.Dropped,
		First: e.wall(s.First), Seen: e.wall(s.Seen), PenaltyUntil: e.wall(s.PenaltyUntil)}
	if before != nil {
		v.PacketsPerSecond = rate(before.Packets, s.Packets, d)
		v.BitsPerSecond = 8 * rate(before.Bytes, s.Bytes, d)
		v.DroppedPerSecond = rate(before.Dropped, s.Dropped, d)
	}
	if ban, ok := e.tables.Bans.Lookup(s.Prefix.Addr()); ok && !ban.Monitor {
		v.Banned = true
	}
	v.Allowed = len(e.state.AllowsFor(s.Prefix)) > 0
	return v
}

type sourceKey struct {
	prefix netip.Prefix
	limit  uint8
}

func byKey(sources []maps.Source) map[sourceKey]*maps.Source {
	out := make(map[sourceKey]*maps.Source, len(sources))
	for i := range sources {
		out[sourceKey{sources[i].Prefix, sources[i].Limit}] = &sources[i]
	}
	return out
}

// earlier is a source as it was in an earlier reading. One that was tracked since had nothing then;
// of one that was just not among the first, nothing is known.
func earlier(before map[sourceKey]*maps.Source, s *maps.Source, since uint64) *maps.Source {
	if b := before[sourceKey{s.Prefix, s.Limit}]; b != nil && b.First == s.First {
		return b
	}
	if s.First >= since {
		return &maps.Source{}
	}
	return nil
}

var orders = map[state.Order]maps.Order{state.ByPackets: maps.ByPackets, state.ByBytes: maps.ByBytes, state.ByDropped: maps.ByDropped}

// Sources lists the first sources of an order. Where rates are measured, the order is that of the
// rates: what was counted long ago is nobody's concern.
func (e *engine) Sources(ctx context.Context, by state.Order, n int, d time.Duration) (state.SourceList, error) {
	order, ok := orders[by]
	if !ok {
		return state.SourceList{}, &state.Error{Code: state.CodeInvalid, Field: "by", Value: string(by), Detail: "is none of packets, bytes and dropped"}
	}
	list := state.SourceList{By: by, Capacity: e.tables.Sources.Capacity(), Sampled: state.Duration(d)}
	wide := n
	if d > 0 {
		wide = max(8*n, 8192) // so that a source which has just begun is among them
	}
	since, start := e.clock.Monotonic(), time.Now()
	var before map[sourceKey]*maps.Source
	if d > 0 {
		first, err := e.tables.Sources.Top(wide, order)
		if err != nil {
			return list, fmt.Errorf("read the sources: %w", err)
		}
		before = byKey(first)
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return list, ctx.Err()
		case <-timer.C:
		}
	}
	took := time.Since(start)
	top, err := e.tables.Sources.Top(wide, order)
	if err != nil {
		return list, fmt.Errorf("read the sources: %w", err)
	}
	if list.Tracked, err = e.tables.Sources.Len(); err != nil {
		return list, fmt.Errorf("count the sources: %w", err)
	}
	if d > 0 {
		grown := func(s *maps.Source) float64 {
			b := earlier(before, s, since)
			switch {
			case b == nil:
				return -1
			case by == state.ByBytes:
				return rate(b.Bytes, s.Bytes, took)
			case by == state.ByDropped:
				return rate(b.Dropped, s.Dropped, took)
			}
			return rate(b.Packets, s.Packets, took)
		}
		slices.SortStableFunc(top, func(a, b maps.Source) int { return cmp.Compare(grown(&b), grown(&a)) })
	}
	names := e.limitNames()
	list.Sources = make([]state.SourceView, 0, n)
	for i := range top[:min(n, len(top))] {
		var b *maps.Source
		if d > 0 {
			b = earlier(before, &top[i], since)
		}
		list.Sources = append(list.Sources, e.source(top[i], names, b, took))
	}
	return list, nil
}

// limitViews are the limits with what they have done.
func (e *engine) limitViews(first, last readings, since uint64, most int) []state.LimitView {
	names := e.limitNames()
	before := byKey(first.top)
	var out []state.LimitView
	for _, l := range e.state.Limits() {
		v := state.LimitView{Limit: l, Exceeded: exceeded(l.Number, first, last)}
		for i := range last.top {
			s := &last.top[i]
			if s.Limit != l.Number || s.Dropped == 0 || len(v.Sources) >= most {
				continue
			}
			var b *maps.Source
			if last.at != first.at {
				b = earlier(before, s, since)
			}
			v.Sources = append(v.Sources, e.source(*s, names, b, last.at.Sub(first.at)))
		}
		out = append(out, v)
	}
	return out
}

// topSources is how many of the sources that are dropped most are looked at for limits.
const topSources = 1000

// Limits lists the limits with what they have done.
func (e *engine) Limits() ([]state.LimitView, error) {
	r, err := e.read(topSources)
	if err != nil {
		return nil, err
	}
	return e.limitViews(r, r, 0, 0), nil
}

// Limit shows one limit, and whom it drops most.
func (e *engine) Limit(name string) (state.LimitView, error) {
	r, err := e.read(topSources)
	if err != nil {
		return state.LimitView{}, err
	}
	for _, v := range e.limitViews(r, r, 0, 10) {
		if v.Name == name {
			return v, nil
		}
	}
	if err := state.CheckLimitName(name); err != nil {
		return state.LimitView{}, err
	}
	return state.LimitView{}, &state.Error{Code: state.CodeNotFound, Field: "name", Value: name, Detail: "is no limit; `levee limit list` shows those that there are"}
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
	o.Trials = e.state.Trials()
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

// Health says whether all is well, and what to do if not.
func (e *engine) Health() state.Health {
	e.mu.Lock()
	problems := slices.Clone(e.lasting)
	e.mu.Unlock()
	if f := e.state.Failure(); f != nil {
		problems = append(problems, "the last change could not be written: "+f.Error())
	}
	if err := e.audit.Failing(); err != nil {
		problems = append(problems, "the audit log can't be written, records are lost: "+err.Error())
	}
	switch last := e.reconciler.Last(); {
	case last.Error != "":
		problems = append(problems, "state and kernel could not be made equal: "+last.Error)
	case last.Drift > 0:
		problems = append(problems, fmt.Sprintf("%d entries of the kernel's tables differed from the state and were put right: something else writes them", last.Drift))
	}
	problems = append(problems, e.trialProblems()...)
	if p := e.finder.Problem(); p != "" {
		problems = append(problems, "protected addresses could not all be found, those known before stay protected: "+p)
	}
	interfaces, err := e.Interfaces()
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, i := range interfaces {
		if i.Wanted != "" && !i.Attached {
			problems = append(problems, i.Name+" is not shielded: "+i.Why)
		}
	}
	h := state.Health{State: "ok", Problems: problems}
	switch {
	case !e.ready.Load():
		h.State = "starting"
	case len(problems) > 0:
		h.State = "degraded"
	}
	return h
}
