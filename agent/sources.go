package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/maps"
)

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
	v.Monitored = e.config.Load().Mode == state.Monitor || e.monitors(v.Limit)
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

// widest is how many sources are read at most to find the first by their rates.
const widest = 16_384

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
		wide = max(n, min(max(8*n, 8192), widest)) // so that a source which has just begun is among them
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
