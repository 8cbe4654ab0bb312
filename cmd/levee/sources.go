package main

import (
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// quiet is how long a source must not have been heard of for that to be told.
const quietTime = 10 * time.Second

// sourceGrid lists sources: with what they send now, or with what they sent since they are known.
func (a *app) sourceGrid(sources []state.SourceView, rates bool, indent string) {
	head := []string{"source", "limit", "passed", "bytes", "dropped", "share", "known for", "note"}
	right := []int{2, 3, 4, 5, 6}
	if rates {
		head = []string{"source", "limit", "pkt/s", "bit/s", "drop/s", "passed", "dropped", "note"}
	}
	g := a.grid(head...).numbers(right...).flexible(7, true)
	g.indent = indent
	for _, s := range sources {
		cells := []string{state.PrefixString(s.Prefix), s.Limit}
		if rates {
			cells = append(cells, dash(s.PacketsPerSecond), dash(s.BitsPerSecond), dash(s.DroppedPerSecond),
				short(float64(s.Packets)), orDash(s.Dropped))
		} else {
			cells = append(cells, short(float64(s.Packets)), bytesOf(s.Bytes), orDash(s.Dropped),
				share(s.Dropped, s.Packets+s.Dropped), a.age(s.First))
		}
		cells = append(cells, a.sourceNote(s))
		switch {
		case s.DroppedPerSecond > 0 && !s.Monitored:
			g.painted(red, cells...)
		default:
			g.row(cells...)
		}
	}
	if !rates && a.narrow() {
		g.drop(3)
	}
	g.hide().render()
}

func dash(f float64) string {
	if f == 0 {
		return "–"
	}
	return short(f)
}

// share writes a part of a whole.
func share(part, whole uint64) string {
	if part == 0 || whole == 0 {
		return ""
	}
	percent := float64(part) / float64(whole) * 100
	switch {
	case percent < 1:
		return "<1%"
	case percent > 99 && part < whole:
		return ">99%"
	}
	return short(percent) + "%"
}

func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(a.now().Sub(t))
}

func (a *app) sourceNote(s state.SourceView) string {
	var notes []string
	if s.Banned {
		notes = append(notes, "banned")
	}
	if s.Allowed {
		notes = append(notes, "allowed")
	}
	if s.Monitored && s.Dropped > 0 {
		notes = append(notes, "monitored")
	}
	if d := s.PenaltyUntil.Sub(a.now()); d > 0 {
		notes = append(notes, "penalty "+span(d.Round(time.Second)))
	}
	if d := a.now().Sub(s.Seen); !s.Seen.IsZero() && d > quietTime {
		notes = append(notes, "silent "+span(d))
	}
	return strings.Join(notes, ", ")
}
